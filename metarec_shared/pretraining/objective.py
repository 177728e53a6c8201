"""What every loss of pre-training is: a number a user that depends on his own history and on public things alone.

So it is trained like the meta-learning loss: gradients are summed over users, clipped user by user where somebody asks,
noised, and a user's part does not depend on the node he is on or on who else takes part.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.model import BertRecommender
from metarec_shared.pretraining.histories import HistoryBatch
from metarec_shared.settings import PretrainingSettings


class Objective(ABC):
    """A loss of pre-training.

    Args:
        settings: Its constants.
    """

    def __init__(self, settings: PretrainingSettings) -> None:
        self.settings = settings

    @abstractmethod
    def losses(
        self, model: BertRecommender, batch: HistoryBatch, E: Float[Tensor, "items width"], public: Tensor
    ) -> Float[Tensor, " users"]:
        """Return each user's loss, 0 for a user whose history says nothing.

        Args:
            model: The recommender.
            batch: Histories.
            E: Item vectors, on the way to which gradients go.
            public: What ``public`` returned for the round.
        """

    def public(self, model: BertRecommender, seed: int, round_number: int) -> Tensor:
        """Return what a round draws for all nodes alike; nothing unless a loss says otherwise."""
        return torch.zeros(0)


def build_objective(settings: PretrainingSettings) -> Objective:
    """Return the loss that the settings name.

    Raises:
        ValueError: They name none.
    """
    from metarec_shared.pretraining.autoregressive import Autoregressive
    from metarec_shared.pretraining.contrastive import Contrastive
    from metarec_shared.pretraining.masked_item import MaskedItem

    match settings.objective:
        case "masked-item":
            return MaskedItem(settings)
        case "autoregressive":
            return Autoregressive(settings)
        case "contrastive":
            return Contrastive(settings)
        case "none":
            raise ValueError("pretraining.objective is none")


def mean_cross_entropy(
    model: BertRecommender,
    outputs: Float[Tensor, "users items width"],
    E: Float[Tensor, "items width"],
    targets: Tensor,
    counted: Tensor,
) -> Float[Tensor, " users"]:
    """Return each user's mean cross-entropy, over the whole catalogue, of the items that outputs are asked for.

    Args:
        model: Whose head turns outputs into user vectors.
        outputs: What the encoder wrote.
        E: Item vectors.
        targets: Catalogue position that each output is asked for, [users, items].
        counted: Which of them count; a user of whom none does has loss 0, [users, items].
    """
    asked = model.head(outputs)
    scores = asked @ E.T + model.item_bias
    surprise = torch.logsumexp(scores, dim=-1) - scores.gather(2, targets[:, :, None])[:, :, 0]
    weights = counted.to(surprise.dtype)
    losses: Tensor = (surprise * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
    return losses
