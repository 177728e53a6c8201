"""What is added to a model's scores, as the graph computes it: task regressions, the start prior, the text kernel.

Each computes what its namesake in ``metarec_shared`` does, from constants in a form that a graph of ordinary operators
can hold: blends by size are looked up in a table of all sizes up to the largest that is told apart, and what differs by
the order of histories is computed for both and counted for one.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from client.export.neighbours import Neighbours
from client.export.tables import table
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskRegression, TextWeights, between_sizes, blend_of_size
from metarec_shared.tasks import Order, TaskBatch
from metarec_shared.text_kernel import TextKernel


class RegressionPart(nn.Module):
    """A task regression that reads the histories of one order.

    Args:
        regression: The regression.
        order: Of the histories that it reads.
        neighbours: Weights kept of each support item, the largest; None: all.
        int8: Whether it is quantized.
    """

    def __init__(self, regression: TaskRegression, order: Order, *, neighbours: int | None, int8: bool) -> None:
        super().__init__()
        self.order, self.decay = order, regression.decay
        self.neighbours = Neighbours(*_strongest(regression, neighbours), int8=int8)
        self.blends = BlendBySize(regression.blends)
        by_text = regression.by_text
        self.by_text = TextPart(by_text, int8=int8) if by_text is not None and len(by_text.positions) else None

    def forward(self, scored: Float[Tensor, "users items"], tasks: TaskBatch) -> Float[Tensor, "users items"]:
        """Return the scores with the predictions of users in this order added."""
        real = (tasks.support_mask & tasks.in_order(self.order)[:, None]).to(scored.dtype)
        size = real.sum(dim=1, keepdim=True)
        counted = real * self.blends(size[:, 0])[:, None]
        if self.decay < 1:
            counted = counted * self.decay ** (size - real.cumsum(dim=1))
        spoken_for, weights = self.neighbours.rows(tasks.support)
        scored = scored.scatter_add(1, spoken_for.flatten(1), (weights * counted[:, :, None]).flatten(1))
        return scored if self.by_text is None else self.by_text(scored, tasks.support, counted)


class TextPart(nn.Module):
    """What support items say of items that only their text is known of.

    What item i says of item j is <c_i, t_j> + intercept, a product of two matrices; where there are fewer such items
    than directions of text, it is smaller multiplied out.
    """

    positions: Tensor

    def __init__(self, weights: TextWeights, *, int8: bool) -> None:
        super().__init__()
        left = torch.cat([weights.coefficients, weights.intercept[:, None]], dim=1)
        right = torch.cat([weights.text, weights.text.new_ones(len(weights.text), 1)], dim=1)
        multiplied_out = len(right) <= left.shape[1]
        self.register_buffer("positions", weights.positions)
        self.says = table(left @ right.T if multiplied_out else left, int8=int8)
        self.text = None if multiplied_out else table(right, int8=int8)

    def forward(
        self,
        scored: Float[Tensor, "users items"],
        support: Int[Tensor, "users support"],
        counted: Float[Tensor, "users support"],
    ) -> Float[Tensor, "users items"]:
        """Return the scores with what is said added."""
        said = (counted[:, :, None] * self.says.rows(support)).sum(dim=1)
        if self.text is not None:
            said = said @ self.text.whole().T
        return scored.scatter_add(1, self.positions.expand(scored.shape[0], -1), said)


class BlendBySize(nn.Module):
    """A number for each size of the support set, 0 for none: between sizes linear, beyond them constant."""

    by_size: Tensor

    def __init__(self, blends: Mapping[int, float]) -> None:
        super().__init__()
        self.register_buffer("by_size", blend_of_size(blends, torch.arange(max(blends) + 1)).index_fill(0, _NOBODY, 0))

    def forward(self, size: Float[Tensor, " users"]) -> Float[Tensor, " users"]:
        """Return the blend of each user's size."""
        return self.by_size[size.to(torch.int64).clamp(max=len(self.by_size) - 1)]


class StartPart(nn.Module):
    """The start prior of users whose support set begins their history."""

    by_size: Tensor

    def __init__(self, prior: StartPrior, *, int8: bool) -> None:
        super().__init__()
        rows = between_sizes(prior.sizes, torch.arange(prior.sizes[-1] + 1)) * torch.tensor(prior.blends)
        self.register_buffer("by_size", rows.index_fill(0, _NOBODY, 0))
        self.logs = table(prior.logs, int8=int8)

    def forward(self, scored: Float[Tensor, "users items"], tasks: TaskBatch) -> Float[Tensor, "users items"]:
        """Return the scores with the prior added."""
        assert tasks.from_start is not None
        size = tasks.support_mask.sum(dim=1).clamp(max=len(self.by_size) - 1)
        return scored + (self.by_size[size] * tasks.from_start[:, None]) @ self.logs.whole()


class KernelPart(nn.Module):
    """The text kernel.

    It is computed from the text vectors: kept as a matrix of items with items it would be larger by their ratio, and
    cut off at some neighbours it would not be the same, since of items that are little alike there are many.
    """

    least: Tensor

    def __init__(self, kernel: TextKernel, *, int8: bool) -> None:
        super().__init__()
        self.sharpness = kernel.sharpness
        self.vectors = table(kernel.vectors, int8=int8)
        self.register_buffer("least", kernel.least)
        self.orders = tuple(kernel.blends)
        self.blends = nn.ModuleList(BlendBySize(blends) for blends in kernel.blends.values())

    def forward(self, scored: Float[Tensor, "users items"], tasks: TaskBatch) -> Float[Tensor, "users items"]:
        """Return the scores with the kernel's sum over support items added."""
        size = tasks.support_mask.sum(dim=1)
        counted = self.least[tasks.support]
        for order, blends in zip(self.orders, self.blends, strict=True):
            counted = torch.maximum(counted, (blends(size) * tasks.in_order(order))[:, None])
        counted = counted * tasks.support_mask
        cosines = self.vectors.rows(tasks.support) @ self.vectors.whole().T
        alike = torch.exp(self.sharpness * (cosines - 1).clamp(max=0))
        return scored + (counted[:, None] @ alike)[:, 0]


_NOBODY = torch.tensor([0])


def _strongest(regression: TaskRegression, neighbours: int | None) -> tuple[Tensor, Tensor]:
    """Return positions and weights of the strongest neighbours of each item."""
    kept = min(neighbours or regression.weights.shape[1], regression.weights.shape[1])
    at = regression.weights.abs().topk(kept, dim=1).indices
    return regression.neighbours.gather(1, at), regression.weights.gather(1, at)
