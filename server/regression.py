"""Add a task regression to a meta-trained model: moments from the nodes, solved here, blended as validation users say.

The last step of a run. Nodes add up second moments of their meta-training users' tasks, in every order in which
histories are read, and count what follows users' first interactions. The server solves for the weights, with more than
one penalty in random order, and asks the nodes of validation users how well the model ranks with the regressions'
predictions added: for each cell, an order and a size of support sets, the best penalty and blend are kept, and nothing
if nothing is better without.
What regressions say of items that only their text is known of is solved here too, from the same moments.

Two more things are blended in beside the regression, one after the other: likeness of text to the support items
(``text_kernel``), and in time order the prior of the start. Nodes are asked once for the blends of regressions, and
once, beside those chosen, for all pairs of blends of the other two: every message carries what is added, whatever the
number of cells.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, compress, product
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
from metarec_shared.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from metarec_shared.exchange import Additions, Cell, EvaluateRequest, Moments, MomentsRequest, Parameters
from metarec_shared.files import write_json
from metarec_shared.initialization import initial_model, travelling_names
from metarec_shared.low_rank import adapted
from metarec_shared.settings import RegressionSettings, Settings
from metarec_shared.sources import ItemFeatures
from metarec_shared.split import Role
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskMoments, TaskRegression, fit_task_regression
from metarec_shared.tasks import ORDERS, Order
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
    if not wanted or public.own or roster.privacy is not None or not len(roster.validation):
        return
    checkpoint = load_checkpoint(folder)
    if checkpoint.has_additions:
        return
    parameters = checkpoint.parameters
    if settings.federation.lora_rank:  # merged already: adapters as they are drawn, at zero, stand beside them
        parameters = adapted(parameters, initial_model(settings, public.text))
    fitter = _Fitter(grid, settings, roster, public, parameters)
    fitted = fitter.fitted()
    chosen = fitter.chosen(fitted)
    write_json(folder / BLENDS_FILE, chosen)
    complete = _with_additions(checkpoint, fitted, chosen, settings.regression.penalty)
    if complete.has_additions:
        save_checkpoint(complete, folder)


def read_blends(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by order and by support items, what is added with which blend, and validation nDCG with and without.

    The penalty is that of the regression that is blended in; where its blend is 0 it means nothing.
    """
    path = folder / BLENDS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


Figures = dict[str, float]
"""What ``read_blends`` returns of one order and size of support sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """What may be added to the model's scores, before validation users choose.

    Attributes:
        regressions: One a penalty for every order of histories whose moments can be solved.
        start_prior: Without blends; None: there is none.
    """

    regressions: Mapping[Order, Sequence[TaskRegression]]
    start_prior: StartPrior | None


class _Fitter:
    """Asks nodes for moments, and for how well the model ranks with what these are solved for."""

    def __init__(
        self, grid: Grid, settings: Settings, roster: Roster, public: ItemFeatures, parameters: Parameters
    ) -> None:
        self._grid, self._settings, self._roster = grid, settings, roster
        self._catalogue, self._text = public.fingerprint, public.text
        self._items = len(parameters["item_bias"])
        self._packed = wire.pack_parameters({name: parameters[name] for name in travelling_names(settings, parameters)})
        most = settings.evaluation.support
        self._supports = [*(size for size in SUPPORTS if size < most), most]

    def fitted(self) -> _Fitted:
        """Return what the nodes' moments are solved for."""
        sizes = self._settings.regression
        start_sizes = tuple(self._supports) if sizes.start_prior else ()
        answer = self._moments(start_sizes)
        regressions: dict[Order, Sequence[TaskRegression]] = {}
        for order, moments in answer.moments.items():
            if not moments.support.nnz:
                continue
            try:
                text = self._text if sizes.by_text else None
                regressions[order] = fit_by_penalty(moments, order, sizes, PENALTIES[order], text)
            except LinAlgError as error:  # some node's moments are those of no users
                logger.warning("no task regression, %s order: the moments cannot be solved (%s)", order, error)
        starts = "time" in regressions and answer.starts.nnz
        return _Fitted(
            regressions=regressions, start_prior=StartPrior.of(answer.starts, start_sizes) if starts else None
        )

    def chosen(self, fitted: _Fitted) -> dict[Order, dict[int, Figures]]:
        """Return what validation users choose for every order and size of support sets that some are long enough for.

        The regression is chosen first, what else there is one after the other beside it.
        """
        if not fitted.regressions:
            return {}
        regressions = list(chain(*fitted.regressions.values()))
        penalties = [
            self._settings.regression.penalty * one for order in fitted.regressions for one in PENALTIES[order]
        ]
        own = [ways_to_blend(PENALTIES[order]) for order in fitted.regressions]
        apart = torch.block_diag(*own).split([len(ways) for ways in own])  # type: ignore[no-untyped-call]
        ways = {
            Cell(order, support): of_order
            for order, of_order in zip(fitted.regressions, apart, strict=True)
            for support in self._supports
        }
        chosen: dict[Cell, Figures] = {}
        kept: dict[Cell, Tensor] = {}
        for cell, values in self._values(Additions(regressions=regressions, blends=ways)).items():
            best = int(np.argmax(values))
            kept[cell] = ways[cell][best]
            place = int(kept[cell].argmax())
            chosen[cell] = {
                "penalty": penalties[place],
                "blend": float(kept[cell][place]),
                "validation": values[best],
                "without": values[0],
            }
        for cell, figures in self._beside(kept, regressions, fitted.start_prior):
            chosen[cell] |= figures
        for cell, figures in chosen.items():
            logger.info(
                "task regression, %s order, %d support items: validation nDCG@%d %.4f, %.4f without",
                *cell, self._settings.evaluation.k, figures["validation"], figures["without"],
            )  # fmt: skip
        return {
            order: {cell.support: figures for cell, figures in chosen.items() if cell.order == order}
            for order in fitted.regressions
        }

    def _beside(
        self,
        kept: Mapping[Cell, Float[Tensor, " regressions"]],
        regressions: Sequence[TaskRegression],
        prior: StartPrior | None,
    ) -> Iterator[tuple[Cell, Figures]]:
        """Yield the figures of what is chosen beside the blends ``kept`` of regressions, in turn."""
        sizes = self._settings.regression
        parts: dict[str, Mapping[Order, Sequence[float]]] = {}
        if sizes.text_blend:
            parts["text_blend"] = dict.fromkeys(ORDERS, BLENDS)
        if prior is not None:
            parts["start_blend"] = {"time": START_BLENDS}
        tried = {cell: [blends.get(cell.order, (0.0,)) for blends in parts.values()] for cell in kept}
        tried = {cell: blends for cell, blends in tried.items() if any(len(one) > 1 for one in blends)}
        if not tried:
            return
        counts = torch.stack([kept[cell] for cell in tried]).any(dim=0)
        asked = Additions(
            regressions=list(compress(regressions, counts.tolist())),
            sharpness=sizes.text_kernel_sharpness if sizes.text_blend else None,
            start_prior=prior,
            blends={
                cell: torch.tensor([[*kept[cell][counts].tolist(), *way] for way in product(*blends)])
                for cell, blends in tried.items()
            },
        )
        for cell, values in self._values(asked).items():
            table = np.reshape(values, [len(blends) for blends in tried[cell]])
            figures: Figures = {}
            for (name, of_order), blends in zip(parts.items(), tried[cell], strict=True):
                best = int(table.reshape(len(table), -1)[:, 0].argmax())  # with nothing yet of what is chosen later
                table = table[best]
                if cell.order in of_order:
                    figures[name] = blends[best]
            yield cell, figures | {"validation": float(table)}

    def _moments(self, start_sizes: tuple[int, ...]) -> Moments:
        content = wire.pack_request(MomentsRequest(catalogue=self._catalogue, start_sizes=start_sizes))
        nodes = self._roster.training.nodes
        total = {order: TaskMoments.none(self._items) for order in ORDERS}
        starts = sp.csr_array((len(start_sizes), self._items), dtype=np.float32)

        def unpacked(content: RecordDict) -> Moments:
            return wire.unpack_moments(content, self._items, len(start_sizes))

        tally, replies = self._asked(content, nodes, "query.moments")
        for answer in tally.read(replies, unpacked):
            total = {order: moments + answer.moments[order] for order, moments in total.items()}
            starts = starts + answer.starts
        tally.check(self._settings.federation)
        return Moments(moments=total, starts=starts, nodes=len(nodes))

    def _values(self, additions: Additions) -> dict[Cell, list[float]]:
        """Return nDCG@k of validation users for each way to blend, of the cells that some are long enough for."""
        settings, cells = self._settings, list(additions.blends)
        judges = self._roster.judges(settings.run.seed, settings.evaluation.users)
        request = EvaluateRequest(
            role=Role.VALIDATION,
            orders=tuple(order for order, _ in cells),
            supports=tuple(support for _, support in cells),
            adapt=True,
            draws=settings.evaluation.validation_draws,
            sampling_rate=judges.sampling_rate,
            rating_scale=self._roster.rating_scale,
            catalogue=self._catalogue,
        )
        content = wire.pack_request(request, self._packed, additions)
        ways = [len(blends) for blends in additions.blends.values()]
        users, sums = [0] * len(cells), [np.zeros(count) for count in ways]
        tally, replies = self._asked(content, judges.nodes, "evaluate")
        for answer in tally.read(replies, partial(wire.unpack_evaluation, ways=ways)):
            for place, judged in enumerate(answer.cells):
                users[place] += judged.users
                sums[place] += judged.sums.get(f"ndcg@{settings.evaluation.k}", 0.0)
        tally.check(settings.federation)
        return {cell: (total / count).tolist() for cell, total, count in zip(cells, sums, users, strict=True) if count}

    def _asked(self, content: RecordDict, nodes: NodeIds, kind: Kind) -> tuple[Tally, Iterator[Message]]:
        folds = folds_replies(self._grid)
        tally = Tally(sent=len(nodes), folds=folds, bytes_down=len(nodes) * wire.content_bytes(content))
        asked = Broadcast(content=content, nodes=nodes, kind=kind)
        return tally, deliver(self._grid, asked, self._settings.federation.round_timeout)


def _with_additions(
    checkpoint: Checkpoint, fitted: _Fitted, chosen: Mapping[Order, Mapping[int, Figures]], penalty: float
) -> Checkpoint:
    """Return the checkpoint with what validation users chose for some size of support sets."""

    def blends(order: Order, name: str, penalty: float | None = None) -> dict[int, float]:
        return {
            size: figures.get(name, 0.0) if penalty in (None, figures["penalty"]) else 0.0
            for size, figures in chosen[order].items()
        }

    regressions = {
        order: [
            replace(regression, blends=own)
            for regression, multiple in zip(found, PENALTIES[order], strict=True)
            if any((own := blends(order, "blend", penalty * multiple)).values())
        ]
        for order, found in fitted.regressions.items()
    }
    likeness = {order: blends(order, "text_blend") for order in chosen}
    prior = fitted.start_prior
    start = {} if prior is None else blends("time", "start_blend")
    return replace(
        checkpoint,
        regressions={order: kept for order, kept in regressions.items() if kept},
        text_blends={order: own for order, own in likeness.items() if any(own.values())},
        start_prior=prior.with_blends(start) if prior is not None and any(start.values()) else None,
    )


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
