"""How well a new user is served from the first visit on: quality by the number of interactions that are known.

``python -m simulations.benchmarks.cold_start --models RUN,RUN,... [--data DIR] [--counts 0,1,2,3,5,10,20] [--out DIR]``

Protocol cold-user, for each number of interactions: test users that the run never saw, the next ten interactions as
query, the whole catalogue ranked. Every run is a seed of its own, with its own split. What is compared:

    ensemble     what ``Recommender`` and ``metarec recommend`` do: the inner loop's step is a n / (n + kappa), kappa
                 meta-learned, so a user is between the unadapted and the fully adapted model by how much is known of
                 him; and what validation users chose to be added (task regression, start prior, text kernel)
    adapted      the same with the whole step, however little is known
    unadapted    the meta-initialization reads the interactions, no inner loop, nothing added
    popularity, EASE (tuned on validation users, for each number of interactions)

Prints a table with mean and standard error over the runs, and for each number of interactions how far the ensemble is
from the best of the others; writes ``cold-start.json`` and ``cold-start.svg``.
"""

import copy
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from metarec_shared.adaptation import ClosedForm
from metarec_shared.checkpoint import Checkpoint, load_checkpoint
from metarec_shared.evaluation import Scorer, model_scorer
from metarec_shared.files import write_json, write_text
from metarec_shared.model import BertRecommender
from metarec_shared.split import Role
from simulations.benchmarks.measure import mean_and_error, print_table, shown
from simulations.protocols import Cell, cold_user, orders_of, tuned_baselines
from simulations.report_charts import STYLE
from simulations.run_data import data_settings, training_population

METHODS = ("ensemble", "adapted", "unadapted", "popularity", "ease")
METRIC = "ndcg@10"

Figures = Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]
"""By order and number of interactions, every method's figure of every run."""


def main(
    models: Annotated[str, typer.Option(help="Folders of runs, by commas; each with a seed of its own.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data; without it, where the runs found it.")] = None,
    counts: Annotated[str, typer.Option(help="Numbers of interactions, by commas.")] = "0,1,2,3,5,10,20",
    validation: Annotated[bool, typer.Option(help="Judge validation users in place of test users.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for cold-start.json and cold-start.svg.")] = None,
) -> None:
    """Measure the quality of recommendations by the number of interactions."""
    role = Role.VALIDATION if validation else Role.TEST
    sizes = [int(part) for part in counts.split(",")]
    found: dict[str, dict[int, dict[str, list[float]]]] = {}
    for folder in models.split(","):
        for cell, figures in measure(load_checkpoint(Path(folder)), data, sizes, role).items():
            row = found.setdefault(cell.order, {}).setdefault(cell.support, {name: [] for name in METHODS})
            for name in METHODS:
                row[name].append(figures[name])
        typer.echo(f"{folder}: measured", err=True)
    for order, rows in found.items():
        print_table(
            f"{METRIC} by number of interactions, {order} order, {len(models.split(','))} runs",
            ["interactions", *METHODS, "above the best other, in standard errors"],
            [[size, *(shown(row[name]) for name in METHODS), f"{margin(row):+.1f}"] for size, row in rows.items()],
            f"{role.name.lower()} users",
        )
    if out is not None:
        write_json(out / "cold-start.json", found)
        write_text(out / "cold-start.svg", drawn(found))


def measure(
    checkpoint: Checkpoint, data: Path | None, sizes: Sequence[int], role: Role
) -> dict[Cell, dict[str, float]]:
    """Return every method's figure for each order and number of interactions that some users are long enough for."""
    settings = data_settings(checkpoint, data)
    population = training_population(checkpoint, settings)
    judged = settings.evaluation
    users = population.judged(role, judged.users)
    cells = [
        Cell(order=order, support=size, query=judged.query, k=judged.k)
        for order in orders_of(population.interactions)
        for size in sizes
    ]
    methods = our_methods(checkpoint.model())
    baselines = tuned_baselines(population, len(checkpoint.items.known), cells, judged.users, lambda line: None)
    found = {}
    for cell in cells:
        figures = cold_user(population, users, cell, {**methods, **baselines[cell]})
        if figures is not None:
            found[cell] = {name: figures[name][METRIC] for name in METHODS}
    return found


def our_methods(model: BertRecommender) -> dict[str, Scorer]:
    """Return the model as it recommends, with the whole step of the inner loop, and merely read."""
    unadapted = model_scorer(model, adapt=False)
    return {
        "ensemble": known(model_scorer(model, adapt=True), unadapted),
        "adapted": known(model_scorer(with_whole_step(model), adapt=True), unadapted),
        "unadapted": unadapted,
    }


def known(adapted: Scorer, unadapted: Scorer) -> Scorer:
    """Return the scorer of users who are adapted to if anything is known of them."""
    return lambda batch: adapted(batch) if batch.support.shape[1] else unadapted(batch)


def with_whole_step(model: BertRecommender) -> BertRecommender:
    """Return the model whose inner learning rates do not depend on how much is known: kappa is 0."""
    other = copy.deepcopy(model)
    if isinstance(other.adaptation, ClosedForm) and other.adaptation.weighs_evidence:
        with torch.no_grad():
            other.adaptation.raw_evidence.fill_(-math.inf)
    return other


def margin(row: Mapping[str, Sequence[float]]) -> float:
    """Return how far the ensemble is above the best of the others, over the standard error of the difference."""
    best = max((name for name in METHODS if name != "ensemble"), key=lambda name: float(np.mean(row[name])))
    differences = np.subtract(row["ensemble"], row[best])
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return float(differences.mean()) / error if error else (0.0 if not differences.any() else math.inf)


def drawn(found: Figures) -> str:
    """Return a chart of all methods by the number of interactions, as SVG."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "cold start"}):
        figure = Figure(figsize=(4.6 * len(found), 3.6), layout="constrained")
        for place, (order, rows) in enumerate(found.items(), start=1):
            axes = figure.add_subplot(1, len(found), place)
            for name in METHODS:
                means, errors = zip(*(mean_and_error(row[name]) for row in rows.values()), strict=True)
                strong = name == "ensemble"
                axes.errorbar(
                    range(len(rows)), means, yerr=errors, label=name, capsize=2, linewidth=2.2 if strong else 1.2
                )
            axes.set_xticks(range(len(rows)), labels=[str(size) for size in rows])
            axes.set_xlabel("interactions that are known")
            axes.set_title(f"{order} order", fontsize=10)
            axes.set_ylabel(METRIC)
        axes.legend(fontsize=8, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


if __name__ == "__main__":
    typer.run(main)
