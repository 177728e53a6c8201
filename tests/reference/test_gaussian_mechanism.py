"""The Gaussian mechanism against Opacus's own optimizer, SciPy's distributions and sums written out by hand."""

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import nn

from metarec_shared.meta_gradient import cohort_meta_gradient, per_user_meta_gradients
from metarec_shared.privacy.gaussian import Noise, bounded_counts, noised_counts, noised_sum
from metarec_shared.settings import AdaptationSettings
from tests.small import small_model, small_tasks

SOURCES = [Noise.from_system, lambda: Noise.simulated(0, "test")]


def noise_of(
    source: Noise, *, noise_multiplier: float = 0.7, sensitivity: float = 3.0, share: float = 1.0
) -> torch.Tensor:
    sums = {"a": torch.zeros(200, 100), "b": torch.zeros(30_000)}
    noised = noised_sum(sums, noise_multiplier=noise_multiplier, sensitivity=sensitivity, sources=[(source, share)])
    return torch.cat([value.flatten() for value in noised.values()])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_noise_is_gaussian_with_the_deviation_of_multiplier_times_sensitivity(source: object, share: float) -> None:
    values = noise_of(source(), share=share).double().numpy()  # type: ignore[operator]
    deviation = 0.7 * 3.0 * share
    assert stats.kstest(values, "norm", args=(0.0, deviation)).pvalue > 1e-4
    assert abs(values.std() / deviation - 1) < 5 / np.sqrt(2 * len(values))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(len(values))


def test_two_draws_of_a_system_source_differ_and_simulated_ones_of_an_address_do_not() -> None:
    assert not torch.equal(noise_of(Noise.from_system()), noise_of(Noise.from_system()))
    source = Noise.from_system()
    assert not torch.equal(noise_of(source), noise_of(source))
    assert torch.equal(noise_of(Noise.simulated(1, "a", 2)), noise_of(Noise.simulated(1, "a", 2)))
    assert not torch.equal(noise_of(Noise.simulated(1, "a", 2)), noise_of(Noise.simulated(1, "a", 3)))


def test_noised_values_lie_on_a_grid_that_hides_the_low_order_bits() -> None:
    step = 2.0 ** np.floor(np.log2(0.7 * 3.0) - 16)
    values = noise_of(Noise.from_system()).double().numpy() / step
    assert (values == np.rint(values)).all()
    assert step < 1e-4 * 0.7 * 3.0


@pytest.mark.parametrize("deviation", [5e-324, 1e-310, 1e-200])
def test_values_with_next_to_no_noise_are_not_lost(deviation: float) -> None:
    """The deviation's own grid has a step that no double holds, or that no value can be divided by."""
    sums = {"a": torch.tensor([0.0, -1.5, 1e30])}
    noised = noised_sum(sums, noise_multiplier=deviation, sensitivity=1.0, sources=[(Noise.simulated(0, "a"), 1.0)])
    torch.testing.assert_close(noised["a"], sums["a"])


def test_several_sources_add_independent_noise() -> None:
    sums = {"a": torch.ones(40_000)}
    sources = [(Noise.simulated(0, "node", i), 1.0) for i in range(9)]
    noised = noised_sum(sums, noise_multiplier=2.0, sensitivity=0.5, sources=sources)["a"].double().numpy() - 1.0
    assert stats.kstest(noised, "norm", args=(0.0, 3.0)).pvalue > 1e-4


def test_coins_land_as_often_as_they_should() -> None:
    for source in SOURCES:
        heads = source().coins(100_000, 0.3).mean()  # type: ignore[operator]
        assert abs(heads - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 100_000)


@pytest.mark.parametrize("choice", ["user-vector", "head", "lora", "all"])
def test_the_clipped_sum_is_that_of_opacus_and_so_is_the_division_by_the_expected_number(choice: str) -> None:
    model, tasks = small_model(AdaptationSettings(parameters=choice)), small_tasks(9, dtype=torch.float64)  # type: ignore[arg-type]
    expected = 12
    each = per_user_meta_gradients(model, tasks, None, 3).gradients
    norms = torch.stack([value.flatten(1).square().sum(1) for value in each.values()]).sum(0).sqrt()
    clip_norm = float(norms.median())
    parameters = {name: nn.Parameter(torch.zeros_like(value[0])) for name, value in each.items()}
    for name, parameter in parameters.items():
        parameter.grad_sample = each[name].detach()  # type: ignore[attr-defined]
    opacus = DPOptimizer(
        torch.optim.SGD(parameters.values(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=expected,
    )
    opacus.pre_step()
    ours = cohort_meta_gradient(model, [(tasks, torch.ones(9, dtype=torch.float64))], clip_norm=clip_norm).gradients
    noiseless = noised_sum(ours, noise_multiplier=0.0, sensitivity=clip_norm, sources=[])
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        # Opacus divides by the norm plus 1e-6.
        torch.testing.assert_close(noiseless[name] / expected, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_one_broken_user_contributes_nothing_and_the_others_what_they_would_without_him() -> None:
    for choice in ("user-vector", "all"):
        model, tasks = small_model(AdaptationSettings(parameters=choice)), small_tasks(4, dtype=torch.float64)  # type: ignore[arg-type]
        assert tasks.dropout is not None
        tasks.dropout[2] = torch.nan
        with_him = cohort_meta_gradient(model, [(tasks, torch.ones(4, dtype=torch.float64))], clip_norm=0.5).gradients
        rest = tasks.take(torch.tensor([0, 1, 3]))
        without = cohort_meta_gradient(model, [(rest, torch.ones(3, dtype=torch.float64))], clip_norm=0.5).gradients
        for name, value in without.items():
            torch.testing.assert_close(with_him[name], value, msg=name)


def test_counts_of_each_user_are_bounded_and_noise_is_scaled_to_the_bound() -> None:
    owners, items = np.repeat([0, 1, 2], [4, 1, 9]), np.r_[0:4, 2, 0:9]
    for user in range(3):
        own = bounded_counts(items[owners == user], np.zeros((owners == user).sum(), dtype=np.int64), 2.0, 12)
        assert np.linalg.norm(own) == pytest.approx(min(2.0, np.sqrt((owners == user).sum())))
    whole = bounded_counts(items, owners, 2.0, 12)
    by_hand = np.zeros(12)
    by_hand[:4] += 1.0
    by_hand[2] += 1.0
    by_hand[:9] += 2.0 / 3.0
    np.testing.assert_allclose(whole, by_hand)
    repeated = bounded_counts(np.array([5, 5, 5, 5]), np.zeros(4, dtype=np.int64), 2.0, 12)
    assert repeated.sum() == 1.0


def test_noised_counts_are_whole_numbers_in_public_bounds_with_the_right_noise() -> None:
    counts = np.full(50_000, 5_000.0)
    noised = noised_counts(counts, noise_multiplier=5.0, norm=10.0, most=10_000.0, sources=[Noise.from_system()])
    assert (noised == np.rint(noised)).all()
    assert abs((noised - counts).std() / 50.0 - 1) < 5 / np.sqrt(2 * len(counts))
    assert abs((noised - counts).mean()) < 5 * 50 / np.sqrt(len(counts))
    low = noised_counts(np.zeros(1000), noise_multiplier=5.0, norm=10.0, most=3.0, sources=[Noise.from_system()])
    assert (low.min(), low.max()) == (0.0, 3.0)


def test_replacing_a_user_doubles_the_noise_of_local_terms() -> None:
    from metarec_shared.privacy.terms import Terms

    terms = {
        mode: Terms(
            mode=mode,  # type: ignore[arg-type]
            clip_norm=1.5,
            noise_multiplier=1.0,
            sampling_rate=1.0,
            delta=1e-5,
            popularity_noise=1.0,
            popularity_norm=1.0,
            randomness="secure",
        )
        for mode in ("site", "central", "local")
    }
    assert [terms[mode].sensitivity for mode in ("site", "central", "local")] == [1.5, 1.5, 3.0]
    assert [terms[mode].releases_popularity for mode in ("site", "central", "local")] == [True, True, False]
