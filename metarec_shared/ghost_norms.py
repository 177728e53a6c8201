"""Norms of users' gradients without the gradients: what clipping needs, from what one backward pass holds anyway.

A layer's gradient is a product of what went in and what came back. The square of its Frobenius norm needs only inner
products of these, a user at a time, so no user's gradient of a shared layer is ever formed. For the layers of the
body that is known as ghost clipping. The item vectors are used by every user, in every step of the inner loop and in
the query loss, on all items: there a user's gradient is the short sum of outer products that ``fused_inner_loop``
leaves behind, and the layers below (layer normalization, projection of the text, ID vectors) are walked through
analytically.

References:
    Li et al. (2022), Large language models can be strong differentially private learners, section 4.
    Bu et al. (2022), Scalable and efficient training of large convolutional neural networks with differential privacy,
    section 3 (the cheaper of forming a gradient and of not forming it, layer by layer).
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from metarec_shared.fused_inner_loop import Factors

GRAM_ITEMS = 6144
"""Largest catalogue for which inner products of all pairs of items are kept (4 bytes times its square)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of a layer in a forward pass: tensors with a leading user dimension."""

    module: nn.Module
    given: Tensor
    returned: Tensor


@contextmanager
def recorded_uses(*modules: nn.Module) -> Iterator[list[Use]]:
    """Record every use of a layer with parameters inside ``modules``."""
    uses: list[Use] = []

    def record(module: nn.Module, given: tuple[Tensor, ...], returned: Tensor) -> None:
        uses.append(Use(module=module, given=given[0], returned=returned))

    layers = [layer for module in modules for layer in module.modules() if list(layer.parameters(recurse=False))]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def layer_squared_norms(use: Use, back: Tensor, released: AbstractSet[nn.Parameter]) -> Float[Tensor, " users"]:
    """Return the squared norm of each user's gradient in a layer's released parameters.

    Args:
        use: The layer's one use.
        back: Gradient in what it returned, a user's own loss in his own row.
        released: Parameters that count.

    Raises:
        TypeError: The layer is of a kind that this function does not know.
    """
    wanted = {name for name, value in use.module.named_parameters(recurse=False) if value in released}
    given, back = _as_sequence(use.given, use.module), _as_sequence(back, None)
    total = back.new_zeros(len(back))
    match use.module:
        case nn.Linear() | Conv1D():  # GPT-2 keeps its weights transposed, which changes no norm
            if "weight" in wanted:
                total = total + _outer_squared_norms(given, back)
        case nn.LayerNorm():
            if "weight" in wanted:
                normed = F.layer_norm(given, use.module.normalized_shape, eps=use.module.eps)
                total = total + (back * normed).sum(dim=1).square().sum(dim=1)
        case nn.Embedding():
            if "weight" in wanted:
                same = given[:, :, None] == given[:, None, :]
                total = total + (torch.bmm(back, back.transpose(1, 2)) * same).sum(dim=(1, 2))
        case other:
            raise TypeError(f"no ghost norm for a layer of type {type(other).__name__}")
    if "bias" in wanted:
        total = total + back.sum(dim=1).square().sum(dim=1)
    return total


def _as_sequence(values: Tensor, module: nn.Module | None) -> Tensor:
    """Return [users, tokens, width] (or [users, tokens] of what an embedding is given)."""
    wanted = 2 if isinstance(module, nn.Embedding) else 3
    return values if values.dim() == wanted else values[:, None]


def _outer_squared_norms(given: Tensor, back: Tensor) -> Tensor:
    """Return |sum_t back_t given_t'|^2 of each user, by the cheaper of two ways."""
    tokens = given.shape[1]
    if tokens * tokens * 2 <= given.shape[2] * back.shape[2]:
        inner = torch.bmm(given, given.transpose(1, 2)) * torch.bmm(back, back.transpose(1, 2))
        return inner.sum(dim=(1, 2))
    return torch.bmm(back.transpose(1, 2), given).square().sum(dim=(1, 2))


class Rows(NamedTuple):
    """Single rows of users' gradients in the item vectors: [users, rows] and [users, rows, width].

    A user's items are distinct where his values are not zero.
    """

    items: Int[Tensor, "users rows"]
    values: Float[Tensor, "users rows width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemLayers:
    """The layers below the item vectors, e_j = LayerNorm(W t_j + v_j), as gradients pass them.

    Attributes:
        text: Text vectors t, [items, text].
        normed: x = W t + v, normalized but not yet scaled, [items, width].
        inverse_deviation: What it was multiplied by, [items].
        scale: Weight of the layer normalization, [width].
        ids_on: 1 for items whose ID vector is on, else 0, [items].
        released: Which of ``projection.weight``, ``projection.bias``, ``item_ids``, ``item_norm.weight``,
            ``item_norm.bias`` and ``item_bias`` count.
        summing: What left factors are multiplied with, in one product: text over deviation, x, 1 over deviation, 1;
            [items, text + width + 2].
        text_products: <t_i, t_j> of all pairs, [items, items]; None where the catalogue is too large.
        products: <x_i, x_j> <t_i, t_j> of all pairs, likewise.
    """

    text: Float[Tensor, "items text"]
    normed: Float[Tensor, "items width"]
    inverse_deviation: Float[Tensor, " items"]
    scale: Float[Tensor, " width"]
    ids_on: Float[Tensor, " items"]
    released: frozenset[str]
    summing: Float[Tensor, "items columns"]
    text_products: Float[Tensor, "items items"] | None
    products: Float[Tensor, "items items"] | None

    @classmethod
    def of(
        cls,
        before: Float[Tensor, "items width"],
        norm: nn.LayerNorm,
        text: Float[Tensor, "items text"],
        id_mask: Bool[Tensor, " items"] | None,
        released: frozenset[str],
        text_products: Float[Tensor, "items items"] | None,
    ) -> "ItemLayers":
        """Describe the layers where ``before`` is what the layer normalization ``norm`` is given."""
        variance, mean = torch.var_mean(before, dim=1, correction=0, keepdim=True)
        inverse = (variance + norm.eps).rsqrt()
        normed, ones = (before - mean) * inverse, torch.ones_like(inverse)
        return cls(
            text=text,
            normed=normed,
            inverse_deviation=inverse[:, 0],
            scale=norm.weight,
            ids_on=ones[:, 0] if id_mask is None else id_mask.to(ones.dtype),
            released=released,
            summing=torch.cat([text * inverse, normed, inverse, ones], dim=1),
            text_products=text_products,
            products=None if text_products is None else (normed @ normed.T).mul_(text_products),
        )

    def squared_norms(self, factors: Factors, rows: Rows) -> Float[Tensor, " users"]:
        """Return the squared norm of each user's gradient in everything below the scores but the body.

        Args:
            factors: A user's gradient in the item vectors, but for ``rows``.
            rows: The rest of it.
        """
        passed = _Passed(self, factors, rows)
        total = rows.values.new_zeros(len(rows.values))
        if "item_bias" in self.released:
            total = total + factors.left[-factors.scored :].sum(dim=0).square().sum(dim=1)
        if "item_norm.bias" in self.released:
            total = total + passed.summed_gradient().square().sum(dim=1)
        if "item_norm.weight" in self.released:
            total = total + passed.summed_gradient_times_normed().square().sum(dim=1)
        if "item_ids" in self.released:
            total = total + passed.squared_norms_of_rows()
        if "projection.bias" in self.released:
            total = total + passed.sum_of_rows().square().sum(dim=1)
        if "projection.weight" in self.released:
            total = total + passed.squared_norms_in_text()
        return total


class _Passed:
    """Gradients of a chunk of users behind the layer normalization: dz_j = sum_r a_rj c_r - w_j x_j + single rows.

    x_j is the normalized item, a_rj the left factor over item j's deviation, c_r the right factor times the scale and
    centred, q_rj = <c_r, x_j> / width, and w_j = sum_r a_rj q_rj. Dimensions: terms r, users u, items n, width d,
    text t. Tensors of r, u and n are the large ones: each is made once and read as seldom as can be.
    """

    def __init__(self, layers: ItemLayers, factors: Factors, rows: Rows) -> None:
        self._layers, self._left, self._rows = layers, factors.left, rows
        self._right = factors.right
        self.x: Tensor = layers.normed
        self.width = layers.normed.shape[1]
        self.c = _centred(factors.right * layers.scale)  # [r, u, d]
        sums = (factors.left.flatten(0, 1) @ layers.summing).view(*factors.left.shape[:2], -1)
        self.seen: Tensor
        self._left_x: Tensor
        parts = [layers.text.shape[1], self.width, 1, 1]
        self.seen, self._left_x, deviations, ones = torch.split(sums, parts, dim=2)
        self._sum_a, self._sum_left = deviations[:, :, 0], ones[:, :, 0]  # [r, u]
        self.q = (self.c.flatten(0, 1) @ (self.x.T / self.width)).view_as(factors.left)  # [r, u, n]
        self.w = (factors.left * self.q).sum(dim=0) * layers.inverse_deviation  # [u, n]
        values, at = _centred(rows.values * layers.scale), self.x[rows.items]
        values = values - at * (values * at).sum(dim=-1, keepdim=True) / self.width
        self.z = values * layers.inverse_deviation[rows.items][:, :, None]  # [u, rows, d]

    def summed_gradient(self) -> Tensor:
        return (self._sum_left[:, :, None] * self._right).sum(dim=0) + self._rows.values.sum(dim=1)

    def summed_gradient_times_normed(self) -> Tensor:
        rows = (self._rows.values * self.x[self._rows.items]).sum(dim=1)
        return (self._left_x * self._right).sum(dim=0) + rows

    def sum_of_rows(self) -> Tensor:
        return (self._sum_a[:, :, None] * self.c).sum(dim=0) - self.w @ self.x + self.z.sum(dim=1)

    def squared_norms_of_rows(self) -> Tensor:
        """Return sum_j |dz_j|^2 over the items whose ID vector is on."""
        layers, items, c = self._layers, self._rows.items, self.c.transpose(0, 1)
        left, on = self._left.transpose(0, 1), layers.ids_on
        of_terms = torch.bmm(left * (on * layers.inverse_deviation.square()), left.transpose(1, 2)) * _inner(c)
        of_x = self.w.square() @ (on * (2 * self.width - self.x.square().sum(dim=1)))
        a = left.gather(2, items[:, None, :].expand(-1, left.shape[1], -1))
        a = a * layers.inverse_deviation[items][:, None, :]
        at = torch.bmm(a.transpose(1, 2), c) - self.w.gather(1, items)[:, :, None] * self.x[items]
        more = ((2 * at + self.z) * self.z).sum(dim=2) * on[items]
        return of_terms.sum(dim=(1, 2)) - of_x + more.sum(dim=1)

    def squared_norms_in_text(self) -> Tensor:
        """Return |sum_j dz_j t_j'|^2."""
        layers, c, seen = self._layers, self.c.transpose(0, 1), self.seen.transpose(0, 1)
        at = layers.text[self._rows.items]
        if layers.products is None or layers.text_products is None:
            return self._formed_squared_norms(c, seen, at)
        of_terms = (_inner(c) * _inner(seen)).sum(dim=(1, 2))
        with_x = (self.seen.flatten(0, 1) @ layers.text.T).view_as(self.q).mul_(self.q).sum(dim=0)
        of_terms = of_terms - 2 * self.width * (with_x * self.w).sum(dim=1)
        of_x = ((self.w @ layers.products) * self.w).sum(dim=1)
        rows_terms = (torch.bmm(self.z, c.transpose(1, 2)) * torch.bmm(at, seen.transpose(1, 2))).sum(dim=(1, 2))
        rows_x = (self.z @ self.x.T).mul_(layers.text_products[self._rows.items])
        rows_x = torch.bmm(rows_x, self.w[:, :, None]).sum(dim=(1, 2))
        of_rows = (_inner(self.z) * _inner(at)).sum(dim=(1, 2))
        return of_terms + of_x + 2 * (rows_terms - rows_x) + of_rows

    def _formed_squared_norms(self, c: Tensor, seen: Tensor, at: Tensor) -> Tensor:
        """Form sum_j dz_j t_j', a user at a time: cheaper than all pairs of a large catalogue's items."""
        squares = []
        for user in range(len(c)):
            formed = c[user].T @ seen[user] + self.z[user].T @ at[user]
            formed = formed - (self.x * self.w[user][:, None]).T @ self._layers.text
            squares.append(formed.square().sum())
        return torch.stack(squares)


def _inner(rows: Tensor) -> Tensor:
    """Return the inner products of each user's rows, [users, rows, rows]."""
    return torch.bmm(rows, rows.transpose(1, 2))


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(dim=-1, keepdim=True)
