"""What ``metarec recommend`` does: load a model, read a history, recommend, print."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from client.recommend import read_history_bytes, read_history_file, recommend
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.device import one_thread
from metarec_shared.other_catalogue import model_over
from metarec_shared.readers import read_catalogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """One recommended item."""

    item_id: str
    title: str
    score: float


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


def answer_history(folder: Path, history: str, top_k: int, newer: Path | None = None) -> Answer:
    """Adapt the model in ``folder`` to a history file (``-``: standard input) and recommend ``top_k`` items.

    Args:
        folder: Of the run.
        history: The history file.
        top_k: Items to recommend.
        newer: Folder with the catalogue of today; None: the one the model was trained with.

    Raises:
        CheckpointError: The folder holds no usable model.
        DataError: The history or the catalogue cannot be read.
        MetaRecError: The run's text encoder, which new items need, is not here.
    """
    checkpoint = load_checkpoint(folder)
    settings, scale = checkpoint.settings, checkpoint.rating_scale
    catalogue = checkpoint.items.catalogue if newer is None else read_catalogue(newer, settings.data)
    if history == "-":
        profile = read_history_bytes(sys.stdin.buffer.read(), catalogue, scale, "standard input")
    else:
        profile = read_history_file(Path(history), catalogue, scale)
    model = checkpoint.full_model() if newer is None else model_over(checkpoint, catalogue, settings)
    with one_thread():
        began = time.perf_counter()
        ranked = recommend(model, profile, top_k)
    milliseconds = 1000 * (time.perf_counter() - began)
    return Answer(
        items=[
            Recommended(item_id=catalogue.item_ids[p], title=catalogue.titles[p], score=score) for p, score in ranked
        ],
        skipped=list(profile.skipped),
        adapted=len(profile.items) > 0,
        milliseconds=milliseconds,
    )


def print_json(answer: Answer) -> None:
    """Print the answer as one JSON object."""
    value = {
        "items": [{"item_id": i.item_id, "title": i.title, "score": round(i.score, 6)} for i in answer.items],
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
    table = Table("", "title", "id", "score")
    for rank, item in enumerate(answer.items, start=1):
        table.add_row(str(rank), item.title, item.item_id, f"{item.score:.3f}")
    console = Console(highlight=False)
    console.print(table, markup=False)
    console.print(f"{answer.milliseconds:.1f} ms to adapt and rank")
