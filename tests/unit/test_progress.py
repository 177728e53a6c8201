"""Unit tests of server.progress."""

import io
import logging
import threading

import pytest
from rich.console import Console

from server.progress import Progress


class _Clock:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def _run(progress, clock, rounds, seconds=2.0, evaluate_every=2):
    for number in rounds:
        clock.now += seconds
        metrics = {"round": number, "train_loss": 7.0, "users": 100, "failures": 0}
        if number % evaluate_every == 0:
            metrics["validation_ndcg@10"] = 0.05 + number / 1000
        progress.round_done(metrics)


@pytest.fixture
def clock():
    return _Clock()


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "server.progress")
    return caplog


def test_without_a_terminal_only_evaluation_rounds_are_logged(clock, log):
    with Progress(10, enabled=False, clock=clock) as progress:
        _run(progress, clock, range(1, 6))
    status = "loss 7.0000, validation nDCG@10 {0} (best {0} at round {1}), 50 users/s, 0 failures"
    assert log.messages == [
        f"round 2/10: {status.format('0.0520', 2)}, 0:16 left",
        f"round 4/10: {status.format('0.0540', 4)}, 0:12 left",
    ]


def test_whether_there_is_a_terminal_is_found_out(clock, log, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with Progress(10, clock=clock) as progress:
        _run(progress, clock, [1, 2])
    assert len(log.messages) == 1


def test_a_resumed_run_keeps_its_best_until_it_is_beaten(clock, log):
    with Progress(10, 6, enabled=False, best=(4, 0.057), clock=clock) as progress:
        _run(progress, clock, range(6, 9))
    assert ["best 0.0570 at round 4" in message for message in log.messages] == [True, False]
    assert "best 0.0580 at round 8" in log.messages[1]


def test_time_left_follows_the_last_rounds_and_not_the_first(clock, log):
    with Progress(200, enabled=False, clock=clock) as progress:
        _run(progress, clock, range(1, 11), seconds=1000, evaluate_every=1000)
        _run(progress, clock, range(11, 101), seconds=40, evaluate_every=100)
    assert log.messages[0].endswith("1:06:40 left")


def test_a_figure_that_is_no_number_is_shown_and_never_the_best(clock, log):
    with Progress(10, enabled=False, clock=clock) as progress:
        for number, value in enumerate((float("nan"), 0.1, float("nan")), start=1):
            progress.round_done({"round": number, "validation_ndcg@10": value})
    assert "nDCG@10 nan, " in log.messages[0]
    assert "nDCG@10 nan (best 0.1000 at round 2)" in log.messages[2]


def test_failures_add_up(clock, log):
    with Progress(10, enabled=False, clock=clock) as progress:
        progress.round_done({"round": 1, "failures": 2})
        progress.round_done({"round": 2, "failures": 1, "validation_ndcg@10": 0.1})
    assert "3 failures" in log.messages[0]


def test_the_live_display_shows_rounds_best_speed_failures_and_time_left(clock, log):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with Progress(10, enabled=True, console=console, clock=clock) as progress:
        _run(progress, clock, range(1, 5))
    shown = stream.getvalue()
    for part in ("round 4/10", "0:12 left", "nDCG@10 0.0540 (best 0.0540 at round 4)", "50 users/s", "0 failures"):
        assert part in shown
    assert not log.messages


def test_the_live_display_gives_the_cursor_back_when_a_round_fails(clock):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True)
    with pytest.raises(RuntimeError), Progress(10, enabled=True, console=console, clock=clock):
        raise RuntimeError
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert stream.getvalue().rindex(show) > stream.getvalue().rindex(hide)


def test_rounds_may_be_reported_from_another_thread(clock):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with Progress(300, enabled=True, console=console, clock=clock) as progress:
        worker = threading.Thread(target=_run, args=(progress, clock, range(1, 301)))
        worker.start()
        worker.join()
    assert "round 300/300" in stream.getvalue()


def test_before_the_first_round_nothing_is_promised(clock):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with Progress(10, enabled=True, console=console, clock=clock):
        pass
    assert "-:-- left" in stream.getvalue()
