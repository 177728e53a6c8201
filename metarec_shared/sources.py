"""Where a run's data comes from, as the settings say: a folder in a known layout, or the generator."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from metarec_shared.catalogue import Catalogue, TrainingItems
from metarec_shared.dataset import Dataset
from metarec_shared.generator import generate_catalogue, generate_dataset
from metarec_shared.readers import read_catalogue, read_dataset
from metarec_shared.settings import DataSettings, GeneratorSettings, Settings
from metarec_shared.split import held_out_items


def load_dataset(settings: Settings) -> Dataset:
    """Return the whole data set, held-out items included; read once a process.

    Raises:
        DataError: The data cannot be read or used.
    """
    return _dataset(settings.data, settings.generator)


def load_training_dataset(settings: Settings) -> Dataset:
    """Return the data set as training may know it: held-out items and interactions with them are gone."""
    dataset = load_dataset(settings)
    items = training_items(settings, dataset.catalogue)
    if len(items.positions) == len(dataset.catalogue):
        return dataset
    kept = dataset.interactions.keep_items(items.positions, len(dataset.catalogue))
    return replace(dataset, catalogue=items.known, interactions=kept)


def load_catalogue(settings: Settings) -> Catalogue:
    """Return the public catalogue, without reading any interaction."""
    if settings.data.path:
        return read_catalogue(Path(settings.data.path), settings.data)
    return generate_catalogue(settings.generator)


def training_items(settings: Settings, catalogue: Catalogue) -> TrainingItems:
    """Decide which items are held out of training, by a keyed hash of the seed and the item id."""
    hidden = held_out_items(settings.run.seed, catalogue.item_ids, settings.data.hold_out_items)
    return TrainingItems(catalogue=catalogue, positions=np.flatnonzero(~hidden))


@lru_cache(maxsize=2)
def _dataset(data: DataSettings, generator: GeneratorSettings) -> Dataset:
    return read_dataset(Path(data.path), data) if data.path else generate_dataset(generator)
