"""How a round's meta-updates become one meta-gradient: their weighted mean, or a rule that single nodes cannot bend.

The mean adds updates up as they come. The others compare nodes, each by its own mean gradient (its update over its
weight), and every node has one vote whatever it weighs; they hold all updates of a round in memory. They are Flower's:
the median and the trimmed mean go coordinate by coordinate, Krum takes the node that is closest to its neighbours.

References:
    Yin, Chen, Ramchandran and Bartlett (2018), Byzantine-robust distributed learning: towards optimal statistical
    rates, definitions 1 and 2 (median, trimmed mean).
    Blanchard, El Mhamdi, Guerraoui and Stainer (2017), Machine learning with adversaries: Byzantine tolerant gradient
    descent, section 4 (Krum, for n >= 2 f + 3).
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
from numpy.typing import NDArray

from metarec_shared.errors import FederationError, WireError
from metarec_shared.exchange import MetaUpdate, Parameters
from metarec_shared.settings import FederationSettings


class Aggregation(Protocol):
    """Takes in the meta-updates of one round."""

    def add(self, update: MetaUpdate) -> None:
        """Take in one more.

        Raises:
            WireError: It cannot be compared with others.
        """

    def gradient(self, noised: Callable[[Parameters], Parameters]) -> Parameters:
        """Return what the outer step is taken with; what was taken in is used up.

        Args:
            noised: Adds the server's noise to a sum of updates.
        """


def aggregation_of(limits: FederationSettings, like: Parameters) -> Aggregation:
    """Return what takes in a round's updates for parameters shaped ``like`` these."""
    return WeightedMean(like) if limits.aggregation == "mean" else RobustVote(limits)


def check_folding(limits: FederationSettings, *, folds: bool) -> None:
    """Refuse rules that compare nodes where the engine adds nodes up.

    Raises:
        FederationError: It does.
    """
    if folds and limits.aggregation != "mean":
        raise FederationError(
            f"federation.aggregation = {limits.aggregation} compares updates of single nodes, and this engine folds "
            "those of many nodes into one: take mean, or another engine (a deployment, --engine ray)"
        )


class WeightedMean:
    """The sum of all updates over the sum of their weights; holds one sum, however many updates there are."""

    def __init__(self, like: Parameters) -> None:
        self._total = {name: torch.zeros_like(value) for name, value in like.items()}
        self._weight = 0.0

    def add(self, update: MetaUpdate) -> None:
        """Add one more."""
        for name, gradient in update.gradients.items():
            self._total[name] += gradient
        self._weight += update.weight

    def gradient(self, noised: Callable[[Parameters], Parameters]) -> Parameters:
        """Return the mean of the noised sum."""
        return {name: total.div_(self._weight) for name, total in noised(self._total).items()}


class RobustVote:
    """The median, the trimmed mean or Krum's choice of the nodes' mean gradients; holds all of them.

    The server's noise is none of its business: where the server adds it, it is for a sum, and settings refuse the two
    together. Noise that nodes added is part of what is compared, which is post-processing.
    """

    def __init__(self, limits: FederationSettings) -> None:
        self._limits = limits
        self._names: list[str] = []
        self._votes: list[tuple[list[NDArray[Any]], int]] = []

    def add(self, update: MetaUpdate) -> None:
        """Take in one more; a node without weight expected nobody, and has no vote.

        Raises:
            WireError: Its mean gradient is not finite in single precision.
        """
        if not update.weight:
            return
        means = [(gradient.double() / update.weight).float() for gradient in update.gradients.values()]
        if not all(mean.isfinite().all() for mean in means):
            raise WireError(f"meta-update over its weight, {update.weight:.6g}, holds a value that is not finite")
        self._names = list(update.gradients)
        self._votes.append(([mean.numpy() for mean in means], 1))

    def gradient(self, noised: Callable[[Parameters], Parameters]) -> Parameters:
        """Return what the rule makes of the votes.

        Raises:
            FederationError: There are too few of them.
        """
        rule, least = self._limits.aggregation, self._limits.fewest_updates
        if len(self._votes) < least:
            raise FederationError(f"federation.aggregation = {rule} needs {least} meta-updates, got {len(self._votes)}")
        match rule:
            case "median":
                found = aggregate_median(self._votes)
            case "trimmed-mean":
                found = aggregate_trimmed_avg(self._votes, self._limits.trim)
            case _:
                found = self._krum()
        self._votes = []
        pairs = zip(self._names, found, strict=True)
        return {name: torch.from_numpy(np.asarray(value, dtype=np.float32)) for name, value in pairs}

    def _krum(self) -> list[NDArray[Any]]:
        """Return Krum's choice; distances are computed in double precision, which no finite update overflows."""
        votes = [([value.astype(np.float64) for value in values], count) for values, count in self._votes]
        return aggregate_krum(votes, num_malicious=self._limits.byzantine, to_keep=0)
