"""A run exported as a web page: does a real browser recommend what PyTorch does, and how long does a user wait.

``python -m simulations.benchmarks.web_parity --model RUN [--data DIR] [--users 500] [--int8] [--json FILE]``

For cold-start users of the run, in each order of histories: the page's own ``metarec.recommend`` against PyTorch, list
by list, score by score and in nDCG@10; then milliseconds of a call without and with explanations. Needs npm,
playwright, Chromium.
"""

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from client.export.export import Choices
from client.export.web_page import export_web
from client.history import Profile
from client.recommend import recommend
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.dataset import RatingScale
from metarec_shared.device import one_thread
from metarec_shared.feedback import FEEDBACK_LEVELS
from simulations.benchmarks.browser import launched, serving, wait_until_ready
from simulations.benchmarks.cold_users import Cells, K, Ranked, cold_users, compared, ndcg
from simulations.benchmarks.measure import print_table, write_figures
from simulations.run_data import data_settings, training_population

_AT_A_TIME = 20

_RECOMMEND = """async ({ histories, k, explain }) => {
  const answers = [], milliseconds = [];
  for (const { items, inTime } of histories) {
    const began = performance.now();
    answers.push(await window.metarec.recommend(items, { k, inTime, explain }));
    milliseconds.push(performance.now() - began);
  }
  return { answers: answers.map((one) => one.map(({ position, score }) => [position, score])), milliseconds };
}"""


def asked(profile: Profile, scale: RatingScale | None) -> dict[str, Any]:
    """Return a history as the page reads it, with ratings of the same levels."""

    def rating(level: int) -> float | None:
        if scale is None or level == 0:
            return None
        return scale.low + (scale.high - scale.low) * (level - 1) / (FEEDBACK_LEVELS - 1)

    items = [{"position": item.position, "rating": rating(item.feedback)} for item in profile.items]
    return {"items": items, "inTime": profile.in_time}


def in_browser(page: Any, histories: Sequence[dict[str, Any]], *, explain: bool) -> tuple[list[Ranked], list[float]]:
    """Return what a page recommends for each history, and the milliseconds of each."""
    answers: list[Ranked] = []
    milliseconds: list[float] = []
    for start in range(0, len(histories), _AT_A_TIME):
        given = {"histories": histories[start : start + _AT_A_TIME], "k": K, "explain": explain}
        found = page.evaluate(_RECOMMEND, given)
        answers += [[(position, score) for position, score in one] for one in found["answers"]]
        milliseconds += found["milliseconds"]
    return answers, milliseconds


def main(
    model: Annotated[Path, typer.Option(help="Folder of a run.", metavar="RUN")],
    data: Annotated[Path | None, typer.Option(help="Folder with the data; without it, the run's own.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Cold-start users, at most.")] = 500,
    int8: Annotated[bool, typer.Option("--int8", help="Of a page with 8-bit weights.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Compare a run in a browser with the run in PyTorch."""
    checkpoint = load_checkpoint(model)
    population = training_population(checkpoint, data_settings(checkpoint, data))
    cells = cold_users(checkpoint, population, users)
    cold = [user for found in cells.values() for user in found]
    profiles = [replace(user.profile, attributes=()) for user in cold]  # which the page does not ask for
    recommender = checkpoint.full_model()
    with one_thread():
        expected = [recommend(recommender, profile, K) for profile in profiles]
    histories = [asked(profile, checkpoint.rating_scale) for profile in profiles]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "page"
        export_web(model, folder, Choices(int8=int8))
        with serving(folder) as server, launched() as browser:
            page = browser.new_page()
            page.goto(server.url)
            wait_until_ready(page)
            found, plain = in_browser(page, histories, explain=False)
            again, explained = in_browser(page, histories, explain=True)
            version = browser.version
    figures = {
        "parity": compared(found, expected),
        "parity_explained": compared(again, expected),
        "ndcg@10": {name: by_order(cells, answers) for name, answers in (("browser", found), ("PyTorch", expected))},
        "ms": {"recommend": _middle(plain), "with explanations": _middle(explained)},
    }
    _print(figures, f"Chromium {version}; {platform.machine()}")
    write_figures(json_file, figures)


def by_order(cells: Cells, answers: Sequence[Ranked]) -> dict[str, float]:
    """Return the nDCG@10 of answers to all users of all cells, one cell after the other, by the order of histories."""
    rest = iter(answers)
    return {order: ndcg(users, list(islice(rest, len(users)))) for order, users in cells.items() if users}


def _middle(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "p95": ordered[int(0.95 * (len(ordered) - 1))]}


def _print(figures: dict[str, Any], note: str) -> None:
    rows = [("recommend", figures["parity"]), ("with explanations", figures["parity_explained"])]
    print_table(
        "The browser against PyTorch",
        ("", "lists", "identical", "largest difference of a score", "over the score"),
        [
            (name, row["lists"], f"{row['identical']:.2%}", row["score_difference"], row["relative_difference"])
            for name, row in rows
        ],
    )
    orders = list(figures["ndcg@10"]["PyTorch"])
    print_table(
        "nDCG@10",
        ("", *(f"{order} order" for order in orders)),
        [(name, *(row[order] for order in orders)) for name, row in figures["ndcg@10"].items()],
    )
    print_table(
        "Milliseconds of a call in the page",
        ("", "median", "95th percentile"),
        [(name, row["median"], row["p95"]) for name, row in figures["ms"].items()],
        note,
    )


if __name__ == "__main__":
    typer.run(main)
