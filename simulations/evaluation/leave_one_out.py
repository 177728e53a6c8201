"""The protocol leave-one-out: every user's last item is the test, the one before it validates, the others train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.augmentation import time_ranks
from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError
from metarec_shared.evaluation import Scorer, batched, model_scorer, with_added
from metarec_shared.feedback import feedback_levels
from metarec_shared.interactions import Interactions, starts
from metarec_shared.randomness import uniforms, user_keys
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features, load_training_dataset
from metarec_shared.task_regression import (
    TaskMoments,
    TaskRegression,
    discounted_moments,
    task_moments,
)
from metarec_shared.tasks import Order, Task, TaskBatch
from server.regression import fit_by_penalty, ways_to_blend
from simulations.evaluation.derived import role_shares, settings_with_data
from simulations.evaluation.ncf_files import read_test_files
from simulations.evaluation.negatives import never_touched, rarely_drawn
from simulations.evaluation.protocol import OURS, EvaluationProtocol, Method, Say
from simulations.evaluation.ranking import (
    Judged,
    K,
    RankingCell,
    RankingProblem,
    RankingTrial,
    Scorers,
)
from simulations.evaluation.ranking_methods import RANKING_METHODS

NEGATIVES = 99
SHORTEST = 3
"""A user with fewer interactions has no training item beside a validation and a test item: he trains alone."""
HISTORY = 100
"""Interactions that our own model reads of a training part, the latest; more would cost more than they tell."""
SELECTING = 0.05
"""Share of users who choose the best round of our own model's runs instead of meta-training."""
VALIDATING = 2_000
"""Users whose validation items methods are tuned by, at most; more would only take longer."""
NEIGHBOURS = 1_000
"""Weights that our task regression keeps of each item: with whole histories known, weak ones count too."""
PENALTIES: dict[Order, tuple[float, ...]] = {"random": (1.0, 2.0, 4.0, 8.0, 16.0), "time": (1.0, 8.0)}
"""What ``regression.penalty`` is multiplied by; which is best depends on the number and length of histories."""
SWEEPS = 2
"""How often blends are chosen in turn, where there are several."""
PROBED = 5
"""Draws of the leak probe, over the items of the catalogue."""
_PROBE = Method(name="leak-probe", about="items by how rarely they are drawn as training negatives: must be at chance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Every user's history in three parts.

    Attributes:
        train: What methods learn from, all users.
        users: Those who are judged, positions in ``train``, int64 [judged].
        validation: Their validation items, int64 [judged].
        test: Their test items, int64 [judged].
    """

    train: Interactions
    users: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_last(interactions: Interactions, test: NDArray[np.int64] | None = None) -> Split:
    """Take the last item of each history for the test and the one before for validation.

    Args:
        interactions: Whole histories, in time order.
        test: The test items where files give them, [users]; the last of the others validates.

    Raises:
        DataError: Histories have no time order, or none is long enough.
    """
    if not interactions.has_time:
        raise DataError("the data has no timestamps, so no interaction is a user's last: there is no leave-one-out")
    users = np.flatnonzero(interactions.lengths >= SHORTEST)
    if not len(users):
        raise DataError(f"leave-one-out needs users with {SHORTEST} interactions or more, and there is none")
    kept, validation, held_out = np.ones(len(interactions.items), dtype=bool), [], []
    for user in users:
        rows = np.arange(interactions.offsets[user], interactions.offsets[user + 1])
        last = rows[-1] if test is None else rows[int((interactions.items[rows] == test[user]).argmax())]
        before = rows[-1] if rows[-1] != last else rows[-2]
        kept[[last, before]] = False
        validation.append(interactions.items[before])
        held_out.append(interactions.items[last])
    lengths = interactions.lengths.copy()
    lengths[users] -= 2
    train = replace(
        interactions,
        offsets=starts(lengths),
        items=np.asarray(interactions.items[kept]),
        ratings=np.asarray(interactions.ratings[kept]),
    )
    return Split(
        train=train,
        users=users,
        validation=np.array(validation, dtype=np.int64),
        test=np.array(held_out, dtype=np.int64),
    )


class LeaveOneOut(EvaluationProtocol):
    """The federated papers' protocol, with negatives that leak nothing."""

    name = "leave-one-out"
    about = (
        "Every user's last interaction is the test item, the one before it the validation item, all others train. The "
        f"test item is ranked among {NEGATIVES} negatives (sampled) and among the whole catalogue (full), both without "
        "items the user ever touched. Training negatives exclude the user's training items only. Rank of the test item "
        "= 1 + items scored higher + half of those scored the same, on average over ties. nDCG has binary gain."
    )
    methods = (*RANKING_METHODS, _PROBE)
    shown = (f"hr@{K}", f"ndcg@{K}", "mrr")

    def open(self, settings: Settings, folder: Path, say: Say) -> "LeaveOneOutTrial":
        """Split histories and draw negatives."""
        dataset = load_training_dataset(settings)
        files = None
        if settings.evaluation.negatives == "files":
            files = read_test_files(Path(settings.data.path), dataset)
        split = split_last(dataset.interactions, None if files is None else files.items)
        return LeaveOneOutTrial(settings, folder, say, dataset, split, None if files is None else files.negatives)


class LeaveOneOutTrial(RankingTrial):
    """The protocol with one seed.

    Args:
        settings: Of our own model's runs.
        folder: Where runs are kept.
        say: Told what happens.
        dataset: Whole histories.
        split: The same, split.
        negatives: Test negatives of all users where files give them, [users, negatives].
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        say: Say,
        dataset: Dataset,
        split: Split,
        negatives: NDArray[np.int64] | None,
    ) -> None:
        self._dataset, self._split, self._negatives = dataset, split, negatives
        self._keys = user_keys(settings.run.seed, split.train.user_ids)
        self._seed, self._items = settings.run.seed, len(dataset.catalogue)
        most = settings.evaluation.users
        validation = self._batches(self._chosen(min(most, VALIDATING)), use="validation", seen=False)
        test = self._batches(self._chosen(most), use="test", seen=not settings.evaluation.hold_out_validation)
        sampled = [[self._candidates(users, use) for users, _ in batches] for use, batches in
                   (("validation", validation), ("test", test))]  # fmt: skip
        self._users = {id(batch): users for users, batch in (*validation, *test)}
        judged = [[batch for _, batch in batches] for batches in (validation, test)]
        cells = [
            RankingCell(
                name="sampled",
                validation=Judged(batches=judged[0], candidates=sampled[0]),
                test=Judged(batches=judged[1], candidates=sampled[1]),
            ),
            RankingCell(name="full", validation=Judged(batches=judged[0]), test=Judged(batches=judged[1])),
        ]
        super().__init__(
            RankingProblem(
                settings=self._training_settings(settings, folder),
                folder=folder,
                say=say,
                train=split.train,
                scale=dataset.rating_scale,
                text=load_item_features(settings).text,
                cells=cells,
            ),
            {method: self._ours if method.name == OURS else fit for method, fit in RANKING_METHODS.items()}
            | {_PROBE: self._probe},
        )

    def read(self, batch: TaskBatch) -> TaskBatch:
        """Return the latest interactions of each training part."""
        return latest(batch, HISTORY)

    def _ours(self, _: RankingTrial) -> Scorers:
        """Add task regressions to our adapted model, with penalties and blends that validate best in each cell."""
        model = self.model(self.trained(OURS, self.problem.settings))
        score, fits = model_scorer(model, adapt=True), self.regressions()
        regressions = [regression for found in fits.values() for regression in found]

        def parts(batch: TaskBatch, some: Sequence[TaskRegression]) -> tuple[Tensor, list[Tensor]]:
            return score(self.read(batch)), [one.predictions(batch.support, batch.support_mask) for one in some]

        def scorer(blends: Sequence[float]) -> Scorer:
            some = [one for one, blend in zip(regressions, blends, strict=True) if blend]
            return lambda batch: with_added(*parts(batch, some), [blend for blend in blends if blend])

        with torch.no_grad():  # both cells have their tasks in common
            known = [parts(batch, regressions) for batch in self.problem.cells[0].validation.batches]
        scorers: dict[str, Scorer] = {}
        for cell in self.problem.cells:

            def value(blends: Sequence[float], cell: RankingCell = cell) -> float:
                scored = iter([with_added(*one, blends) for one in known])
                return self.value(lambda _: next(scored), [cell.validation])[0]

            blends = best_blends(value, [ways_to_blend(PENALTIES[order]).tolist() for order in fits])
            self.problem.say(f"{OURS}: blends {blends} of the task regressions, {cell.name}")
            scorers[cell.name] = scorer(blends)
        return scorers

    def regressions(self) -> dict[Order, list[TaskRegression]]:
        """Return task regressions on all training parts, as a server fits them to its nodes' sums, by ``PENALTIES``."""
        settings, train, items = self.problem.settings, self.problem.train, len(self.problem.text)
        whole = int(train.lengths.max())  # all but one: whole histories are known at the test
        sizes = replace(settings.regression, neighbours=max(settings.regression.neighbours, NEIGHBOURS))
        moments: dict[Order, TaskMoments] = {
            "random": task_moments(train, items, support=whole),
            "time": discounted_moments(train, items, decay=sizes.decay),
        }
        return {order: fit_by_penalty(found, order, sizes, PENALTIES[order]) for order, found in moments.items()}

    def _probe(self, _: RankingTrial) -> Scorers:
        return self.everywhere(self._draws_of)

    def _draws_of(self, batch: TaskBatch) -> Float[Tensor, "users items"]:
        users = self._split.users[self._users[id(batch)]]
        return rarely_drawn(self.problem.train, users, self._keys[users], self._items, PROBED, self._seed)

    def _chosen(self, most: int) -> NDArray[np.int64]:
        """Return which of the judged users count, shortest history first, so that batches hold little padding."""
        chosen = np.arange(len(self._split.users))
        if len(chosen) > most:
            order = np.argsort(uniforms(self._keys[self._split.users], self._seed, "judged"), kind="stable")
            chosen = np.sort(order[:most])
        return chosen[np.argsort(self._split.train.lengths[self._split.users[chosen]], kind="stable")]

    def _batches(self, chosen: NDArray[np.int64], *, use: str, seen: bool) -> list[tuple[NDArray[np.int64], TaskBatch]]:
        batches = batched([self._task(int(place), use=use, seen=seen) for place in chosen])
        return list(zip(np.split(chosen, np.cumsum([len(batch) for batch in batches])[:-1]), batches, strict=True))

    def _task(self, place: int, *, use: str, seen: bool) -> Task:
        """Return the task of one user; the validation item is known at the test, and hidden unless it is ``seen``."""
        split, scale = self._split, self._dataset.rating_scale
        user = int(split.users[place])
        support, rows = split.train.history(user), slice(split.train.offsets[user], split.train.offsets[user + 1])
        feedback = feedback_levels(split.train.ratings[rows], scale)
        mask = np.ones(len(support), dtype=bool)
        if use == "test":
            rating = self._dataset.interactions.rating(user, int(split.validation[place]))
            support = np.append(support, split.validation[place])
            feedback = np.append(feedback, feedback_levels(np.array([rating], dtype=np.float32), scale))
            mask = np.append(mask, seen)
        wanted = split.test if use == "test" else split.validation
        return Task(
            support=support,
            support_mask=mask,
            feedback=feedback,
            query=wanted[[place]],
            in_time=True,
            from_start=True,
            recency=time_ranks(np.arange(len(support))[None], mask[None])[0],
        )

    def _candidates(self, chosen: NDArray[np.int64], use: str) -> Tensor:
        """Return each user's held-out item and its negatives; padding is -1."""
        found = torch.full((len(chosen), 1 + NEGATIVES), -1, dtype=torch.int64)
        wanted = self._split.test if use == "test" else self._split.validation
        for row, place in enumerate(chosen):
            user = int(self._split.users[place])
            if use == "test" and self._negatives is not None:
                negatives = self._negatives[user][self._negatives[user] >= 0][:NEGATIVES]
            else:
                whole = self._dataset.interactions.history(user)
                history = whole if use == "test" else np.append(self._split.train.history(user), wanted[place])
                key = int(self._keys[user])
                negatives = never_touched(history, self._items, NEGATIVES, self._seed, key, use)
            found[row, 0] = int(wanted[place])
            found[row, 1 : 1 + len(negatives)] = torch.from_numpy(negatives)
        return found

    def _training_settings(self, settings: Settings, folder: Path) -> Settings:
        """Return settings of runs that meta-train on all training parts but those of the users who select."""
        wanted = role_shares(user_keys(settings.run.seed, [f"selects {key}" for key in self._keys]), SELECTING)
        half = int(np.median(self._split.train.lengths)) // 2
        longer = replace(
            settings,
            tasks=replace(settings.tasks, support=max(settings.tasks.support, HISTORY)),
            regression=replace(settings.regression, enabled=False),  # fitted here, to be blended by cell
            evaluation=replace(settings.evaluation, support=max(min(half, HISTORY), 1)),
        )
        return settings_with_data(longer, folder / "training-parts", self._dataset, self._split.train, wanted)


def best_blends(value: Callable[[Sequence[float]], float], groups: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Return the blends of best value, one way of each group in a row, chosen in turn while the others stand.

    Args:
        value: Of blends.
        groups: Ways to blend, of each group of things that are added; one starts with the first.
    """
    chosen = [ways[0] for ways in groups]
    for _ in range(SWEEPS if len(groups) > 1 else 1):
        for place, ways in enumerate(groups):
            choices = [[*chosen[:place], way, *chosen[place + 1 :]] for way in ways]
            chosen = max(choices, key=lambda choice: value(list(chain(*choice))))
    return list(chain(*chosen))


def latest(batch: TaskBatch, most: int) -> TaskBatch:
    """Return tasks of which only the last ``most`` support items that are not masked are left, in their order.

    Args:
        batch: Tasks; what is masked stands behind what is not.
        most: Support items left, at most.
    """
    lengths = batch.support_mask.sum(dim=1, keepdim=True)
    width = int(lengths.max().clamp(min=1, max=most))
    places = (lengths - width).clamp(min=0) + torch.arange(width)
    mask = places < lengths
    places = places.clamp(max=batch.support.shape[1] - 1)
    support = batch.support.gather(1, places)
    return replace(
        batch,
        support=support.masked_fill(~mask, 0),
        support_mask=mask,
        feedback=batch.feedback.gather(1, places).masked_fill(~mask, 0),
        known=support.masked_fill(~mask, -1),
        from_start=None if batch.from_start is None else batch.from_start & (lengths[:, 0] <= width),
        recency=None if batch.recency is None else batch.recency.gather(1, places).masked_fill(~mask, 0),
    )
