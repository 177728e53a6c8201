"""What server and nodes say to each other, free of any transport; ``wire`` turns it into Flower messages and back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.dataset import RatingScale
from metarec_shared.privacy.terms import Terms
from metarec_shared.split import Role
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskMoments, TaskRegression
from metarec_shared.tasks import Order

Parameters = dict[str, Tensor]
"""The meta-initialization (or a meta-gradient) by parameter name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentRequest:
    """The server asks nodes who they are and how often their meta-training users met each item.

    Attributes:
        catalogue: Fingerprint of the server's catalogue; a node with another one refuses.
        popularity: Whether item counts are wanted: they cost budget where they are noised.
    """

    catalogue: str
    popularity: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrollment:
    """The answer of one node, or of several folded into one: a column a quantity, so that a million nodes cost bytes.

    Attributes:
        node_ids: Flower's ids of the nodes, which differ from run to run, uint64 [nodes].
        names: The nodes' own, stable names: sampling is addressed by them, strings [nodes].
        training_users: Users each node can meta-train on, or declares where there are terms, int64 [nodes].
        validation_users: Users each node can validate on, none where there are terms, int64 [nodes].
        item_counts: Meta-training users who interacted with each item, float64 [items]; under terms bounded a user, and
            noised.
        rating_scale: Scale of the nodes' ratings, the widest where they differ; None where there are no ratings.
        rating_sum: Sum of all ratings of meta-training users, where they are predicted; never sent under terms.
        rating_count: How many these are; 0: not sent, or there are none.
        terms: What the nodes do for their users' privacy; None: nothing.
    """

    node_ids: NDArray[np.uint64]
    names: NDArray[np.str_]
    training_users: NDArray[np.int64]
    validation_users: NDArray[np.int64]
    item_counts: NDArray[np.float64]
    rating_scale: RatingScale | None
    rating_sum: float = 0.0
    rating_count: int = 0
    terms: Terms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentsRequest:
    """The server asks for the second moments of meta-training users' tasks (``task_regression``).

    Attributes:
        catalogue: Fingerprint of the catalogue; a node with another one refuses.
        start_sizes: Sizes of support sets after which users' next items are counted (``start_prior``).
    """

    catalogue: str
    start_sizes: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """The answer of one node, or of several folded into one.

    Attributes:
        moments: Summed over their meta-training users, in every order in which histories are read; those in time order
            are of users with timestamps.
        starts: Counts of what follows the first interactions, of users with timestamps, sparse float32
            [start_sizes, items].
        nodes: Nodes that took part.
    """

    moments: Mapping[Order, TaskMoments]
    starts: sp.csr_array
    nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """The server asks for a meta-update.

    Attributes:
        round_number: Round, from 1; it addresses every draw.
        sampling_rate: Chance of each meta-training user of the node to take part (Poisson sampling).
        rating_scale: The scale on which all nodes read ratings as feedback; None: there are no ratings.
        catalogue: Fingerprint of the catalogue the parameters belong to.
    """

    round_number: int
    sampling_rate: float
    rating_scale: RatingScale | None
    catalogue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaUpdate:
    """The weighted sum of users' meta-gradients, of one node or of several folded into one.

    Attributes:
        gradients: Sum over users of weight times meta-gradient, by parameter name.
        weight: Sum of the nodes' public weights; the server divides by it.
        loss: Sum over users of the query loss; None where the nodes keep it for their users' privacy.
        users: Users that took part; None likewise.
        nodes: Nodes that took part.
    """

    gradients: Parameters
    weight: float
    loss: float | None
    users: int | None
    nodes: int


class Cell(NamedTuple):
    """One way to judge users.

    Attributes:
        order: Order in which their histories are read.
        support: Support items of each user.
    """

    order: Order
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """The server asks for metrics of the users in a role, in one cell or in several.

    Attributes:
        role: Whose metrics.
        orders: Order of each cell.
        supports: Support items of each cell.
        adapt: Whether to run the inner loop.
        draws: Random orders every user is judged in; of time there is one.
        sampling_rate: Share of the users in the role that are judged, the same ones every time.
        rating_scale: The scale on which all nodes read ratings as feedback; None: there are no ratings.
        catalogue: Fingerprint of the catalogue the parameters belong to.
    """

    role: Role
    orders: tuple[Order, ...]
    supports: tuple[int, ...]
    adapt: bool
    draws: int
    sampling_rate: float
    rating_scale: RatingScale | None
    catalogue: str

    @property
    def cells(self) -> list[Cell]:
        """The cells that users are judged in."""
        return [Cell(*cell) for cell in zip(self.orders, self.supports, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """What comes with a request to evaluate where the server asks how best to add it to the model's scores.

    Attributes:
        regressions: Task regressions; their own blends do not count.
        sharpness: Of a text kernel; None: there is none.
        start_prior: A start prior, whose blends do not count; None: none.
        blends: What the predictions of each of these, in this order, are multiplied by before they are added, for each
            of the request's cells, float32 [ways, parts]; every way has an nDCG of its own.
    """

    regressions: Sequence[TaskRegression]
    blends: Mapping[Cell, Float[Tensor, "ways parts"]]
    sharpness: float | None = None
    start_prior: StartPrior | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Sums of metrics in one cell.

    Attributes:
        users: Users judged, each as often as it was drawn.
        sums: Sum over them of each metric, by name; with additions, of nDCG@k alone, for every way to blend. Empty
            where nobody was judged.
    """

    users: int
    sums: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The answer of one node, or of several folded into one.

    Attributes:
        cells: What was found in each of the request's cells.
        nodes: Nodes that took part.
    """

    cells: Sequence[Judged]
    nodes: int


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether every value is finite, of many tensors at once; false too where a norm overflows."""
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return bool(torch.stack(list(norms)).isfinite().all())
