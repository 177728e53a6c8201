"""Histories as pre-training reads them: stretches in time, padded, with the random numbers that cut or mask them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.batch import Batch
from metarec_shared.dataset import RatingScale
from metarec_shared.feedback import feedback_levels
from metarec_shared.interactions import Interactions
from metarec_shared.randomness import coin_table, uniform_table
from metarec_shared.settings import PretrainingSettings

SHARED_DRAWS = 4
"""Random numbers a user beside one an item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryBatch(Batch):
    """Padded stretches of many users' histories, oldest item first.

    Attributes:
        items: Catalogue positions; padding, which comes last, is 0.
        real: Which of them are no padding.
        feedback: Level of each item's rating, 0 where there is none.
        recency: Rank of each item in time, 1 for the newest, 0 for padding and where the data has no time.
        draws: Uniform draws in [0, 1): one an item, then ``SHARED_DRAWS`` of the user's. They come with the batch, so
            that a loss is a deterministic function of one user's row, whoever else is in the batch.
        dropout: Factors for the inputs of the encoder.
    """

    items: Int[Tensor, "users items"]
    real: Bool[Tensor, "users items"]
    feedback: Int[Tensor, "users items"]
    recency: Int[Tensor, "users items"]
    draws: Float[Tensor, "users draws"]
    dropout: Float[Tensor, "users items width"]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> Int[Tensor, " users"]:
        """How many items each user has."""
        return self.real.sum(dim=1)

    @property
    def shared_draws(self) -> Float[Tensor, "users draws"]:
        """The draws that belong to no item."""
        return self.draws[:, self.items.shape[1] :]


def draw_histories(
    interactions: Interactions,
    users: NDArray[np.int64],
    keys: NDArray[np.uint64],
    scale: RatingScale | None,
    settings: PretrainingSettings,
    dropout: tuple[float, int],
    address: tuple[int, int],
) -> HistoryBatch:
    """Draw a stretch of each user's history that begins anywhere; the whole history where it is short enough.

    Args:
        interactions: Whose histories.
        users: Positions in them, [users].
        keys: The users' random keys, [users].
        scale: Scale on which ratings are read as feedback.
        settings: Longest stretch.
        dropout: Rate of the dropout on the encoder's inputs, and the width of the model.
        address: The run's seed, and the round.
    """
    (rate, width), (seed, round_number), most = dropout, address, settings.length
    histories = interactions.offsets[users + 1] - interactions.offsets[users]
    lengths = np.minimum(histories, most)
    draws = uniform_table(keys, 1 + most + SHARED_DRAWS, seed, "pre-training", round_number)
    starts = (draws[:, 0] * (histories - lengths + 1)).astype(np.int64)
    longest = int(lengths.max(initial=1))
    place = np.arange(longest)
    real = place < lengths[:, None]
    rows = (interactions.offsets[users] + starts)[:, None] + np.where(real, place, 0)
    items = interactions.items[rows].astype(np.int64)
    ranks = lengths[:, None] - place if interactions.has_time else np.zeros_like(items)
    dropped = coin_table(keys, longest * width, rate, seed, "pre-training dropout", round_number)
    factors = np.where(dropped, np.float32(0), np.float32(1 / (1 - rate))).reshape(-1, longest, width)
    return HistoryBatch(
        items=torch.from_numpy(np.where(real, items, 0)),
        real=torch.from_numpy(real),
        feedback=torch.from_numpy(np.where(real, feedback_levels(interactions.ratings[rows], scale), 0)),
        recency=torch.from_numpy(np.where(real, ranks, 0)),
        draws=torch.from_numpy(
            np.concatenate([draws[:, 1 : 1 + longest], draws[:, 1 + most :]], axis=1).astype(np.float32)
        ),
        dropout=torch.from_numpy(factors),
    )
