"""The protobuf package ``metarec``."""
