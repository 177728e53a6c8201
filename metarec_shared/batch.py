"""Users' tensors, one row a user: what every kind of batch can do."""

from dataclasses import fields
from typing import Self

import torch
from jaxtyping import Int
from torch import Tensor


class Batch:
    """Base of dataclasses whose fields are tensors with a leading user dimension, or None."""

    __slots__ = ()

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are set, by name."""
        values = {key.name: getattr(self, key.name) for key in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def to(self, device: torch.device) -> Self:
        """Return the batch on ``device``."""
        return type(self)(**{name: value.to(device) for name, value in self.tensors().items()})

    def rows(self, start: int, stop: int) -> Self:
        """Return users ``start:stop`` of the batch."""
        return type(self)(**{name: value[start:stop] for name, value in self.tensors().items()})

    def take(self, users: Int[Tensor, " taken"]) -> Self:
        """Return some users of the batch."""
        return type(self)(**{name: value[users] for name, value in self.tensors().items()})
