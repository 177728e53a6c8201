"""Settings that change what travels, what is trained, and how much is computed at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.data_source import load_learner
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import SettingsError
from metarec_shared.initialization import initial_model, released_names, travelling_names
from metarec_shared.packed import write_packed
from metarec_shared.sources import load_dataset, load_item_features
from server.run_folder import read_metrics
from tests.integration.test_in_process_federation import assert_same, make_grid, parameters_of, run
from tests.small import small_settings

SGD = {"outer__optimizer": "sgd", "outer__learning_rate": 0.1}


def test_a_cohort_computed_in_parts_gives_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("whole", 512), ("parts", 3)):
        monkeypatch.setattr("client.learner.MOST_USERS_AT_ONCE", most)
        load_learner.cache_clear()
        run(small_settings(run__out=str(tmp_path / name), **SGD))
    load_learner.cache_clear()
    assert_same(tmp_path / "whole", tmp_path / "parts", atol=1e-5)


def test_only_released_parameters_travel_and_change(tmp_path: Path) -> None:
    values = {"federation__released": "head, adaptation", "outer__weight_decay": 0.5}
    settings = small_settings(run__out=str(tmp_path / "few"), **values)
    run(settings)
    run(small_settings(run__out=str(tmp_path / "all")))
    initial = dict(initial_model(settings, load_item_features(settings).text).named_parameters())
    checkpoint = load_checkpoint(tmp_path / "few")
    assert checkpoint.model() is not None
    for name, value in checkpoint.parameters.items():
        if name != "item_bias":
            assert torch.equal(value, initial[name]) == (not name.startswith(("head", "adaptation"))), name
    few, everything = (read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("few", "all"))
    released = released_names(settings, initial)
    size = sum(initial[name].numel() for name in released)
    assert few["bytes_up"] == few["nodes"] * 4 * size < everything["bytes_up"] / 5
    assert few["bytes_down"] == few["nodes"] * 4 * (size + 40)
    assert set(travelling_names(settings, initial)) == {*released, "item_bias"}


def test_a_run_of_few_released_parameters_resumes(tmp_path: Path) -> None:
    values = {"federation__released": "head", "federation__rounds": 4}
    run(small_settings(run__out=str(tmp_path / "whole"), **values))
    broken = small_settings(run__out=str(tmp_path / "broken"), **values)

    class StoppingGrid(type(make_grid(broken))):  # type: ignore[misc]
        pushes = 0

        def push_messages(self, messages: object) -> object:
            StoppingGrid.pushes += 1
            if StoppingGrid.pushes > 4:
                raise KeyboardInterrupt
            return super().push_messages(messages)

    with pytest.raises(KeyboardInterrupt):
        run(broken, make_grid(broken, kind=StoppingGrid))
    run(small_settings(run__out=str(tmp_path / "broken"), run__resume=True, **values))
    assert_same(tmp_path / "whole", tmp_path / "broken")


def test_a_run_may_be_resumed_with_another_memory_bound(tmp_path: Path) -> None:
    run(small_settings(run__out=str(tmp_path), federation__rounds=2))
    run(small_settings(run__out=str(tmp_path), federation__rounds=2, run__resume=True, run__memory_gb=100.0))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_a_beginning_that_no_parameter_has_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="no parameter begins with 'heads'; wanted all, or beginnings such as adapt"
    ):
        released_names(small_settings(federation__released="heads"), ["adaptation.raw_rates", "head.weight"])


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_saves_bytes_and_hardly_moves_the_run(tmp_path: Path, bits: int) -> None:
    values = {"federation__rounds": 2, **SGD}
    run(small_settings(run__out=str(tmp_path / "exact"), **values))
    rounded = {"traffic__update_bits": bits, "traffic__parameter_bits": 16, **values}
    run(small_settings(run__out=str(tmp_path / "rounded"), **rounded))
    exact, few = (read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("exact", "rounded"))
    assert few["bytes_up"] < exact["bytes_up"] * bits / 32 * 1.05
    assert few["bytes_down"] < exact["bytes_down"] / 2 * 1.05
    left, right = (parameters_of(tmp_path / name) for name in ("exact", "rounded"))
    moved = torch.stack([(left[name] - right[name]).norm() for name in left]).norm()
    size = torch.stack([value.norm() for value in left.values()]).norm()
    assert 0 < float(moved / size) < 0.01


def test_clipping_bounds_what_a_round_can_move(tmp_path: Path) -> None:
    settings = small_settings(
        run__out=str(tmp_path), federation__clip_norm=0.01, federation__rounds=1, federation__evaluate_every=1, **SGD,
        outer__warmup_rounds=0, outer__averaging=0.0, outer__momentum=0.0, outer__weight_decay=0.0,
    )  # fmt: skip
    run(settings)
    before = dict(initial_model(settings, load_item_features(settings).text).named_parameters())
    after = parameters_of(tmp_path)
    moved = torch.stack([(after[name] - before[name]).norm() for name in after if name != "item_bias"]).norm()
    assert 0 < moved.item() <= 0.1 * 0.01 * 1.01  # the outer learning rate times the mean of clipped gradients


def test_a_run_over_sampled_candidates_learns(tmp_path: Path) -> None:
    run(small_settings(run__out=str(tmp_path), adaptation__candidates=20, federation__rounds=30))
    losses = [line["train_loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_packed_data_gives_the_same_run_as_the_data_it_was_packed_from(tmp_path: Path) -> None:
    write_packed(load_dataset(small_settings()), tmp_path / "packed")
    run(small_settings(run__out=str(tmp_path / "plain")))
    run(small_settings(run__out=str(tmp_path / "mapped"), data__path=str(tmp_path / "packed")))
    assert_same(tmp_path / "plain", tmp_path / "mapped")


def test_no_more_users_are_judged_than_asked_and_the_same_ones_every_time(tmp_path: Path) -> None:
    run(small_settings(run__out=str(tmp_path / "few"), evaluation__users=3, generator__users=200))
    lines = [line for line in read_metrics(tmp_path / "few" / "metrics.jsonl") if "validation_users" in line]
    assert len({line["validation_users"] for line in lines}) == 1
    assert lines[0]["validation_users"] == 3 * 4  # four random orders each


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adaptation__candidates": 5, "adaptation__parameters": "lora"}, "adaptation.candidates needs adaptation.par"),
        (
            {"adaptation__candidates": 5, "federation__clip_norm": 1.0},
            "give either adaptation.candidates or federation",
        ),
        ({"run__precision": "bfloat16", "federation__clip_norm": 1.0}, "clip-norm needs run.precision = float32"),
        ({"traffic__update_bits": 4}, "traffic.update-bits must be one of 32, 16, 8, got 4"),
        ({"traffic__update_bits": "8"}, "traffic.update-bits must be one of 32, 16, 8, got '8'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        small_settings(**values)
