"""What a history was answered with, and how ``metarec recommend`` prints it; whatever recommended."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from client.history import Profile, read_history
from client.history_lines import content_of, lines_in
from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import RatingScale


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A recommended item.

    Attributes:
        item_id: Its id.
        title: Its title.
        score: What the model says of it: a logit, the larger the better; of similar items a cosine.
        rating: The rating that the user would give it; None: the model predicts none.
    """

    item_id: str
    title: str
    score: float
    rating: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a history was answered with.

    Attributes:
        items: Best first.
        skipped: Lines of the history that name no item of the catalogue.
        adapted: Whether there was a history to adapt to.
        milliseconds: Time to adapt and rank, without loading the model.
    """

    items: list[Recommendation]
    skipped: list[str]
    adapted: bool
    milliseconds: float


def read_profile(history: str, catalogue: Catalogue, scale: RatingScale | None) -> Profile:
    """Read a history from a file, or from standard input where it is ``-``.

    Raises:
        DataError: It cannot be read, or holds what ``client.history.read_history`` refuses.
    """
    return read_history(lines_in(*content_of(history)), catalogue, scale)


def answer_of(
    ranked: Sequence[tuple[int, float]],
    ratings: Sequence[float | None],
    catalogue: Catalogue,
    profile: Profile,
    milliseconds: float,
) -> Answer:
    """Return the answer to a history.

    Args:
        ranked: Positions and scores, best first.
        ratings: The rating that the user would give each; None where none is predicted.
        catalogue: Of the positions.
        profile: The history.
        milliseconds: As in ``Answer``.
    """
    return Answer(
        items=[
            Recommendation(item_id=catalogue.item_ids[p], title=catalogue.titles[p], score=score, rating=rating)
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
