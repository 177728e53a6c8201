"""Nodes that lie: what the server refuses of one by name, and what a robust rule bears."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from metarec_shared import wire
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import FederationError
from metarec_shared.exchange import Enrollment, MetaUpdate
from metarec_shared.initialization import initial_model
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from server.failures import FAILURES_FILE
from server.run_folder import read_metrics
from simulations.grid import InProcessGrid
from tests.integration.test_in_process_federation import make_grid, run
from tests.integration.test_private_federation import CENTRAL, LOCAL, SITES
from tests.small import small_settings

Lie = Callable[[MetaUpdate], MetaUpdate]


class LyingGrid(InProcessGrid):
    """Node 3 sends ``lie`` of its meta-update."""

    lie: Lie

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            if reply.metadata.message_type == "train" and reply.metadata.src_node_id == 3:
                content = reply.content
                numbers = content.metric_records["numbers"]
                gradients = wire.unpack_parameters(content.array_records["arrays"])
                told = self.lie(
                    MetaUpdate(
                        gradients=gradients, weight=float(numbers["weight"]), loss=None, users=None, nodes=1  # type: ignore[arg-type]
                    )
                )  # fmt: skip
                numbers["weight"] = told.weight
                content["arrays"] = wire.pack_parameters(told.gradients)
            yield reply


def scaled(factor: float) -> Lie:
    return lambda update: replace(update, gradients={n: factor * value for n, value in update.gradients.items()})


def shifted(by: float) -> Lie:
    return lambda update: replace(update, gradients={name: value + by for name, value in update.gradients.items()})


def weighing(factor: float) -> Lie:
    return lambda update: replace(update, weight=factor * update.weight)


def heavier_and_larger(factor: float) -> Lie:
    return lambda update: weighing(factor)(scaled(factor)(update))


def lying(settings: Settings, lie: Lie) -> LyingGrid:
    grid = make_grid(settings, fold=False, kind=LyingGrid)
    assert isinstance(grid, LyingGrid)
    grid.lie = lie
    return grid


def causes_of(folder: Path) -> list[str]:
    file = folder / FAILURES_FILE
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert all((line["kind"], line["node"], line["name"]) == ("train", "3", "000000002") for line in lines)
    return [line["cause"] for line in lines]


PLAIN = {
    "federation__nodes": 7, "federation__rounds": 3, "federation__clip_norm": 0.5, "federation__cohort": 1000,
    "regression__enabled": False,
}  # fmt: skip
SITES_SHORT = SITES | {"federation__rounds": 3}


@pytest.mark.parametrize(
    ("values", "lie", "cause"),
    [
        (SITES_SHORT, scaled(100.0), "norm .* is above .*, the most that clip norm, weight and noise can give"),
        (SITES_SHORT, weighing(2.5), "weight must be from .* to .*, half to twice the users it expects to draw of the"),
        (SITES_SHORT, weighing(0.0), "weight must be from"),
        (SITES_SHORT, weighing(0.4), "weight must be from"),
        (PLAIN, scaled(100.0), "norm .* is above .*, the most that clip norm and weight can give"),
        (
            PLAIN,
            heavier_and_larger(100.0),
            "weight must be .*, the users it expects to draw of the .* it enrolled, got",
        ),
        (PLAIN | {"federation__weighting": "nodes"}, weighing(3.0), "weight must be 1, what every node weighs, got 3"),
        (PLAIN | {"federation__weighting": "nodes"}, scaled(100.0), "norm .* is above"),
        (PLAIN | {"traffic__update_bits": 8}, scaled(100.0), "norm .* is above"),
        (
            CENTRAL | {"federation__rounds": 2, "generator__users": 20},
            shifted(1.0),
            "norm .* is above 1.*weight can give",
        ),
        (
            LOCAL | {"federation__rounds": 2, "generator__users": 20},
            scaled(100.0),
            "norm .* is above .*, the most that clip norm, weight and",
        ),
    ],
)
def test_what_no_honest_node_can_send_is_that_nodes_failure(
    tmp_path: Path, values: dict[str, Any], lie: Lie, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small_settings(run__out=str(tmp_path), **values)
    run(settings, lying(settings, lie))
    rounds = read_metrics(tmp_path / "metrics.jsonl")
    found = causes_of(tmp_path)
    assert 1 <= len(found) == sum(line["failures"] for line in rounds)
    assert all(re.match(f"meta-update of 000000002: {cause}", one) for one in found)
    assert "node 000000002 (3) failed: meta-update of 000000002: " in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        SITES_SHORT,
        SITES_SHORT | {"federation__weighting": "nodes"},
        SITES_SHORT | {"traffic__update_bits": 8},
        PLAIN,
        PLAIN | {"federation__cohort": 16},
        PLAIN | {"federation__weighting": "nodes", "federation__cohort": 16},
        PLAIN | {"federation__clip_norm": 0.0, "federation__cohort": 16},
        CENTRAL | {"federation__rounds": 2},
        LOCAL | {"federation__rounds": 2},
    ],
)
def test_honest_nodes_are_never_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    settings = small_settings(run__out=str(tmp_path), **values)
    run(settings, lying(settings, lambda update: update))
    assert causes_of(tmp_path) == []


def test_without_a_clip_norm_there_is_no_bound(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path), **PLAIN | {"federation__clip_norm": 0.0})
    run(settings, lying(settings, scaled(100.0)))
    assert causes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"clip_norm": 5.0}, "terms of privacy: the run's clip norm is 1, got 5"),
        ({"noise_multiplier": 50.0}, "terms of privacy: the run's noise multiplier is 1, got 50"),
        ({"mode": "local"}, "terms of privacy: the run's mode is site, got local"),
        ({"randomness": "secure"}, "terms of privacy: the run's noise is simulated, got secure"),
        ({"delta": 0.0}, "terms of privacy: the run's delta is 1e-05, got 0"),
        ({"popularity_norm": 1e300}, "terms of privacy: the run's norm of item counts is 10, got 1e+300"),
        ({"popularity_noise": 1e-300}, "terms of privacy: the run's noise of item counts is 5, got 1e-300"),
        ({"popularity_noise": 1.7e308}, "terms of privacy: the run's noise of item counts is 5, got 1.7e+308"),
    ],
)
def test_a_node_whose_terms_would_raise_its_bound_does_not_enroll(
    tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    class BoastingGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                if reply.metadata.message_type == "query" and reply.metadata.src_node_id == 3:
                    enrolled: Enrollment = wire.unpack_enrollment(reply.content, 40)
                    assert enrolled.terms is not None
                    terms = replace(enrolled.terms, **changes)
                    reply.content = wire.pack_enrollment(replace(enrolled, terms=terms))
                yield reply

    settings = small_settings(run__out=str(tmp_path), **SITES_SHORT)
    run(settings, make_grid(settings, fold=False, kind=BoastingGrid))
    (line,) = (tmp_path / FAILURES_FILE).read_text().splitlines()
    assert (json.loads(line)["cause"], json.loads(line)["round"]) == (cause, 0)
    assert [one["nodes"] for one in read_metrics(tmp_path / "metrics.jsonl")] == [2, 2, 2]


ROBUST = {
    "federation__nodes": 7, "federation__rounds": 2, "federation__cohort": 1000, "federation__min_nodes": 5,
    "outer__optimizer": "sgd", "outer__learning_rate": 0.1, "outer__averaging": 0.0, "outer__momentum": 0.0,
    "outer__weight_decay": 0.0, "outer__warmup_rounds": 0, "regression__enabled": False, "generator__users": 140,
}  # fmt: skip


def trained(settings: Settings, lie: Lie) -> torch.Tensor:
    run(settings, lying(settings, lie))
    parameters = load_checkpoint(Path(settings.run.out)).parameters
    return torch.cat([value.flatten() for name, value in parameters.items() if name != "item_bias"])


@pytest.mark.parametrize("factor", [1000.0, -1000.0])
def test_a_node_that_lies_moves_the_mean_and_hardly_a_robust_rule(tmp_path: Path, factor: float) -> None:
    moved = {}
    for rule in ("mean", "median", "trimmed-mean", "krum"):
        settings = {}
        for name in ("honest", "lied to"):
            out = str(tmp_path / f"{rule} {name}")
            settings[name] = small_settings(run__out=out, federation__aggregation=rule, **ROBUST)
        honest = trained(settings["honest"], lambda update: update)
        lied_to = trained(settings["lied to"], scaled(factor))
        model = initial_model(settings["honest"], load_item_features(settings["honest"]).text)
        start = torch.cat([v.detach().flatten() for n, v in model.named_parameters() if n != "item_bias"])
        moved[rule] = float((lied_to - honest).norm() / (honest - start).norm())
    assert moved["mean"] > 50.0
    assert max(moved["median"], moved["trimmed-mean"]) < 0.5
    assert moved["krum"] < 2.0


def test_robust_rules_work_under_the_noise_of_sites(tmp_path: Path) -> None:
    values = SITES_SHORT | {"federation__aggregation": "median", "federation__min_nodes": 3}
    settings = small_settings(run__out=str(tmp_path), **values)
    run(settings, lying(settings, lambda update: update))
    assert [line["nodes"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3, 3, 3]


@pytest.mark.parametrize("rule", ["median", "krum"])
def test_a_weight_near_zero_makes_no_robust_rule_anything_but_finite(tmp_path: Path, rule: str) -> None:
    values = SITES_SHORT | {"federation__aggregation": rule, "federation__min_nodes": 3, "federation__byzantine": 0}
    values |= {"federation__nodes": 4, "generator__users": 640}
    settings = small_settings(run__out=str(tmp_path), federation__max_failures=0.5, **values)
    run(settings, lying(settings, lambda update: replace(scaled(0.0)(update), weight=1e-300)))
    assert len(causes_of(tmp_path)) == 3
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path).parameters.values())


def test_updates_without_a_bound_that_add_up_to_no_number_stop_the_run_before_its_step(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path), **PLAIN | {"federation__clip_norm": 0.0})

    class HugeGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                if reply.metadata.message_type == "train":
                    gradients = wire.unpack_parameters(reply.content.array_records["arrays"])
                    huge = {name: torch.full_like(value, 3e38) for name, value in gradients.items()}
                    reply.content["arrays"] = wire.pack_parameters(huge)
                yield reply

    with pytest.raises(FederationError, match="round 1: the meta-updates of 7 nodes make no finite gradient"):
        run(settings, make_grid(settings, fold=False, kind=HugeGrid))


def test_a_robust_rule_is_refused_before_anybody_is_asked_where_replies_fold(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path), federation__aggregation="median", **ROBUST)
    grid = make_grid(settings)
    with pytest.raises(FederationError, match="median compares updates of single nodes, and this engine folds"):
        run(settings, grid)
    assert not grid._waiting


def test_a_run_with_fewer_answers_than_the_rule_needs_stops_with_a_clear_error(tmp_path: Path) -> None:
    values = ROBUST | {"federation__nodes": 5, "federation__aggregation": "krum"}
    settings = small_settings(run__out=str(tmp_path), **values)
    with pytest.raises(FederationError, match=r"1 of 5 nodes failed .* federation.min-nodes is 5"):
        run(settings, lying(settings, weighing(-1.0)))
