"""What a study is: what all trials share, what is searched, and how."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna

from metarec_shared.errors import SettingsError
from metarec_shared.settings import Settings
from simulations.tuning.choices import DEFAULT_TRIALS, Pruner, Sampler
from simulations.tuning.space import Space, listed

STARTUP_TRIALS = 10
"""Trials that TPE draws at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study is.

    Attributes:
        settings: What all trials share.
        space: What is searched.
        sampler: Chooses the next trial's settings.
        pruner: Ends trials early.
        seed: Of the sampler.
        seeds: Of the runs of a trial; their mean counts.
        trials: How many are to be finished, pruned or failed in the end; of a grid, one a combination.
        timeout: Seconds after which the study stops, to be gone on with.
    """

    settings: Settings
    space: Space
    sampler: Sampler = Sampler.TPE
    pruner: Pruner = Pruner.MEDIAN
    seed: int = 0
    seeds: tuple[int, ...] = (0,)
    trials: int = DEFAULT_TRIALS
    timeout: float = math.inf

    @property
    def metric(self) -> str:
        """The objective, for people."""
        sizes = self.settings.evaluation
        over = "" if len(self.seeds) == 1 else f", mean over {len(self.seeds)} seeds"
        return f"validation nDCG@{sizes.k}, {sizes.select_by} order{over}"


def planned(plan: Plan) -> Plan:
    """Return the plan with as many trials as there will be: of a grid, one a combination.

    Raises:
        SettingsError: The search space is no grid.
    """
    return replace(plan, trials=sum(1 for _ in plan.space.grid())) if plan.sampler is Sampler.GRID else plan


def first_values(plan: Plan) -> list[dict[str, Any]]:
    """Return what the study must try: a grid's combinations, else the settings as they are.

    Raises:
        SettingsError: The plan cannot be carried out.
    """
    if plan.settings.privacy.mode != "none":
        raise SettingsError(
            "tune needs privacy.mode = none: nodes that guard their users report no validation metric, and every trial "
            "would cost their budget; tune on public data"
        )
    if plan.settings.model.target == "rating":
        raise SettingsError("tune needs model.target = ranking: it maximizes a ranking metric, got rating")
    if plan.trials < 1 or not plan.seeds or plan.timeout <= 0:
        raise SettingsError(f"a study needs a trial, a seed and time, got {plan.trials}, {plan.seeds}, {plan.timeout}")
    if plan.sampler is not Sampler.GRID:
        untuned = plan.space.values_of(plan.settings)
        return [] if untuned is None else [untuned]
    combinations = list(plan.space.grid())
    for combination in combinations:
        plan.settings.with_values(combination, f"grid, {listed(combination)}")
    return combinations


def sampler_of(plan: Plan, position: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial, seeded by how many came before it."""
    seed = int(np.random.SeedSequence([plan.seed, position]).generate_state(1)[0])
    if plan.sampler is Sampler.TPE:
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return optuna.samplers.RandomSampler(seed=seed)  # of a grid, every value is given


def pruner_of(plan: Plan) -> optuna.pruners.BasePruner:
    """Return the pruner, whose steps are rounds.

    Nobody is below the median in the first third of a run: where averaging is strong or the learning rate low, the
    averaged parameters are poor for a hundred rounds and good in the end.
    """
    longest = plan.space.longest_run(plan.settings)
    if plan.pruner is Pruner.MEDIAN:
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=longest // 3)
    if plan.pruner is Pruner.HYPERBAND:
        first = max(plan.settings.federation.evaluate_every, longest // 27)
        most = max(longest * len(plan.seeds), first)
        return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=most, reduction_factor=3)
    return optuna.pruners.NopPruner()
