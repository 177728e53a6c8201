"""Predicting ratings for cold users and of cold items: tasks, what a method is given, and the methods to compare."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.content_kernel import ContentKernel, content_kernel, gaussian_kernel
from metarec_shared.dataset import Dataset, RatingScale
from metarec_shared.errors import DataError
from metarec_shared.interactions import Interactions, starts
from metarec_shared.item_content import with_content
from metarec_shared.population import SHORTEST_HISTORY
from metarec_shared.randomness import generator
from metarec_shared.rating_tasks import middle
from metarec_shared.settings import RATING_DEFAULTS, Settings
from metarec_shared.sources import load_dataset, load_item_features
from metarec_shared.split import Role
from simulations.baselines.matrix_factorization import BIAS_PENALTY, factorize
from simulations.baselines.melu import MeLUPredictor, MeLUSettings, PreferenceEstimator, item_content, train_melu
from simulations.baselines.rating_fold_in import FoldIn
from simulations.baselines.rating_reconstruction import Reconstruction, ReconstructionSettings, described, reconstruct
from simulations.evaluation.derived import settings_with_data
from simulations.evaluation.protocol import CHANCE, OURS, Figures, Method, Say, Trial
from simulations.repeated import run_once

QUERY = 10
FEWEST, MOST = 13, 100
"""Ratings of a user who takes part, as in MeLU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingTask:
    """One user's episode.

    Attributes:
        user: Position of the user in the histories.
        support: Items whose ratings are given.
        support_ratings: Those.
        query: Items whose ratings are asked for, ``QUERY`` of them.
        query_ratings: The answers.
    """

    user: int
    support: Int[np.ndarray, " support"]
    support_ratings: Float[np.ndarray, " support"]
    query: Int[np.ndarray, " query"]
    query_ratings: Float[np.ndarray, " query"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RatingStage:
    """What may be learned from, and what is asked then.

    Attributes:
        train: Ratings that may be learned from; user positions are the data set's, and who is cold has none.
        tasks: By cell of the table.
    """

    train: Interactions
    tasks: Mapping[str, Sequence[RatingTask]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RatingProblem:
    """What methods may learn from, and what they must be good at.

    Attributes:
        settings: ``run.seed`` is the seed of everything.
        folder: Where runs are kept.
        say: Told what happens.
        scale: Of the ratings; predictions are clipped to it.
        text: Vectors of the whole catalogue (``rating_text``).
        tuning: Stage that methods are tuned by: users and items that are warm at the test.
        test: Stage that methods are judged by, trained anew with what tuning found.
    """

    settings: Settings
    folder: Path
    say: Say
    scale: RatingScale
    text: Float[np.ndarray, "items text"]
    tuning: RatingStage
    test: RatingStage


class Predictor(Protocol):
    """A trained method."""

    def predict(
        self,
        user: int,
        support: Int[np.ndarray, " support"],
        ratings: Float[np.ndarray, " support"],
        query: Int[np.ndarray, " query"],
    ) -> Float[np.ndarray, " query"]:
        """Return the ratings expected of the query items; they are clipped where errors are measured."""
        ...


Options = Mapping[str, Sequence[Any]]
"""Values of each hyperparameter; the search starts at the first of each."""

Fit = Callable[[RatingProblem, RatingStage, Mapping[str, Any]], Predictor]
"""Trains a method on a stage's ratings with given hyperparameters."""


class RatingTrial(Trial):
    """A rating protocol with one seed."""

    target: str
    """Metric that is tuned for."""
    lower_is_better: bool

    def __init__(self, problem: RatingProblem) -> None:
        self.problem = problem

    @abstractmethod
    def judge(
        self, predicted: Float[Tensor, "users query"], rated: Float[Tensor, "users query"]
    ) -> dict[str, Float[Tensor, " users"]]:
        """Return every metric of every user."""

    def figures(self, method: str) -> Figures:
        """Tune the method for each cell, train it on all that is warm, and return its figures on test tasks."""
        fit, options = RATING_FITS[method]
        found: Figures = {}
        for cell, tasks in self.problem.test.tasks.items():
            chosen = self.tuned(fit, options, cell)
            self.problem.say(f"{method}, {cell}: " + (", ".join(f"{k} {v:g}" for k, v in chosen.items()) or "fitted"))
            metrics = self.measured(fit(self.problem, self.problem.test, chosen), tasks)
            found[cell] = {"users": len(tasks), **metrics}
        return found

    def measured(self, predictor: Predictor, tasks: Sequence[RatingTask]) -> dict[str, float]:
        """Return the means over tasks of every metric."""
        predicted = np.stack(
            [predictor.predict(task.user, task.support, task.support_ratings, task.query) for task in tasks]
        )
        rated = np.stack([task.query_ratings for task in tasks])
        metrics = self.judge(torch.from_numpy(predicted), torch.from_numpy(rated))
        return {name: float(value.mean()) for name, value in metrics.items()}

    def tuned(self, fit: Fit, options: Options, cell: str) -> dict[str, Any]:
        """Search one hyperparameter after another, twice over, on the validation tasks of a cell."""
        stage = self.problem.tuning
        values: dict[tuple[Any, ...], float] = {}

        def value(chosen: Mapping[str, Any]) -> float:
            key = tuple(chosen.values())
            if key not in values:
                found = self.measured(fit(self.problem, stage, chosen), stage.tasks[cell])[self.target]
                values[key] = -found if self.lower_is_better else found
            return values[key]

        chosen = {name: grid[0] for name, grid in options.items()}
        for _ in range(2):
            for name, grid in options.items():
                chosen = max(({**chosen, name: one} for one in grid), key=value)
        return chosen


def rated_only(dataset: Dataset) -> tuple[Interactions, RatingScale]:
    """Return the interactions that have a rating, and the ratings' scale, where it is not fixed the observed one.

    Raises:
        DataError: There are no ratings, or they are all the same.
    """
    rated = kept(dataset.interactions, ~np.isnan(dataset.interactions.ratings))
    if not len(rated.items) or rated.ratings.min() == rated.ratings.max():
        raise DataError(f"{dataset.name}: a rating protocol needs ratings that differ, got {len(rated.items)} ratings")
    observed = RatingScale(low=float(rated.ratings.min()), high=float(rated.ratings.max()))
    return rated, dataset.rating_scale or observed


def kept(histories: Interactions, mask: NDArray[np.bool_]) -> Interactions:
    """Return the interactions in ``mask`` alone; users stay where they are."""
    counted = np.concatenate([[0], np.cumsum(mask)])
    lengths = np.diff(counted[histories.offsets])
    return Interactions(
        user_ids=histories.user_ids,
        offsets=starts(lengths),
        items=histories.items[mask],
        ratings=histories.ratings[mask],
        has_time=histories.has_time,
        attributes=histories.attributes,
    )


def rating_tasks(
    histories: Interactions, users: NDArray[np.int64], keys: NDArray[np.uint64], seed: int, cell: str
) -> list[RatingTask]:
    """Return a task of each user with 13 to 100 ratings: 10 random ones are asked for, the others given.

    A user's draw has an address of his own: (seed, cell, key).
    """
    tasks = []
    for user in users:
        start, stop = histories.offsets[user : user + 2]
        if not FEWEST <= stop - start <= MOST:
            continue
        rows = start + generator(seed, "rating task", cell, int(keys[user])).permutation(stop - start)
        items, ratings = histories.items[rows].astype(np.int64), histories.ratings[rows].astype(np.float64)
        tasks.append(
            RatingTask(
                user=int(user),
                support=items[QUERY:],
                support_ratings=ratings[QUERY:],
                query=items[:QUERY],
                query_ratings=ratings[:QUERY],
            )
        )
    return tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The same rating for everything.

    Attributes:
        rating: That.
    """

    rating: float

    def predict(
        self,
        user: int,
        support: Int[np.ndarray, " support"],
        ratings: Float[np.ndarray, " support"],
        query: Int[np.ndarray, " query"],
    ) -> Float[np.ndarray, " query"]:
        """Return it for each query item."""
        return np.full(len(query), self.rating)


def chance(problem: RatingProblem, stage: RatingStage, chosen: Mapping[str, Any]) -> Predictor:
    """Predict the mean of all training ratings; as a ranking, all items tie."""
    return Constant(rating=float(stage.train.ratings.mean(dtype=np.float64)))


def user_mean(problem: RatingProblem, stage: RatingStage, chosen: Mapping[str, Any]) -> Predictor:
    """Predict the mean of the user's known ratings, drawn to the mean of all by some pseudo-ratings."""
    items = len(problem.text)
    return FoldIn(
        base=np.full(items, stage.train.ratings.mean(dtype=np.float64)),
        features=np.ones((items, 1)),
        penalty=np.array([chosen["pseudo-ratings"]]),
        histories=stage.train,
        history_weight=chosen["history"],
    )


def content_ridge(problem: RatingProblem, stage: RatingStage, chosen: Mapping[str, Any]) -> Predictor:
    """Biases of items, and a ridge regression on text for every user; an item nobody rated has its bias from text."""
    mean, items = _described(problem, stage, 0, 1.0, chosen["gamma"], chosen["noise"])
    text = _components(problem)
    return FoldIn(
        base=mean + items[:, 0],
        features=np.column_stack([np.ones(len(items)), text]),
        penalty=np.concatenate([[chosen["bias"]], np.full(text.shape[1], chosen["penalty"])]),
        histories=stage.train,
        history_weight=chosen["history"],
    )


def matrix_factorization(problem: RatingProblem, stage: RatingStage, chosen: Mapping[str, Any]) -> Predictor:
    """Fold users into a matrix factorization; an item nobody rated has bias and factors from text."""
    rank, penalty = chosen["rank"], chosen["penalty"]
    mean, items = _described(problem, stage, rank, penalty, chosen["gamma"], chosen["noise"])
    return FoldIn(
        base=mean + items[:, 0],
        features=np.column_stack([np.ones(len(items)), items[:, 1:]]),
        penalty=np.concatenate([[chosen["bias"]], np.full(rank, penalty * chosen["fold-in"])]),
        histories=stage.train,
        history_weight=chosen["history"],
    )


def ours(problem: RatingProblem, stage: RatingStage, chosen: Mapping[str, Any]) -> Predictor:
    """Meta-train item vectors through ridge regressions on support sets, in a federation with a node a user."""
    base, features, penalty = _federated(problem, stage, chosen["kernel"])
    return FoldIn(
        base=base,
        features=features,
        penalty=chosen["fold-in"] * penalty,
        histories=stage.train,
        history_weight=chosen["history"],
        kernel=_alike(problem, chosen["user-kernel"]) if chosen["user-kernel"] else None,
    )


def fedrecon(problem: RatingProblem, stage: RatingStage, chosen: Mapping[str, Any]) -> Predictor:
    """Meta-train item vectors beside gradient steps on support sets; a new item has neither bias nor factors."""
    settings = ReconstructionSettings(decay=chosen["decay"])
    base, features = _reconstructed(problem, stage, settings)
    return Reconstruction(base=base, features=features, steps=chosen["steps"], step_size=settings.step_size)


def melu(problem: RatingProblem, stage: RatingStage, chosen: Mapping[str, Any]) -> Predictor:
    """Train MeLU's network through local updates of its decision layers."""
    settings = MeLUSettings(steps=chosen["steps"], rate=chosen["rate"])
    return MeLUPredictor.of(_melu_trained(problem, stage, settings)[chosen["epochs"]], settings)


_SWEEPS = 12
_FEW = 10.0
_TEXT_WIDTH = 48
_PASSES = 25
_COHORT = 64
_MELU_EPOCHS = (3, 6, 12)


def _described(
    problem: RatingProblem, stage: RatingStage, rank: int, penalty: float, gamma: float, noise: float
) -> tuple[float, Float[np.ndarray, "items width"]]:
    """Return the mean rating, and bias and factors of every item: from ratings where it has any, else from text."""
    mean, items, counts = _factors(problem, stage, rank, penalty)
    told = _told(problem, stage, rank, penalty, gamma, noise)
    return mean, np.where(counts[:, None] > 0, items, told)


@lru_cache(maxsize=16)
def _factors(
    problem: RatingProblem, stage: RatingStage, rank: int, penalty: float
) -> tuple[float, Float[np.ndarray, "items width"], Float[np.ndarray, " items"]]:
    """Return the mean rating, bias and factors of every item, and how many ratings it has."""
    size, seed = len(problem.text), problem.settings.run.seed
    found = factorize(stage.train, size, rank=rank, penalty=penalty, sweeps=_SWEEPS, seed=seed)
    return found.mean, found.items, np.bincount(stage.train.items, minlength=size).astype(np.float64)


@lru_cache(maxsize=16)
def _told(
    problem: RatingProblem, stage: RatingStage, rank: int, penalty: float, gamma: float, noise: float
) -> Float[np.ndarray, "items width"]:
    """Return bias and factors as text tells them, around the mean of rated items."""
    _, items, counts = _factors(problem, stage, rank, penalty)
    kernel = _kernel(problem, stage, gamma, noise)
    items, counts = items[kernel.known], counts[kernel.known]
    mean = np.average(items, axis=0, weights=counts / (counts + _FEW))
    return np.asarray(mean + kernel.predict(items - mean))


@lru_cache(maxsize=8)
def _kernel(problem: RatingProblem, stage: RatingStage, gamma: float, noise: float) -> ContentKernel:
    counts = np.bincount(stage.train.items, minlength=len(problem.text)).astype(np.float64)
    return content_kernel(problem.text, counts, gamma=gamma, noise=noise, few=_FEW)


def rating_recipe(settings: Settings) -> Settings:
    """Return the settings of our method's runs: those that were given, or the rating model's own defaults."""
    if settings.model.target == "rating":
        return settings
    return settings.with_values({**RATING_DEFAULTS, "model.target": "rating"}, "recipe")


def rating_text(settings: Settings) -> Float[np.ndarray, "items text"]:
    """Return the catalogue's text vectors and behind them, where our method reads that, what words and years say."""
    public = load_item_features(settings)
    text, catalogue = public.features.vectors, public.items.catalogue
    return (with_content(text, catalogue) if rating_recipe(settings).rating.content else text).double().numpy()


@lru_cache(maxsize=8)
def _federated(
    problem: RatingProblem, stage: RatingStage, kernel: float
) -> tuple[Float[np.ndarray, " items"], Float[np.ndarray, "items width"], Float[np.ndarray, " width"]]:
    """Return base and features of every item, and the learned penalty, that a federation of the stage's users learns.

    Everybody with ratings there meta-trains; nobody validates, so the last round counts.
    """
    part = "test" if stage.train is problem.test.train else "tuning"
    dataset = replace(load_dataset(problem.settings), rating_scale=problem.scale)
    roles = np.full(len(stage.train), Role.TRAINING, dtype=np.int8)
    recipe = rating_recipe(problem.settings)
    if problem.settings.model.target == "ranking":
        rounds = math.ceil(_PASSES * (stage.train.lengths >= SHORTEST_HISTORY).sum() / _COHORT)
        recipe = recipe.with_values({"federation.cohort": _COHORT, "federation.rounds": rounds}, "recipe")
    settings = settings_with_data(recipe, problem.folder / f"data-{part}", dataset, stage.train, roles)
    folder = problem.folder / f"metarec-{part}"
    run_once(settings, folder, problem.say)
    checkpoint = load_checkpoint(folder)
    told = replace(recipe, rating=replace(recipe.rating, kernel=kernel))
    model = replace(checkpoint, settings=told).rating_model()
    base, features = (tensor.double().numpy() for tensor in model.catalogue())
    return middle(problem.scale) + base, features, model.log_penalty.detach().exp().double().numpy()


@lru_cache(maxsize=2)
def _alike(problem: RatingProblem, scale: float) -> Float[np.ndarray, "items items"]:
    """Return the kernel of our method's users, as ``RatingModel.alike`` has it, in single precision."""
    apart = 2.0 * float(problem.text.var(axis=0).sum())
    return np.asarray(scale**2 * gaussian_kernel(problem.text, problem.text, 1.0 / apart), dtype=np.float32)


@lru_cache(maxsize=8)
def _reconstructed(
    problem: RatingProblem, stage: RatingStage, settings: ReconstructionSettings
) -> tuple[Float[np.ndarray, " items"], Float[np.ndarray, "items width"]]:
    """Return base and features of every item, as federated reconstruction learns them."""
    model = reconstruct(stage.train, len(problem.text), settings, problem.settings.run.seed)
    return described(model, np.bincount(stage.train.items, minlength=len(problem.text)) > 0)


@lru_cache(maxsize=8)
def _melu_trained(problem: RatingProblem, stage: RatingStage, settings: MeLUSettings) -> dict[int, PreferenceEstimator]:
    """Return MeLU's network after each number of epochs that is tried."""
    vectors = load_item_features(problem.settings).features.vectors.double().numpy()
    content = item_content(load_dataset(problem.settings).catalogue, vectors)
    return train_melu(stage.train, content, settings, problem.settings.run.seed, kept=_MELU_EPOCHS)


@lru_cache(maxsize=2)
def _components(problem: RatingProblem) -> Float[np.ndarray, "items width"]:
    """Return the strongest principal components of the text, of mean square 1 together."""
    centred = problem.text - problem.text.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False).Vh
    scores = centred @ directions[:_TEXT_WIDTH].T
    return np.asarray(scores / np.sqrt((scores**2).sum(axis=1).mean()))


_CONTENT: Options = {"gamma": (1.0, 0.5, 0.25, 2.0), "noise": (0.5, 0.2, 1.0, 2.0)}
_USER: Options = {"bias": (BIAS_PENALTY, 1.0, 6.0), "history": (0.0, 0.1, 0.3, 1.0)}

RATING_FITS: dict[str, tuple[Fit, Options]] = {
    OURS: (
        ours,
        {
            "kernel": (0.5, 0.0, 1.0),
            "history": _USER["history"],
            "user-kernel": (0.4, 0.0, 0.2, 0.6),
            "fold-in": (1.0, 0.7, 1.5, 2.5, 4.0),
        },
    ),
    "fedrecon": (fedrecon, {"decay": (0.03, 0.1), "steps": (10, 5, 20)}),
    "melu": (melu, {"steps": (5, 1), "rate": (0.005, 0.01, 0.0025), "epochs": _MELU_EPOCHS}),
    "mf": (
        matrix_factorization,
        {
            "rank": (16, 8, 32),
            "penalty": (5.0, 3.0, 8.0, 12.0),
            **_USER,
            "fold-in": (1.0, 0.4, 0.7, 1.5, 2.5),
            **_CONTENT,
        },
    ),
    "content-ridge": (content_ridge, {"penalty": (5.0, 2.5, 10.0, 20.0), **_USER, **_CONTENT}),
    "user-mean": (user_mean, {"pseudo-ratings": (1e-9, 1.0, 3.0), "history": _USER["history"]}),
    CHANCE: (chance, {}),
}

RATING_METHODS = (
    Method(
        name=OURS,
        about="ours: item vectors from text and their own, meta-learned through each user's ridge regression, with a "
        "node a user",
    ),
    Method(
        name="fedrecon",
        about="matrix factorization with reconstructed users (FedRecon, Singhal et al. 2021), in one process",
        centralized=True,
    ),
    Method(
        name="melu",
        about="a network over embedded item content, its decision layers adapted by gradient steps (MeLU, Lee et al. "
        "2019), in one process",
        centralized=True,
    ),
    Method(
        name="mf",
        about="matrix factorization by alternating ridge regressions, users folded in, new items from text by kernel",
        centralized=True,
    ),
    Method(name="content-ridge", about="item biases and a ridge regression on text per user", centralized=True),
    Method(name="user-mean", about="mean of the user's ratings, damped", centralized=True),
    Method(name=CHANCE, about="the mean of all ratings; as a ranking, a random one"),
)
"""What every rating protocol compares, in the order of tables."""
