"""Baselines: centralized ones see every meta-training user's interactions in one place, and every table says so.

``fedavg`` and ``reconstruction`` are federated: their users' interactions stay where they are.
"""
