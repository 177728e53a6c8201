"""Membership tests on a whole private run: every reply of every round, the item counts and the final model.

Who: was this user a member? The attacker knows the user's whole history, id and, since the server chose the run's seed,
the tasks that he would draw; not whether the site's secret coins drew him. What: was this item in a member's history?
The attacker knows the user's support items, and ranks his other kept items against those that a coin withheld.

Both take each reply along the gradient that the user, or the item, would have added to it at that round's parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.exchange import Parameters
from metarec_shared.inner_loop import query_loss
from metarec_shared.privacy.gaussian import bounded_counts
from metarec_shared.settings import Settings
from metarec_shared.tasks import TaskBatch, pad
from simulations.benchmarks.attack import along, auc, log_probabilities
from simulations.benchmarks.histories import Histories
from simulations.benchmarks.recorded_run import USERS_AT_ONCE, Round, Run, clipped_sum, tasks_of
from simulations.benchmarks.single_release import summary_of

NORMS_EVERY = 5
"""Rounds between computations of the norms of users' gradients, which change slowly."""

FINAL_DRAWS = 4
"""Tasks of a user on which the final model is tried."""

KNOWN_ITEMS = 10
"""Items of a user that the attacker knows when he asks for others."""

_TOGETHER = ("replies less the others", "loss drop", "item counts")
"""Statistics of users that are added up, each in its standard deviations."""


@dataclass(slots=True)
class UserTest:
    """Collects, a row a round, what tells members from others.

    Attributes:
        users: Whom to judge.
        reference: Users known not to be members: what the others at the site would add is estimated from them.
    """

    users: NDArray[np.int64]
    reference: NDArray[np.int64]
    replies: list[NDArray[np.float64]] = field(default_factory=list)
    crowd: list[NDArray[np.float64]] = field(default_factory=list)
    norms: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def see(self, run: Run, shown: Round) -> None:
        """Project a round's reply, and the reference users' mean, on each user's clipped gradient."""
        model = run.learner.model
        run.learner.load(shown.parameters)
        if not self.replies or shown.number % NORMS_EVERY == 1:
            self.norms = clipped_sum(run, self.users, shown.number)[1]
        total, _ = clipped_sum(run, self.reference, shown.number)
        mean = {name: value / len(self.reference) for name, value in total.items()}
        share = np.minimum(1.0, run.terms.clip_norm / np.maximum(self.norms, 1e-9))
        for kept, direction in ((self.replies, shown.reply), (self.crowd, mean)):
            parts = [
                along(model, shown.parameters, direction, tasks, query_loss)
                for tasks in tasks_of(run, self.users, shown.number)
            ]
            kept.append(torch.cat(parts).double().numpy() * share)

    def statistics(self, run: Run, first: Parameters, known: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
        """Return the score of every user by every statistic; ``known`` marks users known not to be members."""
        replies, crowd = np.array(self.replies), np.array(self.crowd)
        slopes = [np.polyfit(c[known], r[known], 1) for r, c in zip(replies, crowd, strict=True)]
        rest = np.array([r - np.polyval(s, c) for r, c, s in zip(replies, crowd, slopes, strict=True)])
        rate, clip = run.terms.sampling_rate, run.terms.clip_norm
        deviation = rest[:, known].std(axis=1, keepdims=True) + 1e-12
        odds = (clip**2 * rest - clip**4 / 2) / deviation**2  # of a user whose whole clip norm is used
        before, after = (self._losses(run, at) for at in (first, run.final))
        found = {
            "replies": replies.sum(axis=0),
            "replies less the others": rest.sum(axis=0),
            "likelihood ratio": np.logaddexp(np.log1p(-min(rate, 1 - 1e-9)), np.log(rate) + odds).sum(axis=0),
            "final loss": -after,
            "loss drop": before - after,
        }
        if run.terms.releases_popularity:
            found["item counts"] = self._counted(run)
        parts = [found[name] for name in _TOGETHER if name in found]
        return found | {"together": np.sum([(part - part.mean()) / part.std() for part in parts], axis=0)}

    def _losses(self, run: Run, at: Parameters) -> NDArray[np.float64]:
        """Return each user's mean query loss over tasks of his whole history."""
        run.learner.load(at)
        last = run.settings.federation.rounds
        draws = []
        with torch.no_grad():
            for draw in range(1, FINAL_DRAWS + 1):
                batches = tasks_of(run, self.users, last + draw)
                clean = [replace(tasks, dropout=None) for tasks in batches]
                draws.append(torch.cat([query_loss(run.learner.model(tasks), tasks) for tasks in clean]))
        return torch.stack(draws).double().mean(dim=0).numpy()

    def _counted(self, run: Run) -> NDArray[np.float64]:
        """Project the noised item counts, less what is expected, on what each user would have added to them."""
        rest, norm = run.unexpected_counts(self.reference), run.terms.popularity_norm
        scores = []
        for user in self.users:
            items = run.population.interactions.history(int(user))
            added = bounded_counts(items, np.zeros(len(items), dtype=np.int64), norm, len(rest))
            scores.append(float(added @ rest) / max(float(np.linalg.norm(added)), 1e-9))
        return np.array(scores)


@dataclass(slots=True)
class ItemTest:
    """Adds up, over rounds, what tells items of members' histories from those withheld."""

    users: NDArray[np.int64]
    tasks: TaskBatch
    replies: Tensor

    @classmethod
    def of(cls, histories: Histories, users: NDArray[np.int64]) -> "ItemTest":
        """Tell the attacker some items of each user."""
        population = histories.population
        tasks = [
            population.evaluation_task(int(user), "random", KNOWN_ITEMS, 1, population.rating_scale) for user in users
        ]
        return cls(users=users, tasks=pad(tasks), replies=torch.zeros(len(users), histories.items, dtype=torch.float64))

    def see(self, run: Run, shown: Round) -> None:
        """Take a reply along the gradient of -log p_j of every item, for each user."""
        for rows, tasks in self._batches():
            found = along(run.learner.model, shown.parameters, shown.reply, tasks, log_probabilities)
            self.replies[rows] -= found.double()

    def aucs(
        self, run: Run, histories: Histories, first: Parameters, reference: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the AUC of every user by every statistic; centred ones are less their mean over users."""
        before, after = self._log_probabilities(run, first), self._log_probabilities(run, run.final)
        scores = {"replies": self.replies, "final model": after, "gain": after - before}
        scores |= {f"{name}, centred": value - value.mean(dim=0) for name, value in scores.items()}
        if run.terms.releases_popularity:
            scores["item counts"] = torch.from_numpy(run.unexpected_counts(reference)).expand(len(self.users), -1)
        return {name: self._judged(histories, value.numpy()) for name, value in scores.items()}

    def _judged(self, histories: Histories, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        found = []
        for row, user in enumerate(self.users):
            kept = np.setdiff1d(histories.kept(int(user)), self.tasks.known[row].numpy())
            withheld = histories.withheld.history(int(user))
            found.append(auc(scores[row, kept], scores[row, withheld]))
        return np.array(found)

    def _log_probabilities(self, run: Run, at: Parameters) -> Tensor:
        run.learner.load(at)
        with torch.no_grad():
            parts = [log_probabilities(run.learner.model(tasks), tasks) for _, tasks in self._batches()]
        return torch.cat(parts).double()

    def _batches(self) -> Iterator[tuple[slice, TaskBatch]]:
        for start in range(0, len(self.users), USERS_AT_ONCE):
            yield slice(start, start + USERS_AT_ONCE), self.tasks.rows(start, start + USERS_AT_ONCE)


def attack_run(settings: Settings, histories: Histories, targets: int) -> dict[str, Any]:
    """Run a private federation and attack it.

    Args:
        settings: With privacy.
        histories: The site's users.
        targets: Members, and as many others, that are judged at most; a third of each are for choosing the statistic.

    Returns:
        AUC, standard error and statistic of both tests, and the terms.
    """
    reference, others = np.split(histories.others, [len(histories.others) // 6])
    members, others = histories.members[:targets], others[:targets]
    run = Run(settings, histories)
    first = dict(run.final)
    who = UserTest(np.concatenate([members, others]), reference)
    what = ItemTest.of(histories, histories.members[: targets // 2])
    for shown in run.rounds():
        who.see(run, shown)
        what.see(run, shown)
    is_member = np.arange(len(who.users)) < len(members)
    choosing = np.concatenate([np.arange(len(part)) < len(part) // 3 for part in (members, others)])
    statistics = who.statistics(run, first, choosing & ~is_member)
    whom = {
        name: [auc(score[rows & is_member], score[rows & ~is_member]) for rows in (choosing, ~choosing)]
        for name, score in statistics.items()
    }
    strongest = max(whom, key=lambda name: whom[name][0])
    counts = [int((~choosing & side).sum()) for side in (is_member, ~is_member)]
    items = what.aucs(run, histories, first, reference)
    return {
        "noise": run.terms.noise_multiplier,
        "user": {
            "auc": whom[strongest][1],
            "standard_error": float(np.sqrt(sum(1 / count for count in counts) / 12)),
            "statistic": strongest,
        },
        "item": summary_of(items, len(what.users) // 3),
        "every_statistic": {
            "user": {name: value[1] for name, value in whom.items()},
            "item": {name: float(np.nanmean(value[len(what.users) // 3 :])) for name, value in items.items()},
        },
        "terms": run.terms,
    }
