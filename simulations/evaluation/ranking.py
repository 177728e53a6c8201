"""Ranking a catalogue for cold users: what a method is given, and the methods that every ranking protocol shares."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.checkpoint import Checkpoint, load_checkpoint
from metarec_shared.evaluation import Scorer, evaluate, model_scorer
from metarec_shared.interactions import Interactions
from metarec_shared.settings import Settings
from metarec_shared.tasks import TaskBatch
from simulations.baselines.baseline import Baseline, Validation, co_occurrences
from simulations.baselines.ease import tune_ease
from simulations.baselines.item_knn import tune_item_knn
from simulations.baselines.popularity import fit_popularity
from simulations.evaluation.protocol import CHANCE, OURS, Figures, Method, Say, Trial
from simulations.protocols import EASE_REGULARIZATION, KNN_NEIGHBOURS, KNN_SHRINKAGE, baseline_scorer
from simulations.repeated import run_once

SITES = 10
K = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingCell:
    """One column of a table.

    Attributes:
        name: Of the column.
        validation: Tasks of validation users, which methods are tuned by.
        test: Tasks of test users, which methods are judged by.
    """

    name: str
    validation: Sequence[TaskBatch]
    test: Sequence[TaskBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingProblem:
    """What methods may learn from, and what they must be good at.

    Attributes:
        settings: Of our own model's runs.
        folder: Where runs are kept.
        say: Told what happens.
        train: Histories that may be learned from, over the catalogue that is ranked.
        text: Public text vectors of the catalogue.
        cells: Columns of the table.
        target: Metric that is tuned for, higher better.
    """

    settings: Settings
    folder: Path
    say: Say
    train: Interactions
    text: Float[Tensor, "items text"]
    cells: Sequence[RankingCell]
    target: str


Scorers = Mapping[str, Scorer]
"""A scorer for each cell, by the cell's name."""

Fit = Callable[["RankingTrial"], Scorers]
"""Trains a method on a trial's problem, and tunes it on its validation tasks."""


class RankingTrial(Trial):
    """A ranking protocol with one seed.

    Args:
        problem: What to learn from and to be judged by.
    """

    def __init__(self, problem: RankingProblem) -> None:
        self.problem = problem

    @property
    @abstractmethod
    def fits(self) -> Mapping[str, Fit]:
        """How each method is trained, by name."""

    def figures(self, method: str) -> Figures:
        """Train the method, and return its figures of every cell."""
        scorers = self.fits[method](self)
        found: Figures = {}
        for cell in self.problem.cells:
            metrics = self.judge(scorers[cell.name], cell.test)
            users = sum(len(batch) for batch in cell.test)
            found[cell.name] = {"users": users, **{k: float(value.nanmean()) for k, value in metrics.items()}}
        return found

    def judge(self, scorer: Scorer, batches: Sequence[TaskBatch]) -> dict[str, Float[Tensor, " users"]]:
        """Return every metric of every user: the whole catalogue is ranked, without what the user is known to have."""
        return evaluate(scorer, batches, K)

    def trained(self, name: str, settings: Settings) -> Checkpoint:
        """Return a run of our own model, made once."""
        folder = self.problem.folder / name
        run_once(settings, folder, self.problem.say)
        return load_checkpoint(folder)

    def everywhere(self, scorer: Scorer) -> Scorers:
        """Return the same scorer for every cell."""
        return {cell.name: scorer for cell in self.problem.cells}

    def validations(self) -> list[Validation]:
        """Return how good a baseline is on the validation tasks of each cell, by the metric that is tuned for."""

        def validation(cell: RankingCell) -> Validation:
            return lambda baseline: self.value(baseline_scorer(baseline), cell)

        return [validation(cell) for cell in self.problem.cells]

    def value(self, scorer: Scorer, cell: RankingCell) -> float:
        """Return the metric that is tuned for, on the validation tasks of a cell."""
        return float(self.judge(scorer, cell.validation)[self.problem.target].mean())

    def by_cell(self, baselines: Sequence[Baseline]) -> Scorers:
        """Return baselines, one a cell, as scorers."""
        return {cell.name: baseline_scorer(one) for cell, one in zip(self.problem.cells, baselines, strict=True)}

    @cached_property
    def gram(self) -> Float[Tensor, "items items"]:
        """Users who have both items, of the histories that may be learned from."""
        return co_occurrences(self.problem.train, len(self.problem.text))


def chance(trial: RankingTrial) -> Scorers:
    """Score every item the same: ties count as their average, so this is a random ranking."""
    items = len(trial.problem.text)
    return trial.everywhere(lambda batch: torch.zeros(len(batch), items))


def popularity(trial: RankingTrial) -> Scorers:
    """Fit the same ranking for everybody."""
    return trial.everywhere(baseline_scorer(fit_popularity(trial.problem.train, len(trial.problem.text))))


def item_knn(trial: RankingTrial) -> Scorers:
    """Fit and tune item-kNN."""
    return trial.by_cell(tune_item_knn(trial.gram, KNN_NEIGHBOURS, KNN_SHRINKAGE, trial.validations()))


def ease(trial: RankingTrial) -> Scorers:
    """Fit and tune EASE."""
    return trial.by_cell(tune_ease(trial.gram, EASE_REGULARIZATION, trial.validations()))


def ours(trial: RankingTrial) -> Scorers:
    """Meta-train our model in a federation with a node a user."""
    return _scorers(trial, trial.trained(OURS, trial.problem.settings), adapt=True)


def ours_at_sites(trial: RankingTrial) -> Scorers:
    """Meta-train our model in a federation of ten uneven sites."""
    federation = replace(trial.problem.settings.federation, nodes=SITES, partition="skewed")
    settings = replace(trial.problem.settings, federation=federation)
    return _scorers(trial, trial.trained("metarec-sites", settings), adapt=True)


def unadapted(trial: RankingTrial) -> Scorers:
    """Take our meta-trained model without its inner loop."""
    return _scorers(trial, trial.trained(OURS, trial.problem.settings), adapt=False)


def without_inner_loop(trial: RankingTrial) -> Scorers:
    """Train the same model as in-context learning, without an inner loop."""
    settings = replace(trial.problem.settings, adaptation=replace(trial.problem.settings.adaptation, steps=0))
    return _scorers(trial, trial.trained("no-inner-loop", settings), adapt=False)


def _scorers(trial: RankingTrial, checkpoint: Checkpoint, *, adapt: bool) -> Scorers:
    return trial.everywhere(model_scorer(checkpoint.model(), adapt=adapt))


RANKING_METHODS: dict[Method, Fit] = {
    Method(name=OURS, about="ours: meta-trained with a node a user, adapted to each user's support set"): ours,
    Method(name="metarec-sites", about=f"ours, federated over {SITES} uneven sites"): ours_at_sites,
    Method(name="unadapted", about="ours, the support set merely read"): unadapted,
    Method(name="no-inner-loop", about="the same model trained without an inner loop"): without_inner_loop,
    Method(name="ease", about="EASE (Steck 2019)", centralized=True): ease,
    Method(name="item-knn", about="item-kNN with shrunk cosine", centralized=True): item_knn,
    Method(name="popularity", about="users by item", centralized=True): popularity,
    Method(name=CHANCE, about="a random ranking, exactly"): chance,
}
"""What every ranking protocol compares, in the order of tables."""
