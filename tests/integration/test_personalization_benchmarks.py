"""What is measured of a trained recommender in an app: its explanations, and items that are added to it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from metarec_shared.checkpoint import Checkpoint, load_checkpoint
from metarec_shared.errors import DataError, MetaRecError
from metarec_shared.population import Population
from metarec_shared.split import Role
from simulations.benchmarks import added_items, explanations
from simulations.protocols import cold_item
from simulations.run_data import whole_population
from tests.integration.test_in_process_federation import run
from tests.small import small_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    sizes = {"federation__rounds": 10, "generator__users": 120, "evaluation__support": 8}
    run(small_settings(run__out=str(out), data__hold_out_items=0.2, text__encoder=str(minilm), **sizes))
    return out


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(folder)


@pytest.fixture
def population(checkpoint: Checkpoint) -> Population:
    return whole_population(checkpoint, checkpoint.settings)


def test_correlations_are_spearmans() -> None:
    draw = torch.Generator().manual_seed(3)
    left, right = torch.randint(0, 4, (2, 30, 6), generator=draw).double()
    expected = [spearmanr(a, b).statistic for a, b in zip(left.numpy(), right.numpy(), strict=True)]
    assert explanations.correlations(left, right).tolist() == pytest.approx(expected)
    assert explanations.correlations(torch.ones(1, 3), torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [0.0]


def test_influence_explains_the_model_better_than_likeness_of_texts(folder: Path, tmp_path: Path) -> None:
    explanations.main(f"{folder},{folder}", counts="2,5", users=20, json_file=tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())["agreement"]
    assert set(found) == {"random", "time"}
    for rows in found.values():
        assert list(rows) == ["2", "5"]
        for once, again in rows.values():
            assert once == again, "the run twice"
            assert all(-1 <= way["correlation"] <= 1 and 0 <= way["first"] <= 1 for way in once.values())
            assert once["influence"]["correlation"] > 0.5
            assert once["influence"]["correlation"] > once["text"]["correlation"]


def test_added_items_are_ranked_as_held_out_ones(checkpoint: Checkpoint, population: Population) -> None:
    """Who adds an item gets what the protocol cold-item measures of an item that was there and held out."""
    found = added_items.measure(checkpoint, population, 100, 8)
    expected = cold_item(checkpoint, population, population.judged(Role.TEST, 100), 8, added_items.K)
    assert expected is not None
    assert found == pytest.approx(
        {
            "added by add_items": expected["metarec"]["ndcg@10"],
            "text-kNN": expected["text_knn"]["ndcg@10"],
            "chance": expected["chance"]["ndcg@10"],
        },
        abs=1e-9,
    )


def test_a_run_that_held_out_nothing_has_no_items_to_add(checkpoint: Checkpoint, population: Population) -> None:
    items = replace(checkpoint.items, positions=np.arange(len(checkpoint.items.catalogue)))
    with pytest.raises(DataError, match="was the run made with --hold-out-items"):
        added_items.measure(replace(checkpoint, items=items), population, 100, 8)


def test_an_encoder_that_was_trained_on_the_catalogue_cannot_be_measured(
    checkpoint: Checkpoint, population: Population
) -> None:
    with pytest.raises(MetaRecError, match="gives other vectors"):
        added_items.measure(replace(checkpoint, text_encoder="builtin"), population, 100, 8)
