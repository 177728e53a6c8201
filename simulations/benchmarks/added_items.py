"""Items that are added to a running recommender: are they found for the users who like them, by their text alone?

``python -m simulations.benchmarks.added_items --models RUN,RUN,... [--data DIR] [--support 10] [--json FILE]``

Protocol cold-item, through the Python API. Each run was made with ``--hold-out-items`` and a pre-trained text encoder.
The held-out items are taken out of its catalogue, which is then that of a run that never heard of them, and come back
by ``Recommender.add_items``. Test users who touched some of them are adapted to other items of theirs; the added items
are ranked among themselves by ``User.recommend(candidates=...)``. Beside it similarity of texts and chance. nDCG@10,
mean and standard error over runs, which hold out other items each.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Float
from torch import Tensor

from client.interaction import Interaction
from client.recommender import Recommender, User
from metarec_shared.catalogue import Catalogue, TrainingItems
from metarec_shared.checkpoint import Checkpoint, load_checkpoint
from metarec_shared.errors import DataError
from metarec_shared.evaluation import Scorer
from metarec_shared.population import Population
from metarec_shared.split import Role
from metarec_shared.tasks import Task
from simulations.benchmarks.cold_users import K, told_of_himself
from simulations.benchmarks.measure import print_table, shown, write_figures
from simulations.protocols import chance, cold_item_task, rank_among, text_knn
from simulations.run_data import data_settings, whole_population

METRIC = f"ndcg@{K}"


def main(
    models: Annotated[str, typer.Option(help="Folders of runs made with --hold-out-items, by commas.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data; without it, where the runs found it.")] = None,
    support: Annotated[int, typer.Option(min=1, help="Items that are known of a user, at most.")] = 10,
    users: Annotated[int, typer.Option(min=1, help="Test users, at most.")] = 2000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure how well added items are ranked for the users who touched them."""
    runs = []
    for folder in models.split(","):
        checkpoint = load_checkpoint(Path(folder))
        population = whole_population(checkpoint, data_settings(checkpoint, data))
        runs.append(measure(checkpoint, population, users, support))
        typer.echo(f"{folder}: measured", err=True)
    rows = [[name, shown([run[name] for run in runs])] for name in runs[0]]
    print_table(f"Added items, ranked among themselves, {len(runs)} runs", ["", METRIC], rows)
    write_figures(json_file, {"support": support, "runs": runs})


def measure(checkpoint: Checkpoint, population: Population, users: int, support: int) -> dict[str, float]:
    """Return nDCG@10 of the added items by every way to rank them.

    Args:
        checkpoint: A run with held-out items.
        population: Histories over its whole catalogue.
        users: Test users, at most.
        support: Support items, at most.

    Raises:
        DataError: The run held out nothing, or no test user has both a held-out item and another one.
        MetaRecError: The run's text encoder is not here, or depends on the catalogue it was trained on.
    """
    whole, held_out = checkpoint.items.catalogue, checkpoint.items.held_out
    chosen = population.judged(Role.TEST, users).tolist()
    found = [(user, task) for user in chosen if (task := cold_item_task(population, user, held_out, support))]
    if not found:
        raise DataError(
            "no test user has both a held-out item and another one: was the run made with --hold-out-items?"
        )
    added = whole.take(np.flatnonzero(held_out))
    recommender = Recommender(without_held_out(checkpoint))
    recommender.add_items(
        dict(zip(added.item_ids, added.texts, strict=True)), titles=dict(zip(added.item_ids, added.titles, strict=True))
    )
    adapted = [User(recommender, told(population, user, task, whole), told_of_himself(task)) for user, task in found]
    scorers: dict[str, Scorer] = {
        "added by add_items": lambda _: scores_of_added(adapted, added, whole),
        "text-kNN": text_knn(checkpoint.text),
        "chance": lambda batch: chance(batch, len(whole)),
    }
    tasks, excluded = [task for _, task in found], torch.from_numpy(~held_out)
    return {name: float(rank_among(scorer, tasks, excluded, K)[METRIC].mean()) for name, scorer in scorers.items()}


def without_held_out(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint of a run whose catalogue never had the items that were held out."""
    known, positions = checkpoint.items.known, checkpoint.items.positions
    items = TrainingItems(catalogue=known, positions=np.arange(len(known)))
    return replace(checkpoint, items=items, text=checkpoint.text[torch.from_numpy(positions)])


def told(population: Population, user: int, task: Task, catalogue: Catalogue) -> list[Interaction]:
    """Return a support set as an app would tell it, with the ratings that the user gave."""
    places = task.support.tolist()
    ratings = [population.interactions.rating(user, place) for place in places]
    return [
        Interaction(item=catalogue.item_ids[place], rating=None if math.isnan(rating) else rating)
        for place, rating in zip(places, ratings, strict=True)
    ]


def scores_of_added(users: Sequence[User], added: Catalogue, whole: Catalogue) -> Float[Tensor, "users items"]:
    """Return what the recommender says of the added items, at their places in the whole catalogue; 0 elsewhere."""
    scores = torch.zeros(len(users), len(whole))
    for row, user in zip(scores, users, strict=True):
        for one in user.recommend(len(added), candidates=added.item_ids):
            row[whole.index[one.item_id]] = one.score
    return scores


if __name__ == "__main__":
    typer.run(main)
