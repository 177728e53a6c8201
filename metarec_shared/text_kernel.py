"""What a support item says of items of like text, beside all that is learned of it: that they are liked, too.

    score(u, j) += sum over support items i of weight(u, i) * exp(sharpness * (cos(t_i, t_j) - 1)),

the cosine of text vectors after their mean over the catalogue is subtracted, which all of its texts share. It is
a kernel regression (Nadaraya-Watson without the denominator, which is the same for all items) with the von Mises-Fisher
kernel. A sum of cosines, which text-kNN ranks by, goes to items that are a little like all of the support set; a sharp
kernel to those that are much like one item of it.

The weight of an item that training knew is a blend, chosen by validation users for each order of histories and size of
support sets, as those of a task regression are: the fewer users trained, the more texts add. What is known of an item's
ID vector, score bias and regression is missing of one that training did not know, so that counts for more: at least a
given weight in proportion to the squared share of such items in the catalogue, that of pairs of items of which nothing
else is known: whole for another catalogue, next to nothing for a few new items.

References:
    Nadaraya (1964), On estimating regression; Watson (1964), Smooth regression analysis.
    Banerjee et al. (2005), Clustering on the unit hypersphere using von Mises-Fisher distributions, equation 2.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.task_regression import blend_of_size
from metarec_shared.tasks import Order, TaskBatch

KernelBlends = Mapping[Order, Mapping[int, float]]
"""What a support item counts for, by the order of histories and by the size of the support set."""

PAIRS_AT_ONCE = 256
"""Users' support items whose values are computed at a time; memory is that many x items x 4 bytes, a few times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextKernel:
    """The kernel over one catalogue.

    Attributes:
        vectors: Text vectors less their mean, of unit length, float32 [items, text].
        sharpness: Of the kernel.
        blends: What each support item counts for; between sizes linear, beyond them constant, without any 0.
        least: What it counts for at least, float32 [items].
        table: Its values between all items, where they have been computed, float32 [items, items].
    """

    vectors: Float[Tensor, "items text"]
    sharpness: float
    blends: KernelBlends
    least: Float[Tensor, " items"]
    table: Float[Tensor, "items items"] | None = None

    @classmethod
    def over(
        cls,
        text: Float[Tensor, "items text"],
        sharpness: float,
        *,
        blends: KernelBlends | None = None,
        unknown: Bool[Tensor, " items"] | None = None,
        weight: float = 0.0,
    ) -> "TextKernel":
        """Return the kernel of a catalogue.

        Args:
            text: Text vectors of its items.
            sharpness: Of the kernel.
            blends: What each support item counts for; None: nothing.
            unknown: Items that training did not know; None: none.
            weight: What such an item counts for at least, where all are.
        """
        vectors = F.normalize(text - text.mean(dim=0), dim=1)
        unknown = torch.zeros(len(text)) if unknown is None else unknown
        least = weight * unknown.float().mean() ** 2 * unknown
        return cls(vectors=vectors, sharpness=sharpness, blends=blends or {}, least=least.to(vectors))

    def predictions(
        self, support: Int[Tensor, "users support"], mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Return the sum over support items, each with weight 1.

        Args:
            support: Catalogue positions of the support items; padding may be any.
            mask: Which of them count.
        """
        return self._sum(support.masked_fill(~mask, 0), mask.to(self.vectors))

    def blended(self, tasks: TaskBatch) -> Float[Tensor, "users items"]:
        """Return what is added to a model's scores."""
        support, counts = tasks.support.masked_fill(~tasks.support_mask, 0), tasks.counted(self.least.dtype)
        counted, sizes = self.least[support], tasks.support_sizes()
        for order, blends in self.blends.items():
            of_size = blend_of_size(blends, sizes).to(counts) * tasks.in_order(order)
            counted = torch.maximum(counted, of_size[:, None])
        return self._sum(support, counted * counts)

    def to(self, device: torch.device) -> "TextKernel":
        """Return the kernel on ``device``."""
        table = None if self.table is None else self.table.to(device)
        return replace(self, vectors=self.vectors.to(device), least=self.least.to(device), table=table)

    def tabulated(self) -> "TextKernel":
        """Return the same kernel with its values between all items computed: much faster, for 4 bytes times items^2."""
        return replace(self, table=self._values(torch.arange(len(self.vectors), device=self.vectors.device)))

    def _sum(
        self, support: Int[Tensor, "users support"], weights: Float[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        if self.table is not None:
            return F.embedding_bag(support, self.table, per_sample_weights=weights.to(self.table), mode="sum")
        total = self.vectors.new_zeros(len(support), len(self.vectors))
        pairs = weights.nonzero()
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            users, places = pairs[start : start + PAIRS_AT_ONCE].T
            values = self._values(support[users, places]) * weights[users, places][:, None]
            total = total.index_add(0, users, values)
        return total

    def _values(self, items: Int[Tensor, " some"]) -> Float[Tensor, "some items"]:
        cosines = self.vectors[items] @ self.vectors.T
        return (self.sharpness * (cosines - 1).clamp_(max=0)).exp_()
