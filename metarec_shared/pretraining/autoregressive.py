"""Autoregressive modelling: GPT-2 reads a history in time order and says at every item which is the next.

    L = 1/n sum_{t=1..n} -log P(i_t | i_1 .. i_{t-1}),   P = softmax(E V GPT2(i_1 .. i_{t-1}) + b)

The first item is predicted from the state token alone. The user vector that meta-learning starts from is the same
output, at the last item of the support set.

References:
    Radford et al. (2018), Improving language understanding by generative pre-training, equation 1. Kang and McAuley
    (2018), SASRec, section III-E; there with a sampled binary loss, here with the softmax over the catalogue.
"""

from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Model

from metarec_shared.causal_encoder import read_causally
from metarec_shared.model import BertRecommender
from metarec_shared.pretraining.histories import HistoryBatch
from metarec_shared.pretraining.objective import Objective, mean_cross_entropy


class Autoregressive(Objective):
    """Next-item prediction at every item."""

    def losses(
        self, model: BertRecommender, batch: HistoryBatch, E: Float[Tensor, "items width"], public: Tensor
    ) -> Float[Tensor, " users"]:
        """Return each user's mean cross-entropy of his items, each given those before it, over the catalogue."""
        assert isinstance(model.encoder, GPT2Model)
        inputs = E[batch.items] * batch.dropout
        outputs = read_causally(model.encoder, inputs, model.levels(batch.feedback), batch.real)
        return mean_cross_entropy(model, outputs[:, :-1], E, batch.items, batch.real)
