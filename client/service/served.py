"""The model that is served: loaded, tried, and replaced whole when another one lies in the run's folder."""

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from client.interaction import Interaction, profile_of
from client.recommender import Recommender, scores_of
from metarec_shared.checkpoint import CATALOGUE_FILE, MODEL_FILE
from metarec_shared.errors import CheckpointError, MetaRecError

logger = logging.getLogger(__name__)

TABULATED_ITEMS = 5_000
"""Items of a catalogue for which what all texts say of one another is computed beforehand: 100 MB at most."""

Stamp = tuple[tuple[int, int, int], ...]
"""What changes when a folder's files are replaced: inode, time and size of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that can be served.

    Attributes:
        recommender: It.
        version: Hash of its model and its catalogue, 16 hexadecimal digits.
    """

    recommender: Recommender
    version: str


def load_served(folder: Path) -> Served:
    """Load the model of a run's folder, and try it.

    Raises:
        CheckpointError: The folder holds no usable model that ranks.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in (folder / MODEL_FILE, folder / CATALOGUE_FILE):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    version = digest.hexdigest()
    recommender = Recommender.load(folder)
    model = recommender.state.model
    if model.text_kernel is not None and len(recommender.catalogue) <= TABULATED_ITEMS:
        model.text_kernel = model.text_kernel.tabulated()
    _try(recommender, folder)
    return Served(recommender=recommender, version=version)


class Models:
    """Holds the model that is served, and looks for a newer one.

    Args:
        folder: The run's folder.
        loaded: Called when a model has been loaded and is served from now on.

    Raises:
        CheckpointError: The folder holds no usable model that ranks.
    """

    def __init__(self, folder: Path, loaded: Callable[[], None] = lambda: None) -> None:
        self._folder, self._loaded = folder, loaded
        self._loading = threading.Lock()
        self._seen = _stamp(folder)
        self._settling = self._seen
        self.served = load_served(folder)
        loaded()
        self.reloads = 0
        self.failures = 0

    def look(self) -> bool:
        """Take over a model that was put in the folder, once its files have stayed as they are between two looks.

        Returns:
            Whether another model is served now.
        """
        stamp = _stamp(self._folder)
        settled, self._settling = stamp == self._settling, stamp
        return self.reload() if settled and stamp != self._seen else False

    def reload(self) -> bool:
        """Load what is in the folder; a model that cannot be served changes nothing, and the log says why.

        Returns:
            Whether another model is served now.
        """
        with self._loading:
            self._seen = _stamp(self._folder)
            try:
                served = load_served(self._folder)
            except Exception as error:  # whatever is wrong with it, the model that is served goes on
                said = str(error) if isinstance(error, MetaRecError) else f"{type(error).__name__}: {error}"
                logger.error("the model stays %s; the newer one cannot be served: %s", self.served.version, said)
                self.failures += 1
                return False
            if served.version == self.served.version:
                logger.info("the model is still %s", served.version)
                return False
            logger.info("the model is %s now, it was %s", served.version, self.served.version)
            self.served = served
            self._loaded()
            self.reloads += 1
            return True


def _try(recommender: Recommender, folder: Path) -> None:
    """Score for nobody, and for a user of one item; what is computed once and kept is computed here."""
    state = recommender.state
    if not len(state.catalogue):
        raise CheckpointError(f"{folder / CATALOGUE_FILE}: holds no items")
    one = Interaction(item=state.catalogue.item_ids[0])
    profiles = [profile_of(history, state.catalogue, recommender.rating_scale) for history in ([], [one])]
    if not bool(torch.isfinite(scores_of(state, profiles)).all()):
        raise CheckpointError(f"{folder / MODEL_FILE}: its scores are no finite numbers")


def _stamp(folder: Path) -> Stamp:
    found = []
    for name in (MODEL_FILE, CATALOGUE_FILE):
        try:
            stat = (folder / name).stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(found)
