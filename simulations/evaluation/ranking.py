"""Ranking a catalogue for users: what a method is given, and how it is tuned and judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metarec_shared.checkpoint import Checkpoint, load_checkpoint
from metarec_shared.dataset import RatingScale
from metarec_shared.evaluation import Scorer
from metarec_shared.interactions import Interactions
from metarec_shared.metrics import ranking_metrics
from metarec_shared.model import BertRecommender
from metarec_shared.population import Population
from metarec_shared.ranks import item_mask
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from metarec_shared.split import Role
from metarec_shared.tasks import TaskBatch
from simulations.baselines.baseline import Baseline, Validation, co_occurrences
from simulations.evaluation.protocol import Figures, Method, Say, Trial
from simulations.protocols import baseline_scorer
from simulations.repeated import run_once

K = 10
TARGET = f"ndcg@{K}"
"""Metric that methods are tuned for, higher better."""

MadeT = TypeVar("MadeT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Users that methods are tuned or judged by.

    Attributes:
        batches: Their tasks. What a task knows is never ranked: support items, and items that are masked in it.
        candidates: Items that are ranked for the users of each batch, among them every query item; padding is -1.
            None: the whole catalogue.
    """

    batches: Sequence[TaskBatch]
    candidates: Sequence[Int[Tensor, "users candidates"]] | None = None

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def first(self, users: int) -> "Judged":
        """Return about the first ``users`` of the users: whole batches, but for the last."""
        batches: list[TaskBatch] = []
        candidates: list[Tensor] = []
        left = users
        for place, batch in enumerate(self.batches):
            batches.append(batch.rows(0, left))
            if self.candidates is not None:
                candidates.append(self.candidates[place][:left])
            left -= len(batch)
            if left <= 0:
                break
        return Judged(batches=batches, candidates=None if self.candidates is None else candidates)

    def excluded(self, place: int, items: int) -> Bool[Tensor, "users items"]:
        """Mark the items of a catalogue of ``items`` that are not ranked for the users of a batch."""
        batch = self.batches[place]
        known = batch.known_mask(items)
        if self.candidates is None:
            return known
        ranked = self.candidates[place]
        return known | ~item_mask(ranked, ranked >= 0, items)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingCell:
    """One column of a table.

    Attributes:
        name: Of the column.
        validation: What methods are tuned by.
        test: What methods are judged by.
    """

    name: str
    validation: Judged
    test: Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingProblem:
    """What methods may learn from, and what they must be good at.

    Attributes:
        settings: Of our own model's runs.
        folder: Where runs are kept.
        say: Told what happens.
        train: Histories that may be learned from, over the catalogue that is ranked.
        scale: Scale on which ratings are read as feedback.
        text: Public text vectors of the catalogue.
        cells: Columns of the table.
    """

    settings: Settings
    folder: Path
    say: Say
    train: Interactions
    scale: RatingScale | None
    text: Float[Tensor, "items text"]
    cells: Sequence[RankingCell]

    @classmethod
    def of_training_items(
        cls, settings: Settings, folder: Path, say: Say, population: Population, cells: Sequence[RankingCell]
    ) -> "RankingProblem":
        """Return the problem to learn from a population's meta-training users, over the items that training knows."""
        return cls(
            settings=settings,
            folder=folder,
            say=say,
            train=population.interactions.take(population.users(Role.TRAINING)),
            scale=population.rating_scale,
            text=load_item_features(settings).text,
            cells=cells,
        )

    @property
    def cell_names(self) -> list[str]:
        """Names of the cells, in order."""
        return [cell.name for cell in self.cells]


Scorers = Mapping[str, Scorer]
"""A scorer for each cell, by the cell's name."""

Fit = Callable[["RankingTrial"], Scorers]
"""Trains a method on a trial's problem, and tunes it on its validation tasks."""


class RankingTrial(Trial):
    """A ranking protocol with one seed.

    Args:
        problem: What to learn from and to be judged by.
        methods: How each method is trained.
    """

    def __init__(self, problem: RankingProblem, methods: Mapping[Method, Fit]) -> None:
        self.problem = problem
        self._fits = {method.name: fit for method, fit in methods.items()}
        self._made: dict[str, Any] = {}

    def figures(self, method: str) -> Figures:
        """Train the method, and return its figures of every cell."""
        scorers = self._fits[method](self)
        found: Figures = {}
        for cells in _judged_together(self.problem.cells, scorers):
            metrics = self.judge(scorers[cells[0].name], [cell.test for cell in cells])
            for cell, one in zip(cells, metrics, strict=True):
                means = {name: float(value.nanmean()) for name, value in one.items()}
                found[cell.name] = {"users": len(cell.test), **means}
        return {cell.name: found[cell.name] for cell in self.problem.cells}

    def judge(self, scorer: Scorer, judged: Sequence[Judged]) -> list[dict[str, Float[Tensor, " users"]]]:
        """Return every metric of every user, for sets of users that have their tasks in common."""
        parts: list[list[dict[str, Tensor]]] = [[] for _ in judged]
        for place, batch in enumerate(judged[0].batches):
            with torch.no_grad():
                scores = scorer(batch).cpu()
            for part, one in zip(parts, judged, strict=True):
                excluded = one.excluded(place, scores.shape[1])
                part.append(ranking_metrics(scores, excluded, batch.query, batch.query_mask, K))
        return [{name: torch.cat([metrics[name] for metrics in part]) for name in part[0]} for part in parts]

    def trained(self, name: str, settings: Settings) -> Checkpoint:
        """Return a run of our own model, made once."""
        folder = self.problem.folder / name
        run_once(settings, folder, self.problem.say)
        return load_checkpoint(folder)

    def model(self, checkpoint: Checkpoint) -> BertRecommender:
        """Return the model of a run over the catalogue that is ranked."""
        return checkpoint.model()

    def read(self, batch: TaskBatch) -> TaskBatch:
        """Return what our own model reads of tasks."""
        return batch

    def everywhere(self, scorer: Scorer) -> Scorers:
        """Return the same scorer for every cell."""
        return {cell.name: scorer for cell in self.problem.cells}

    def validations(self) -> list[Validation]:
        """Return how good a baseline is on the validation tasks of each cell, by the metric that is tuned for."""
        groups: dict[int, list[RankingCell]] = {}
        for cell in self.problem.cells:
            groups.setdefault(id(cell.validation.batches), []).append(cell)
        shared = {key: _Shared(self, [cell.validation for cell in cells]) for key, cells in groups.items()}

        def validation(cell: RankingCell) -> Validation:
            key = id(cell.validation.batches)
            place = groups[key].index(cell)
            return lambda baseline: shared[key].values(baseline)[place]

        return [validation(cell) for cell in self.problem.cells]

    def value(self, scorer: Scorer, judged: Sequence[Judged]) -> list[float]:
        """Return the metric that is tuned for, on validation tasks that sets of users have in common."""
        return [float(metrics[TARGET].mean()) for metrics in self.judge(scorer, judged)]

    def by_cell(self, baselines: Sequence[Baseline]) -> Scorers:
        """Return baselines, one a cell, as scorers."""
        return {cell.name: baseline_scorer(one) for cell, one in zip(self.problem.cells, baselines, strict=True)}

    def once(self, name: str, make: Callable[[], MadeT]) -> MadeT:
        """Return what ``make`` made when it was first asked for: several methods may build on one training."""
        if name not in self._made:
            self._made[name] = make()
        made: MadeT = self._made[name]
        return made

    @cached_property
    def gram(self) -> Float[Tensor, "items items"]:
        """Users who have both items, of the histories that may be learned from."""
        return co_occurrences(self.problem.train, len(self.problem.text))


class _Shared:
    """Validates each baseline once for all cells that have their tasks in common."""

    def __init__(self, trial: RankingTrial, judged: Sequence[Judged]) -> None:
        self._trial, self._judged = trial, judged
        self._last: tuple[Baseline, list[float]] | None = None

    def values(self, baseline: Baseline) -> list[float]:
        """Return the metric that is tuned for, by cell."""
        if self._last is None or self._last[0] is not baseline:
            self._last = (baseline, self._trial.value(baseline_scorer(baseline), self._judged))
        return self._last[1]


def _judged_together(cells: Sequence[RankingCell], scorers: Scorers) -> list[list[RankingCell]]:
    """Group cells that differ in nothing but what is ranked, so that each user is scored once."""
    groups: dict[tuple[int, int], list[RankingCell]] = {}
    for cell in cells:
        groups.setdefault((id(scorers[cell.name]), id(cell.test.batches)), []).append(cell)
    return list(groups.values())
