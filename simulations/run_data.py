"""The data that a finished run was made with, read again to judge it afterwards."""

from collections.abc import Mapping
from pathlib import Path

from metarec_shared.checkpoint import Checkpoint
from metarec_shared.errors import DataError
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset, load_training_dataset


def data_settings(checkpoint: Checkpoint, data: Path | None, reading: Mapping[str, str] | None = None) -> Settings:
    """Return a run's settings, but for where its data lies now and how it is read.

    Args:
        checkpoint: The run's.
        data: Folder of the data; None: where the run found it.
        reading: Settings of how the data is read that are not the run's, ``{"data.on-bad-rows": "skip"}`` say.

    Raises:
        SettingsError: A setting makes no sense.
    """
    path = {} if data is None else {"data.path": str(data)}
    return checkpoint.settings.with_values({**path, **(reading or {})}, "options")


def training_population(checkpoint: Checkpoint, settings: Settings) -> Population:
    """Return everybody's histories over the items that training knew, with the roles that the run gave them.

    Raises:
        DataError: The data cannot be read, or is with other items than the run's.
    """
    _check_items(checkpoint, settings)
    interactions = load_training_dataset(settings).interactions
    return Population.of(interactions, checkpoint.rating_scale, settings.run.seed)


def whole_population(checkpoint: Checkpoint, settings: Settings) -> Population:
    """Return everybody's histories over the whole catalogue, held-out items included, as ``training_population``.

    Raises:
        DataError: As ``training_population``.
    """
    _check_items(checkpoint, settings)
    return Population.of(load_dataset(settings).interactions, checkpoint.rating_scale, settings.run.seed)


def has_items_of(checkpoint: Checkpoint, settings: Settings) -> bool:
    """Say whether data is with the items of a run: ids and texts, in their order.

    Raises:
        DataError: The data cannot be read.
    """
    return load_dataset(settings).catalogue.fingerprint == checkpoint.items.catalogue.fingerprint


def _check_items(checkpoint: Checkpoint, settings: Settings) -> None:
    if not has_items_of(checkpoint, settings):
        name = load_dataset(settings).name
        raise DataError(f"{name}: has other items than the run was trained with; wanted the data of the run")
