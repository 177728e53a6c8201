"""Simulated federations on one machine: the in-process grid, baselines, protocols, reports."""
