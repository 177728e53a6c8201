"""A second task of the body: to predict how a user rates an item, beside what he picks.

    y_uj = h_u . (R e_j + a) / sqrt(width) + w . e_j + c          L_u = weight * mean over rated j of (y_uj - r_uj)^2

h_u is the user vector before adaptation, e_j the item's vector, r_uj the rating on a scale from 0 to 1. Everything but
the weights R, a, w and c is shared with ranking; the loss is added to the query loss. Items have no parameters of their
own here: what is known of an item's ratings is in its vector, so a cold item has a predicted rating too.

References:
    Caruana (1997), Multitask learning, section 1: hard parameter sharing.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from metarec_shared.feedback import FEEDBACK_LEVELS
from metarec_shared.tasks import TaskBatch


class RatingHead(nn.Module):
    """Predicts ratings on a scale from 0 to 1; before training, the middle of the scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_items = nn.Linear(width, width + 1)
        with torch.no_grad():
            self.of_items.weight.zero_()
            self.of_items.bias.zero_()
            self.of_items.bias[-1] = 0.5

    def forward(
        self, h: Float[Tensor, "users width"], vectors: Float[Tensor, "users items width"]
    ) -> Float[Tensor, "users items"]:
        """Return each user's rating of each of his items.

        Args:
            h: User vectors before adaptation.
            vectors: Item vectors, of other items for each user.
        """
        written: Tensor = self.of_items(vectors)
        own: Tensor = torch.einsum("ud,uid->ui", h, written[..., :-1]) / math.sqrt(h.shape[1])

        return own + written[..., -1]


def rating_losses(predicted: Float[Tensor, "users query"], tasks: TaskBatch) -> Float[Tensor, " users"]:
    """Return each user's mean squared error over the query items that he rated, 0 where he rated none."""
    if tasks.query_feedback is None:
        return predicted.sum(dim=1) * 0.0
    rated = (tasks.query_mask & (tasks.query_feedback > 0)).to(predicted.dtype)
    squares = (predicted - scaled(tasks.query_feedback, predicted.dtype)).square() * rated
    return squares.sum(dim=1) / rated.sum(dim=1).clamp(min=1.0)


def scaled(levels: Int[Tensor, "users query"], dtype: torch.dtype) -> Float[Tensor, "users query"]:
    """Return feedback levels 1..FEEDBACK_LEVELS as ratings from 0 to 1."""
    return (levels.to(dtype) - 1) / (FEEDBACK_LEVELS - 1)
