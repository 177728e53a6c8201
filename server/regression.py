"""Add a task regression to a meta-trained model: moments from the nodes, solved here, blended as validation users say.

The last step of a run. Nodes add up second moments of their meta-training users' tasks, one message an order in which
histories are read. The server solves for the weights, with more than one penalty in random order, and asks the nodes of
validation users how well the model ranks with the regressions' predictions added: for each size of support sets the
best penalty and blend are kept, and nothing if nothing is better without.
What it says of items that only their text is known of is solved here too, from the same moments.

In time order nodes also count what follows users' first interactions, and the prior of the start that the counts make
is blended in beside the regression in the same way.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from metarec_shared import wire
from metarec_shared.broadcast import Broadcast, Kind, NodeIds
from metarec_shared.checkpoint import load_checkpoint, save_checkpoint
from metarec_shared.exchange import Additions, EvaluateRequest, Evaluation, Moments, MomentsRequest, Parameters, blended
from metarec_shared.files import write_json
from metarec_shared.initialization import initial_model, travelling_names
from metarec_shared.low_rank import adapted
from metarec_shared.settings import Settings
from metarec_shared.sources import ItemFeatures
from metarec_shared.split import Role
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskMoments, TaskRegression, fit_task_regression
from metarec_shared.tasks import Order
from server.delivery import Tally, deliver, folds_replies
from server.roster import Roster

BLENDS = (0.0, *(float(2**power) for power in range(11)))
"""What predictions, which are shares of users, may be multiplied by to be added to logits."""

START_BLENDS = (0.0, *(float(2**power) for power in range(-3, 6)))
"""What the start prior, the log of a number of users, may be multiplied by before it is added to logits."""

PENALTIES: Mapping[Order, Sequence[float]] = {"random": (1.0, 8.0, 512.0), "time": (1.0,)}
"""What ``regression.penalty`` may be multiplied by.

One item of a history in random order speaks best for what is most often seen with it, which is what weights come to
where the penalty is large; ten items must share what they say. In time order no other penalty was better.
"""

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
    if checkpoint.regressions or checkpoint.start_prior is not None:
        return
    parameters = checkpoint.parameters
    if settings.federation.lora_rank:  # merged already: adapters as they are drawn, at zero, stand beside them
        parameters = adapted(parameters, initial_model(settings, public.text))
    fitter = _Fitter(grid, settings, roster, public, parameters)
    orders: tuple[Order, ...] = ("random", "time")
    fits = {order: fitter.fitted(order) for order in orders}
    write_json(folder / BLENDS_FILE, fitter.judged)
    regressions = {order: fit.regressions for order, fit in fits.items() if fit.regressions}
    prior = fits["time"].start_prior
    if regressions or prior is not None:
        save_checkpoint(replace(checkpoint, regressions=regressions, start_prior=prior), folder)


def read_blends(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by order and by support items, what is added with which blend, and validation nDCG with and without."""
    path = folder / BLENDS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """What is added to the model's scores for histories in one order.

    Attributes:
        regressions: Those that validation users chose for some size of support sets, with their blends.
        start_prior: With its blends; None: nothing.
    """

    regressions: Sequence[TaskRegression] = ()
    start_prior: StartPrior | None = None


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

    def fitted(self, order: Order) -> _Fit:
        """Return regressions, and in time order the start prior, with the blends that validation users choose."""
        answer = self._moments(order)
        if not answer.moments.support.nnz:
            return _Fit()
        sizes = self._settings.regression
        try:
            regressions = [
                fit_task_regression(
                    answer.moments,
                    target="both" if order == "random" else "query",
                    penalty=sizes.penalty * multiple,
                    neighbours=sizes.neighbours,
                    most_items=sizes.most_items,
                    text=self._text if sizes.by_text else None,
                )
                for multiple in PENALTIES[order]
            ]
        except LinAlgError as error:  # some node's moments are those of no users
            logger.warning("no task regression, %s order: the moments cannot be solved (%s)", order, error)
            return _Fit()
        prior = StartPrior.of(answer.starts, self._start_sizes(order)) if answer.starts.nnz else None
        ways = ways_to_blend(PENALTIES[order])
        chosen: dict[int, Tensor] = {}
        start_blends: dict[int, float] = {}
        for support in self._supports():
            values = self._judged(order, support, Additions(regressions=regressions, blends=ways))
            if not values:
                continue
            best = int(np.argmax(values))
            chosen[support] = ways[best]
            place = int(ways[best].argmax())
            figures = {
                "penalty": sizes.penalty * PENALTIES[order][place],
                "blend": float(ways[best, place]),
                "validation": values[best],
                "without": values[0],
            }
            if prior is not None:
                beside = torch.tensor([[figures["blend"], blend] for blend in START_BLENDS])
                added = Additions(regressions=[regressions[place]], start_prior=prior, blends=beside)
                values = self._judged(order, support, added) or [0.0]
                best = int(np.argmax(values))
                start_blends[support] = START_BLENDS[best]
                figures |= {"start_blend": START_BLENDS[best], "validation": max(values)}
            logger.info(
                "task regression, %s order, %d support items: validation nDCG@%d %.4f, %.4f without",
                order, support, self._settings.evaluation.k, figures["validation"], figures["without"],
            )  # fmt: skip
            self.judged.setdefault(order, {})[str(support)] = figures
        blends = [{size: float(way[place]) for size, way in chosen.items()} for place in range(len(regressions))]
        return _Fit(
            regressions=[
                replace(regression, blends=own)
                for regression, own in zip(regressions, blends, strict=True)
                if any(own.values())
            ],
            start_prior=None if prior is None or not any(start_blends.values()) else prior.with_blends(start_blends),
        )

    def _supports(self) -> list[int]:
        most = self._settings.evaluation.support
        return [*(size for size in SUPPORTS if size < most), most]

    def _start_sizes(self, order: Order) -> tuple[int, ...]:
        return tuple(self._supports()) if order == "time" and self._settings.regression.start_prior else ()

    def _moments(self, order: Order) -> Moments:
        sizes = self._start_sizes(order)
        content = wire.pack_request(MomentsRequest(catalogue=self._catalogue, order=order, start_sizes=sizes))
        nodes = self._roster.training.nodes
        total, starts = TaskMoments.none(self._items), sp.csr_array((len(sizes), self._items), dtype=np.float32)

        def unpacked(content: RecordDict) -> Moments:
            return wire.unpack_moments(content, self._items, len(sizes))

        tally, replies = self._asked(content, nodes, "query.moments")
        for answer in tally.read(replies, unpacked):
            total, starts = total + answer.moments, starts + answer.starts
        tally.check(self._settings.federation)
        return Moments(moments=total, starts=starts, nodes=len(nodes))

    def _judged(self, order: Order, support: int, additions: Additions) -> list[float]:
        """Return nDCG@k of validation users for each way to blend; empty where none is long enough."""
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
        )
        content = wire.pack_request(request, self._packed, additions)
        tally, replies = self._asked(content, judges.nodes, "evaluate")
        names = [blended(f"ndcg@{settings.evaluation.k}", place) for place in range(len(additions.blends))]
        users, sums = 0, [0.0] * len(names)
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


def ways_to_blend(penalties: Sequence[float]) -> Float[Tensor, "ways regressions"]:
    """Return the blends of regressions with these penalties that are tried: none, or one regression with one of them.

    Weights shrink as penalties grow, so blends grow with these.
    """
    one_each = [blend * torch.diag(torch.tensor(penalties)) for blend in BLENDS[1:]]
    return torch.cat([torch.zeros(1, len(penalties)), *one_each])
