"""Epsilons against dp-accounting, the analytic Gaussian mechanism and published numbers."""

import math
from collections.abc import Sequence

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from metarec_shared.errors import SettingsError
from metarec_shared.privacy.accounting import (
    LEAST_DELTA,
    Mechanism,
    delta_of,
    epsilon_of,
    noise_multiplier_for,
    renyi_epsilon_at,
    renyi_epsilon_of,
    renyi_order_for,
)

PUBLISHED = (1.0, 0.01, 1000)
GRID = [
    [PUBLISHED],
    [(2.0, 0.1, 300)],
    [(1.0, 0.5, 5)],
    [(0.6, 0.002, 500)],
    [(10.0, 1.0, 100)],
    [(0.8, 0.05, 50), (5.0, 1.0, 1)],
    [(1.0, 0.01, 1000), (10.0, 1.0, 3)],
    [(30.0, 0.2, 1000), (40.0, 1.0, 2), (4.0, 0.05, 20)],
]


def mechanisms(history: Sequence[tuple[float, float, int]]) -> list[Mechanism]:
    return [
        Mechanism(name="test", noise_multiplier=noise, sampling_rate=rate, releases=count)
        for noise, rate, count in history
    ]


def pld_epsilon(history: Sequence[tuple[float, float, int]], delta: float) -> float:
    """The worse of adding and removing a user, by another library's privacy-loss distributions."""
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for noise, rate, count in history:
        release = GaussianDpEvent(noise)
        accountant.compose(release if rate == 1.0 else PoissonSampledDpEvent(rate, release), count)
    return float(accountant.get_epsilon(delta))


def analytic_gaussian_delta(noise: float, epsilon: float) -> float:
    """Balle and Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy", Theorem 8."""
    half, ratio = 1 / (2 * noise), epsilon * noise
    return float(stats.norm.cdf(half - ratio) - math.exp(epsilon) * stats.norm.cdf(-half - ratio))


@pytest.mark.parametrize("history", GRID)
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_epsilon_is_that_of_another_library_from_above_and_below_renyis(
    history: list[tuple[float, float, int]], delta: float
) -> None:
    found, reference = epsilon_of(mechanisms(history), delta), pld_epsilon(history, delta)
    assert reference <= found + 2e-4  # theirs is rounded up as well, by its interval
    assert found == pytest.approx(reference, rel=0.02)
    assert found <= renyi_epsilon_of(mechanisms(history), delta)


def test_the_published_setting_has_the_published_epsilons() -> None:
    history = mechanisms([PUBLISHED])
    assert epsilon_of(history, 1e-5) == pytest.approx(1.838, abs=1e-3)
    assert renyi_epsilon_of(history, 1e-5) == pytest.approx(2.101, abs=1e-3)
    assert pld_epsilon([PUBLISHED], 1e-5) == pytest.approx(1.828, abs=1e-3)


@pytest.mark.parametrize("noise", [0.5, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_without_sampling_it_is_the_analytic_gaussian_mechanism(noise: float, delta: float) -> None:
    exact = optimize.brentq(lambda epsilon: analytic_gaussian_delta(noise, epsilon) - delta, 0.0, 200.0, xtol=1e-9)
    found = epsilon_of(mechanisms([(noise, 1.0, 1)]), delta)
    assert exact <= found <= exact + max(0.021, 0.002 * exact)
    assert found <= epsilon_of(mechanisms([(noise * math.sqrt(4), 1.0, 4)]), delta) + 1e-3  # four of twice the noise


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_delta_is_that_of_the_analytic_gaussian_mechanism_rounded_up(noise: float) -> None:
    exact = analytic_gaussian_delta(noise, 3.0)
    assert exact <= delta_of(mechanisms([(noise, 1.0, 1)]), 3.0) <= 1.2 * exact


def test_a_delta_that_floating_point_cannot_reach_gets_the_renyi_bound() -> None:
    history = mechanisms([PUBLISHED])
    assert epsilon_of(history, 1e-12) == renyi_epsilon_of(history, 1e-12) > pld_epsilon([PUBLISHED], 1e-12)
    assert delta_of(history, 50.0) == LEAST_DELTA


def test_no_release_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon_of([], 1e-5) == renyi_epsilon_of([], 1e-5) == delta_of([], 1.0) == 0.0
    assert epsilon_of(mechanisms([(1.0, 0.1, 0), (1.0, 0.0, 5)]), 1e-5) == 0.0
    bare = mechanisms([(0.0, 0.1, 1), PUBLISHED])
    assert epsilon_of(bare, 1e-5) == renyi_epsilon_of(bare, 1e-5) == math.inf
    assert delta_of(bare, 100.0) == 1.0


def test_the_order_of_releases_and_how_they_are_counted_do_not_matter() -> None:
    parts = mechanisms([(1.0, 0.01, 400), (5.0, 1.0, 1), (1.0, 0.01, 600)])
    assert epsilon_of(parts, 1e-5) == epsilon_of(mechanisms([(5.0, 1.0, 1), PUBLISHED]), 1e-5)


def test_one_order_is_never_better_than_the_best_and_suits_a_gaussian_that_spends_the_budget() -> None:
    order = renyi_order_for(2.0, 1e-5)
    exhausting = noise_multiplier_for(epsilon=2.0, delta=1e-5, sampling_rate=1.0, releases=1)
    history = mechanisms([(exhausting, 1.0, 1)])
    assert renyi_epsilon_at(history, 1e-5, order) >= renyi_epsilon_of(history, 1e-5)
    assert renyi_epsilon_at(history, 1e-5, order) == pytest.approx(renyi_epsilon_of(history, 1e-5), rel=0.01)


@settings(max_examples=6, deadline=None)
@given(
    noise=st.floats(0.6, 4.0),
    rate=st.floats(0.001, 1.0),
    releases=st.integers(1, 100),
    delta=st.floats(1e-9, 1e-3),
)
def test_more_noise_fewer_users_fewer_releases_and_more_delta_cost_no_more(
    noise: float, rate: float, releases: int, delta: float
) -> None:
    cost = epsilon_of(mechanisms([(noise, rate, releases)]), delta)
    slack = 1e-9 + 1e-3 * cost
    assert epsilon_of(mechanisms([(1.3 * noise, rate, releases)]), delta) <= cost + slack
    assert epsilon_of(mechanisms([(noise, 0.7 * rate, releases)]), delta) <= cost + slack
    assert epsilon_of(mechanisms([(noise, rate, releases - 1)]), delta) <= cost + slack
    assert epsilon_of(mechanisms([(noise, rate, releases)]), 2 * delta) <= cost + slack
    assert cost <= renyi_epsilon_of(mechanisms([(noise, rate, releases)]), delta) + 0.02


@pytest.mark.parametrize(
    ("epsilon", "rate", "releases", "fixed"),
    [(2.0, 0.01, 1000, []), (0.3, 1.0, 1, []), (3.0, 0.1, 200, [(10.0, 1.0, 1)])],
)
def test_the_noise_keeps_within_the_budget_and_slightly_less_does_not(
    epsilon: float, rate: float, releases: int, fixed: list[tuple[float, float, int]]
) -> None:
    noise = noise_multiplier_for(
        epsilon=epsilon, delta=1e-5, sampling_rate=rate, releases=releases, fixed=mechanisms(fixed)
    )
    assert epsilon_of(mechanisms([*fixed, (noise, rate, releases)]), 1e-5) <= epsilon
    assert epsilon_of(mechanisms([*fixed, (noise / 1.0011, rate, releases)]), 1e-5) > epsilon


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is out of range, got 0"),
        ({"epsilon": math.inf}, "epsilon is out of range, got inf"),
        ({"delta": 1.0}, "delta is out of range, got 1"),
        ({"sampling_rate": 0.0}, "sampling rate is out of range"),
        ({"sampling_rate": math.nan}, "sampling rate is out of range"),
        ({"releases": 0}, "releases is out of range"),
        ({"fixed": mechanisms([(0.5, 1.0, 1)])}, "is spent on other releases"),
        ({"epsilon": 1e-4, "sampling_rate": 1.0}, "no noise multiplier up to"),
    ],
)
def test_noise_that_cannot_be_found_is_an_error(values: dict[str, object], message: str) -> None:
    question: dict[str, object] = {"epsilon": 1.0, "delta": 1e-5, "sampling_rate": 0.1, "releases": 1}
    with pytest.raises(SettingsError, match=message):
        noise_multiplier_for(**(question | values))  # type: ignore[arg-type]


def test_a_mechanism_out_of_range_is_refused() -> None:
    for noise, rate, releases in ((-1.0, 0.5, 1), (math.nan, 0.5, 1), (1.0, 1.1, 1), (1.0, 0.5, -1)):
        with pytest.raises(SettingsError, match="of test is out of range"):
            mechanisms([(noise, rate, releases)])
