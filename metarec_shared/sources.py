"""Where a run's data comes from, as the settings say: a folder in a known layout, or the generator."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.catalogue import Catalogue, TrainingItems
from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError
from metarec_shared.generator import generate_catalogue, generate_dataset
from metarec_shared.item_vectors import with_item_vectors
from metarec_shared.readers import read_catalogue, read_dataset
from metarec_shared.settings import DataSettings, GeneratorSettings, Settings
from metarec_shared.split import held_out_items
from metarec_shared.text import TextFeatures, text_features


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFeatures:
    """The public side of a run: its items and their text vectors, the same at the server and at every node.

    Attributes:
        items: The catalogue, and which of it training knows.
        features: Text vectors of the whole catalogue.
        own: Whether every node has items of its own: then their text encoder alone has to be the same.
    """

    items: TrainingItems
    features: TextFeatures
    own: bool = False

    @property
    def text(self) -> Float[Tensor, "items text"]:
        """Text vectors of the items that training knows."""
        return self.features.vectors[torch.from_numpy(self.items.positions)]

    @property
    def fingerprint(self) -> str:
        """Equal at server and node where the same items have the same text and the same text encoder."""
        if self.own:
            return f"any items, {self.features.encoder_fingerprint}"
        return f"{self.items.known.fingerprint}-{self.features.fingerprint}"


def load_item_features(settings: Settings, *, progress: bool = False) -> ItemFeatures:
    """Return the run's items and their text vectors, without reading any interaction.

    Raises:
        MetaRecError: The catalogue or the text encoder cannot be used.
    """
    items, own = training_items(settings, load_catalogue(settings)), settings.federation.own_catalogues
    features = catalogue_features(items.catalogue, settings, progress=progress)
    return ItemFeatures(items=items, features=features, own=own)


def catalogue_features(
    catalogue: Catalogue, settings: Settings, *, corpus: Catalogue | None = None, progress: bool = False
) -> TextFeatures:
    """Return the vectors of a catalogue's items: their text's, and behind those the ones of ``data.item-vectors``.

    Args:
        catalogue: The items.
        settings: Which encoder, which file.
        corpus: As in ``text_features``.
        progress: Whether to show a progress bar where it takes long.

    Raises:
        MetaRecError: The text encoder or the file cannot be used.
    """
    features = text_features(catalogue, settings.text, corpus=corpus, seed=settings.run.seed, progress=progress)
    if not settings.data.item_vectors:
        return features
    return with_item_vectors(features, catalogue, Path(settings.data.item_vectors))


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
    if folder := settings.data.catalogue or settings.data.path:
        return read_catalogue(Path(folder), settings.data)
    return generate_catalogue(settings.generator)


def training_items(settings: Settings, catalogue: Catalogue) -> TrainingItems:
    """Decide which items are held out of training, by a keyed hash of the seed and the item id."""
    hidden = held_out_items(settings.run.seed, catalogue.item_ids, settings.data.hold_out_items)
    return TrainingItems(catalogue=catalogue, positions=np.flatnonzero(~hidden))


@lru_cache(maxsize=2)
def _dataset(data: DataSettings, generator: GeneratorSettings) -> Dataset:
    if data.path:
        return read_dataset(Path(data.path), data)
    if data.catalogue:
        raise DataError("data.catalogue needs data.path: generated users know generated items")
    if data.attribute_names:
        raise DataError("data.user-attributes needs data.path: generated users have none")
    return generate_dataset(generator)
