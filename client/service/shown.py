"""Answers of the service, printed: as tables for people, as JSON for programs."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from client.service.proto.metarec.v1 import recommender_pb2 as pb


def show_items(answer: Message, items: Sequence[pb.Recommendation], skipped: Iterable[str], *, as_json: bool) -> None:
    """Print a list of items; what was skipped goes to stderr.

    Args:
        answer: The whole answer.
        items: The items in it.
        skipped: What of the history the catalogue lacks.
        as_json: Whether to print the answer as JSON.
    """
    if as_json:
        _show_json(answer)
        return
    _show_skipped(skipped)
    rated = any(one.HasField("rating") for one in items)
    table = Table("", "title", "id", "score", *(["rating"] if rated else []))
    for rank, one in enumerate(items, start=1):
        rating = [f"{one.rating:.1f}"] if rated else []
        table.add_row(str(rank), one.title, one.item_id, f"{one.score:.3f}", *rating)
    Console(highlight=False, markup=False).print(table)


def show_explanation(answer: pb.ExplainResponse, *, as_json: bool) -> None:
    """Print what speaks for an item."""
    if as_json:
        _show_json(answer)
        return
    table = Table("title", "id", "influence")
    for one in answer.influences:
        table.add_row(one.title, one.item_id, f"{one.influence:+.3f}")
    console = Console(highlight=False, markup=False)
    console.print(answer.sentence)
    console.print(table)


def show_state(answer: pb.StateResponse, path: Path, *, as_json: bool) -> None:
    """Say what was kept, and where."""
    if as_json:
        _show_json(pb.StateResponse(known=answer.known, skipped=answer.skipped, model=answer.model))
        return
    _show_skipped(answer.skipped)
    Console(highlight=False, markup=False).print(
        f"{path}: a state of {answer.known} items; keep it as private as they are"
    )


def _show_skipped(skipped: Iterable[str]) -> None:
    notes = Console(stderr=True, highlight=False, markup=False)
    for name in skipped:
        notes.print(f"skipped, not in the catalogue: {name}", style="yellow")


def _show_json(answer: Message) -> None:
    sys.stdout.write(MessageToJson(answer, preserving_proto_field_name=True, ensure_ascii=False) + "\n")
