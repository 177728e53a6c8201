"""The methods that every ranking protocol compares: ours, federated baselines, centralized ones, chance."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from metarec_shared.checkpoint import Checkpoint, load_parameters
from metarec_shared.device import resolve_device
from metarec_shared.errors import CheckpointError
from metarec_shared.evaluation import Scorer, model_scorer
from metarec_shared.exchange import Parameters
from metarec_shared.initialization import initial_model
from metarec_shared.model import BertRecommender
from simulations.baselines.baseline import best
from simulations.baselines.ease import tune_ease
from simulations.baselines.fedavg import FedAvgSettings, fine_tuned_scores, fit_fedavg
from simulations.baselines.ials import tune_ials
from simulations.baselines.item_knn import tune_item_knn
from simulations.baselines.popularity import fit_popularity
from simulations.baselines.reconstruction import Reconstruction, ReconstructionSettings, fit_reconstruction
from simulations.baselines.sequential_rules import tune_sequential_rules
from simulations.evaluation.negatives import training_negatives
from simulations.evaluation.protocol import CHANCE, OURS, Method
from simulations.evaluation.ranking import TARGET, Fit, RankingTrial, Scorers
from simulations.protocols import EASE_REGULARIZATION, KNN_NEIGHBOURS, KNN_SHRINKAGE, baseline_scorer
from simulations.protocols import text_knn as text_knn_scorer

SITES = 10
RULE_WINDOWS = (1, 2, 3, 5, 10, 20)
IALS_FACTORS = 64
IALS_REGULARIZATION = (1.0, 10.0, 100.0)
IALS_CONFIDENCE = (3.0, 10.0)
RECONSTRUCTION_RATES = (2.0, 8.0)
RECONSTRUCTION_LEARNING_RATES = (0.003, 0.01)
FEDAVG_CLIENTS = 32
FEDAVG_STEPS = 3
FEDAVG_RATE = 0.1
FEDAVG_EVALUATIONS = 20
TUNING_USERS = 200
TUNING_STEPS = (1, 5)
TUNING_RATES = (0.01, 0.1)


def chance(trial: RankingTrial) -> Scorers:
    """Score every item the same: ties count as their average, so this is a random ranking."""
    items = len(trial.problem.text)
    return trial.everywhere(lambda batch: torch.zeros(len(batch), items))


def popularity(trial: RankingTrial) -> Scorers:
    """Fit the same ranking for everybody."""
    return trial.everywhere(baseline_scorer(fit_popularity(trial.problem.train, len(trial.problem.text))))


def text_knn(trial: RankingTrial) -> Scorers:
    """Score by similarity of text to the support set's; nothing to fit."""
    return trial.everywhere(text_knn_scorer(trial.problem.text))


def item_knn(trial: RankingTrial) -> Scorers:
    """Fit and tune item-kNN."""
    return trial.by_cell(tune_item_knn(trial.gram, KNN_NEIGHBOURS, KNN_SHRINKAGE, trial.validations()))


def ease(trial: RankingTrial) -> Scorers:
    """Fit and tune EASE."""
    return trial.by_cell(tune_ease(trial.gram, EASE_REGULARIZATION, trial.validations()))


def sequential_rules(trial: RankingTrial) -> Scorers:
    """Fit and tune sequential rules."""
    problem = trial.problem
    return trial.by_cell(tune_sequential_rules(problem.train, len(problem.text), RULE_WINDOWS, trial.validations()))


def ials(trial: RankingTrial) -> Scorers:
    """Fit and tune iALS."""
    problem = trial.problem
    items, seed = len(problem.text), problem.settings.run.seed
    return trial.by_cell(
        tune_ials(problem.train, items, IALS_FACTORS, IALS_REGULARIZATION, IALS_CONFIDENCE, trial.validations(), seed)
    )


def reconstruction(trial: RankingTrial) -> Scorers:
    """Train and tune federated reconstruction: its rates, and when to stop."""
    problem = trial.problem

    def candidates() -> Iterator[Reconstruction]:
        for rate, learning_rate in product(RECONSTRUCTION_RATES, RECONSTRUCTION_LEARNING_RATES):
            constants = ReconstructionSettings(rate=rate, learning_rate=learning_rate)
            problem.say(f"fedrecon: reconstruction rate {rate:g}, learning rate {learning_rate:g}")
            yield from fit_reconstruction(
                problem.train,
                len(problem.text),
                constants,
                training_negatives,
                every=constants.rounds // 6,
                seed=problem.settings.run.seed,
            )

    return trial.by_cell(best(candidates(), trial.validations()))


def fedavg(trial: RankingTrial) -> Scorers:
    """Take the averaged model as it is, of the round that validates best."""
    averaged = trial.once("fedavg", lambda: _averaged(trial))
    return {cell.name: averaged.scorer(trial, cell.name, steps=0, rate=0.0) for cell in trial.problem.cells}


def fedavg_tuned(trial: RankingTrial) -> Scorers:
    """Fine-tune the averaged model at every user, by the steps and the rate that validate best."""
    averaged, problem = trial.once("fedavg", lambda: _averaged(trial)), trial.problem
    scorers: dict[str, Scorer] = {}
    for cell in problem.cells:
        problem.say(f"fedavg-tuned: choosing local steps on validation users, {cell.name}")
        few = cell.validation.first(TUNING_USERS)
        choices = [averaged.scorer(trial, cell.name, steps=n, rate=r) for n, r in product(TUNING_STEPS, TUNING_RATES)]
        values = [trial.value(scorer, [few])[0] for scorer in choices]
        scorers[cell.name] = choices[int(np.argmax(values))]
    return scorers


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """What FedAvg trained.

    Attributes:
        model: Our model, without an inner loop.
        parameters: Averaged parameters, by cell.
    """

    model: BertRecommender
    parameters: Mapping[str, Parameters]

    def scorer(self, trial: RankingTrial, cell: str, *, steps: int, rate: float) -> Scorer:
        """Return the averaged model after ``steps`` local steps of each user as a scorer."""
        model, parameters, seed = self.model, self.parameters[cell], trial.problem.settings.run.seed
        return lambda batch: fine_tuned_scores(model, parameters, trial.read(batch), steps, rate, seed)


def _averaged(trial: RankingTrial) -> Averaged:
    problem = trial.problem
    settings = replace(problem.settings, adaptation=replace(problem.settings.adaptation, steps=0))
    model = initial_model(settings, problem.text).to(resolve_device(settings.run.device))
    counts = fit_popularity(problem.train, len(problem.text)).users
    with torch.no_grad():
        model.item_bias.copy_((1.0 + counts).log())
    constants = FedAvgSettings(
        rounds=settings.federation.rounds,
        clients=min(settings.federation.cohort, FEDAVG_CLIENTS),
        steps=FEDAVG_STEPS,
        learning_rate=FEDAVG_RATE,
        outer=settings.outer,
        tasks=settings.tasks,
    )
    every, best_value = max(constants.rounds // FEDAVG_EVALUATIONS, 1), dict.fromkeys(problem.cell_names, -math.inf)
    parameters: dict[str, Parameters] = {}
    seed = settings.run.seed
    for found in fit_fedavg(model, problem.train, problem.scale, constants, every=every, seed=seed):
        load_parameters(model, found, CheckpointError)
        score = model_scorer(model, adapt=False)
        for cell in problem.cells:
            (value,) = trial.value(lambda batch: score(trial.read(batch)), [cell.validation])  # noqa: B023 - used at once
            problem.say(f"fedavg: validation {TARGET} {value:.4f}, {cell.name}")
            if value > best_value[cell.name]:
                best_value[cell.name], parameters[cell.name] = value, found
    return Averaged(model=model, parameters=parameters)


def _scorers(trial: RankingTrial, checkpoint: Checkpoint, *, adapt: bool) -> Scorers:
    score = model_scorer(trial.model(checkpoint), adapt=adapt)
    return trial.everywhere(lambda batch: score(trial.read(batch)))


RANKING_METHODS: dict[Method, Fit] = {
    Method(name=OURS, about="ours: meta-trained with a node a user, adapted to each user's support set"): ours,
    Method(name="metarec-sites", about=f"ours, federated over {SITES} uneven sites"): ours_at_sites,
    Method(name="unadapted", about="ours, the support set merely read"): unadapted,
    Method(name="no-inner-loop", about="the same model trained without an inner loop"): without_inner_loop,
    Method(name="fedavg-tuned", about="FedAvg of the same model, fine-tuned on each user's support set"): fedavg_tuned,
    Method(name="fedavg", about="FedAvg of the same model (McMahan et al. 2017), the support set merely read"): fedavg,
    Method(
        name="fedrecon", about="matrix factorization by federated reconstruction (Singhal et al. 2021)"
    ): reconstruction,
    Method(name="ease", about="EASE (Steck 2019)", centralized=True): ease,
    Method(name="ials", about="implicit ALS (Hu et al. 2008), users folded in", centralized=True): ials,
    Method(name="item-knn", about="item-kNN with shrunk cosine", centralized=True): item_knn,
    Method(
        name="sequential-rules",
        about="what came soon after the last support item (SR, Ludewig and Jannach 2018)",
        centralized=True,
    ): sequential_rules,
    Method(name="popularity", about="users by item", centralized=True): popularity,
    Method(name=CHANCE, about="a random ranking, exactly"): chance,
}
"""What every ranking protocol compares, in the order of tables."""
