"""The bound on a meta-update: honest ones are below it whatever is drawn, scaled ones are above it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi, poisson

from client.privacy.guard import SimulatedGuard, protected, reply_scales
from metarec_shared.privacy.terms import Terms
from metarec_shared.quantization import dequantize, quantize
from server.norm_bound import Contribution, norm_bound, norm_of

NUMBERS = 400


def terms(mode: str, noise: float = 1.0, clip_norm: float = 0.5) -> Terms:
    return Terms(
        mode=mode,  # type: ignore[arg-type]
        clip_norm=clip_norm,
        noise_multiplier=noise,
        sampling_rate=0.1,
        delta=1e-5,
        popularity_noise=0.0,
        popularity_norm=1.0,
        randomness="simulated",
    )


@pytest.mark.parametrize("mean", [0.01, 0.25, 1.0, 4.0, 12.0, 100.0, 1e4, 1e6])
def test_more_users_than_the_most_are_not_drawn(mean: float) -> None:
    most = Contribution(users=1e9, expected=mean, exact=True).most_drawn
    assert poisson.sf(math.floor(most), mean) < 1e-8
    for users in (math.ceil(mean), math.ceil(2 * mean), math.ceil(100 * mean)):
        most = Contribution(users=users, expected=mean, exact=True).most_drawn
        assert binom.sf(math.floor(most), users, mean / users) < 1e-8


@pytest.mark.parametrize("numbers", [1, 10, 1000, 10**6])
def test_noise_is_no_larger_than_its_share_of_the_bound(numbers: int) -> None:
    assert chi.sf(math.sqrt(numbers) + 6.0, numbers) < 2e-8


@given(
    mode=st.sampled_from(["site", "central", "local"]),
    users=st.integers(1, 300),
    rate=st.floats(0.01, 1.0),
    weight=st.floats(0.01, 2.0),
    noise=st.floats(0.0, 5.0),
    seed=st.integers(0, 10**6),
    bits=st.sampled_from([32, 16, 8]),
)
@settings(deadline=None, max_examples=200)
def test_an_honest_reply_is_within_the_bound_even_where_all_users_agree(
    mode: str, users: int, rate: float, weight: float, noise: float, seed: int, bits: int
) -> None:
    """The reply is made as ``client.meta_update`` makes it, of users whose clipped gradients are all the same."""
    given_terms, rng = terms(mode, noise), np.random.default_rng(seed)
    rate = 1.0 if mode == "local" else rate
    expected = np.array([users * rate])
    weights = weight * expected if mode != "central" else expected
    scales = reply_scales(weights, expected)
    direction = rng.normal(size=NUMBERS)
    drawn = rng.binomial(users, rate)
    clipped = scales[0] * drawn * given_terms.clip_norm * direction / np.linalg.norm(direction)
    sums = dict(zip("ab", torch.from_numpy(clipped).float().split([300, 100]), strict=True))
    reply = protected(SimulatedGuard(given_terms, seed), sums, scales, iter(["site"]), 1)
    if bits != 32:
        reply = {name: torch.from_numpy(dequantize(quantize(v.numpy(), bits, rng))) for name, v in reply.items()}
    deviation = 0.0 if mode == "central" else noise * given_terms.sensitivity
    most = norm_bound(
        Contribution(users=users, expected=float(expected[0]), exact=mode != "site"),
        clip_norm=given_terms.clip_norm, noise=deviation, parameters=NUMBERS, weight=float(weights[0]), bits=bits,
    )  # fmt: skip
    assert norm_of(reply) <= most
    assert most <= 1.15 * scales[0] * (
        0.5 * min(users if mode != "site" else math.inf, expected[0] + 6 * math.sqrt(expected[0]) + 6)
        + deviation * (math.sqrt(NUMBERS) + 6)
    )


def test_a_device_with_one_user_sends_at_most_the_clip_norm() -> None:
    device = Contribution(users=1.0, expected=0.25, exact=True)
    most = norm_bound(device, clip_norm=2.0, noise=0.0, parameters=100, weight=0.25)
    assert most == pytest.approx(2.0, rel=2e-3)


def test_a_node_that_expects_nobody_sends_nothing() -> None:
    nobody = Contribution(users=0.0, expected=0.0, exact=True)
    assert norm_bound(nobody, clip_norm=2.0, noise=0.0, parameters=100, weight=0.0) == 0.0


def test_a_norm_is_over_all_tensors_and_does_not_overflow() -> None:
    assert norm_of({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor(4.0)}) == pytest.approx(5.0)
    assert norm_of({"a": torch.full((4,), 1e18), "b": torch.zeros(3)}) == pytest.approx(2e18)
    assert norm_of({"a": torch.full((4,), 1e30)}) == math.inf
