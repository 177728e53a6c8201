"""Matrices of the graph, a row an item or an output: as they are, or 8-bit integers with a scale for each row.

    q_ij = round(x_ij / s_i),    s_i = max_j |x_ij| / 127,    x_ij ~ s_i q_ij

so that no element is off by more than half a scale. What is looked up row by row is turned back row by row; a matrix
that is multiplied with is turned back whole, which a runtime does once, when it loads the graph.

References:
    Jacob et al. (2018), Quantization and training of neural networks for efficient integer-arithmetic-only inference,
    section 2.1, with one scale a row and no zero point.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 127
"""Symmetric, so that an element and its negative are as far off."""


class Table(nn.Module):
    """A matrix of 32-bit numbers.

    Args:
        values: The matrix.
    """

    values: Tensor

    def __init__(self, values: Float[Tensor, "rows columns"]) -> None:
        super().__init__()
        self.register_buffer("values", values.detach().to(torch.float32).contiguous())

    def rows(self, at: Int[Tensor, "..."]) -> Float[Tensor, "... columns"]:
        """Return the rows at some positions."""
        return self.values[at]

    def whole(self) -> Float[Tensor, "rows columns"]:
        """Return the matrix."""
        return self.values


class QuantizedTable(Table):
    """A matrix of 8-bit integers with a scale for each row.

    Args:
        values: The matrix before it is rounded.
    """

    scales: Tensor

    def __init__(self, values: Float[Tensor, "rows columns"]) -> None:
        nn.Module.__init__(self)
        values = values.detach().to(torch.float32)
        largest = values.abs().amax(dim=1, keepdim=True)
        scales = torch.where(largest > 0, largest / LARGEST, 1.0)
        self.register_buffer("values", (values / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def rows(self, at: Int[Tensor, "..."]) -> Float[Tensor, "... columns"]:
        """Return the rows at some positions as 32-bit numbers."""
        return self.values[at].to(torch.float32) * self.scales[at]

    def whole(self) -> Float[Tensor, "rows columns"]:
        """Return the matrix as 32-bit numbers."""
        return self.values.to(torch.float32) * self.scales


class QuantizedLinear(nn.Module):
    """A linear layer whose weights are 8-bit integers with a scale for each output; its bias stays as it is.

    Args:
        layer: The layer before it is rounded.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = QuantizedTable(layer.weight)
        self.bias = layer.bias

    def forward(self, inputs: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Return the layer's output."""
        return F.linear(inputs, self.weight.whole(), self.bias)


class QuantizedEmbedding(nn.Module):
    """An embedding whose rows are 8-bit integers with a scale for each.

    Args:
        layer: The embedding before it is rounded.
    """

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        self.weight = QuantizedTable(layer.weight)

    def forward(self, at: Int[Tensor, "..."]) -> Float[Tensor, "... width"]:
        """Return the rows at some positions."""
        return self.weight.rows(at)


def table(values: Float[Tensor, "rows columns"], *, int8: bool) -> Table:
    """Return a matrix as a table."""
    return QuantizedTable(values) if int8 else Table(values)


def quantized(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose linear layers and embeddings are quantized."""
    if isinstance(module, nn.Linear):
        return QuantizedLinear(module)
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(module)
    module = copy.copy(module)
    module._modules = {name: None if part is None else quantized(part) for name, part in module._modules.items()}
    return module
