"""Contrastive pre-training: two crops of one history have user vectors that are alike, and unlike those of others.

    L = (l(z1, z2) + l(z2, z1)) / 2
    l(z, z') = -log exp(sim(z, z') / tau) / (exp(sim(z, z') / tau) + sum_n exp(sim(z, z_n) / tau))

z1 and z2 are user vectors of two crops, sim is the cosine, tau the temperature. In the paper the negatives z_n are
the other users of the batch. Here they are histories that nobody has, drawn from public things by the round's
number: a loss that compares users with each other is nobody's own, so it could neither be clipped user by user nor be
computed by a node with one user. Such a history is drawn around an anchor item a: items j without replacement with
probability proportional to exp(b_j + c t_a . t_j), b the score bias (log popularity), t text vectors, c the
``coherence``.

References:
    Xie et al. (2022), Contrastive learning for sequential recommendation (CL4SRec), equation 2 and section 3.3.1 (item
    crop). Chen et al. (2020), SimCLR, equation 1 (NT-Xent).
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.model import BertRecommender
from metarec_shared.pretraining.histories import HistoryBatch
from metarec_shared.pretraining.objective import Objective
from metarec_shared.randomness import generator
from metarec_shared.tasks import TaskBatch


class Contrastive(Objective):
    """NT-Xent of two crops against public negatives."""

    def losses(
        self, model: BertRecommender, batch: HistoryBatch, E: Float[Tensor, "items width"], public: Tensor
    ) -> Float[Tensor, " users"]:
        """Return each user's loss; ``public`` are the negatives' items, [negatives, items]."""
        first, second = (self.user_vectors(model, batch, crop, E) for crop in self.crops(batch))
        return nt_xent(first, second, self.negative_vectors(model, public, E), self.settings.temperature)

    def public(self, model: BertRecommender, seed: int, round_number: int) -> Int[Tensor, "negatives items"]:
        """Draw the round's negatives, as long as a crop is at most; the same at every node."""
        rng = generator(seed, "contrastive negatives", round_number)
        bias = model.item_bias.detach().cpu().numpy()
        text = model.text.cpu().numpy()
        length = min(self.longest(self.settings.length), len(bias))
        histories = []
        for _ in range(self.settings.negatives):
            anchor = int(np.argmax(bias + rng.gumbel(size=len(bias))))
            chances = bias + self.settings.coherence * (text @ text[anchor])
            noised = chances + rng.gumbel(size=len(bias))  # the largest are a draw without replacement
            histories.append(np.argpartition(-noised, length - 1)[:length])
        return torch.from_numpy(np.stack(histories).astype(np.int64)).to(model.item_bias.device)

    def longest(self, length: int) -> int:
        """Return the items of a crop of a history of ``length``."""
        return max(1, int(self.settings.crop * length))

    def crops(self, batch: HistoryBatch) -> tuple[Bool[Tensor, "users items"], Bool[Tensor, "users items"]]:
        """Return which items two crops keep: stretches in time that begin anywhere."""
        sizes = (batch.lengths * self.settings.crop).long().clamp(min=1)
        place = torch.arange(batch.items.shape[1], device=sizes.device)
        begins = [(batch.shared_draws[:, i] * (batch.lengths - sizes + 1)).long()[:, None] for i in (0, 1)]
        first, second = ((place >= begin) & (place < begin + sizes[:, None]) for begin in begins)
        return first, second

    def user_vectors(
        self, model: BertRecommender, batch: HistoryBatch, crop: Bool[Tensor, "users items"], E: Tensor
    ) -> Float[Tensor, "users width"]:
        """Return the user vectors of one crop of every history; its newest item has rank 1."""
        newest = batch.recency.masked_fill(~crop, batch.items.shape[1]).amin(dim=1, keepdim=True)
        ranks = torch.where(batch.recency > 0, batch.recency - newest + 1, 0).clamp(min=0)
        return _user_vectors(model, batch.items, crop, batch.feedback, ranks, E[batch.items] * batch.dropout)

    def negative_vectors(
        self, model: BertRecommender, items: Int[Tensor, "negatives items"], E: Tensor
    ) -> Float[Tensor, "negatives width"]:
        """Return the user vectors of the negatives, who rated nothing; their items' ranks are their places."""
        ranks = torch.arange(items.shape[1], 0, -1, device=items.device).expand(items.shape)
        real, none = torch.ones_like(items, dtype=torch.bool), torch.zeros_like(items)
        return _user_vectors(model, items, real, none, ranks, E[items])


def nt_xent(
    first: Float[Tensor, "users width"],
    second: Float[Tensor, "users width"],
    negatives: Float[Tensor, "negatives width"],
    temperature: float,
) -> Float[Tensor, " users"]:
    """Return each user's NT-Xent, the mean over which of his two vectors is the anchor."""
    first, second, negatives = (F.normalize(vectors, dim=-1) for vectors in (first, second, negatives))
    alike = (first * second).sum(dim=-1, keepdim=True) / temperature
    losses = [
        torch.logsumexp(torch.cat([alike, anchor @ negatives.T / temperature], dim=1), dim=1) - alike[:, 0]
        for anchor in (first, second)
    ]
    return (losses[0] + losses[1]) / 2


def _user_vectors(
    model: BertRecommender, items: Tensor, shown: Tensor, feedback: Tensor, recency: Tensor, rows: Tensor
) -> Tensor:
    tasks = TaskBatch(
        support=items,
        support_mask=shown,
        feedback=feedback,
        query=items[:, :0],
        query_mask=shown[:, :0],
        known=items[:, :0],
        recency=recency,
    )
    vectors: Tensor = model.head(model.read(tasks, rows))
    return vectors
