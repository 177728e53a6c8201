"""Add a task regression to a meta-trained model: moments from the nodes, solved here, blended as validation users say.

The last step of a run. Nodes add up second moments of their meta-training users' tasks, one message an order in which
histories are read. The server solves for the weights and asks the nodes of validation users how well the model ranks
with the regression's predictions added, for a grid of blends; the best one is kept, none if nothing is better without.
What it says of items that only their text is known of is solved here too, from the same moments.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from metarec_shared import wire
from metarec_shared.broadcast import Broadcast, Kind, NodeIds
from metarec_shared.checkpoint import load_checkpoint, save_checkpoint
from metarec_shared.exchange import EvaluateRequest, Evaluation, Moments, MomentsRequest, Parameters, blended
from metarec_shared.files import write_json
from metarec_shared.initialization import initial_model, travelling_names
from metarec_shared.low_rank import adapted
from metarec_shared.settings import Settings
from metarec_shared.sources import ItemFeatures
from metarec_shared.split import Role
from metarec_shared.task_regression import TaskMoments, TaskRegression, fit_task_regression
from metarec_shared.tasks import Order
from server.delivery import Tally, deliver, folds_replies
from server.roster import Roster

BLENDS = (0.0, *(float(2**power) for power in range(11)))
"""What predictions, which are shares of users, may be multiplied by to be added to logits."""

SUPPORTS = (1, 3, 5, 10)
"""Support items that blends are chosen for, as far as ``evaluation.support`` goes, and that."""

BLENDS_FILE = "regressions.json"

logger = logging.getLogger(__name__)


def add_task_regressions(grid: Grid, settings: Settings, roster: Roster, folder: Path, public: ItemFeatures) -> None:
    """Fit a task regression for every order of histories, and keep those that help in the checkpoint in ``folder``.

    Nothing is done where the settings switch it off, where the model predicts ratings or does not adapt, where nodes
    guard their users (moments are not noised), where nobody validates, and where it was done already.

    Args:
        grid: Connects the nodes.
        settings: The run's settings.
        roster: The federation's nodes.
        folder: Of the run, meta-training finished.
        public: The run's items.

    Raises:
        FederationError: Too many nodes failed, or too few answered.
    """
    wanted = settings.regression.enabled and settings.adaptation.steps > 0 and settings.model.target == "ranking"
    if not wanted or roster.privacy is not None or not len(roster.validation):
        return
    checkpoint = load_checkpoint(folder)
    if checkpoint.regressions:
        return
    parameters = checkpoint.parameters
    if settings.federation.lora_rank:  # merged already: adapters as they are drawn, at zero, stand beside them
        parameters = adapted(parameters, initial_model(settings, public.text))
    fitter = _Fitter(grid, settings, roster, public, parameters)
    orders: tuple[Order, ...] = ("random", "time")
    found = {order: regression for order in orders if (regression := fitter.fitted(order)) is not None}
    write_json(folder / BLENDS_FILE, fitter.judged)
    if found:
        save_checkpoint(replace(checkpoint, regressions=found), folder)


def read_blends(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by order and by support items, a regression's blend and validation nDCG with it and without."""
    path = folder / BLENDS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


class _Fitter:
    """Asks nodes for what one regression after the other needs.

    Attributes:
        judged: What ``read_blends`` returns, so far.
    """

    def __init__(
        self, grid: Grid, settings: Settings, roster: Roster, public: ItemFeatures, parameters: Parameters
    ) -> None:
        self._grid, self._settings, self._roster = grid, settings, roster
        self._catalogue, self._text = public.fingerprint, public.text
        self._items = len(parameters["item_bias"])
        self._packed = wire.pack_parameters({name: parameters[name] for name in travelling_names(settings, parameters)})
        self.judged: dict[str, dict[str, dict[str, float]]] = {}

    def fitted(self, order: Order) -> TaskRegression | None:
        """Return the regression with its best blends; None where there are no tasks, or the model is better alone."""
        moments = self._moments(order)
        if not moments.support.nnz:
            return None
        sizes = self._settings.regression
        regression = fit_task_regression(
            moments,
            penalty=sizes.penalty,
            neighbours=sizes.neighbours,
            most_items=sizes.most_items,
            text=self._text if sizes.by_text else None,
        )
        blends: dict[int, float] = {}
        for support in self._supports():
            values = self._judged(order, support, regression)
            if not values:
                continue
            best = max(range(len(BLENDS)), key=lambda place: values[place])
            blends[support] = BLENDS[best]
            logger.info(
                "task regression, %s order, %d support items: validation nDCG@%d %.4f, %.4f without",
                order, support, self._settings.evaluation.k, values[best], values[0],
            )  # fmt: skip
            figures = {"blend": BLENDS[best], "validation": values[best], "without": values[0]}
            self.judged.setdefault(order, {})[str(support)] = figures
        return replace(regression, blends=blends) if any(blends.values()) else None

    def _supports(self) -> list[int]:
        most = self._settings.evaluation.support
        return [*(size for size in SUPPORTS if size < most), most]

    def _moments(self, order: Order) -> TaskMoments:
        content = wire.pack_request(MomentsRequest(catalogue=self._catalogue, order=order))
        nodes = self._roster.training.nodes
        total = TaskMoments.none(self._items)

        def unpacked(content: RecordDict) -> Moments:
            return wire.unpack_moments(content, self._items)

        tally, replies = self._asked(content, nodes, "query.moments")
        for answer in tally.read(replies, unpacked):
            total += answer.moments
        tally.check(self._settings.federation)
        return total

    def _judged(self, order: Order, support: int, regression: TaskRegression) -> list[float]:
        """Return nDCG@k of validation users for each of ``BLENDS``; empty where none is long enough."""
        settings = self._settings
        judges = self._roster.judges(settings.run.seed, settings.evaluation.users)
        request = EvaluateRequest(
            role=Role.VALIDATION,
            order=order,
            support=support,
            adapt=True,
            draws=settings.evaluation.validation_draws if order == "random" else 1,
            sampling_rate=judges.sampling_rate,
            rating_scale=self._roster.rating_scale,
            catalogue=self._catalogue,
            blends=BLENDS,
        )
        content = wire.pack_request(request, self._packed, regression)
        tally, replies = self._asked(content, judges.nodes, "evaluate")
        users, sums = 0, [0.0] * len(BLENDS)
        names = [blended(f"ndcg@{settings.evaluation.k}", place) for place in range(len(BLENDS))]
        answers: list[Evaluation] = list(tally.read(replies, wire.unpack_evaluation))
        tally.check(settings.federation)
        for answer in answers:
            users += answer.users
            sums = [value + answer.sums.get(name, 0.0) for value, name in zip(sums, names, strict=True)]
        return [value / users for value in sums] if users else []

    def _asked(self, content: RecordDict, nodes: NodeIds, kind: Kind) -> tuple[Tally, Iterator[Message]]:
        folds = folds_replies(self._grid)
        tally = Tally(sent=len(nodes), folds=folds, bytes_down=len(nodes) * wire.content_bytes(content))
        asked = Broadcast(content=content, nodes=nodes, kind=kind)
        return tally, deliver(self._grid, asked, self._settings.federation.round_timeout)
