"""What users begin with: how likely each item follows the first interactions of anybody, by how many there were.

Whoever has one or three interactions, in time order from the start of his history, has said little, and those who
start alike continue alike: sign-up pages and hit lists decide what comes next. So for support sets of n items that
begin a history, the log of how many meta-training users had an item among the interactions that follow their first n
is added to the scores, with a weight for each n that validation users choose. It is the intercept of a multinomial
logistic regression (naive Bayes's class prior), shrunk to what the model says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.interactions import Interactions
from metarec_shared.task_regression import between_sizes
from metarec_shared.tasks import TaskBatch
from metarec_shared.text_ridge import fit_text_ridge

_SMOOTHING = 0.5
"""Users added to each count: the log of an item nobody had must be finite (Jeffreys' prior)."""


def start_counts(
    histories: Interactions, items: int, *, users: NDArray[np.int64], sizes: Sequence[int], query: int
) -> sp.csr_array:
    """Return how many users had each item among the ``query`` interactions after their first n, for each size n.

    Args:
        histories: Of users, in time order.
        items: Size of the catalogue.
        users: Positions of those who count; one with at most n interactions does not count for n.
        sizes: Sizes of support sets.
        query: Interactions counted of a user, at most.

    Returns:
        Counts, sparse float32 [sizes, items].
    """
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    starts, stops = histories.offsets[users], histories.offsets[users + 1]
    for number, size in enumerate(sizes):
        for place in range(size, size + query):
            at = starts[starts + place < stops] + place
            rows.append(np.full(len(at), number))
            columns.append(histories.items[at].astype(np.int64))
    row, column = np.concatenate(rows), np.concatenate(columns)
    counts = sp.coo_array((np.ones(len(row), np.float32), (row, column)), shape=(len(sizes), items))
    return sp.csr_array(counts, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPrior:
    """What is expected after the first interactions, whatever these are.

    Attributes:
        sizes: Sizes of support sets, ascending.
        logs: Log of how many users had each item next, float32 [sizes, items]; between sizes linear, beyond constant.
        blends: What it is multiplied by before it is added to a model's scores, for each size.
    """

    sizes: tuple[int, ...]
    logs: Float[Tensor, "sizes items"]
    blends: tuple[float, ...]

    @classmethod
    def of(cls, counts: sp.csr_array, sizes: tuple[int, ...]) -> "StartPrior":
        """Return the prior of counts by ``start_counts``, which adds nothing yet."""
        logs = torch.from_numpy(np.log(counts.toarray() + np.float32(_SMOOTHING)))
        return cls(sizes=sizes, logs=logs, blends=(0.0,) * len(sizes))

    def with_blends(self, blends: Mapping[int, float]) -> "StartPrior":
        """Return the prior with blends by size; a size without one counts for nothing."""
        return replace(self, blends=tuple(blends.get(size, 0.0) for size in self.sizes))

    def predictions(self, tasks: TaskBatch) -> Float[Tensor, "users items"]:
        """Return the prior of every user whose support set begins his history; 0 for the others."""
        return self._rows(tasks) @ self.logs

    def blended(self, tasks: TaskBatch) -> Float[Tensor, "users items"]:
        """Return what is added to a model's scores."""
        return (self._rows(tasks) * self.logs.new_tensor(self.blends)) @ self.logs

    def to(self, device: torch.device) -> "StartPrior":
        """Return the prior on ``device``."""
        return replace(self, logs=self.logs.to(device))

    def transferred(
        self,
        items: int,
        here: Int[Tensor, " shared"],
        there: Int[Tensor, " shared"],
        texts: tuple[Float[Tensor, "own text"], Float[Tensor, "items text"]] | None = None,
    ) -> "StartPrior":
        """Return the prior over another catalogue; items that are not shared are expected by their text.

        Args:
            items: Size of the other catalogue.
            here: Where shared items stand in it.
            there: Where they stand in this one's.
            texts: Text vectors of this catalogue and of the other; None: an item that is not shared is one that nobody
                had.
        """
        logs = self.logs.new_full((len(self.sizes), items), float(np.log(_SMOOTHING)))
        if texts is not None and len(here) < items:
            logs = fit_text_ridge(texts[0], self.logs.T).predictions(texts[1]).T.contiguous()
        return replace(self, logs=logs.index_copy(1, here, self.logs[:, there]))

    def _rows(self, tasks: TaskBatch) -> Float[Tensor, "users sizes"]:
        """Return how much each size counts for each user."""
        weights = between_sizes(self.sizes, tasks.support_sizes()).to(self.logs)
        if tasks.from_start is None:
            return torch.zeros_like(weights)
        return weights * tasks.from_start.to(weights)[:, None]
