"""Centralized baselines: they see every meta-training user's interactions in one place, and every table says so."""
