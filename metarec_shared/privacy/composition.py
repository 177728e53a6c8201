"""Epsilons of histories of noised releases, as Opacus's accountants compute them; all its quirks are kept here.

Opacus imports torch, so it is imported where it is used.

References:
    Gopi, Lee and Wutschitz 2021, "Numerical Composition of Differential Privacy", Theorem 5.5: the errors of PRV.
    Mironov, Talwar and Zhang 2019, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", section 3.3.
    Balle et al. 2020, "Hypothesis Testing Interpretations and Renyi Differential Privacy", Theorem 21: epsilon of it.
    Lebeda, Regehr, Kamath and Steinke 2024, "Avoiding Pitfalls for Privacy Accounting of Subsampled Mechanisms under
    Composition": a pair of neighbours that is worst once need not be worst composed. Opacus's PRV composes the removal
    of a user alone; tests compare it with dp-accounting, which takes the worse of removal and addition.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(12, 64), *(80, 96, 128, 192, 256, 384, 512, 768, 1000))
"""Renyi orders that are tried, Opacus's own and some higher ones for small epsilons."""

LEAST_DELTA = 1e-10
"""Below it, floating-point errors of PRV's Fourier transforms are felt, and the Renyi bound is reported instead."""

_DELTA_ERROR = 1e-3
"""Share of delta that PRV may err by, as in Opacus; its bound is for delta less that."""

_MOST_POINTS = 2**23
"""Longest mesh of PRV, 64 MB an array; a longer one costs more than it gains, and the Renyi bound is reported."""

History = tuple[tuple[float, float, int], ...]
"""Noise multiplier, sampling rate and number of releases: the history of Opacus's accountants, sorted and distinct."""


def is_noised(history: History) -> bool:
    """Return whether every release has noise."""
    return all(noise > 0 for noise, _, _ in history)


@lru_cache(maxsize=4096)
def prv_epsilon(history: History, delta: float) -> float:
    """Return PRV's upper bound of epsilon; the Renyi bound where PRV cannot compute it. All releases have noise."""
    from metarec_shared.privacy.opacus_import import PRVAccountant

    if not history:
        return 0.0
    renyi = renyi_epsilon(history, delta, ORDERS)
    eps_error = min(0.5, max(0.001, min(0.01, 0.005 * renyi), 0.001 * renyi))
    delta_error = _DELTA_ERROR * delta
    releases = sum(count for _, _, count in history)
    reach = 3.0 + renyi_epsilon(history, delta_error / (8 * releases), ORDERS)
    points = 2.0 * reach * math.sqrt(releases * math.log(12 / delta_error) / 2.0) / eps_error
    if delta < LEAST_DELTA or not points <= _MOST_POINTS:
        return renyi
    accountant = PRVAccountant()
    accountant.history = list(history)
    try:
        with _quiet():
            epsilon = float(accountant.get_epsilon(delta, eps_error=eps_error, delta_error=delta_error))
    except (RuntimeError, ValueError):  # Opacus says that its numbers would not be reliable
        return renyi
    return max(epsilon, 0.0) if math.isfinite(epsilon) else renyi


def renyi_epsilon(history: History, delta: float, orders: tuple[float, ...]) -> float:
    """Return the Renyi bound of epsilon at the best of ``orders``; infinity where a release has no noise."""
    if not history:
        return 0.0
    if not is_noised(history):
        return math.inf
    divergences = np.array([count * _renyi_divergences(noise, rate, orders) for noise, rate, count in history])
    return max(0.0, converted(orders, divergences.sum(axis=0), delta))


@lru_cache(maxsize=4096)
def _renyi_divergences(noise: float, rate: float, orders: tuple[float, ...]) -> NDArray[np.float64]:
    from metarec_shared.privacy.opacus_import import compute_rdp

    with _quiet():
        return np.asarray(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(orders)), dtype=np.float64)


def converted(orders: tuple[float, ...], divergences: NDArray[np.float64], delta: float) -> float:
    """Return the smallest epsilon that Renyi divergences at ``orders`` guarantee."""
    from metarec_shared.privacy.opacus_import import get_privacy_spent

    with _quiet():
        epsilon, _ = get_privacy_spent(orders=list(orders), rdp=divergences, delta=delta)
    return float(epsilon)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Opacus: it takes log(0) at sampling rate 1, as it should, and suggests other orders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
