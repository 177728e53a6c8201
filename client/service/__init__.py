"""The gRPC service: a trained model for an app's backend, and a small client of it."""
