"""An unbiased 16-bit or 8-bit codec for tensors that travel: meta-updates up, parameters down.

A tensor is flattened and cut into blocks of ``BLOCK`` values. Each block has its own step, ``scale``: its largest
magnitude over the largest code. Each value becomes one of the two multiples of the step around it, at random and such
that its expectation is the value itself, so that errors of many nodes and rounds average out instead of adding up.

References:
    Alistarh, Grubic, Li, Tomioka and Vojnovic (2017), QSGD: Communication-efficient SGD via gradient quantization and
    encoding, section 3 (stochastic quantization, here in blocks scaled by the largest magnitude, not by the norm).
    Suresh, Yu, Kumar and McMahan (2017), Distributed mean estimation with limited communication, section 2
    (stochastic k-level quantization).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metarec_shared.errors import WireError

BLOCK = 256
"""Consecutive values of the flattened tensor that share a scale."""

Bits = Literal[8, 16]

_CODES: dict[Bits, np.dtype[Any]] = {8: np.dtype(np.int8), 16: np.dtype(np.int16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A tensor as it travels: every value is about its code times the scale of its block.

    Attributes:
        codes: Whole numbers from -limit to limit, 127 at 8 bits and 32767 at 16, in the shape of the tensor.
        scales: Step of each block, float32 [blocks], where the last block may be shorter; 0 where all values are 0.
    """

    codes: NDArray[np.int8] | NDArray[np.int16]
    scales: NDArray[np.float32]


def quantize(values: NDArray[np.float32], bits: Bits, rng: np.random.Generator) -> Quantized:
    """Round each value at random to one of the two nearest codes, its expectation the value itself.

    With x = abs(value) / scale and p = x - floor(x), the code has the sign of the value and the magnitude
    floor(x) + Bernoulli(p). What ``dequantize`` makes of it has variance p (1 - p) scale^2, is off by at most a step,
    and its expectation is the value; all three up to float32, that is 2^-22 of the value and 2^-24 of a step.

    Args:
        values: A tensor of any shape, also of no dimension or no value.
        bits: Size of a code.
        rng: Where one uniform draw a value comes from, in the order of the flattened tensor.

    Raises:
        ValueError: A value is not finite.
    """
    dtype, limit = _CODES[bits], np.iinfo(_CODES[bits]).max
    flat = values.reshape(-1)
    blocks = np.zeros((-(-flat.size // BLOCK), BLOCK), np.float32)
    magnitudes = blocks.reshape(-1)[: flat.size]  # a view without the padding of the last block
    np.abs(flat, out=magnitudes)
    scales = _scales(blocks.max(axis=1), limit)
    blocks /= np.where(scales > 0, scales, 1)[:, None]
    below = np.floor(magnitudes)
    magnitudes -= below
    below += rng.random(flat.size, dtype=np.float32) < magnitudes
    np.minimum(below, limit, out=below)
    codes = np.copysign(below, flat, out=below).astype(dtype).reshape(values.shape)
    return Quantized(codes=codes, scales=scales)


def dequantize(quantized: Quantized) -> NDArray[np.float32]:
    """Return each code times the scale of its block, in the shape of the codes."""
    codes, scales = quantized.codes, quantized.scales
    blocks = np.zeros((len(scales), BLOCK), np.float32)
    values = blocks.reshape(-1)[: codes.size]
    values[:] = codes.reshape(-1)
    blocks *= scales[:, None]
    return values.reshape(codes.shape)


def checked(name: str, codes: NDArray[Any], scales: NDArray[Any], shape: tuple[int, ...], bits: Bits) -> Quantized:
    """Join the two arrays that arrived for the tensor ``name``; whatever passes dequantizes to finite values.

    Raises:
        WireError: They are not what ``quantize`` makes of a tensor of that shape: wrong dtype, shape or range.
    """
    dtype, limit = _CODES[bits], np.iinfo(_CODES[bits]).max
    _require(f"codes of {name}", codes, dtype, tuple(shape))
    _require(f"scales of {name}", scales, np.dtype(np.float32), (-(-codes.size // BLOCK),))
    if codes.size and codes.min() < -limit:
        raise WireError(f"codes of {name} must lie between -{limit} and {limit}, got {codes.min()}")
    largest = _largest_scale(limit)
    wrong = scales[~((scales >= 0) & (scales <= largest))]
    if wrong.size:
        raise WireError(f"scales of {name} must lie between 0 and {largest:.3g}, got {wrong[0]}")
    return Quantized(codes=codes, scales=scales)


def _scales(peaks: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    """Return each block's step, rounded up so that its peak is at most ``limit`` steps, even where it is subnormal."""
    if not np.isfinite(peaks).all():
        raise ValueError("only finite values can be quantized, got NaN or infinity")
    exact = peaks.astype(np.float64) / limit
    nearest = exact.astype(np.float32)
    rounded = np.where(nearest < exact, np.nextafter(nearest, np.float32(np.inf)), nearest)
    return np.minimum(rounded, _largest_scale(limit))


def _largest_scale(limit: int) -> np.float32:
    """Return a step as large as can be whose product with ``limit`` stays finite in float32."""
    nearest = np.float32(np.finfo(np.float32).max / limit)
    return np.float32(np.nextafter(nearest, np.float32(0)))


def _require(what: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise WireError(f"{what} must be {dtype} of shape {shape}, got {array.dtype} of shape {array.shape}")
