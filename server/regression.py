"""Add a task regression to a meta-trained model: moments from the nodes, solved here, blended as validation users say.

The last step of a run. Nodes add up second moments of their meta-training users' tasks, one message an order in which
histories are read. The server solves for the weights, with more than one penalty in random order, and asks the nodes of
validation users how well the model ranks with the regressions' predictions added: for each size of support sets the
best penalty and blend are kept, and nothing if nothing is better without.
What regressions say of items that only their text is known of is solved here too, from the same moments.

Two more things are blended in beside the regression in the same way, one after the other: likeness of text to the
support items (``text_kernel``), and in time order the prior of the start, for which nodes count what follows users'
first interactions.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from metarec_shared.settings import RegressionSettings, Settings
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
    if checkpoint.has_additions:
        return
    parameters = checkpoint.parameters
    if settings.federation.lora_rank:  # merged already: adapters as they are drawn, at zero, stand beside them
        parameters = adapted(parameters, initial_model(settings, public.text))
    fitter = _Fitter(grid, settings, roster, public, parameters)
    orders: tuple[Order, ...] = ("random", "time")
    fits = {order: fitter.fitted(order) for order in orders}
    write_json(folder / BLENDS_FILE, fitter.judged)
    fitted = replace(
        checkpoint,
        regressions={order: fit.regressions for order, fit in fits.items() if fit.regressions},
        text_blends={order: fit.text_blends for order, fit in fits.items() if fit.text_blends},
        start_prior=fits["time"].start_prior,
    )
    if fitted.has_additions:
        save_checkpoint(fitted, folder)


def read_blends(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by order and by support items, what is added with which blend, and validation nDCG with and without.

    The penalty is that of the regression that is blended in; where its blend is 0 it means nothing.
    """
    path = folder / BLENDS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """What is added to the model's scores for histories in one order.

    Attributes:
        regressions: Those that validation users chose for some size of support sets, with their blends.
        text_blends: Of the text kernel, by the size of support sets; none: nothing.
        start_prior: With its blends; None: nothing.
    """

    regressions: Sequence[TaskRegression] = ()
    text_blends: Mapping[int, float] = field(default_factory=dict)
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
        """Return what is added to scores in an order of histories, with the blends that validation users choose."""
        answer = self._moments(order)
        if not answer.moments.support.nnz:
            return _Fit()
        try:
            text = self._text if self._settings.regression.by_text else None
            regressions = fit_by_penalty(answer.moments, order, self._settings.regression, PENALTIES[order], text)
        except LinAlgError as error:  # some node's moments are those of no users
            logger.warning("no task regression, %s order: the moments cannot be solved (%s)", order, error)
            return _Fit()
        prior = StartPrior.of(answer.starts, self._start_sizes(order)) if answer.starts.nnz else None
        judged: dict[int, dict[str, float]] = {}
        for support in self._supports():
            figures = self._chosen(order, support, regressions, prior)
            if figures:
                judged[support] = figures
        self.judged[order] = {str(support): figures for support, figures in judged.items()}

        def blends(name: str, penalty: float | None = None) -> dict[int, float]:
            return {
                size: figures.get(name, 0.0) if penalty in (None, figures["penalty"]) else 0.0
                for size, figures in judged.items()
            }

        own = [blends("blend", penalty) for penalty in self._penalties(order)]
        likeness, start = blends("text_blend"), blends("start_blend")
        return _Fit(
            regressions=[
                replace(regression, blends=found)
                for regression, found in zip(regressions, own, strict=True)
                if any(found.values())
            ],
            text_blends=likeness if any(likeness.values()) else {},
            start_prior=prior.with_blends(start) if prior is not None and any(start.values()) else None,
        )

    def _penalties(self, order: Order) -> list[float]:
        return [self._settings.regression.penalty * multiple for multiple in PENALTIES[order]]

    def _chosen(
        self, order: Order, support: int, regressions: Sequence[TaskRegression], prior: StartPrior | None
    ) -> dict[str, float]:
        """Return the blends that validation users choose for a size of support sets; empty where none is long enough.

        The regression is chosen first, what else there is one after the other beside it.
        """
        sizes, ways = self._settings.regression, ways_to_blend(PENALTIES[order])
        values = self._judged(order, support, Additions(regressions=regressions, blends=ways))
        if not values:
            return {}
        best = int(np.argmax(values))
        place = int(ways[best].argmax())
        figures = {
            "penalty": self._penalties(order)[place],
            "blend": float(ways[best, place]),
            "validation": values[best],
            "without": values[0],
        }
        kept = Additions(regressions=[], blends=torch.zeros(1, 0))
        if figures["blend"]:
            kept = Additions(regressions=[regressions[place]], blends=ways[best : best + 1, place : place + 1])
        parts: list[tuple[str, dict[str, Any], Sequence[float]]] = []
        if sizes.text_blend:
            parts.append(("text_blend", {"sharpness": sizes.text_kernel_sharpness}, BLENDS))
        if prior is not None:
            parts.append(("start_blend", {"start_prior": prior}, START_BLENDS))
        for name, part, grid in parts:
            beside = [[*kept.blends[0].tolist(), blend] for blend in grid]
            asked = replace(kept, **part, blends=torch.tensor(beside))
            values = self._judged(order, support, asked)
            if not values:  # the nodes that could judge failed meanwhile
                continue
            best = int(np.argmax(values))
            figures |= {name: grid[best], "validation": values[best]}
            if grid[best]:
                kept = replace(asked, blends=asked.blends[best : best + 1])
        logger.info(
            "task regression, %s order, %d support items: validation nDCG@%d %.4f, %.4f without",
            order, support, self._settings.evaluation.k, figures["validation"], figures["without"],
        )  # fmt: skip
        return figures

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


def fit_by_penalty(
    moments: TaskMoments,
    order: Order,
    sizes: RegressionSettings,
    multiples: Sequence[float],
    text: Float[Tensor, "items text"] | None = None,
) -> list[TaskRegression]:
    """Return a regression of tasks in an order for each multiple of its penalty; arguments as ``fit_task_regression``.

    Raises:
        LinAlgError: The moments are those of no users.
    """
    return [
        fit_task_regression(
            moments,
            target="both" if order == "random" else "query",
            penalty=sizes.penalty * multiple,
            neighbours=sizes.neighbours,
            decay=sizes.decay if order == "time" else 1.0,
            most_items=sizes.most_items,
            text=text,
        )
        for multiple in multiples
    ]


def ways_to_blend(multiples: Sequence[float]) -> Float[Tensor, "ways regressions"]:
    """Return the blends that are tried of regressions whose penalties are ``multiples`` of one: none, or one of one.

    Weights shrink as penalties grow, so blends grow with these.
    """
    one_each = [blend * torch.diag(torch.tensor(multiples)) for blend in BLENDS[1:]]
    return torch.cat([torch.zeros(1, len(multiples)), *one_each])
