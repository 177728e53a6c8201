"""The codec against the closed forms of stochastic rounding: mean, variance, independence, error over norm."""

import numpy as np
import pytest

from metarec_shared.quantization import BLOCK, dequantize, quantize
from metarec_shared.randomness import generator

DRAWS = 4000
LIMITS = {8: 127, 16: 32767}
both_widths = pytest.mark.parametrize("bits", [8, 16])


def steps_of_one_block():
    """A block in steps: its peak is the largest code; between them every fraction, whole numbers, and both signs."""
    rng = np.random.default_rng(0)
    steps = rng.uniform(0.05, 60, BLOCK) * rng.choice([-1, 1], BLOCK)
    steps[-8:] = [0, 1, -2, 0.5, -0.5, 0.05, -0.05, 30]
    return steps


def drawn(steps, bits, draws=DRAWS, step=2.0**-7):
    """Return values and ``draws`` independent round trips of them, in steps, float64 [draws, values].

    A row is a block, so that all have the same step: a power of two, since the peak in front is the largest code.
    """
    values = np.concatenate([[LIMITS[bits]], steps[1:]]).astype(np.float32)
    assert values.size == BLOCK
    rows = np.tile(values * np.float32(step), (draws, 1))
    back = dequantize(quantize(rows, bits, generator(0, "quantization", bits)))
    return values.astype(np.float64), back.astype(np.float64) / step


def fractions(values):
    return np.abs(values) - np.floor(np.abs(values))


@both_widths
def test_the_mean_of_many_round_trips_is_the_value(bits):
    """A z-test a value; their squares add up to a chi-square."""
    values, back = drawn(steps_of_one_block(), bits)
    p = fractions(values)
    certain = p == 0
    assert certain.sum() == 5
    np.testing.assert_array_equal(back[:, certain], np.broadcast_to(values[certain], (DRAWS, 5)))
    z = ((back.mean(axis=0) - values) / np.sqrt(np.where(certain, 1, p * (1 - p)) / DRAWS))[~certain]
    assert np.abs(z).max() < 4.5
    assert abs((z**2).sum() - z.size) < 4 * np.sqrt(2 * z.size)
    assert abs(z.sum()) < 4 * np.sqrt(z.size)


@both_widths
def test_the_variance_is_that_of_stochastic_rounding(bits):
    """The squared error is (1 - p)^2 with chance p, else p^2: mean p (1 - p), variance p (1 - p) (1 - 2 p)^2."""
    values, back = drawn(steps_of_one_block(), bits)
    p = fractions(values)
    variance, spread = p * (1 - p), np.sqrt(p * (1 - p) * (1 - 2 * p) ** 2 / DRAWS)
    squared = ((back - values) ** 2).mean(axis=0)
    assert (np.abs(squared - variance) <= 4.5 * spread + 1e-5).all()
    assert abs((squared - variance).sum()) < 4 * np.sqrt((spread**2).sum())


@both_widths
def test_the_errors_of_different_values_are_independent(bits):
    """Then the summed error of a block has the summed variance, with a relative standard error of sqrt(2 / draws)."""
    values, back = drawn(steps_of_one_block(), bits)
    p = fractions(values)
    summed = (back - values).sum(axis=1)
    assert (summed**2).mean() / (p * (1 - p)).sum() == pytest.approx(1, abs=4.5 * np.sqrt(2 / DRAWS))


@both_widths
@pytest.mark.parametrize("fraction", [0.125, 0.375, -0.25, 0.75])
def test_small_values_survive_averaging_which_rounding_to_nearest_would_not_let_them(bits, fraction):
    values, back = drawn(np.full(BLOCK, fraction), bits)
    mean, p = back[:, 1:].mean(), abs(fraction)
    error = 4.5 * np.sqrt(p * (1 - p) / back[:, 1:].size)
    assert abs(mean - fraction) < error
    assert abs(np.rint(values[1:]).mean() - fraction) > 20 * error


@both_widths
def test_the_chance_of_the_next_code_is_right_even_for_a_thousandth_of_a_step(bits):
    p = 0.001
    _, back = drawn(np.full(BLOCK, p), bits)
    up, count = int((back[:, 1:] == 1).sum()), DRAWS * (BLOCK - 1)
    assert abs(up - p * count) < 4.5 * np.sqrt(p * (1 - p) * count)
    assert set(np.unique(back[:, 1:])) == {0, 1}


@both_widths
def test_the_error_relative_to_the_norm_is_that_of_uniform_values(bits):
    """Given the peak m of a block of B values uniform in [-a, a], the others are uniform in [-m, m].

    So their p are uniform in [0, 1), E[p (1 - p)] = 1/6, and the squared error of a block is (B - 1) / 6 (m / limit)^2
    against a squared norm of m^2 + (B - 1) m^2 / 3: a ratio without m.
    """
    values = np.random.default_rng(0).uniform(-0.01, 0.01, (4000, BLOCK)).astype(np.float32)
    error = dequantize(quantize(values, bits, generator(0, "uniform"))).astype(np.float64) - values
    expected = np.sqrt((BLOCK - 1) / 6 / (1 + (BLOCK - 1) / 3)) / LIMITS[bits]
    assert np.linalg.norm(error) / np.linalg.norm(values) == pytest.approx(expected, rel=0.003)
    assert expected == pytest.approx({8: 5.54e-3, 16: 2.145e-5}[bits], rel=1e-3)


@both_widths
def test_the_error_relative_to_the_norm_is_that_of_normal_values(bits):
    """The squared error of a block is about (B - 1) / 6 (m / limit)^2, its expected squared norm B sigma^2.

    E[m^2] / sigma^2, the second moment of the peak, is the integral of 2 m (1 - erf(m / sqrt 2)^B) over m. Below a
    step, p is not uniform, but the density of a normal is flat to 1e-4 over a step at 8 bits.
    """
    grid = np.linspace(0, 10, 20_001)
    density = np.sqrt(2 / np.pi) * np.exp(-(grid**2) / 2)
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    peak = np.trapezoid(2 * grid * (1 - np.minimum(cumulative, 1) ** BLOCK), grid)
    values = np.random.default_rng(1).normal(0, 0.01, (4000, BLOCK)).astype(np.float32)
    error = dequantize(quantize(values, bits, generator(0, "normal"))).astype(np.float64) - values
    expected = np.sqrt(peak * (BLOCK - 1) / BLOCK / 6) / LIMITS[bits]
    assert np.linalg.norm(error) / np.linalg.norm(values) == pytest.approx(expected, rel=0.01)


@both_widths
def test_the_mean_over_many_nodes_gets_better_as_one_over_the_root_of_their_number(bits):
    values = np.random.default_rng(2).normal(size=2000).astype(np.float32)
    rng = generator(0, "nodes")
    nodes = np.mean([dequantize(quantize(values, bits, rng)).astype(np.float64) for _ in range(100)], axis=0)
    one = dequantize(quantize(values, bits, rng)).astype(np.float64)
    assert np.linalg.norm(one - values) / np.linalg.norm(nodes - values) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_same_address_gives_the_same_codes(bits):
    values = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    first, second, other = (quantize(values, bits, generator(0, "codes", a)) for a in (1, 1, 2))
    np.testing.assert_array_equal(first.codes, second.codes)
    assert (first.codes != other.codes).mean() > 0.25
