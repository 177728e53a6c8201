"""The rows of a task regression: which items each item speaks for, and how much, in few bytes.

A row's order means nothing, so in a quantized graph it is that of the catalogue, and what is stored is by how much each
position is beyond the one before it, a byte each. Where the gap is larger, entries of weight 0 stand on the way. Where
there would be too many of these, positions are stored as they are, in the smallest integers that hold them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from client.export.tables import QuantizedTable, Table

_LARGEST_GAP = torch.iinfo(torch.uint8).max


class _Rows(NamedTuple):
    """What is stored of the positions, and the weights that belong to it."""

    stored: Tensor
    weights: Tensor


class Neighbours(nn.Module):
    """Positions and weights, a row an item.

    Args:
        positions: Of the items that each item speaks for; one that is named twice has both weights.
        weights: How much.
        int8: Whether weights are quantized and positions stored in as few bytes as hold them.
    """

    stored: Tensor

    def __init__(
        self, positions: Int[Tensor, "items neighbours"], weights: Float[Tensor, "items neighbours"], *, int8: bool
    ) -> None:
        super().__init__()
        rows = _Rows(positions.to(torch.int32), weights)
        if int8:
            rows = min(_as_gaps(positions, weights), _as_they_are(positions, weights), key=_bytes)
        self.register_buffer("stored", rows.stored)
        self.weights = QuantizedTable(rows.weights) if int8 else Table(rows.weights)

    def rows(
        self, at: Int[Tensor, "users support"]
    ) -> tuple[Int[Tensor, "users support stored"], Float[Tensor, "users support stored"]]:
        """Return positions and weights of the rows of some items."""
        positions = self.stored[at].to(torch.int64)
        if self.stored.dtype == torch.uint8:
            positions = positions.cumsum(dim=-1)
        return positions, self.weights.rows(at)


def _as_gaps(positions: Tensor, weights: Tensor) -> _Rows:
    ordered, order = positions.sort(dim=1)
    gaps = ordered.diff(dim=1, prepend=ordered.new_zeros(len(ordered), 1))
    on_the_way = (gaps - 1).clamp(min=0) // _LARGEST_GAP
    place = torch.arange(gaps.shape[1]) + on_the_way.cumsum(dim=1)
    width = int(place.max()) + 1
    stored = gaps.new_full((len(gaps), width), _LARGEST_GAP)
    stored.scatter_(1, place, gaps - on_the_way * _LARGEST_GAP)
    stored.masked_fill_(torch.arange(width) > place[:, -1:], 0)  # what is behind the last stays there, with weight 0
    spread = weights.new_zeros(len(weights), width).scatter(1, place, weights.gather(1, order))
    return _Rows(stored.to(torch.uint8), spread)


def _as_they_are(positions: Tensor, weights: Tensor) -> _Rows:
    fits = int(positions.max()) <= torch.iinfo(torch.int16).max
    return _Rows(positions.to(torch.int16 if fits else torch.int32), weights)


def _bytes(rows: _Rows) -> int:
    return rows.stored.nbytes + rows.weights.numel()
