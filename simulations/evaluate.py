"""Evaluate a run afterwards: on its own test users, or on all users of another data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec_shared.checkpoint import Checkpoint, load_checkpoint
from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError, MetaRecError
from metarec_shared.evaluation import model_scorer
from metarec_shared.fingerprint import data_fingerprint
from metarec_shared.population import Order, Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset, load_training_dataset
from metarec_shared.split import Role
from metarec_shared.text import text_features
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
from simulations.simulate import read_result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is evaluated: users of a population, methods, and whether the data is the run's own."""

    population: Population
    users: NDArray[np.int64]
    methods: Methods
    items: int
    own: bool


def evaluate_cold_users(
    run: Path, data: Path | None, supports: Sequence[int], order: Order | None, on_bad_rows: str, say: Say
) -> dict[str, Any]:
    """Evaluate cold-start users: the run's test users where ``data`` is its training data, else all users.

    Args:
        run: Folder of the run.
        data: Folder with the data; None: the data the run's settings generate.
        supports: Support set sizes.
        order: Order of histories; None: every order the data has.
        on_bad_rows: ``error`` or ``skip``.
        say: Told, in a line each, what happens next.

    Raises:
        MetaRecError: The run or the data cannot be used, or nobody enters any cell.
    """
    checkpoint = load_checkpoint(run)
    settings = _data_settings(checkpoint, data, on_bad_rows)
    subject = _subject(run, checkpoint, settings, say)
    sizes, cells = settings.evaluation, []
    available = orders_of(subject.population.interactions)
    if order is not None and order not in available:
        raise DataError("the data has no timestamps, so there is no time order to evaluate; use --order random")
    for chosen in available if order is None else (order,):
        for support in supports:
            cell = Cell(order=chosen, support=support, query=sizes.query, k=sizes.k)
            methods = dict(subject.methods)
            if subject.own:
                methods |= tuned_baselines(subject.population, subject.items, cell, say)
            figures = cold_user(subject.population, subject.users, cell, methods)
            if figures is None:
                say(f"support {support}, {chosen} order: no user has a history longer than {support}")
            else:
                cells.append({"order": chosen, **figures})
    if not cells:
        raise DataError(f"no user has a history longer than {min(supports)}: there is nobody to evaluate")
    return {"protocol": "cold-user", "own_data": subject.own, "k": sizes.k, "cells": cells}


def evaluate_cold_items(
    run: Path, data: Path | None, supports: Sequence[int], on_bad_rows: str, say: Say
) -> dict[str, Any]:
    """Rank the items that were held out of training for the test users who touched them.

    Raises:
        MetaRecError: The run held out no items, or ``data`` is not its training data.
    """
    checkpoint = load_checkpoint(run)
    if not checkpoint.settings.data.hold_out_items:
        raise DataError(f"{run}: cold-item needs a run made with --hold-out-items; this one held out none")
    settings = _data_settings(checkpoint, data, on_bad_rows)
    dataset = load_dataset(settings)
    if not _is_own(run, dataset):
        raise DataError("cold-item evaluates a run on the data it was trained on; this is other data")
    population = Population.of(dataset.interactions, checkpoint.rating_scale, settings.run.seed)
    users = population.users(Role.TEST)
    say(f"the run's own data: evaluating its {len(users)} test users")
    cells = []
    for support in supports:
        figures = cold_item(checkpoint, population, users, support, settings.evaluation.k)
        if figures is not None:
            cells.append({"order": "random", **figures})
    if not cells:
        raise DataError("no test user has both a held-out item and another one")
    return {"protocol": "cold-item", "own_data": True, "k": settings.evaluation.k, "cells": cells}


def _data_settings(checkpoint: Checkpoint, data: Path | None, on_bad_rows: str) -> Settings:
    path = "" if data is None else str(data)
    values = {"data.path": path, "data.on-bad-rows": on_bad_rows}
    return checkpoint.settings.with_values(values, "options")


def _is_own(run: Path, dataset: Dataset) -> bool:
    fingerprint: str = read_result(run)["dataset"]["fingerprint"]
    return fingerprint == data_fingerprint(dataset)


def _subject(run: Path, checkpoint: Checkpoint, settings: Settings, say: Say) -> _Subject:
    if _is_own(run, load_dataset(settings)):
        dataset = load_training_dataset(settings)
        population = Population.of(dataset.interactions, checkpoint.rating_scale, settings.run.seed)
        users = population.users(Role.TEST)
        say(f"the run's own data: evaluating its {len(users)} test users, never seen in meta-training")
        methods = model_methods(checkpoint, None)
        return _Subject(population=population, users=users, methods=methods, items=len(dataset.catalogue), own=True)
    return _other_data(checkpoint, settings, say)


def _other_data(checkpoint: Checkpoint, settings: Settings, say: Say) -> _Subject:
    """Evaluate all users of another data set: items with the same text are the same item, others come by text."""
    dataset = load_dataset(replace(settings, data=replace(settings.data, hold_out_items=0.0)))
    items = len(dataset.catalogue)
    position_of = {text: position for position, text in enumerate(checkpoint.items.known.texts)}
    shared = [(here, position_of[text]) for here, text in enumerate(dataset.catalogue.texts) if text in position_of]
    here, there = (np.array(column, dtype=np.int64) for column in (zip(*shared, strict=True) if shared else ([], [])))
    text = replace(settings.text, encoder="builtin") if checkpoint.text_encoder == "builtin" else settings.text
    corpus = checkpoint.items.catalogue
    features = text_features(dataset.catalogue, text, corpus=corpus, seed=settings.run.seed, progress=True)
    if features.encoder != checkpoint.text_encoder:
        raise MetaRecError(f"the run's text encoder was {checkpoint.text_encoder}; here it would be {features.encoder}")
    model = checkpoint.transferred(features.vectors, here, there)
    population = Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)
    users = population.users(None)
    say(f"other data than the run's: evaluating all {len(users)} users; {len(shared)} of {items} items are known")
    methods: Methods = {
        "metarec": model_scorer(model, adapt=True),
        "unadapted": model_scorer(model, adapt=False),
        "chance": lambda batch: chance(batch, items),
    }
    return _Subject(population=population, users=users, methods=methods, items=items, own=False)
