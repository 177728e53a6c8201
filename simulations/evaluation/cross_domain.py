"""The protocol cross-domain: meta-train on one catalogue, adapt users of another through the text of its items."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarec_shared.checkpoint import Checkpoint
from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError, SettingsError
from metarec_shared.evaluation import model_scorer
from metarec_shared.model import BertRecommender
from metarec_shared.population import Population
from metarec_shared.randomness import uniforms
from metarec_shared.settings import DataSettings, Settings
from metarec_shared.sources import catalogue_features, load_catalogue, load_dataset
from metarec_shared.split import Role
from metarec_shared.text_kernel import TextKernel
from simulations.evaluation.cold_user import cold_user_cells
from simulations.evaluation.derived import settings_with_data
from simulations.evaluation.protocol import CHANCE, OURS, EvaluationProtocol, Method, Say
from simulations.evaluation.ranking import Fit, K, RankingProblem, RankingTrial, Scorers
from simulations.evaluation.ranking_methods import chance, popularity, text_knn

SCRATCH_USERS = 500
WARM_ROUNDS = 300
WARM_STEP = 0.25
"""Outer learning rate of a warm start over that of a run from scratch: there is less to learn and more to lose."""


def _transferred(trial: RankingTrial, *, adapt: bool) -> Scorers:
    checkpoint = trial.trained(OURS, trial.problem.settings)
    return trial.everywhere(model_scorer(trial.model(checkpoint), adapt=adapt))


def _from_scratch(trial: RankingTrial) -> Scorers:
    assert isinstance(trial, CrossDomainTrial)
    checkpoint = trial.trained("from-scratch", trial.scratch_settings)
    return trial.everywhere(model_scorer(checkpoint.model(), adapt=True))


def _text_kernel(trial: RankingTrial) -> Scorers:
    kernel = TextKernel.over(trial.problem.text, trial.problem.settings.regression.text_kernel_sharpness)
    return trial.everywhere(lambda batch: kernel.predictions(batch.support, batch.support_mask))


def _warm_start(trial: RankingTrial) -> Scorers:
    assert isinstance(trial, CrossDomainTrial)
    trial.trained(OURS, trial.problem.settings)
    scratch = trial.scratch_settings
    settings = replace(
        scratch,
        run=replace(scratch.run, init=str(trial.problem.folder / OURS)),
        federation=replace(scratch.federation, rounds=min(scratch.federation.rounds, WARM_ROUNDS)),
        outer=replace(scratch.outer, learning_rate=WARM_STEP * scratch.outer.learning_rate),
    )
    return trial.everywhere(model_scorer(trial.trained("warm-start", settings).model(), adapt=True))


_METHODS: dict[Method, Fit] = {
    Method(name=OURS, about="ours, meta-trained on the first catalogue alone"): lambda trial: _transferred(
        trial, adapt=True
    ),
    Method(name="unadapted", about="the same, the support set merely read"): lambda trial: _transferred(
        trial, adapt=False
    ),
    Method(
        name="from-scratch", about=f"ours, meta-trained on {SCRATCH_USERS} users of the second catalogue alone"
    ): _from_scratch,
    Method(
        name="warm-start",
        about=f"ours, meta-trained on the first catalogue, then on {SCRATCH_USERS} users of the second",
    ): _warm_start,
    Method(name="text-kernel", about="ours without its model: the sharp kernel on text vectors alone"): _text_kernel,
    Method(name="text-knn", about="similarity of text vectors to those of the support set"): text_knn,
    Method(
        name="popularity", about=f"users by item, of {SCRATCH_USERS} users of the second catalogue", centralized=True
    ): popularity,
    Method(name=CHANCE, about="a random ranking, exactly"): chance,
}


class CrossDomain(EvaluationProtocol):
    """Two catalogues that share nothing but a text encoder."""

    name = "cross-domain"
    about = (
        "Our model is meta-trained on the first data set and has seen no interaction with the second, whose items it "
        "knows by their text; two constants of the text kernel were set with validation users of anime in sight."
        " Test users are the second's; of each one's interactions, in random or in time order, the "
        "first 1, 3, 5 or 10 are the support set and the next 10 the query; the second's whole catalogue without the "
        "support set is ranked. Ties count as their average; nDCG has binary gain."
    )
    methods = tuple(_METHODS)
    shown = (f"ndcg@{K}", f"hr@{K}", f"recall@{K}")

    def datasets(self, settings: Settings) -> tuple[Dataset, ...]:
        """Return the data sets that is trained on and that is tested on."""
        return load_dataset(settings), load_dataset(_second(settings))

    def open(self, settings: Settings, folder: Path, say: Say) -> "CrossDomainTrial":
        """Split the second data set's users and draw their tasks."""
        first, second = load_catalogue(settings), load_dataset(_second(settings))
        population = Population.of(second.interactions, second.rating_scale, settings.run.seed)
        cells = [cell for cell in cold_user_cells(population, settings) if len(cell.test)]
        if not cells:
            raise DataError(f"{second.name}: no test users have two interactions or more")
        features = catalogue_features(second.catalogue, settings, corpus=first)
        users = _few(population)
        problem = RankingProblem(
            settings=settings,
            folder=folder,
            say=say,
            train=second.interactions.take(users),
            scale=second.rating_scale,
            text=features.vectors,
            cells=cells,
        )
        return CrossDomainTrial(problem, second, population.roles[users])


class CrossDomainTrial(RankingTrial):
    """The protocol with one seed.

    Args:
        problem: What to be judged by; its histories are those of the few users that training from scratch gets.
        second: The data set that is tested on.
        roles: Of these few users, int8 [users].
    """

    def __init__(self, problem: RankingProblem, second: Dataset, roles: NDArray[np.int8]) -> None:
        super().__init__(problem, _METHODS)
        self._second, self._roles = second, roles

    @property
    def scratch_settings(self) -> Settings:
        """Settings of a run on the few users of the second data set, some of whom validate as in any run."""
        folder = self.problem.folder / "second-few"
        return settings_with_data(self.problem.settings, folder, self._second, self.problem.train, self._roles)

    def model(self, checkpoint: Checkpoint) -> BertRecommender:
        """Return the model over the second catalogue; items whose text both have keep what was learned of them."""
        here, there = self._second.catalogue.shared_with(checkpoint.items.known)
        return checkpoint.transferred(self.problem.text, here, there)


def _second(settings: Settings) -> Settings:
    if not settings.evaluation.onto:
        raise SettingsError("cross-domain needs the data of test users: --onto DIR (evaluation.onto)")
    data = DataSettings(path=settings.evaluation.onto, on_bad_rows=settings.data.on_bad_rows)
    return replace(settings, data=data)


def _few(population: Population) -> NDArray[np.int64]:
    """Choose the users that training from scratch gets, of those who are not tested: by their keys, in order."""
    users = np.flatnonzero(population.roles != Role.TEST)
    order = np.argsort(uniforms(population.keys[users], population.seed, "from scratch"), kind="stable")
    return np.sort(users[order[:SCRATCH_USERS]])
