"""FedMAML: federated model-agnostic meta-learning as a Flower strategy.

One round: sample a cohort; its nodes adapt the meta-initialization to each of their users and return weighted sums of
meta-gradients; the server divides the total by the total weight, or lets a robust rule choose (``aggregation``), and
takes one outer step. An update that no honest node can have sent is that node's failure (``norm_bound``).

References:
    Chen et al. (2018), Federated meta-learning with fast convergence and efficient communication, algorithm 1.
    Finn, Abbeel and Levine (2017), Model-agnostic meta-learning, algorithm 2.
"""

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from metarec_shared import wire
from metarec_shared.broadcast import Broadcast, Kind, NodeIds
from metarec_shared.errors import FederationError, WireError
from metarec_shared.exchange import EvaluateRequest, MetaUpdate, Parameters, TrainRequest
from metarec_shared.randomness import generator
from metarec_shared.settings import Settings
from metarec_shared.split import Role
from server.aggregation import aggregation_of, check_folding
from server.delivery import Tally, deliver, folds_replies
from server.norm_bound import UpdateCheck
from server.outer_optimizer import OuterOptimizer
from server.roster import Cohort, Roster

logger = logging.getLogger(__name__)

RoundDone = Callable[[int, MetricRecord], bool]
"""Called after every round with its number and metrics; returns whether to go on."""


class FedMAML(Strategy):
    """Samples cohorts, adds up meta-updates and takes the outer step.

    Args:
        settings: The run's settings.
        roster: The federation's nodes.
        optimizer: Holds the meta-initialization, as far as it is trained.
        untrained: Parameters that travel to the nodes all the same.
        catalogue: Fingerprint of the catalogue.
    """

    def __init__(
        self,
        settings: Settings,
        roster: Roster,
        optimizer: OuterOptimizer,
        catalogue: str,
        untrained: Parameters | None = None,
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._optimizer = optimizer
        self._catalogue = catalogue
        self._untrained = untrained or {}
        self._tally = Tally()
        self._check: UpdateCheck | None = None

    def summary(self) -> None:
        """Log what is about to run."""
        logger.info(
            "FedMAML: %d nodes with %d meta-training users, about %d users a round, %d trained parameters",
            len(self._roster.training),
            self._roster.training.total,
            min(self._settings.federation.cohort, self._roster.training.total),
            sum(value.numel() for value in self._optimizer.parameters.values()),
        )

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Broadcast:
        """Ask a cohort for meta-updates; all messages share one content.

        Raises:
            FederationError: The aggregation rule makes no sense with this engine, or of so few nodes.
        """
        limits = self._settings.federation
        cohort = self._roster.cohort(self._settings.run.seed, server_round, limits.cohort)
        check_folding(limits, folds=folds_replies(grid))
        if len(cohort.nodes) < limits.fewest_updates:
            raise FederationError(
                f"federation.aggregation = {limits.aggregation} needs meta-updates of at least {limits.fewest_updates} "
                f"nodes a round, and {len(cohort.nodes)} can be asked"
            )
        self._check = self._update_check(cohort, grid)
        request = TrainRequest(
            round_number=server_round,
            sampling_rate=cohort.sampling_rate,
            rating_scale=self._roster.rating_scale,
            catalogue=self._catalogue,
        )
        return self._broadcast(grid, "train", wire.pack_request(request, arrays), cohort.nodes, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the meta-updates as they arrive and take the outer step.

        Raises:
            FederationError: Too many nodes failed, or too few answered, or what they sent adds up to no finite number.
        """
        tally, gathered = self._tally, aggregation_of(self._settings.federation, self._optimizer.parameters)
        weight = loss = 0.0
        users: int | None = 0

        def taken_in(content: RecordDict, node: int) -> MetaUpdate:
            update = self._unpacked(content, node)
            gathered.add(update)
            return update

        for update in tally.read_of(replies, taken_in):
            weight += update.weight
            if update.loss is None or update.users is None or users is None:
                users = None  # the nodes keep it for their users' privacy
            else:
                loss, users = loss + update.loss, users + update.users
        self._let_go(tally.refused)
        if self.too_few_left:
            return None, None
        tally.check(self._settings.federation)
        metrics = MetricRecord(
            {
                "weight": weight,
                "nodes": tally.answered,
                "failures": tally.failures,
                "bytes_down": tally.bytes_down,
                "bytes_up": tally.bytes_up,
            }
        )
        if users is not None:
            metrics["users"] = users
        if users:
            metrics["train_loss"] = loss / users
        if weight > 0:
            gradient = gathered.gradient(lambda sums: self._noised(sums, server_round))
            if not all(value.isfinite().all() for value in gradient.values()):
                raise FederationError(
                    f"round {server_round}: the meta-updates of {tally.answered} nodes make no finite gradient; "
                    "federation.clip-norm bounds what a node can send"
                )
            metrics["learning_rate"] = self._optimizer.step(gradient, server_round)
        return self.arrays(server_round), metrics

    @property
    def too_few_left(self) -> bool:
        """Whether so many nodes have refused that the run cannot go on."""
        return len(self._roster.training) < self._settings.federation.min_nodes

    def _noised(self, sums: Parameters, server_round: int) -> Parameters:
        privacy = self._roster.privacy
        return sums if privacy is None else privacy.sum_noised(sums, server_round)

    def _update_check(self, cohort: Cohort, grid: Grid) -> UpdateCheck | None:
        """Return what checks a cohort's updates; None where the grid folds: nothing is known of single nodes."""
        if folds_replies(grid):
            return None
        return UpdateCheck(
            settings=self._settings,
            roster=self._roster,
            sampling_rate=cohort.sampling_rate,
            parameters=sum(value.numel() for value in self._optimizer.parameters.values()),
        )

    def _unpacked(self, content: RecordDict, node: int) -> MetaUpdate:
        """Read a meta-update; one that is raw is none where nodes said that theirs are not.

        Raises:
            WireError: It cannot be used.
        """
        update = wire.unpack_meta_update(content, self._optimizer.parameters)
        privacy = self._roster.privacy
        if privacy is not None and not privacy.raw and update.users is not None:
            raise WireError("a raw meta-update from a node that declared terms of privacy")
        if self._check is not None:
            self._check.check(update, node)
        return update

    def _let_go(self, refused: set[int]) -> None:
        """Ask nodes that refused no more in this run."""
        if refused:
            self._roster = self._roster.without(refused)
            logger.warning("%d nodes refused; %d are left", len(refused), len(self._roster.training))

    def arrays(self, server_round: int) -> ArrayRecord:
        """Return what the nodes need of the meta-initialization after a round, rounded to the bits that travel."""
        settings = self._settings
        rounding = generator(settings.run.seed, "rounding", server_round)
        parameters = self._optimizer.parameters | self._untrained
        return wire.pack_parameters(parameters, settings.traffic.parameter_bits, rounding)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Broadcast:
        """Ask nodes with validation users for the metrics of the averaged parameters, on evaluation rounds."""
        settings = self._settings
        last = server_round == settings.federation.rounds
        guarded = self._roster.privacy is not None  # nobody noises metrics, so the last round is kept
        if guarded or (server_round % settings.federation.evaluate_every and not last):
            return self._broadcast(grid, "evaluate", RecordDict(), (), server_round)
        judges = self._roster.judges(settings.run.seed, settings.evaluation.users)
        request = EvaluateRequest(
            role=Role.VALIDATION,
            orders=(settings.evaluation.select_by,),
            supports=(settings.evaluation.support,),
            adapt=settings.adaptation.steps > 0,
            draws=settings.evaluation.validation_draws if settings.evaluation.select_by == "random" else 1,
            sampling_rate=judges.sampling_rate,
            rating_scale=self._roster.rating_scale,
            catalogue=self._catalogue,
        )
        content = wire.pack_request(request, wire.pack_parameters(self._optimizer.average | self._untrained))
        return self._broadcast(grid, "evaluate", content, judges.nodes, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics over validation users; None where this round evaluates nobody.

        Raises:
            FederationError: Too many nodes failed, or too few answered.
        """
        sums: dict[str, float] = {}
        users = 0
        for evaluation in self._tally.read(replies, partial(wire.unpack_evaluation, ways=(1,))):
            (judged,) = evaluation.cells
            users += judged.users
            for name, (value,) in judged.sums.items():
                sums[name] = sums.get(name, 0.0) + value
        self._tally.check(self._settings.federation)
        if not users:
            return None
        averages = {f"validation_{name}": value / users for name, value in sums.items()}
        return MetricRecord({**averages, "validation_users": users})

    def start(  # noqa: D417 - the inherited arguments are Flower's
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        first_round: int = 1,
        round_done: RoundDone | None = None,
        stopped: Callable[[int], None] | None = None,
        asking: Callable[[int], None] | None = None,
    ) -> Result:
        """Run rounds ``first_round..num_rounds``; Flower's own loop always begins at 1 and holds every reply.

        Args:
            first_round: Where to begin, greater than 1 after a resume.
            round_done: Called after every round; stops the run by returning False.
            stopped: Called with the last finished round when too few nodes are left, because the others refused.
            asking: Called with every round before its nodes are asked for meta-updates.
        """
        self.summary()
        result, arrays, empty = Result(), initial_arrays, ConfigRecord()
        for current in range(first_round, num_rounds + 1):
            began = time.monotonic()
            messages = self.configure_train(current, arrays, train_config or empty, grid)
            if asking is not None:
                asking(current)
            updated, metrics = self.aggregate_train(current, deliver(grid, messages, timeout))
            if self.too_few_left:
                logger.warning("stopped after round %d: too few nodes are left, the others refused", current - 1)
                if stopped is not None:
                    stopped(current - 1)
                break
            arrays = updated if updated is not None else arrays
            metrics = metrics if metrics is not None else MetricRecord()
            metrics["seconds"] = time.monotonic() - began
            messages = self.configure_evaluate(current, arrays, evaluate_config or empty, grid)
            evaluated = self.aggregate_evaluate(current, deliver(grid, messages, timeout))
            if evaluated is not None:
                metrics.update(evaluated)
            result.arrays, result.train_metrics_clientapp[current] = arrays, metrics
            if round_done is not None and not round_done(current, metrics):
                break
        return result

    def _broadcast(self, grid: Grid, kind: Kind, content: RecordDict, nodes: NodeIds, server_round: int) -> Broadcast:
        self._tally = Tally(
            sent=len(nodes), folds=folds_replies(grid), bytes_down=len(nodes) * wire.content_bytes(content)
        )
        return Broadcast(content=content, nodes=nodes, kind=kind, group_id=str(server_round))
