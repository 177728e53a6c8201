"""Popularity: the same ranking for everybody, items by how many meta-training users have them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metarec_shared.interactions import Interactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Popularity:
    """How many meta-training users have each item.

    Attributes:
        users: Users by item.
    """

    users: Float[Tensor, " items"]

    def scores(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Score items by popularity, whatever the support set."""
        return self.users.expand(len(support_items), -1)


def fit_popularity(train: Interactions, catalogue_size: int) -> Popularity:
    """Count users by item; a history holds no item twice.

    Example:
        >>> import numpy as np
        >>> train = Interactions(user_ids=np.array(["a", "b"]), offsets=np.array([0, 2, 3]), items=np.array([0, 2, 2]),
        ...     ratings=np.ones(3, dtype=np.float32), has_time=False)
        >>> fit_popularity(train, catalogue_size=3).users
        tensor([1., 0., 2.])
    """
    return Popularity(users=torch.bincount(torch.tensor(train.items), minlength=catalogue_size).float())
