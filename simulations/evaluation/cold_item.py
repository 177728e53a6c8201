"""The protocol cold-item: rank items that no meta-training user touched, for test users who did."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.catalogue import Catalogue
from metarec_shared.checkpoint import Checkpoint
from metarec_shared.errors import DataError
from metarec_shared.evaluation import batched, model_scorer
from metarec_shared.model import BertRecommender
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset, load_item_features
from metarec_shared.split import Role
from simulations.baselines.baseline import best
from simulations.baselines.content_ridge import content_ridges, tfidf
from simulations.baselines.ease import tune_ease
from simulations.baselines.item_knn import fit_item_knn
from simulations.evaluation.protocol import CHANCE, OURS, EvaluationProtocol, Method, Say
from simulations.evaluation.ranking import Fit, Judged, K, RankingCell, RankingProblem, RankingTrial, Scorers
from simulations.evaluation.ranking_methods import chance, ease, popularity, text_knn
from simulations.protocols import cold_item_task

SHARE = 0.1
BASES = (200.0, 500.0, 2000.0)
"""Regularization of the EASE models whose columns are regressed on text."""
NEIGHBOURS, SHRINKAGE = 200, 10.0
"""Of the item-kNN model whose columns are."""
RIDGES = (0.1, 1.0, 10.0, 100.0)


class ColdItemTrial(RankingTrial):
    """The protocol with one seed.

    Args:
        problem: What to learn from and to be judged by; the catalogue is the whole one.
        catalogue: The same, with its texts.
        cold: Which of its items are cold, bool [items].
    """

    def __init__(self, problem: RankingProblem, catalogue: Catalogue, cold: Tensor) -> None:
        super().__init__(problem, _METHODS)
        self.catalogue, self.cold = catalogue, cold

    def model(self, checkpoint: Checkpoint) -> BertRecommender:
        """Return the model over the whole catalogue: cold items by their text."""
        return checkpoint.full_model()

    def ridge(self, features: Float[Tensor, "items features"]) -> Scorers:
        """Regress columns of EASE and item-kNN models on features; choose on validation users."""
        train, items = self.problem.train, len(self.cold)
        eases = (tune_ease(self.gram, [value], [lambda _: 0.0])[0].weights for value in BASES)
        knn = fit_item_knn(train, items, NEIGHBOURS, SHRINKAGE).similarity
        candidates = chain.from_iterable(
            content_ridges(weights, features, self.cold, RIDGES) for weights in chain(eases, [knn])
        )
        return self.by_cell(best(candidates, self.validations()))


def _ours(trial: RankingTrial, encoder: str | None, *, adapt: bool = True) -> Scorers:
    assert isinstance(trial, ColdItemTrial)
    settings, name = trial.problem.settings, OURS
    if encoder is not None:
        settings, name = replace(settings, text=replace(settings.text, encoder=encoder)), f"{OURS}-{encoder}"
    return trial.everywhere(model_scorer(trial.model(trial.trained(name, settings)), adapt=adapt))


def _ridge(trial: RankingTrial, *, words: bool) -> Scorers:
    assert isinstance(trial, ColdItemTrial)
    return trial.ridge(tfidf(trial.catalogue.texts) if words else trial.problem.text)


def _tasks(
    population: Population, settings: Settings, role: Role, cold: NDArray[np.bool_], *, warm_too: bool = False
) -> Judged:
    """Return the tasks of users with cold items; ``warm_too``: the query is all they touched beside the support set."""
    users = population.judged(role, settings.evaluation.users)
    tasks = []
    for user in users:
        task = cold_item_task(population, int(user), cold, settings.evaluation.support)
        if task is not None and warm_too:
            history = population.interactions.history(int(user))
            task = replace(task, query=history[~np.isin(history, task.support)])
        if task is not None:
            tasks.append(task)
    return Judged(batches=batched(tasks))


def _among(judged: Judged, cold: NDArray[np.bool_]) -> Judged:
    ranked = torch.from_numpy(np.flatnonzero(cold))
    candidates: Sequence[Tensor] = [ranked.expand(len(batch), -1) for batch in judged.batches]
    return replace(judged, candidates=candidates)


_METHODS: dict[Method, Fit] = {
    Method(name=OURS, about="ours with the text encoder of the settings"): lambda trial: _ours(trial, None),
    Method(name="unadapted", about="ours, the support set merely read"): lambda trial: _ours(trial, None, adapt=False),
    Method(name="metarec-builtin", about="ours with a small BERT trained on the catalogue's own text"): lambda trial: (
        _ours(trial, "builtin")
    ),
    Method(name="metarec-random", about="ours with a random vector an item: no text"): lambda trial: _ours(
        trial, "random"
    ),
    Method(
        name="content-ridge", about="columns of EASE or item-kNN regressed on text vectors", centralized=True
    ): lambda trial: _ridge(trial, words=False),
    Method(name="tfidf-ridge", about="the same on TF-IDF vectors", centralized=True): lambda trial: _ridge(
        trial, words=True
    ),
    Method(name="text-knn", about="similarity of text vectors to those of the support set"): text_knn,
    Method(name="ease", about="EASE (Steck 2019), which knows no cold item", centralized=True): ease,
    Method(name="popularity", about="users by item, none for cold ones", centralized=True): popularity,
    Method(name=CHANCE, about="a random ranking, exactly"): chance,
}


class ColdItem(EvaluationProtocol):
    """A share of items is removed from every meta-training user."""

    name = "cold-item"
    about = (
        f"{SHARE:.0%} of the items are removed from every meta-training user. Of each test user who touched some of "
        "them, other items are the support set and those the query. They are ranked among the removed items alone "
        "(cold-items) and among the whole catalogue without the support set (full-catalogue). No method may lift cold "
        "items as such: whoever put them all on top would win full-catalogue and lose all-items, which judges the same "
        "ranking by all that a test user touched, warm or cold. Ties count as their average; nDCG has binary gain."
    )
    methods = tuple(_METHODS)
    shown = (f"ndcg@{K}", f"hr@{K}", f"recall@{K}", "auc")

    def open(self, settings: Settings, folder: Path, say: Say) -> ColdItemTrial:
        """Remove items and draw tasks."""
        data = replace(settings.data, hold_out_items=settings.data.hold_out_items or SHARE)
        settings = replace(settings, data=data)
        dataset, public = load_dataset(settings), load_item_features(settings)
        population = Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)
        cold = public.items.held_out
        validation, test = (_tasks(population, settings, role, cold) for role in (Role.VALIDATION, Role.TEST))
        if not len(validation) or not len(test):
            raise DataError(f"{dataset.name}: no validation and test users have both a cold item and another")
        everything = [_tasks(population, settings, role, cold, warm_too=True) for role in (Role.VALIDATION, Role.TEST)]
        warm = public.items.positions
        train = dataset.interactions.take(population.users(Role.TRAINING)).keep_items(warm, len(cold))
        problem = RankingProblem(
            settings=settings,
            folder=folder,
            say=say,
            train=replace(train, items=warm[train.items].astype(np.int32)),
            scale=dataset.rating_scale,
            text=public.features.vectors,
            cells=[
                RankingCell(name="cold-items", validation=_among(validation, cold), test=_among(test, cold)),
                RankingCell(name="full-catalogue", validation=validation, test=test),
                RankingCell(name="all-items", validation=everything[0], test=everything[1]),
            ],
        )
        return ColdItemTrial(problem, dataset.catalogue, torch.from_numpy(cold))
