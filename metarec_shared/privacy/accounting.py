"""What sequences of noised releases cost, by Opacus's accountants.

Unit of privacy: one user's whole history. Neighbours: one user added or removed. Sampling: Poisson, each user by a coin
of its own. Every mechanism is a Gaussian one over such a sample, with noise measured in its own sensitivity.

A privacy-loss distribution by numerical composition (PRV) is the tightest of Opacus's accountants, and holds for
mechanisms whose parameters are fixed beforehand. Renyi divergence is looser, and at one order that is fixed beforehand
it also holds for parameters that are chosen on the way (a filter).

References:
    Feldman and Zrnic 2021, "Individual Privacy Accounting via a Renyi Filter": an order fixed beforehand.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from metarec_shared.errors import SettingsError
from metarec_shared.privacy.composition import (
    LEAST_DELTA,
    ORDERS,
    History,
    converted,
    is_noised,
    prv_epsilon,
    renyi_epsilon,
)

_LEAST_NOISE, _MOST_NOISE, _NOISE_STEP, _NOISE_TOLERANCE = 0.01, 1e5, 4.0, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """Releases of a Gaussian mechanism over a Poisson sample of users.

    Attributes:
        name: What is released, such as meta-update or popularity.
        noise_multiplier: Standard deviation of the noise over the sensitivity; 0: no privacy.
        sampling_rate: Chance of each user to be in a sample; 1: everybody is.
        releases: How many there are.

    Raises:
        SettingsError: A value is out of range.
    """

    name: str
    noise_multiplier: float
    sampling_rate: float
    releases: int = 1

    def __post_init__(self) -> None:
        _check(f"noise multiplier of {self.name}", self.noise_multiplier, 0.0 <= self.noise_multiplier < math.inf)
        _check(f"sampling rate of {self.name}", self.sampling_rate, 0.0 <= self.sampling_rate <= 1.0)
        _check(f"releases of {self.name}", self.releases, self.releases >= 0)


def epsilon_of(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Return the epsilon of all of ``mechanisms`` together: PRV's upper bound.

    It exceeds the exact one by at most twice its error, which is 0.5% of the Renyi bound, at least 0.001 and at most
    0.01, or 0.1% of that bound where that is more. Where PRV cannot compute (delta below ``LEAST_DELTA``, a mesh of
    over 8 million points), it is the Renyi bound, an upper bound too.

    Args:
        mechanisms: Parameters that were fixed beforehand, in any order.
        delta: Chance that epsilon does not hold, above 0 and below 1.

    Returns:
        Epsilon; 0 without a release, infinity where one has no noise.

    Raises:
        SettingsError: Delta is out of range.
    """
    _check("delta", delta, 0.0 < delta < 1.0)
    history = _history(mechanisms)
    return prv_epsilon(history, delta) if is_noised(history) else math.inf


def delta_of(mechanisms: Iterable[Mechanism], epsilon: float) -> float:
    """Return the smallest delta for which ``epsilon_of`` is at most ``epsilon``, rounded up by up to 1%.

    Returns:
        Delta from ``LEAST_DELTA`` to 1; 0 without a release.

    Raises:
        SettingsError: Epsilon is negative.
    """
    _check("epsilon", epsilon, epsilon >= 0.0)
    history = _history(mechanisms)
    if not history:
        return 0.0
    if not is_noised(history):
        return 1.0
    if prv_epsilon(history, LEAST_DELTA) <= epsilon:
        return LEAST_DELTA
    return _smallest(lambda delta: delta >= 1.0 or prv_epsilon(history, delta) <= epsilon, LEAST_DELTA, 1.0, 0.01)


def renyi_epsilon_of(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Return the epsilon of all of ``mechanisms`` together by Renyi divergence at the best order: a cross-check."""
    _check("delta", delta, 0.0 < delta < 1.0)
    return renyi_epsilon(_history(mechanisms), delta, ORDERS)


def renyi_epsilon_at(mechanisms: Iterable[Mechanism], delta: float, order: float) -> float:
    """Return the epsilon of all of ``mechanisms`` together by Renyi divergence at one order.

    With an order that was fixed beforehand it holds for parameters that depend on what was released before, as long as
    nothing is released that would take it above a bound that was fixed beforehand as well (Feldman and Zrnic 2021).
    """
    _check("delta", delta, 0.0 < delta < 1.0)
    return renyi_epsilon(_history(mechanisms), delta, (order,))


def renyi_order_for(epsilon: float, delta: float) -> float:
    """Return the Renyi order at which a plain Gaussian mechanism may have least noise within (epsilon, delta).

    A function of the budget alone, so nothing that was released can have a say in it. The order that turns out best
    afterwards depends on the releases, and picking it then is what a filter does not allow.

    Raises:
        SettingsError: The budget is out of range.
    """
    check_budget(epsilon, delta)

    def divergence(order: float) -> float:
        """Return the squared inverse noise, halved, whose Renyi divergence leaves ``epsilon`` after conversion."""
        return (epsilon - converted((order,), np.zeros(1), delta)) / order

    return float(max(ORDERS, key=divergence))


def noise_multiplier_for(
    *, epsilon: float, delta: float, sampling_rate: float, releases: int, fixed: Sequence[Mechanism] = ()
) -> float:
    """Return the smallest noise multiplier, rounded up by up to 0.1%, that keeps within a budget.

    Args:
        epsilon: Of everything together, above 0.
        delta: Above 0 and below 1.
        sampling_rate: Chance of each user to be in a sample, above 0.
        releases: How many releases there will be, at least 1.
        fixed: Releases that come on top, with their own noise.

    Raises:
        SettingsError: A value is out of range, or no noise is enough.
    """
    check_budget(epsilon, delta)
    _check("sampling rate", sampling_rate, 0.0 < sampling_rate <= 1.0)
    _check("releases", releases, releases >= 1)

    def fits(noise: float) -> bool:
        one = Mechanism(name="", noise_multiplier=noise, sampling_rate=sampling_rate, releases=releases)
        return epsilon_of([*fixed, one], delta) <= epsilon

    if (spent := epsilon_of(fixed, delta)) >= epsilon:
        raise SettingsError(f"no noise keeps within epsilon {epsilon:g}: {spent:.4g} is spent on other releases")
    high = 1.0
    while not fits(high):
        high *= _NOISE_STEP
        if high > _MOST_NOISE:
            raise SettingsError(f"no noise multiplier up to {_MOST_NOISE:g} keeps within epsilon {epsilon:g}")
    low = high / _NOISE_STEP
    while low > _LEAST_NOISE and fits(low):
        low, high = low / _NOISE_STEP, low
    return _smallest(fits, low, high, _NOISE_TOLERANCE)


def check_budget(epsilon: float, delta: float) -> None:
    """Check a budget.

    Raises:
        SettingsError: Epsilon is not above 0 and finite, or delta not above 0 and below 1.
    """
    _check("epsilon", epsilon, 0.0 < epsilon < math.inf)
    _check("delta", delta, 0.0 < delta < 1.0)


def _history(mechanisms: Iterable[Mechanism]) -> History:
    counts: Counter[tuple[float, float]] = Counter()
    for one in mechanisms:
        if one.releases and one.sampling_rate:
            counts[float(one.noise_multiplier), float(one.sampling_rate)] += one.releases
    return tuple((noise, rate, count) for (noise, rate), count in sorted(counts.items()))


def _smallest(holds: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """Return where ``holds`` begins to hold between ``low`` and ``high``, where it does, rounded up."""
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check(what: str, value: float, holds: bool) -> None:
    if not holds:
        raise SettingsError(f"{what} is out of range, got {value:g}")
