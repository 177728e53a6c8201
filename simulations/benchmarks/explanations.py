"""Do explanations name the items that matter: influences against adapting anew without each item of the history.

``python -m simulations.benchmarks.explanations --models RUN,RUN,... [--data DIR] [--counts 2,3,5,10,20] [--json FILE]``

For cold-start test users, in each order of histories and for each number of interactions: of each of the ten items that
are recommended, what its score loses without an interaction (leave-one-out, the model adapted anew to the others) ranks
the history. Reported is Spearman's correlation with the ranking by influence, the derivative of the score in the
interaction's weight (``client.explain``), and how often both put the same interaction first. Beside it the same against
leave-one-out that blends as for one interaction less, which an influence does not; and what an explanation that does
not look at the model would reach, similarity of the texts. Mean and standard error over runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from client.explain import influences, without_each
from client.history import Profile
from client.recommend import recommend, task_of
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.device import one_thread
from metarec_shared.model import BertRecommender
from metarec_shared.tasks import Order
from simulations.benchmarks.cold_users import K, cold_users
from simulations.benchmarks.measure import print_table, shown, write_figures
from simulations.run_data import data_settings, training_population

WAYS, FIGURES = ("influence", "other blends", "text"), ("correlation", "first")

Agreement = dict[str, dict[str, float]]
"""For each way to explain: ``correlation`` with leave-one-out, and ``first``, the share with the same first item."""


def main(
    models: Annotated[str, typer.Option(help="Folders of runs, by commas; each with a seed of its own.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data; without it, where the runs found it.")] = None,
    counts: Annotated[str, typer.Option(help="Numbers of interactions, by commas; 2 at least.")] = "2,3,5,10,20",
    users: Annotated[int, typer.Option(min=1, help="Cold-start users of each cell, at most.")] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Compare explanations with adapting anew."""
    sizes = [int(part) for part in counts.split(",")]
    if min(sizes) < 2:
        raise typer.BadParameter(f"a ranking needs two interactions at least, got {min(sizes)}", param_hint="--counts")
    found: dict[Order, dict[int, list[Agreement]]] = {}
    for folder in models.split(","):
        checkpoint = load_checkpoint(Path(folder))
        population = training_population(checkpoint, data_settings(checkpoint, data))
        model = checkpoint.full_model()
        for size in sizes:
            for order, cold in cold_users(checkpoint, population, users, size).items():
                judged = agreement(model, [user.profile for user in cold])
                found.setdefault(order, {}).setdefault(size, []).append(judged)
            typer.echo(f"{folder}: {size} interactions", err=True)
    for order, rows in found.items():
        print_table(
            f"Agreement with leave-one-out, {order} order, {len(models.split(','))} runs",
            ["interactions", *(f"{way}: {figure}" for way in WAYS for figure in ("correlation", "same first"))],
            [
                [size, *(shown([run[way][figure] for run in runs], 3) for way in WAYS for figure in FIGURES)]
                for size, runs in rows.items()
            ],
            f"at most {users} test users, {K} recommended items each",
        )
    write_figures(json_file, {"agreement": found})


def agreement(model: BertRecommender, profiles: Sequence[Profile]) -> Agreement:
    """Return how well each way to explain the recommendations of users agrees with leave-one-out, the mean over lists.

    Args:
        model: The recommender.
        profiles: Histories of at least two items each.
    """
    text = F.normalize(model.text, dim=1)
    rows: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with torch.no_grad():
        E = model.item_vectors()
    with one_thread():
        for profile in profiles:
            positions = [position for position, _ in recommend(model, profile, K)]
            task = task_of([profile])
            lost = without_each(model, task, E, positions)
            influence = influences(model, task, E, positions)
            compared = {
                "influence": (influence, lost),
                "other blends": (influence, without_each(model, task, E, positions, blends_held=False)),
                "text": (text[positions] @ text[task.support[0]].T, lost),
            }
            for way, (values, truth) in compared.items():
                same_first = (values.argmax(dim=1) == truth.argmax(dim=1)).float()
                rows[way].append([float(correlations(values, truth).mean()), float(same_first.mean())])
    return {way: dict(zip(FIGURES, np.mean(found, axis=0), strict=True)) for way, found in rows.items()}


def correlations(left: Float[Tensor, "lists items"], right: Float[Tensor, "lists items"]) -> Float[Tensor, " lists"]:
    """Return Spearman's rank correlation of each row, ties at their mean rank; 0 where a row is all the same."""

    def standardized(values: Tensor) -> Tensor:
        ranks = torch.from_numpy(rankdata(values.numpy(), axis=1))
        return F.normalize(ranks - ranks.mean(dim=1, keepdim=True), dim=1)

    return (standardized(left) * standardized(right)).sum(dim=1)


if __name__ == "__main__":
    typer.run(main)
