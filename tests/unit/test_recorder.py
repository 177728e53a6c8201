"""Unit tests of server.recorder."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarec_shared.errors import CheckpointError
from metarec_shared.settings import Settings
from server.recorder import Recorder
from server.run_folder import read_metrics
from server.tracking.tensorboard_events import TensorBoardEvents


def _rounds(run):
    return [line["round"] for line in read_metrics(run / "metrics.jsonl")]


def _record(run, rounds, resume_from=0, loss=1.0):
    with Recorder(run, Settings(), [TensorBoardEvents()], resume_from=resume_from) as recorder:
        for number in rounds:
            recorder.record({"round": number, "train_loss": loss, "validation_ndcg@10": 0.1})


def test_a_round_is_one_line_that_is_on_disk_at_once(tmp_path):
    with Recorder(tmp_path, Settings()) as recorder:
        recorder.record({"round": 1, "train_loss": 7.5, "users": 3})
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text.endswith("\n")
        assert json.loads(text) == {"round": 1, "train_loss": 7.5, "users": 3}


def test_a_new_run_does_not_keep_an_old_runs_rounds(tmp_path):
    _record(tmp_path, [1, 2, 3])
    _record(tmp_path, [1])
    assert _rounds(tmp_path) == [1]


def test_a_resumed_run_keeps_the_rounds_up_to_its_checkpoint_and_goes_on(tmp_path):
    _record(tmp_path, range(1, 8))
    _record(tmp_path, [6, 7], resume_from=5)
    assert _rounds(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("half", ['{"round": 3, "train_l', "{", '{"round": 3', "\0\0\0"])
def test_the_half_line_of_a_killed_run_is_dropped(tmp_path, half):
    _record(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    assert _rounds(tmp_path) == [1, 2]
    _record(tmp_path, [3], resume_from=2)
    assert _rounds(tmp_path) == [1, 2, 3]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n{"round": 2}')
    _record(tmp_path, [3], resume_from=2)
    assert _rounds(tmp_path) == [1, 2, 3]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(
        CheckpointError, match=r"metrics\.jsonl line 2: wanted a JSON object with a round number, got '"
    ):
        Recorder(tmp_path, Settings(), resume_from=3)


def test_a_failed_resume_leaves_the_metrics_as_they_were(tmp_path):
    text = '{"round": 1}\nnonsense\n{"round": 3}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(CheckpointError):
        Recorder(tmp_path, Settings(), resume_from=1)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_figure_that_is_not_finite_is_null(tmp_path):
    with Recorder(tmp_path, Settings()) as recorder:
        recorder.record({"round": 1, "train_loss": math.nan, "gradient_norm": math.inf})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"round": 1, "train_loss": None, "gradient_norm": None}]


def test_a_run_that_recorded_nothing_has_no_rounds(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_tensorboard_shows_a_resumed_run_without_the_rounds_that_were_dropped(tmp_path):
    _record(tmp_path, range(1, 6), loss=1.0)
    _record(tmp_path, [4, 5], resume_from=3, loss=2.0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
        (5, 2.0),
    ]
    assert "validation/ndcg@10" in events.Tags()["scalars"]
