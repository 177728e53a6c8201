"""From token ids to one vector a text, in batches of texts of like length."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

Pool = Callable[[Int[Tensor, "texts tokens"], Int[Tensor, "texts tokens"]], Float[Tensor, "texts width"]]


def pool_texts(
    tokens: Sequence[Sequence[int]], pool: Pool, *, pad: int, batch: int, label: str, progress: bool
) -> Float[Tensor, "texts width"]:
    """Apply ``pool`` to every text, longest first, and return the vectors in the texts' order.

    Args:
        tokens: Token ids of each text.
        pool: From padded token ids and their attention mask to a vector a text.
        pad: Token id of the padding.
        batch: Texts in one call of ``pool``.
        label: What the progress bar says.
        progress: Whether to show one.
    """
    order = sorted(range(len(tokens)), key=lambda text: -len(tokens[text]))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    with torch.no_grad():
        shown = track(batches, label, transient=True, disable=not progress)
        vectors = torch.cat([pool(*padded([tokens[text] for text in texts], pad)) for texts in shown])
    return vectors[torch.tensor(order).argsort()]


def padded(
    tokens: Sequence[Sequence[int]], pad: int
) -> tuple[Int[Tensor, "texts tokens"], Int[Tensor, "texts tokens"]]:
    """Return token ids padded to the longest text, and their attention mask (1: token, 0: padding)."""
    width = max(1, *(len(ids) for ids in tokens))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in tokens])
    lengths = torch.tensor([max(1, len(row)) for row in tokens])
    return ids, (torch.arange(width) < lengths[:, None]).long()


def mean_pooled(
    hidden: Float[Tensor, "texts tokens width"], weights: Float[Tensor, "texts tokens"]
) -> Float[Tensor, "texts width"]:
    """Return the weighted mean over the tokens; a text whose weights are all 0 gets the zero vector."""
    total = weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return (hidden * weights[..., None]).sum(dim=1) / total
