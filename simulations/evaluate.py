"""Evaluate a run afterwards: on its own test users, or on all users of data with another catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec_shared.checkpoint import MODEL_FILE, Checkpoint, load_checkpoint
from metarec_shared.errors import DataError
from metarec_shared.evaluation import model_scorer
from metarec_shared.other_catalogue import model_over
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset
from metarec_shared.split import Role
from metarec_shared.tasks import Order
from simulations.protocols import (
    Cell,
    Methods,
    Say,
    chance,
    cold_item,
    cold_user,
    model_methods,
    orders_of,
    tuned_baselines,
)
from simulations.run_data import data_settings, has_items_of, training_population, whole_population
from simulations.simulate import ABLATION_FOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is evaluated.

    Attributes:
        population: Whose histories.
        users: Which of them.
        who: The same in words.
        methods: What ranks.
        items: Size of the catalogue.
        own: Whether the catalogue is the run's, so that its users' roles count.
    """

    population: Population
    users: NDArray[np.int64]
    who: str
    methods: Methods
    items: int
    own: bool


def evaluate_cold_users(
    run: Path, data: Path | None, supports: Sequence[int], order: Order | None, reading: Mapping[str, str], say: Say
) -> dict[str, Any]:
    """Evaluate cold-start users: only test users where the catalogue is the run's, whose users may have grown since.

    Args:
        run: Folder of the run.
        data: Folder with the data; None: the data the run was trained on.
        supports: Support set sizes.
        order: Order of histories; None: every order the data has.
        reading: Settings of how the data is read that are not the run's, ``{"data.on-bad-rows": "skip"}`` say.
        say: Told, in a line each, what happens next.

    Raises:
        MetaRecError: The run or the data cannot be used, or nobody enters any cell.
    """
    checkpoint = load_checkpoint(run)
    settings = data_settings(checkpoint, data, reading)
    subject = _own_data(run, checkpoint, settings) or _other_data(checkpoint, settings)
    say(f"evaluating {subject.who}")
    available = orders_of(subject.population.interactions)
    if order is not None and order not in available:
        raise DataError("the data has no timestamps, so there is no time order to evaluate; use --order random")
    sizes = settings.evaluation
    cells = [
        Cell(order=chosen, support=support, query=sizes.query, k=sizes.k)
        for chosen in (available if order is None else (order,))
        for support in supports
    ]
    tuned = tuned_baselines(subject.population, subject.items, cells, sizes.users, say) if subject.own else {}
    figures = []
    for cell in cells:
        block = cold_user(subject.population, subject.users, cell, {**subject.methods, **tuned.get(cell, {})})
        if block is None:
            say(f"support {cell.support}, {cell.order} order: no user has a history longer than {cell.support}")
        else:
            figures.append({"order": cell.order, **block})
    if not figures:
        raise DataError(f"no user has a history longer than {min(supports)}: there is nobody to evaluate")
    return {"protocol": "cold-user", "users": subject.who, "own_data": subject.own, "k": sizes.k, "cells": figures}


def evaluate_cold_items(
    run: Path, data: Path | None, supports: Sequence[int], reading: Mapping[str, str], say: Say
) -> dict[str, Any]:
    """Rank the items that were held out of training for the test users who touched them.

    Raises:
        MetaRecError: The run held out no items, or ``data`` is not its training data.
    """
    checkpoint = load_checkpoint(run)
    if not checkpoint.settings.data.hold_out_items:
        raise DataError(f"{run}: cold-item needs a run made with --hold-out-items; this one held out none")
    settings = data_settings(checkpoint, data, reading)
    population = whole_population(checkpoint, settings)
    users = population.judged(Role.TEST, settings.evaluation.users)
    who = f"the run's {len(users)} test users"
    say(f"evaluating {who}, never seen in meta-training")
    cells = []
    for support in supports:
        figures = cold_item(checkpoint, population, users, support, settings.evaluation.k)
        if figures is not None:
            cells.append({"order": "random", **figures})
    if not cells:
        raise DataError("no test user has both a held-out item and another one")
    return {"protocol": "cold-item", "users": who, "own_data": True, "k": settings.evaluation.k, "cells": cells}


def _own_data(run: Path, checkpoint: Checkpoint, settings: Settings) -> _Subject | None:
    """Return the test users of the run, or None where the catalogue is another one.

    Which users are test users is a keyed hash of their ids, so it holds for data that has grown since.
    """
    if not has_items_of(checkpoint, settings):
        return None
    population = training_population(checkpoint, settings)
    users = population.judged(Role.TEST, settings.evaluation.users)
    ablation = run / ABLATION_FOLDER
    return _Subject(
        population=population,
        users=users,
        who=f"the run's {len(users)} test users, never seen in meta-training",
        methods=model_methods(checkpoint, load_checkpoint(ablation) if (ablation / MODEL_FILE).exists() else None),
        items=len(checkpoint.items.known),
        own=True,
    )


def _other_data(checkpoint: Checkpoint, settings: Settings) -> _Subject:
    """Take all users of data with another catalogue: items with the same text are the same, others come by text."""
    dataset = load_dataset(replace(settings, data=replace(settings.data, hold_out_items=0.0)))
    items = len(dataset.catalogue)
    here, _ = dataset.catalogue.shared_with(checkpoint.items.known)
    model = model_over(checkpoint, dataset.catalogue, settings, progress=True)
    everyone = Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)
    users = everyone.users(None)
    methods: Methods = {
        "metarec": model_scorer(model, adapt=True),
        "unadapted": model_scorer(model, adapt=False),
        "chance": lambda batch: chance(batch, items),
    }
    return _Subject(
        population=replace(everyone, rating_scale=everyone.observed_scale(users)),
        users=users,
        who=f"all {len(users)} users of other data than the run's; training knew {len(here)} of its {items} items",
        methods=methods,
        items=items,
        own=False,
    )
