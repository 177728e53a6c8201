"""Benchmarks of speed, memory and traffic: each a module that ``python -m`` runs, prints a table and writes JSON."""
