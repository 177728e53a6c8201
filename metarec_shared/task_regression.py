"""The linear meta-learner in closed form: ridge regression from support sets to query sets, over all users' tasks.

A task has a support set x and a query set y, both as indicators over the catalogue. The weights B that predict best,

    B = argmin_B  sum over tasks |y - x B|^2 + penalty |B|^2  =  P Q,     P = (S + penalty I)^-1,
    S = sum over tasks x' x,      Q = sum over tasks x' y,

need only the second moments S and Q, which are sums over users: every node adds up its own. Tasks are those that
cold-start users are judged by, and the sums run over all of them.

In time order that is what follows. In random order nothing does, and that support items are not in the query set is no
reason to score low what goes with them: what is predicted is that the user has an item, x + y. No item may speak for
itself then, and

    B = argmin_B  sum over tasks |x + y - x B|^2 + penalty |B|^2  with B_jj = 0
      = T - P diag(T_jj / P_jj),    T = P (S + Q).

The sums are then expectations over orders:
of a history of n items, s go into the support set and the others are the query, so that

    E[x_i x_i] = s / n,   E[x_i x_j] = s (s - 1) / (n (n - 1)),   E[x_i y_j] = s (n - s) / (n (n - 1)).

In time order every place of a history is a task: what came before it predicts what follows. The nearer an interaction
is to that place, the more it says and the more it counts, by powers of a decay g:

    x = sum over k >= 0 of g^k e(i_{t-k}),      y = sum over k >= 0 of g^k e(i_{t+1+k}),

so that B is the ridge regression of discounted futures on discounted pasts (a successor representation), and the later
of two support items says more.

An item that nobody had has no column in B. Its column is predicted from its text, by ridge regression of the columns of
the others on theirs: of what a support item speaks for, text tells how much it speaks for each direction of text.

EASE regresses whole histories on themselves, which is the second without query sets; here the loss is that of users
who have few interactions.

References:
    Steck (2019), Embarrassingly shallow autoencoders for sparse data, equations 6 to 8 (EASE).
    Steck (2020), Autoencoders that don't overfit towards the identity, section 3 (dropout in closed form).
    Bertinetto et al. (2019), Meta-learning with differentiable closed-form solvers, equation 6.
    Dayan (1993), Improving generalization for temporal difference learning: the successor representation.
    Gantner et al. (2010), Learning attribute-to-feature mappings for cold-start recommendations, section III.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.interactions import Interactions
from metarec_shared.text_ridge import fit_text_ridge

Target = Literal["query", "both"]

INTERACTIONS_AT_ONCE = 2**17
"""Interactions whose moments are added up together, about; memory grows with it, times a dozen in time order."""

NEGLIGIBLE = 0.05
"""Weight below which an interaction is left out of a task in time order, so that a task holds some dozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMoments:
    """Second moments of tasks, summed over users.

    Attributes:
        support: S, support items with support items, sparse float32 [items, items], symmetric.
        query: Q, support items with query items, sparse float32 [items, items].
    """

    support: sp.csr_array
    query: sp.csr_array

    @classmethod
    def none(cls, items: int) -> "TaskMoments":
        """Return the moments of nobody."""
        return cls(support=_sparse(sp.csr_array((items, items))), query=_sparse(sp.csr_array((items, items))))

    def __add__(self, other: "TaskMoments") -> "TaskMoments":
        return TaskMoments(support=_sparse(self.support + other.support), query=_sparse(self.query + other.query))


def task_moments(
    histories: Interactions, items: int, *, users: NDArray[np.int64] | None = None, support: int
) -> TaskMoments:
    """Return the moments of the tasks of users in random order; one with a single interaction has none.

    Args:
        histories: Of users.
        items: Size of the catalogue.
        users: Positions of those whose tasks count; None: all.
        support: Largest support set; never the whole history. All other items are the query set.
    """
    return sum((_in_random_order(part, items, support) for part in _parts(histories, users)), TaskMoments.none(items))


def discounted_moments(
    histories: Interactions, items: int, *, users: NDArray[np.int64] | None = None, decay: float
) -> TaskMoments:
    """Return the moments of the tasks of users in time order, a task a place of a history that has a next interaction.

    Args:
        histories: Of users.
        items: Size of the catalogue.
        users: Positions of those whose tasks count; None: all.
        decay: What an interaction counts for over one that is nearer by one, above 0 and below 1; those that count for
            less than ``NEGLIGIBLE`` count for nothing.
    """
    return sum((_in_time(part, items, decay) for part in _parts(histories, users)), TaskMoments.none(items))


def _parts(histories: Interactions, users: NDArray[np.int64] | None) -> Iterator[Interactions]:
    """Yield the histories that hold a task, of some users after the other."""
    lengths = histories.lengths
    users = np.flatnonzero(lengths >= 2) if users is None else users[lengths[users] >= 2]
    part = (np.cumsum(lengths[users]) - lengths[users]) // INTERACTIONS_AT_ONCE  # which its first interaction falls in
    for some in np.split(users, np.flatnonzero(np.diff(part)) + 1):
        if len(some):
            yield histories.take(some)


def _in_random_order(histories: Interactions, items: int, support: int) -> TaskMoments:
    n = histories.lengths.astype(np.float64)
    s = np.minimum(support, n - 1)
    x = _indicators(histories.items, histories.offsets, items)
    pairs = n * (n - 1)
    together = sp.csr_array(x.T @ sp.dia_array(((s * (s - 1) / pairs)[None], [0]), shape=(len(n), len(n))) @ x)
    apart = sp.csr_array(x.T @ sp.dia_array(((s * (n - s) / pairs)[None], [0]), shape=(len(n), len(n))) @ x)
    together.setdiag(x.T @ (s / n))
    apart.setdiag(0.0)
    apart.eliminate_zeros()
    return TaskMoments(support=_sparse(together), query=_sparse(apart))


def _in_time(histories: Interactions, items: int, decay: float) -> TaskMoments:
    n = histories.lengths
    owner = np.repeat(np.arange(len(n)), n - 1)
    first, beyond = histories.offsets[owner], histories.offsets[owner + 1]
    latest = np.delete(np.arange(histories.offsets[-1]), histories.offsets[1:] - 1)  # of each task's support set
    powers = np.power(decay, np.arange(1 + int(np.log(NEGLIGIBLE) / np.log(decay))), dtype=np.float64)
    past = [(latest - k, latest - k >= first) for k in range(len(powers))]
    future = [(latest + 1 + k, latest + 1 + k < beyond) for k in range(len(powers))]
    x, y = (_discounted(histories.items, places, powers, items) for places in (past, future))
    return TaskMoments(support=_sparse(x.T @ x), query=_sparse(x.T @ y))


def _discounted(
    rows: NDArray[np.integer],
    places: Sequence[tuple[NDArray[np.int64], NDArray[np.bool_]]],
    powers: NDArray[np.float64],
    items: int,
) -> sp.csr_array:
    """Return a row a task that holds a power at the item of each of its places; of a place, only where it exists."""
    tasks = np.concatenate([np.flatnonzero(exists) for _, exists in places])
    found = np.concatenate([rows[at[exists]] for at, exists in places])
    values = np.repeat(powers, [int(exists.sum()) for _, exists in places])
    return sp.csr_array(sp.coo_array((values, (tasks, found)), shape=(len(places[0][0]), items)))


def _indicators(rows: NDArray[np.integer], offsets: NDArray[np.int64], items: int) -> sp.csr_array:
    return sp.csr_array((np.ones(len(rows)), rows, offsets), shape=(len(offsets) - 1, items))


def _sparse(matrix: sp.sparray) -> sp.csr_array:
    return sp.csr_array(matrix, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextWeights:
    """What every support item says of items by their text: its row of B as a linear function of text.

    Attributes:
        coefficients: What each item says of each direction of text, float32 [items, text].
        intercept: What it says of an item whose text vector is 0, float32 [items].
        positions: Items of the catalogue that only their text is known of, int64 [unknown].
        text: Their text vectors, float32 [unknown, text].
    """

    coefficients: Float[Tensor, "items text"]
    intercept: Float[Tensor, " items"]
    positions: Int[Tensor, " unknown"]
    text: Float[Tensor, "unknown text"]

    def predictions(
        self, support: Int[Tensor, "users support"], counted: Float[Tensor, "users support"]
    ) -> Float[Tensor, "users unknown"]:
        """Return what is expected of the items that only their text is known of.

        Args:
            support: Catalogue positions of the support items.
            counted: What each of them counts for.
        """
        profile = torch.einsum("us,usd->ud", counted, self.coefficients[support])
        return (counted * self.intercept[support]).sum(dim=1, keepdim=True) + profile @ self.text.T

    def to(self, device: torch.device) -> "TextWeights":
        """Return the weights on ``device``."""
        return TextWeights(
            coefficients=self.coefficients.to(device),
            intercept=self.intercept.to(device),
            positions=self.positions.to(device),
            text=self.text.to(device),
        )

    def transferred(
        self,
        items: int,
        here: Int[Tensor, " shared"],
        there: Int[Tensor, " shared"],
        text: Float[Tensor, "items text"] | None,
    ) -> "TextWeights":
        """Return the weights over another catalogue; as in ``TaskRegression``."""
        width = self.coefficients.shape[1]
        coefficients, intercept = torch.zeros(items, width), torch.zeros(items)
        coefficients[here], intercept[here] = self.coefficients[there], self.intercept[there]
        unknown = torch.full((items,), text is not None).index_fill(0, here, False)
        return TextWeights(
            coefficients=coefficients,
            intercept=intercept,
            positions=unknown.nonzero()[:, 0],
            text=torch.zeros(0, width) if text is None else text[unknown],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRegression:
    """The strongest weights of every support item.

    Attributes:
        neighbours: Items that each item speaks for, int64 [items, neighbours].
        weights: How much, float32 [items, neighbours]; 0 where there are fewer.
        blends: What a prediction is multiplied by before it is added to a model's scores, by the size of the support
            set; between sizes linear, beyond them constant.
        decay: What a support item counts for over the next later one, as in the tasks; 1: all count the same.
        by_text: What it says of items that only their text is known of; None: nothing.
    """

    neighbours: Int[Tensor, "items neighbours"]
    weights: Float[Tensor, "items neighbours"]
    blends: Mapping[int, float] = field(default_factory=lambda: {1: 1.0})
    decay: float = 1.0
    by_text: TextWeights | None = None

    def predictions(
        self,
        support: Int[Tensor, "users support"],
        counted: Num[Tensor, "users support"] | Bool[Tensor, "users support"],
    ) -> Float[Tensor, "users items"]:
        """Return x B, what is expected of every item to be in the query set; 0 for an empty support set.

        Args:
            support: Catalogue positions of the support items, oldest first where there is a decay; padding may be any.
            counted: How often each of them counts, or whether it does; 0 for padding.
        """
        rows, counted = support.masked_fill(counted == 0, 0), counted.to(self.weights.dtype)
        if self.decay < 1:
            later = counted.flip(1).cumsum(dim=1).flip(1) - counted
            counted = counted * self.decay**later
        values = self.weights[rows] * counted[:, :, None]
        scored = values.new_zeros(len(support), len(self.neighbours))
        scored.scatter_add_(1, self.neighbours[rows].flatten(1), values.flatten(1))
        if self.by_text is not None and len(self.by_text.positions):
            scored[:, self.by_text.positions] += self.by_text.predictions(rows, counted)
        return scored

    def blended(
        self,
        support: Int[Tensor, "users support"],
        counted: Float[Tensor, "users support"],
        sizes: Int[Tensor, " users"],
    ) -> Float[Tensor, "users items"]:
        """Return what is added to a model's scores: predictions by the blend of each support set's size."""
        blends = blend_of_size(self.blends, sizes).to(counted)
        users = ((blends != 0) & (counted != 0).any(dim=1)).nonzero()[:, 0]  # the others are not computed
        found = blends[users, None] * self.predictions(support[users], counted[users])
        return found.new_zeros(len(support), found.shape[1]).index_copy(0, users, found)

    def to(self, device: torch.device) -> "TaskRegression":
        """Return the regression on ``device``."""
        return replace(
            self,
            neighbours=self.neighbours.to(device),
            weights=self.weights.to(device),
            by_text=None if self.by_text is None else self.by_text.to(device),
        )

    def transferred(
        self,
        items: int,
        here: Int[Tensor, " shared"],
        there: Int[Tensor, " shared"],
        text: Float[Tensor, "items text"] | None = None,
    ) -> "TaskRegression":
        """Return the regression over another catalogue; items that are not shared do not speak.

        Args:
            items: Size of the other catalogue.
            here: Where shared items stand in it.
            there: Where they stand in this one's.
            text: Text vectors of the other catalogue, by which items that are not shared are spoken for; None: they are
                not.
        """
        place = torch.full((len(self.neighbours),), -1).index_put((there,), here)
        moved = place[self.neighbours]
        known = moved >= 0
        neighbours = torch.zeros(items, moved.shape[1], dtype=torch.int64)
        weights = torch.zeros(items, moved.shape[1])
        neighbours[here] = moved.clamp(min=0)[there]
        weights[here] = (self.weights * known)[there]
        by_text = None if self.by_text is None else self.by_text.transferred(items, here, there, text)
        return replace(self, neighbours=neighbours, weights=weights, by_text=by_text)


def fit_task_regression(
    moments: TaskMoments,
    *,
    target: Target,
    penalty: float,
    neighbours: int,
    decay: float = 1.0,
    most_items: int | None = None,
    text: Float[Tensor, "items text"] | None = None,
) -> TaskRegression:
    """Solve the regression and keep the strongest weights of each support item.

    Time grows with the cube of the items that are solved for, memory with the square (a few such matrices).

    Args:
        moments: Of all tasks.
        target: What is predicted: the query set, or that a user has an item, whether it is in the support or the query
            set; no item speaks for itself then.
        penalty: Of the squared weights, over the mean diagonal of S.
        neighbours: Weights kept of each support item, the largest in size.
        decay: That of the moments; 1: those of tasks in random order.
        most_items: Items that are solved for at most, those in most support sets; the others have no weights.
        text: Text vectors of the items, from which weights of items that training does not know are predicted; None:
            such items get none.

    Raises:
        ValueError: The penalty is not above 0.
    """
    if penalty <= 0:
        raise ValueError(f"the penalty of the task regression must be above 0, got {penalty}")
    items = moments.support.shape[0]
    solved = np.arange(items)
    if most_items is not None and most_items < items:
        solved = np.sort(np.argsort(-moments.support.diagonal(), kind="stable")[:most_items])
        moments = TaskMoments(
            support=_sparse(moments.support[solved][:, solved]), query=_sparse(moments.query[solved][:, solved])
        )
    S = torch.from_numpy(moments.support.toarray())
    S.diagonal().add_(penalty * S.diagonal().mean().clamp(min=torch.finfo(S.dtype).tiny))
    root = torch.linalg.cholesky(S)
    if target == "query":
        B = torch.cholesky_solve(torch.from_numpy(moments.query.toarray()), root)
    else:
        P = torch.cholesky_inverse(root)
        T = P @ torch.from_numpy((moments.support + moments.query).toarray())
        B = (T - P * (T.diagonal() / P.diagonal())).fill_diagonal_(0.0)
    strongest = B.abs().topk(min(neighbours, len(B)), dim=1).indices
    found = TaskRegression(
        neighbours=strongest,
        weights=B.gather(1, strongest),
        decay=decay,
        by_text=None if text is None else _fit_text_weights(B, text[torch.from_numpy(solved)]),
    )
    return found if len(solved) == items else found.transferred(items, torch.from_numpy(solved), torch.arange(len(B)))


def _fit_text_weights(B: Float[Tensor, "items items"], text: Float[Tensor, "items text"]) -> TextWeights:
    ridge = fit_text_ridge(text, B.T)
    return TextWeights(
        coefficients=ridge.coefficients.T.contiguous(),
        intercept=ridge.intercept,
        positions=torch.zeros(0, dtype=torch.int64),
        text=text[:0],
    )


def blend_of_size(blends: Mapping[int, float], wanted: Num[Tensor, " users"]) -> Float[Tensor, " users"]:
    """Return the blend of each size that is wanted, from blends by size: between them linear, beyond them constant."""
    sizes = sorted(blends)
    weights = between_sizes(sizes, wanted)
    return weights @ weights.new_tensor([blends[size] for size in sizes])


def between_sizes(sizes: Sequence[int], wanted: Num[Tensor, " users"]) -> Float[Tensor, "users sizes"]:
    """Return the weights by which values at ``sizes``, ascending, are interpolated linearly; beyond them constant."""
    exact, device = wanted if wanted.is_floating_point() else wanted.float(), wanted.device
    if len(sizes) == 1:
        return torch.ones_like(exact)[:, None]
    knots = torch.tensor(sizes, dtype=exact.dtype, device=device)
    place = exact.clamp(knots[0], knots[-1])
    right = torch.searchsorted(knots, place).clamp(min=1, max=len(sizes) - 1)
    left = right - 1
    share = (place - knots[left]) / (knots[right] - knots[left])
    weights = torch.zeros(len(wanted), len(sizes), dtype=exact.dtype, device=device)
    return weights.scatter(1, left[:, None], 1 - share[:, None]).scatter(1, right[:, None], share[:, None])
