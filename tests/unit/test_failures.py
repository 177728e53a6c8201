"""failures.jsonl: who failed, when, in what and why, in a file that is bounded."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from server import failures
from server.failures import FAILURES_FILE, FailureLog, one_line


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FAILURES_FILE).read_text().splitlines()]


def test_a_failure_is_a_line_with_the_nodes_name_once_it_has_one(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "run")
    log.record("query", 2**63 + 5, "no answer within 200 s")
    log.enrolled(2**63 + 5, "site-2")
    log.round_number = 3
    log.record("train", 2**63 + 5, "Traceback\n  more\ndisk full'>")
    first, second = lines(tmp_path / "run")
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "round": 0, "kind": "query", "node": str(2**63 + 5), "name": None, "cause": "no answer within 200 s"
    }  # fmt: skip
    assert (second["round"], second["name"], second["cause"]) == (3, "site-2", "disk full")


def test_a_run_without_failures_has_no_file_and_a_new_run_does_not_keep_an_old_ones(tmp_path: Path) -> None:
    FailureLog(tmp_path).record("train", 1, "a")
    FailureLog(tmp_path)
    assert not (tmp_path / FAILURES_FILE).exists()


def test_a_resumed_run_goes_on_after_the_half_line_of_a_killed_one(tmp_path: Path) -> None:
    FailureLog(tmp_path).record("train", 1, "a")
    with (tmp_path / FAILURES_FILE).open("a") as file:
        file.write('{"time": "2026')
    FailureLog(tmp_path, resume=True).record("train", 2, "b")
    content = (tmp_path / FAILURES_FILE).read_text().splitlines()
    assert len(content) == 3
    assert json.loads(content[2])["node"] == "2"


def test_the_file_is_bounded_and_its_last_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MOST_LINES", 4)
    for resume in (False, True):
        log = FailureLog(tmp_path, resume=resume)
        for node in range(3):
            log.record("train", node, "a")
    assert [line["node"] for line in lines(tmp_path)] == ["0", "1", "2", None]
    assert lines(tmp_path)[-1]["cause"] == "more than 3 failures: no more are written"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("one\ntwo", "two"),
        (
            "<class 'metarec_shared.errors.MetaRecError'>:<'DataError, see the node's log'>",
            "DataError, see the node's log",
        ),
        ("a\x1b[31mred\x07\u202eb", "a?[31mred??b"),
        ("x" * 1000, "x" * 397 + "..."),
        ("\n" * 10**6 + "end", "end"),
    ],
)
def test_what_a_node_says_of_itself_cannot_spoil_a_log(text: str, line: str) -> None:
    assert one_line(text) == line
