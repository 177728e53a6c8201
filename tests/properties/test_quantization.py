"""What holds of the codec whatever the tensor: subnormal, huge, of no dimension, of no value."""

from unittest.mock import create_autospec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from metarec_shared.errors import WireError
from metarec_shared.quantization import BLOCK, Quantized, checked, dequantize, quantize

LIMITS = {8: 127, 16: 32767}
FLOAT = np.finfo(np.float32)
LEAST, GREATEST = 0.0, 1 - 2.0**-24  # of the float32 draws a generator makes

anything = settings(deadline=None)
bit_widths = st.sampled_from([8, 16])
seeds = st.integers(0, 2**32 - 1)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
small_tensors = arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, min_side=0, max_side=5), elements=finite)


@st.composite
def long_tensors(draw):
    """Blocks of very different sizes, the last one mostly cut short; some of zeros only."""
    length = draw(st.integers(1, 4 * BLOCK + 3))
    exponents = draw(st.lists(st.integers(-149, 127), min_size=5, max_size=5))
    uniform = np.random.default_rng(draw(seeds)).uniform(-1, 1, length)
    values = np.ldexp(uniform, np.repeat(exponents, BLOCK)[:length]).astype(np.float32)
    zeros = draw(st.integers(0, 4)) * BLOCK
    values[zeros : zeros + BLOCK] *= draw(st.sampled_from([0, 1]))
    return values


tensors = st.one_of(small_tensors, long_tensors())


def quantized(values, bits, seed):
    return quantize(values, bits, np.random.default_rng(seed))


def always(draw):
    """Return a generator whose every uniform draw is ``draw``."""
    rng = create_autospec(np.random.Generator, instance=True)
    rng.random.side_effect = lambda size, dtype: np.full(size, draw, dtype)
    return rng


def blocks_of(values):
    return [values.reshape(-1)[start : start + BLOCK] for start in range(0, values.size, BLOCK)]


@anything
@given(tensors, bit_widths, seeds)
def test_no_value_of_a_block_is_off_by_more_than_the_step_of_the_block(values, bits, seed):
    q = quantized(values, bits, seed)
    for wanted, got, scale in zip(blocks_of(values), blocks_of(dequantize(q)), q.scales, strict=True):
        error = np.abs(got.astype(np.float64) - wanted)
        assert (error <= float(scale) + 2.0**-22 * np.abs(wanted.astype(np.float64))).all()


@anything
@given(tensors, bit_widths, seeds)
def test_the_step_of_a_block_is_its_largest_magnitude_over_the_largest_code(values, bits, seed):
    scales = quantized(values, bits, seed).scales
    assert scales.dtype == np.float32
    for block, scale in zip(blocks_of(values), scales, strict=True):
        exact = float(np.abs(block).max()) / LIMITS[bits]
        assert abs(scale - exact) <= max(2.0**-22 * exact, FLOAT.smallest_subnormal)


@anything
@given(tensors, bit_widths, seeds)
def test_codes_have_the_shape_of_the_tensor_and_stay_in_range(values, bits, seed):
    codes = quantized(values, bits, seed).codes
    assert codes.shape == values.shape
    assert codes.dtype == f"int{bits}"
    assert (np.abs(codes.astype(np.int64)) <= LIMITS[bits]).all()


@anything
@given(tensors, bit_widths, seeds)
def test_what_comes_back_is_finite_and_has_the_shape_of_the_tensor(values, bits, seed):
    back = dequantize(quantized(values, bits, seed))
    assert isinstance(back, np.ndarray)
    assert back.dtype == np.float32
    assert back.shape == values.shape
    assert np.isfinite(back).all()


@anything
@given(tensors, bit_widths, seeds)
def test_a_value_keeps_its_sign_or_becomes_zero_and_zero_stays_zero(values, bits, seed):
    back = dequantize(quantized(values, bits, seed))
    assert ((np.sign(back) == np.sign(values)) | (back == 0)).all()


@anything
@given(tensors, bit_widths)
def test_the_two_extreme_draws_give_neighbouring_codes_around_the_value(values, bits):
    up, down = (quantize(values, bits, always(draw)).codes.astype(int) for draw in (LEAST, GREATEST))
    assert (np.abs(down) <= np.abs(up)).all()
    assert (np.abs(up) <= np.minimum(np.abs(down) + 1, LIMITS[bits])).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_float32_stays_in_range_and_finite_whatever_is_drawn(sign, bits):
    values = np.full(BLOCK + 1, sign * FLOAT.max)
    for draw in (LEAST, GREATEST):
        q = quantize(values, bits, always(draw))
        np.testing.assert_allclose(dequantize(q), values, rtol=1 / LIMITS[bits])
        assert np.abs(q.codes.astype(int)).max() <= LIMITS[bits]
    assert np.abs(quantize(values, bits, always(LEAST)).codes.astype(int)).min() == LIMITS[bits]


@anything
@given(arrays.array_shapes(min_dims=0, min_side=0, max_side=20), bit_widths, seeds)
def test_zeros_are_exact(shape, bits, seed):
    q = quantized(np.zeros(shape, np.float32), bits, seed)
    assert not q.codes.any()
    assert not q.scales.any()
    assert not dequantize(q).any()


@anything
@given(long_tensors(), bit_widths, seeds)
def test_multiples_of_the_step_are_exact(values, bits, seed):
    """A power of two for a step, so that float32 rounds nothing."""
    codes = np.random.default_rng(seed).integers(-LIMITS[bits], LIMITS[bits] + 1, values.size)
    codes[::BLOCK] = LIMITS[bits]
    exact = np.ldexp(codes, -5).astype(np.float32)
    for rng in (np.random.default_rng(seed), always(LEAST), always(GREATEST)):
        q = quantize(exact, bits, rng)
        np.testing.assert_array_equal(q.codes, codes)
        np.testing.assert_array_equal(dequantize(q), exact)


@anything
@given(long_tensors(), bit_widths, seeds)
def test_the_layout_in_memory_does_not_matter(values, bits, seed):
    grid = np.resize(values, (3, 200))
    before = grid.copy()
    plain, other = quantized(grid, bits, seed), quantized(np.asfortranarray(grid), bits, seed)
    np.testing.assert_array_equal(other.codes, plain.codes)
    np.testing.assert_array_equal(other.scales, plain.scales)
    np.testing.assert_array_equal(grid, before)
    turned = Quantized(codes=np.asfortranarray(plain.codes), scales=plain.scales)
    np.testing.assert_array_equal(dequantize(turned), dequantize(plain))


@anything
@given(tensors, bit_widths, seeds)
def test_whatever_is_quantized_passes_the_check(values, bits, seed):
    q = quantized(values, bits, seed)
    again = checked("w", q.codes, q.scales, values.shape, bits)
    np.testing.assert_array_equal(dequantize(again), dequantize(q))


@anything
@given(st.integers(0, 600), bit_widths, seeds, st.floats(width=32))
def test_whatever_passes_the_check_dequantizes_to_finite_values(length, bits, seed, scale):
    codes = np.random.default_rng(seed).integers(-LIMITS[bits] - 1, LIMITS[bits] + 1, length).astype(f"int{bits}")
    scales = np.full(-(-length // BLOCK), scale, np.float32)
    try:
        q = checked("w", codes, scales, (length,), bits)
    except WireError:
        return
    assert np.isfinite(dequantize(q)).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, BLOCK, 299])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_value_that_is_not_finite_is_refused(wrong, position, bits):
    values = np.ones(300, np.float32)
    values[position] = wrong
    with pytest.raises(ValueError, match=r"^only finite values can be quantized, got NaN or infinity$"):
        quantized(values, bits, 0)


CODES, SCALES = np.zeros((2, 200), np.int8), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("codes", "scales", "message"),
    [
        (CODES.astype(np.int16), SCALES, "codes of w must be int8 of shape (2, 200), got int16 of shape (2, 200)"),
        (CODES.view(np.uint8), SCALES, "codes of w must be int8 of shape (2, 200), got uint8 of shape (2, 200)"),
        (CODES.T, SCALES, "codes of w must be int8 of shape (2, 200), got int8 of shape (200, 2)"),
        (CODES + np.int8(-128), SCALES, "codes of w must lie between -127 and 127, got -128"),
        (CODES, SCALES[:1], "scales of w must be float32 of shape (2,), got float32 of shape (1,)"),
        (CODES, np.zeros((2, 1), np.float32), "scales of w must be float32 of shape (2,), got float32 of shape (2, 1)"),
        (CODES, np.zeros(2), "scales of w must be float32 of shape (2,), got float64 of shape (2,)"),
        (CODES, SCALES.astype(">f4"), "scales of w must be float32 of shape (2,), got >f4 of shape (2,)"),
        (CODES, SCALES + np.float32(np.nan), "scales of w must lie between 0 and 2.68e+36, got nan"),
        (CODES, SCALES + np.float32(np.inf), "scales of w must lie between 0 and 2.68e+36, got inf"),
        (CODES, SCALES + np.float32(3e36), "scales of w must lie between 0 and 2.68e+36, got 3"),
        (CODES, np.float32([0, -1]), "scales of w must lie between 0 and 2.68e+36, got -1.0"),
    ],
)
def test_arrays_that_quantize_never_makes_are_refused(codes, scales, message):
    with pytest.raises(WireError) as caught:
        checked("w", codes, scales, (2, 200), 8)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
