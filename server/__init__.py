"""What the coordinator runs: the ServerApp, the federated MAML strategy, checkpoints of a run."""
