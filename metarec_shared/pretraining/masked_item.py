"""Masked-item modelling: items of a history are hidden at random, and BERT says which they were from the others.

    L = 1/|M| sum_{m in M} -log P(i_m | S without the items of M),   P = softmax(E V BERT(S)_m + b)

M is drawn anew in every round, a share ``pretraining.masked`` of the items; the masked items' tokens stay, and their
ranks in time where the model reads them. Without those all masked tokens of a history say the same: what the rest of a
set lacks.

References:
    Sun et al. (2019), BERT4Rec, section 3.6 and equation 8 (the Cloze task).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import BertModel

from metarec_shared.model import BertRecommender
from metarec_shared.pretraining.histories import HistoryBatch
from metarec_shared.pretraining.objective import Objective, mean_cross_entropy
from metarec_shared.user_encoder import read_tokens


class MaskedItem(Objective):
    """The Cloze task of BERT4Rec."""

    def losses(
        self, model: BertRecommender, batch: HistoryBatch, E: Float[Tensor, "items width"], public: Tensor
    ) -> Float[Tensor, " users"]:
        """Return each user's mean cross-entropy of his masked items over the catalogue."""
        assert isinstance(model.encoder, BertModel)
        places, counted = self.masked(batch)
        masked = torch.zeros_like(batch.real).scatter(1, places, counted)
        inputs = E[batch.items] * batch.dropout
        feedback, recency = model.levels(batch.feedback), model.ranks(batch.recency, batch.items)
        outputs = read_tokens(model.encoder, inputs, feedback, batch.real, masked, recency)[:, 1:]
        asked = outputs.gather(1, places[:, :, None].expand(-1, -1, outputs.shape[2]))
        return mean_cross_entropy(model, asked, E, batch.items.gather(1, places), counted)

    def masked(self, batch: HistoryBatch) -> tuple[Int[Tensor, "users masked"], Bool[Tensor, "users masked"]]:
        """Return the places of the masked items, and which of these count: at least one item, never a whole history."""
        items = batch.items.shape[1]
        most = max(1, math.ceil(self.settings.masked * items))
        order = batch.draws[:, :items].masked_fill(~batch.real, 2.0).argsort(dim=1)[:, :most]
        count = (batch.lengths * self.settings.masked).round().clamp(min=1).minimum(batch.lengths - 1)
        return order, torch.arange(most, device=order.device) < count[:, None]
