"""Nodes that fail, stay silent or refuse: rounds go on with the rest, and who failed is asked again."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message

from metarec_shared import wire
from metarec_shared.errors import AlreadyAnswered, FederationError
from metarec_shared.settings import Settings
from server.failures import FAILURES_FILE
from server.run_folder import read_metrics
from simulations.grid import InProcessGrid
from tests.integration.test_in_process_federation import _question, make_grid, run
from tests.small import small_settings

THREE = {
    "federation__nodes": 3,
    "federation__rounds": 3,
    "federation__min_nodes": 2,
    "federation__round_timeout": 0.5,
    "regression__enabled": False,
}


class TroubledGrid(InProcessGrid):
    """Node 3 has trouble in some rounds, of a kind; ``asked`` says who was asked in which round."""

    trouble = "silence"
    rounds: tuple[int, ...] = (2,)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        identifiers = list(super().push_messages(messages))
        self.asked: list[tuple[int, int]] = getattr(self, "asked", [])
        self.open: dict[str, int] = getattr(self, "open", {})
        for identifier, message in zip(identifiers, messages, strict=True):
            if message.metadata.message_type == "train":
                self.asked.append((int(message.metadata.group_id), message.metadata.dst_node_id))
                self.open[identifier] = int(message.metadata.group_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            number = self.open.get(reply.metadata.reply_to_message_id)
            if reply.metadata.src_node_id != 3 or number not in self.rounds:
                yield reply
            elif self.trouble == "error":
                yield Message(Error(code=1, reason="disk full"), reply_to=_question(reply))
            elif self.trouble == "answered":
                reply.content = wire.pack_refusal(AlreadyAnswered("round 2 of run 1 was answered already"))
                yield reply


def troubled(settings: Settings, trouble: str, rounds: tuple[int, ...] = (2,)) -> TroubledGrid:
    grid = make_grid(settings, fold=False, kind=TroubledGrid)
    assert isinstance(grid, TroubledGrid)
    grid.trouble, grid.rounds = trouble, rounds
    return grid


def failures_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FAILURES_FILE).read_text().splitlines()]


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        ("silence", "no answer within 0.5 s"),
        ("error", "disk full"),
        ("answered", "refused (AlreadyAnswered): round 2 of run 1 was answered already"),
    ],
)
def test_a_round_goes_on_with_two_of_three_nodes_and_the_third_is_asked_again(
    tmp_path: Path, trouble: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small_settings(run__out=str(tmp_path), **THREE)
    grid = troubled(settings, trouble)
    run(settings, grid)
    rounds = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["nodes"], line["failures"]) for line in rounds] == [(3, 0), (2, 1), (3, 0)]
    assert [node for number, node in grid.asked if number == 3] == [1, 2, 3]
    (failure,) = failures_of(tmp_path)
    assert failure.pop("time")
    assert failure == {"round": 2, "kind": "train", "node": "3", "name": "000000002", "cause": cause}
    assert "000000002 (3)" in caplog.text


def test_fewer_answers_than_the_least_stop_the_run_and_say_who_failed(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path), **THREE | {"federation__min_nodes": 3})
    with pytest.raises(FederationError, match=r"1 of 3 nodes failed .* federation.min-nodes is 3"):
        run(settings, troubled(settings, "error"))
    assert [line["round"] for line in failures_of(tmp_path)] == [2]


def test_a_run_that_is_resumed_keeps_the_failures_before_it(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path), **THREE | {"federation__min_nodes": 3})
    with pytest.raises(FederationError):
        run(settings, troubled(settings, "error"))
    again = small_settings(run__out=str(tmp_path), run__resume=True, **THREE | {"federation__min_nodes": 3})
    with pytest.raises(FederationError):
        run(again, troubled(again, "silence", (3,)))
    assert [(line["round"], line["cause"]) for line in failures_of(tmp_path)] == [
        (2, "disk full"), (3, "no answer within 0.5 s")
    ]  # fmt: skip


class ReturningGrid(InProcessGrid):
    """Two of three nodes are connected until they were counted ``late`` times."""

    late = 2

    def get_node_ids(self) -> Iterable[int]:
        self.late -= 1
        return [1, 2, 3][: 2 if self.late >= 0 else 3]


@pytest.mark.parametrize("late", [2, 1000])
def test_a_run_that_is_resumed_waits_for_all_nodes_that_it_had(tmp_path: Path, late: int) -> None:
    values = THREE | {"federation__min_nodes": 2, "federation__rounds": 2, "federation__round_timeout": 5.0}
    settings = small_settings(run__out=str(tmp_path), **values)
    run(settings, make_grid(settings, fold=False))
    again = small_settings(run__out=str(tmp_path), run__resume=True, **values)
    grid = make_grid(again, fold=False, kind=ReturningGrid)
    grid.late = late  # type: ignore[attr-defined]
    if late == 2:
        run(again, grid)
        return
    with pytest.raises(FederationError, match="needs the same nodes: there were 3, and 2 are connected after 5 s"):
        run(again, grid)
    assert not grid._waiting


def test_a_node_that_enrolls_as_another_is_no_node(tmp_path: Path) -> None:
    class MistakenGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                if reply.metadata.message_type == "query" and reply.metadata.src_node_id == 3:
                    enrolled = wire.unpack_enrollment(reply.content, 40)
                    enrolled.node_ids[0] = 2
                    reply.content = wire.pack_enrollment(enrolled)
                yield reply

    settings = small_settings(run__out=str(tmp_path), **THREE)
    run(settings, make_grid(settings, fold=False, kind=MistakenGrid))
    assert [line["nodes"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 2, 2]
    (failure,) = failures_of(tmp_path)
    assert (failure["round"], failure["kind"], failure["name"]) == (0, "query", None)
    assert failure["cause"] == "a node must enroll itself: wanted node 3, got 2"


def test_failures_of_the_last_step_are_of_the_last_round(tmp_path: Path) -> None:
    class NoMomentsGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                moments = reply.metadata.message_type == "query.moments"
                if not (moments and reply.metadata.src_node_id == 3):
                    yield reply

    settings = small_settings(run__out=str(tmp_path), **THREE | {"regression__enabled": True})
    run(settings, make_grid(settings, fold=False, kind=NoMomentsGrid))
    assert {(line["round"], line["kind"], line["name"]) for line in failures_of(tmp_path)} == {
        (3, "query.moments", "000000002")
    }


def test_nothing_is_written_of_nodes_whose_replies_are_folded(tmp_path: Path) -> None:
    class FailingGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                yield reply
                if reply.metadata.message_type == "train":
                    yield Message(Error(code=1, reason="disk full"), reply_to=_question(reply))

    settings = small_settings(run__out=str(tmp_path), **THREE)
    run(settings, make_grid(settings, kind=FailingGrid))
    assert sum(line["failures"] for line in read_metrics(tmp_path / "metrics.jsonl")) > 0
    assert not (tmp_path / FAILURES_FILE).exists()
