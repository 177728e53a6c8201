"""What an evaluation protocol is to the benchmark: methods it knows, and their figures for one seed.

A protocol says who is cold, what is support and what is query. A ``Trial`` is the protocol on one data set with one
seed. It trains and tunes whatever a method needs on meta-training and validation users, and judges on test users.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from metarec_shared.dataset import Dataset
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset

Say = Callable[[str], None]
"""Told, in a line each, what happens next."""

Figures = dict[str, dict[str, float]]
"""Metrics by cell of the table, means over the users of the cell; ``users`` is how many those are."""

OURS = "metarec"
CHANCE = "chance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of a table.

    Attributes:
        name: As ``--methods`` and table.json have it.
        about: What it is, in a few words.
        centralized: Whether it sees all meta-training users' interactions in one place.
    """

    name: str
    about: str
    centralized: bool = False


class Trial(ABC):
    """A protocol on one data set with one seed."""

    @abstractmethod
    def figures(self, method: str) -> Figures:
        """Return the figures of one of the protocol's methods on test users.

        Raises:
            MetaRecError: The method cannot be trained or judged on this data.
        """


class EvaluationProtocol(ABC):
    """A protocol by name."""

    name: ClassVar[str]
    about: ClassVar[str]
    """What is asked of a method, in a sentence or two; it stands above the table."""
    methods: ClassVar[tuple[Method, ...]]
    """In the order of the table; ``metarec`` and ``chance`` are among them."""
    shown: ClassVar[tuple[str, ...]]
    """Metrics of the Markdown table and of the charts; table.json has all."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset()

    def datasets(self, settings: Settings) -> tuple[Dataset, ...]:
        """Return what figures are measured on, the data set that is named in the report first.

        Raises:
            MetaRecError: A data set cannot be read, or the settings name none where the protocol needs it.
        """
        return (load_dataset(settings),)

    @abstractmethod
    def open(self, settings: Settings, folder: Path, say: Say) -> Trial:
        """Prepare a trial.

        Args:
            settings: Of our own model's runs; ``run.seed`` is the seed of everything.
            folder: Where whatever is trained for this seed is kept, and found again.
            say: Told what happens.

        Raises:
            MetaRecError: The data does not allow the protocol.
        """
