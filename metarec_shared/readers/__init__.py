"""Read a folder of interactions and items, in any of the layouts that MetaRec knows."""

from metarec_shared.readers.reading import read_catalogue, read_dataset

__all__ = ["read_catalogue", "read_dataset"]
