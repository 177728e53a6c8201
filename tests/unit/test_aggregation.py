"""What a rule of aggregation makes of the updates of a round, against NumPy, SciPy and the definition of Krum."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import trim_mean

from metarec_shared.errors import FederationError, SettingsError, WireError
from metarec_shared.exchange import MetaUpdate, Parameters
from metarec_shared.settings import FederationSettings
from server.aggregation import aggregation_of, check_folding
from tests.small import small_settings

LIKE = {"a": torch.zeros(7, 3), "b": torch.zeros(5), "c": torch.zeros(())}


def updates(count: int, seed: int = 0) -> tuple[list[MetaUpdate], NDArray[np.float64]]:
    """Return updates of random weights, and the nodes' mean gradients, [count, numbers]."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(1.0, 50.0, count)
    means = rng.normal(size=(count, 27)) + 0.5
    return [an_update(mean, weight) for mean, weight in zip(means, weights, strict=True)], means


def an_update(mean: NDArray[np.float64], weight: float) -> MetaUpdate:
    parts = torch.from_numpy(mean * weight).float().split([21, 5, 1])
    gradients = {name: part.view_as(LIKE[name]) for name, part in zip(LIKE, parts, strict=True)}
    return MetaUpdate(gradients=gradients, weight=float(weight), loss=None, users=None, nodes=1)


def aggregated(given: Sequence[MetaUpdate], limits: FederationSettings) -> NDArray[np.float64]:
    aggregation = aggregation_of(limits, LIKE)
    for update in given:
        aggregation.add(update)
    found = aggregation.gradient(lambda sums: sums)
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in LIKE.items()}
    assert all(value.dtype == torch.float32 for value in found.values())
    return torch.cat([value.flatten() for value in found.values()]).double().numpy()


@pytest.mark.parametrize("count", [3, 4, 9])
def test_the_median_is_numpys_of_the_nodes_means(count: int) -> None:
    given, means = updates(count)
    found = aggregated(given, FederationSettings(aggregation="median"))
    np.testing.assert_allclose(found, np.median(means, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "trim"), [(5, 0.2), (9, 0.34), (12, 0.1), (4, 0.49)])
def test_the_trimmed_mean_is_scipys_of_the_nodes_means(count: int, trim: float) -> None:
    given, means = updates(count)
    found = aggregated(given, FederationSettings(aggregation="trimmed-mean", trim=trim))
    np.testing.assert_allclose(found, trim_mean(means, trim, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "byzantine"), [(3, 0), (5, 1), (9, 3)])
def test_krum_is_the_node_with_the_least_distance_to_its_nearest(count: int, byzantine: int) -> None:
    given, means = updates(count, seed=count)
    means[0] *= 100.0
    given[0] = an_update(means[0], given[0].weight)
    nearest = count - byzantine - 2
    scores = [
        sum(sorted(float(((one - other) ** 2).sum()) for place, other in enumerate(means) if place != own)[:nearest])
        for own, one in enumerate(means)
    ]
    found = aggregated(given, FederationSettings(aggregation="krum", byzantine=byzantine))
    np.testing.assert_allclose(found, means[int(np.argmin(scores))], rtol=1e-5, atol=1e-6)


def test_krum_bears_an_update_as_large_as_single_precision_goes() -> None:
    given, means = updates(5)
    given[2] = an_update(np.full(27, 1e37), 1.0)
    found = aggregated(given, FederationSettings(aggregation="krum"))
    assert min(np.abs(found - mean).max() for place, mean in enumerate(means) if place != 2) < 1e-5


def test_the_mean_is_the_sum_over_the_weights_after_the_servers_noise() -> None:
    given, means = updates(6)
    weights = np.array([update.weight for update in given])
    aggregation = aggregation_of(FederationSettings(), LIKE)
    for update in given:
        aggregation.add(update)

    def noised(sums: Parameters) -> Parameters:
        return {name: value + weights.sum() for name, value in sums.items()}

    found = torch.cat([value.flatten() for value in aggregation.gradient(noised).values()])
    np.testing.assert_allclose(found, 1.0 + weights @ means / weights.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lie", [1000.0, -1.0, -1000.0])
@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum"])
def test_a_node_that_lies_moves_the_mean_and_hardly_a_robust_rule(rule: str, lie: float) -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=27)
    honest = [an_update(truth + 0.1 * rng.normal(size=27), 10.0) for _ in range(7)]
    liar = an_update(lie * truth, 10.0)
    limits = FederationSettings(aggregation=rule)  # type: ignore[arg-type]
    moved = np.linalg.norm(aggregated([*honest, liar], limits) - truth) / np.linalg.norm(truth)
    mean = np.linalg.norm(aggregated([*honest, liar], FederationSettings()) - truth) / np.linalg.norm(truth)
    assert moved < 0.15
    assert mean > 0.2


def test_a_node_without_weight_has_no_vote() -> None:
    given, means = updates(3)
    nobody = MetaUpdate(gradients=LIKE, weight=0.0, loss=None, users=None, nodes=1)
    found = aggregated([*given, nobody], FederationSettings(aggregation="median"))
    np.testing.assert_allclose(found, np.median(means, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum"])
def test_a_vote_that_is_not_finite_is_refused_and_a_tiny_weight_alone_makes_none(rule: str) -> None:
    given, _ = updates(6)
    aggregation = aggregation_of(FederationSettings(aggregation=rule), LIKE)  # type: ignore[arg-type]
    for update in given:
        aggregation.add(update)
    aggregation.add(MetaUpdate(gradients=LIKE, weight=1e-300, loss=None, users=None, nodes=1))
    with pytest.raises(WireError, match="meta-update over its weight, 1e-300, holds a value that is not finite"):
        aggregation.add(replace(an_update(np.ones(27), 1.0), weight=1e-300))
    assert all(value.isfinite().all() for value in aggregation.gradient(lambda sums: sums).values())


@pytest.mark.parametrize(
    ("limits", "least"),
    [
        (FederationSettings(aggregation="median"), 3),
        (FederationSettings(aggregation="trimmed-mean"), 5),
        (FederationSettings(aggregation="trimmed-mean", trim=0.4), 3),
        (FederationSettings(aggregation="krum"), 5),
        (FederationSettings(aggregation="krum", byzantine=3), 9),
        (FederationSettings(), 1),
    ],
)
def test_a_rule_needs_so_many_updates(limits: FederationSettings, least: int) -> None:
    assert limits.fewest_updates == least
    if least > 1:
        with pytest.raises(FederationError, match=f"{limits.aggregation} needs {least} meta-updates, got {least - 1}"):
            aggregated(updates(least - 1)[0], limits)
    aggregated(updates(least)[0], limits)


def test_the_fewest_updates_of_a_trimmed_mean_are_trimmed() -> None:
    for nodes in range(3, 1000):
        limits = FederationSettings(aggregation="trimmed-mean", trim=1 / nodes)
        assert int(limits.trim * limits.fewest_updates) >= 1
        assert limits.fewest_updates <= nodes + 1


def test_a_rule_that_compares_nodes_is_refused_where_replies_fold() -> None:
    check_folding(FederationSettings(), folds=True)
    check_folding(FederationSettings(aggregation="krum"), folds=False)
    with pytest.raises(FederationError, match="krum compares updates of single nodes, and this engine folds"):
        check_folding(FederationSettings(aggregation="krum"), folds=True)


PRIVATE = {"federation__clip_norm": 1.0, "privacy__noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"federation__aggregation": "mode"},
            "must be one of mean, trimmed-mean, median, krum, got 'mode'",
        ),
        ({"federation__aggregation": "median"}, "median needs federation.min-nodes of at least 3, got 1"),
        (
            {"federation__aggregation": "krum", "federation__byzantine": 2, "federation__min_nodes": 6},
            "krum needs federation.min-nodes of at least 7, got 6",
        ),
        (
            {"federation__aggregation": "krum", "federation__min_nodes": 5, "federation__cohort": 4},
            "krum needs federation.cohort of at least 5, got 4",
        ),
        (
            {"federation__aggregation": "trimmed-mean", "federation__trim": 0.5, "federation__min_nodes": 9},
            "needs federation.trim above 0 and below 0.5, got 0.5",
        ),
        ({"federation__aggregation": "trimmed-mean", "federation__trim": 0.0}, "needs federation.trim above 0 and"),
        ({"federation__trim": 0.6}, "federation.trim must be between 0 and 0.5, got 0.6"),
        (
            {"federation__aggregation": "median", "federation__min_nodes": 3, "privacy__mode": "central", **PRIVATE},
            "median needs privacy.mode = none or site, got central: the server's noise is calibrated for a sum",
        ),
        (
            {"federation__aggregation": "median", "federation__min_nodes": 3, "privacy__mode": "local", **PRIVATE},
            "median needs privacy.mode = none or site, got local: one device is mostly noise",
        ),
    ],
)
def test_a_rule_that_means_nothing_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        small_settings(**values)
    assert message in str(error.value)
