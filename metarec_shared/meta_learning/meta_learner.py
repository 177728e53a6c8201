"""What a meta-learner is: how a user's vector is adapted, and what the meta-initialization learns from that.

Notation of every file beside this one. A user vector h scores items by E h + b. The support loss is the cross-entropy
of the support items over the catalogue, weight y on each of them (1 in total, m = 1; both 0 for an empty support set):

    p(h) = softmax(E h + b)         g(h) = m E' p(h) - E' y       its gradient
    H(h) = m E' (diag p - p p') E                                 its Hessian

h_0 is what the meta-initialization theta says of the user (the body, E and b are in theta), q = dL_query / dh, s the
derivative of the query loss in the scores. A meta-learner has two forms that tests hold equal: ``losses``, plain
autograd that reads like the paper, and ``forward`` with ``backward``, by hand, on a chunk of users in reused buffers.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor

from metarec_shared.fused_inner_loop import Chunk, Factors
from metarec_shared.inner_loop import Items, Support, query_loss, scores
from metarec_shared.tasks import TaskBatch


class Backward(NamedTuple):
    """The query losses of a chunk of users, differentiated.

    Attributes:
        h: In where the inner loop starts, [users, width].
        rates: In the inner learning rates, [users, steps, width].
        factors: In the item vectors and the score bias.
    """

    h: Float[Tensor, "users width"]
    rates: Float[Tensor, "users steps width"]
    factors: Factors


class MetaLearner(ABC):
    """How users adapt, and how the meta-initialization learns from it."""

    learned_rates: ClassVar[bool] = False
    """Whether inner learning rates are meta-learned."""
    second_order: ClassVar[bool] = False
    """Whether the meta-gradient passes through the inner gradients."""

    @abstractmethod
    def adapt(
        self, h: Float[Tensor, "users width"], rates: Float[Tensor, "users steps width"], items: Items, support: Support
    ) -> Float[Tensor, "users width"]:
        """Return the adapted user vectors."""

    def losses(
        self,
        h: Float[Tensor, "users width"],
        rates: Float[Tensor, "users steps width"],
        items: Items,
        support: Support,
        tasks: TaskBatch,
    ) -> Float[Tensor, " users"]:
        """Return each user's query loss, whose gradient by autograd is the meta-gradient."""
        return query_loss(scores(self.adapt(h, rates, items, support), items), tasks)

    @abstractmethod
    def terms(self, steps: int) -> int:
        """Return how many buffers of scores a chunk needs."""

    @abstractmethod
    def forward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Tensor:
        """Adapt a chunk of users; leave what the way back needs in its buffers, but not in the last two."""

    @abstractmethod
    def backward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Backward:
        """Differentiate.

        Args:
            chunk: After ``forward``, the weighted query losses' derivative in the scores, s, in its last buffer.
            h: The adapted user vectors.
            rates: Inner learning rates.
        """
