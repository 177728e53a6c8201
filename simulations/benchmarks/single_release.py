"""The item test on one release: one user's update, or a sum over several, raw or clipped and noised."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.app import answer
from client.data_source import load_learner
from client.learner import Learner
from client.node import Nodes
from metarec_shared import wire
from metarec_shared.exchange import Parameters, TrainRequest
from metarec_shared.initialization import ITEM_BIAS
from metarec_shared.privacy.gaussian import Noise, noised_sum
from metarec_shared.randomness import generator
from metarec_shared.settings import Settings
from simulations.benchmarks.attack import auc, item_statistics
from simulations.benchmarks.histories import Histories

CLIP_NORM = 1.0
ROUND = 1
FROZEN = "projection,item_norm,item_bias,encoder,head,adaptation"
UNBIASED = "projection,item_norm,encoder,head,adaptation"
POPULARITY = "popularity"
TESTS = ("drawn", "history", "anybody")

Aucs = dict[str, float]
"""By test: a user's drawn items against his withheld ones; all that he kept against those; his drawn items against
items that nobody in the group drew, where popularity alone helps, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What the attacker is given.

    Attributes:
        name: What of the model is released, in words.
        released: The same as a setting.
        group: Users whose updates are summed.
        noise: Noise multiplier after clipping; None: raw.
    """

    name: str
    released: str
    group: int = 1
    noise: float | None = None

    @property
    def protection(self) -> str:
        """What is done to the update, in words."""
        if self.noise is None:
            return "raw"
        return f"clipped, noise {self.noise:g}" if self.noise else "clipped"


def releases(groups: tuple[int, ...], noises: tuple[float, ...]) -> list[Release]:
    """Return what is attacked: every choice of parameters raw and summed, then the private one clipped and noised."""
    ids = Release(name="all, ID vectors too", released="all")
    frozen = Release(name="ID vectors frozen", released=FROZEN)
    unbiased = Release(name="ID vectors frozen, no bias", released=UNBIASED)
    raw = [replace(one, group=group) for one in (ids, frozen, unbiased) for group in groups]
    largest = max(groups)
    noised = [replace(frozen, group=group, noise=noise) for group in sorted({1, largest}) for noise in (0.0, *noises)]
    return raw + [replace(ids, noise=noise) for noise in noises] + noised


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A user under attack, with those whose updates his is added to."""

    user: int
    group: NDArray[np.int64]
    drawn: NDArray[np.int64]
    drawn_by_group: NDArray[np.int64]

    @classmethod
    def of(cls, histories: Histories, settings: Settings, user: int, size: int) -> "Target":
        """Choose the target's companions and look up what everybody draws."""
        others = histories.members[histories.members != user]
        companions = generator(settings.run.seed, "companions", user).permutation(others)[: size - 1]
        group = np.concatenate([[user], companions])
        population = histories.population
        tasks = population.training_tasks(group, ROUND, settings.tasks, settings.model.width, population.rating_scale)
        support = np.where(tasks.support_mask.numpy(), tasks.support.numpy(), -1)
        query = np.where(tasks.query_mask.numpy(), tasks.query.numpy(), -1)
        rows = [np.setdiff1d(np.concatenate(pair), [-1]) for pair in zip(support, query, strict=True)]
        return cls(user=user, group=group, drawn=rows[0], drawn_by_group=np.unique(np.concatenate(rows)))

    def aucs(self, histories: Histories, scores: NDArray[np.float64]) -> Aucs:
        """Judge scores of all items."""
        kept, withheld = histories.kept(self.user), histories.withheld.history(self.user)
        untouched = np.setdiff1d(np.arange(histories.items), np.concatenate([self.drawn_by_group, kept, withheld]))
        pairs = ((self.drawn, withheld), (kept, withheld), (self.drawn, untouched))
        return {test: auc(scores[yes], scores[no]) for test, (yes, no) in zip(TESTS, pairs, strict=True)}


def attack(settings: Settings, histories: Histories, release: Release, targets: int) -> dict[str, Any]:
    """Return the AUC of each test by the statistic that is strongest on as many other users, and that statistic."""
    values = {
        "federation.released": release.released,
        "federation.clip-norm": 0.0 if release.noise is None else CLIP_NORM,
        "model.item-ids": True,
        "tasks.id-dropout": 0.0,  # the server chooses the settings, and this is its choice
    }
    settings = settings.with_values(values, "membership benchmark")
    learner = load_learner(settings)
    parameters = starting_parameters(learner, histories)
    found: list[dict[str, Aucs]] = []
    for user in histories.members[: 2 * targets]:
        target = Target.of(histories, settings, int(user), release.group)
        sums = update_of(learner, parameters, histories, target.group)
        if release.noise:
            sources = [(Noise.simulated(settings.run.seed, "membership", release.group, int(user)), 1.0)]
            sums = noised_sum(sums, noise_multiplier=release.noise, sensitivity=CLIP_NORM, sources=sources)
        statistics = item_statistics(learner.model, parameters, sums)
        statistics[POPULARITY] = parameters[ITEM_BIAS].double().numpy()
        found.append({name: target.aucs(histories, scores) for name, scores in statistics.items()})
    row: dict[str, Any] = {"released": release.name, "users": release.group, "protection": release.protection}
    for test in TESTS:
        by_statistic = {name: np.array([one[name][test] for one in found]) for name in found[0]}
        known = float(np.nanmean(by_statistic.pop(POPULARITY)[targets:]))
        row[test] = summary_of(by_statistic, targets) | {POPULARITY: known}
    return row


def summary_of(by_statistic: dict[str, NDArray[np.float64]], selecting: int) -> dict[str, Any]:
    """Choose the statistic with the highest mean over the first users; return its mean over the others."""
    strongest = max(by_statistic, key=lambda name: float(np.nanmean(by_statistic[name][:selecting])))
    values = by_statistic[strongest][selecting:]
    values = values[~np.isnan(values)]
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return {"auc": float(values.mean()), "standard_error": error, "statistic": strongest}


def update_of(learner: Learner, parameters: Parameters, histories: Histories, users: NDArray[np.int64]) -> Parameters:
    """Return what a round sums over nodes of one user each."""
    nodes = Nodes(
        node_ids=np.arange(1, len(users) + 1, dtype=np.uint64),
        names=[str(user) for user in users],
        population=histories.population,
        users=users,
        offsets=np.arange(len(users) + 1),
    )
    request = TrainRequest(
        round_number=ROUND,
        sampling_rate=1.0,
        rating_scale=histories.population.rating_scale,
        catalogue=learner.catalogue,
    )
    sent = {name: parameters[name] for name in (*learner.released, ITEM_BIAS)}
    content = answer(learner, nodes, wire.pack_request(request, wire.pack_parameters(sent)), "train")
    return wire.unpack_meta_update(content, {name: parameters[name] for name in learner.released}).gradients


def starting_parameters(learner: Learner, histories: Histories) -> Parameters:
    """Return the meta-initialization of round 1: as drawn, with the members' log popularity as score bias."""
    counts = histories.population.item_counts(histories.members, histories.items) + 1.0
    parameters = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    parameters[ITEM_BIAS] = torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32))
    return parameters
