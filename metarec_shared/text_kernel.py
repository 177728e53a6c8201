"""What a support item that training did not know says of other items: that those of like text are liked, too.

    score(u, j) += weight * sum over unknown support items i of exp(sharpness * (cos(t_i, t_j) - 1)),

the cosine of text vectors after their mean over the catalogue is subtracted, which all of its texts share. It is
a kernel regression (Nadaraya-Watson without the denominator, which is the same for all items) with the von Mises-Fisher
kernel. A sum of cosines, which text-kNN ranks by, goes to items that are a little like all of the support set; a sharp
kernel to those that are much like one item of it. What is known of an item's ID vector, score bias and regression says
more than its text, so the weight is in proportion to the share of the catalogue that training did not know: whole for
another catalogue, small for a few new items.

References:
    Nadaraya (1964), On estimating regression; Watson (1964), Smooth regression analysis.
    Banerjee et al. (2005), Clustering on the unit hypersphere using von Mises-Fisher distributions, equation 2.1.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class TextKernel:
    """The kernel over one catalogue.

    Attributes:
        vectors: Text vectors less their mean, of unit length, float32 [items, text].
        unknown: Items that training did not know.
        weight: What the sum is multiplied by before it is added to a model's scores.
        sharpness: Of the kernel.
    """

    vectors: Float[Tensor, "items text"]
    unknown: Bool[Tensor, " items"]
    weight: float
    sharpness: float

    @classmethod
    def over(
        cls, text: Float[Tensor, "items text"], unknown: Bool[Tensor, " items"], weight: float, sharpness: float
    ) -> "TextKernel":
        """Return the kernel of a catalogue.

        Args:
            text: Text vectors of its items.
            unknown: Those that training did not know.
            weight: Where that is all of them.
            sharpness: Of the kernel.
        """
        vectors = F.normalize(text - text.mean(dim=0), dim=1)
        share = float(unknown.float().mean())
        return cls(vectors=vectors, unknown=unknown, weight=weight * share, sharpness=sharpness)

    def predictions(
        self, support: Int[Tensor, "users support"], mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Return what is added to a model's scores; 0 where every support item is known.

        Args:
            support: Catalogue positions of the support items; padding may be any.
            mask: Which of them count.
        """
        total = self.vectors.new_zeros(len(support), len(self.vectors))
        speaking = mask & self.unknown[support]
        for items, speaks in zip(support.T, speaking.T, strict=True):  # one support item a user: memory of one result
            if not speaks.any():
                continue
            cosines = self.vectors[items] @ self.vectors.T
            total += (self.sharpness * (cosines - 1)).exp_() * speaks[:, None]
        return self.weight * total
