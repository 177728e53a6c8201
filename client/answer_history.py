"""What ``metarec recommend`` does: load a model, read a history, recommend, print."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from client.history import read_attributes, read_history_bytes, read_history_file
from client.recommend import predicted_ratings, recommend
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.device import one_thread
from metarec_shared.other_catalogue import model_over
from metarec_shared.readers import read_catalogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """One recommended item; the rating the user would give it is None where the model predicts none."""

    item_id: str
    title: str
    score: float
    rating: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a history was answered with.

    Attributes:
        items: Best first.
        skipped: Lines of the history that name no item of the catalogue.
        adapted: Whether there was a history to adapt to.
        milliseconds: Time to adapt and rank, without loading the model.
    """

    items: list[Recommended]
    skipped: list[str]
    adapted: bool
    milliseconds: float


def answer_history(
    folder: Path, history: str, top_k: int, newer: Path | None = None, attributes: Sequence[str] = ()
) -> Answer:
    """Adapt the model in ``folder`` to a history file (``-``: standard input) and recommend ``top_k`` items.

    Args:
        folder: Of the run.
        history: The history file.
        top_k: Items to recommend.
        newer: Folder with the catalogue of today; None: the one the model was trained with.
        attributes: What the user tells of himself, each ``column=value``.

    Raises:
        CheckpointError: The folder holds no usable model.
        DataError: The history, the catalogue or an attribute cannot be read.
        MetaRecError: The run's text encoder, which new items need, is not here.
    """
    checkpoint = load_checkpoint(folder)
    settings, scale = checkpoint.settings, checkpoint.rating_scale
    catalogue = checkpoint.items.catalogue if newer is None else read_catalogue(newer, settings.data)
    if history == "-":
        profile = read_history_bytes(sys.stdin.buffer.read(), catalogue, scale, "standard input")
    else:
        profile = read_history_file(Path(history), catalogue, scale)
    profile = replace(profile, attributes=read_attributes(attributes, settings))
    model = checkpoint.full_model() if newer is None else model_over(checkpoint, catalogue, settings)
    with one_thread():
        began = time.perf_counter()
        ranked = recommend(model, profile, top_k)
        ratings = predicted_ratings(model, profile, [position for position, _ in ranked], scale)
    milliseconds = 1000 * (time.perf_counter() - began)
    return Answer(
        items=[
            Recommended(item_id=catalogue.item_ids[p], title=catalogue.titles[p], score=score, rating=rating)
            for (p, score), rating in zip(ranked, ratings, strict=True)
        ],
        skipped=list(profile.skipped),
        adapted=len(profile.items) > 0,
        milliseconds=milliseconds,
    )


def print_json(answer: Answer) -> None:
    """Print the answer as one JSON object."""
    value = {
        "items": [
            {"item_id": i.item_id, "title": i.title, "score": round(i.score, 6)}
            | ({} if i.rating is None else {"rating": round(i.rating, 3)})
            for i in answer.items
        ],
        "skipped": answer.skipped,
        "adapted": answer.adapted,
        "milliseconds": round(answer.milliseconds, 3),
    }
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_table(answer: Answer) -> None:
    """Print the answer for people; what was skipped and what was not adapted goes to stderr."""
    notes = Console(stderr=True, highlight=False)
    for name in answer.skipped:
        notes.print(f"skipped, not in the catalogue: {name}", markup=False, style="yellow")
    if not answer.adapted:
        notes.print("the history is empty: recommending by the unadapted meta-initialization", style="yellow")
    rated = any(item.rating is not None for item in answer.items)
    table = Table("", "title", "id", "score", *(["rating"] if rated else []))
    for rank, item in enumerate(answer.items, start=1):
        rating = [] if item.rating is None else [f"{item.rating:.1f}"]
        table.add_row(str(rank), item.title, item.item_id, f"{item.score:.3f}", *rating)
    console = Console(highlight=False)
    console.print(table, markup=False)
    console.print(f"{answer.milliseconds:.1f} ms to adapt and rank")
