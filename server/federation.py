"""One federation from its first message to its last checkpoint, on whatever grid it is given.

1. Build the model for the public catalogue.   2. Enroll the nodes; their item counts start the score bias.
3. Rounds of FedMAML, each recorded, the best on validation users kept.   4. Say what was made.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import Grid

from metarec_shared import wire
from metarec_shared.broadcast import Broadcast
from metarec_shared.checkpoint import Checkpoint, save_checkpoint
from metarec_shared.errors import FederationError, WireError
from metarec_shared.exchange import Enrollment, EnrollmentRequest, Parameters
from metarec_shared.files import write_json, write_text
from metarec_shared.initialization import (
    ENROLLED,
    ITEM_BIAS,
    MEAN,
    initial_model,
    initial_rating_model,
    released_names,
    travelling_names,
)
from metarec_shared.low_rank import adapted, merged
from metarec_shared.privacy.terms import META_UPDATE, POPULARITY, participations
from metarec_shared.rating_tasks import middle
from metarec_shared.settings import Settings
from metarec_shared.sources import ItemFeatures, load_item_features
from server.aggregation import check_folding
from server.delivery import Tally, deliver, folds_replies, wait_for_nodes
from server.enrolled import check_name, enrolled_names
from server.failures import FailureLog
from server.fedmaml import FedMAML
from server.outer_optimizer import OuterOptimizer
from server.privacy import check_terms, federation_privacy
from server.progress import Progress
from server.recorded_grid import RecordedGrid
from server.recorder import Recorder
from server.regression import add_task_regressions, read_blends
from server.result import TRAINING_FILE
from server.resume import Best, ResumePoint, load_resume_point, nodes_of_resume_point, save_resume_point
from server.roster import Roster
from server.run_folder import METRICS_FILE, SETTINGS_FILE, check_folder, read_metrics
from server.tracking import Tracker, open_trackers
from server.warm_start import warm_parameters

RELEASES_FILE = "releases.json"

NO_PRIVACY_NOTICE = (
    "privacy: none; raw item counts, raw gradients and raw moments of tasks leave the nodes, "
    "and sums of ratings where the model predicts ratings"
)

logger = logging.getLogger(__name__)


def run_federation(grid: Grid, settings: Settings, observers: Sequence[Tracker] = ()) -> None:
    """Meta-train a recommender on the nodes of ``grid`` and leave it in the folder ``run.out``.

    Args:
        grid: Connects the nodes.
        settings: The run's settings.
        observers: Told what the trackers of ``run.trackers`` are told.

    Raises:
        MetaRecError: The data, the settings, the resume point or the nodes do not allow the run.
    """
    folder = Path(settings.run.out)
    check_folder(folder, resume=settings.run.resume)
    trackers = [*open_trackers(settings), *observers]
    public = load_item_features(settings, progress=True)
    logger.info("text encoder: %s", public.features.encoder)
    check_folding(settings.federation, folds=folds_replies(grid))
    releases = Releases(folder)
    guarded = settings.privacy.mode != "none"
    ranks = settings.model.target == "ranking"
    popularity = (
        ranks and not public.own and not (guarded and settings.run.resume)
    )  # once: every answer costs nodes' budget
    if guarded and popularity:
        releases.count(POPULARITY)
    failures = FailureLog(folder, resume=settings.run.resume)
    grid = RecordedGrid(grid, failures)
    before = nodes_of_resume_point(folder, settings) if settings.run.resume else 0
    roster = enroll_nodes(grid, settings, public, popularity=popularity, before=before)
    announce(NO_PRIVACY_NOTICE if roster.privacy is None else roster.privacy.terms.describe())
    if not ranks:
        middle(roster.rating_scale)  # refuses data without ratings before anybody is asked for anything more
    initial = initial_parameters(settings, public, roster)
    released = set(released_names(settings, initial))
    trained, untrained = ({n: v for n, v in initial.items() if (n in released) == kept} for kept in (True, False))
    travelling = set(travelling_names(settings, initial))
    sent = {name: value for name, value in untrained.items() if name in travelling}
    optimizer = OuterOptimizer(settings.outer, trained, settings.federation.rounds)
    best, done = Best(), 0
    if settings.run.resume:
        point = load_resume_point(folder, settings, roster.fingerprint, public.fingerprint)
        optimizer.load(point.parameters, point.optimizer)
        restored = {name: value for name, value in point.untrained.items() if not public.own or name != ITEM_BIAS}
        untrained = untrained | restored
        sent |= {name: value for name, value in restored.items() if name in travelling}
        best, done = point.best, point.round_number
        failures.round_number = done
        logger.info("resuming after round %d", done)
    keeper = RunKeeper(folder, settings, public, roster, optimizer, untrained, best, releases)
    keeper.begin(done)
    if done < settings.federation.rounds and not keeper.exhausted:
        strategy = FedMAML(settings, roster, optimizer, public.fingerprint, sent)
        with Recorder(folder, settings, trackers, resume_from=done) as recorder:
            _meta_train(grid, settings, strategy, keeper, recorder, done)
            add_task_regressions(grid, settings, roster, folder, public)
            recorder.finish(keeper.finish())
    else:
        add_task_regressions(grid, settings, roster, folder, public)
        keeper.finish()


@dataclass(frozen=True, slots=True)
class Releases:
    """How often nodes were asked for a release, counted on disk before they are: a run that is resumed asks again."""

    folder: Path

    def count(self, mechanism: str) -> None:
        """Count one more."""
        counted = self.counted()
        write_json(self.folder / RELEASES_FILE, counted | {mechanism: counted.get(mechanism, 0) + 1})

    def counted(self) -> dict[str, int]:
        """Return the counts by mechanism."""
        path = self.folder / RELEASES_FILE
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _meta_train(
    grid: Grid, settings: Settings, strategy: FedMAML, keeper: "RunKeeper", recorder: Recorder, done: int
) -> None:
    """Run the rounds after round ``done``, and record each."""
    limits, best = settings.federation, keeper.best
    shown = None if best.value is None else (best.round_number, best.value)
    with Progress(limits.rounds, done + 1, best=shown) as progress:

        def round_done(number: int, metrics: MetricRecord) -> bool:
            figures: dict[str, Any] = {"round": number, **metrics}
            recorder.record(figures)
            progress.round_done(figures)
            return keeper.round_done(number, metrics)

        strategy.start(
            grid,
            strategy.arrays(done),
            num_rounds=limits.rounds,
            timeout=limits.round_timeout,
            first_round=done + 1,
            round_done=round_done,
            stopped=keeper.stopped,
            asking=keeper.asking,
        )


@cache
def announce(notice: str) -> None:
    """Log a notice once a process, however many federations it runs."""
    logger.warning(notice)


def enroll_nodes(
    grid: Grid, settings: Settings, public: ItemFeatures, *, popularity: bool = True, before: int = 0
) -> Roster:
    """Wait for the nodes and ask who they are and how often each item occurs in their meta-training histories.

    Args:
        grid: Connects the nodes.
        settings: The run's settings.
        public: The run's items.
        popularity: Whether item counts are wanted, too.
        before: Nodes that the run had before it is resumed, all of which it needs again.

    Raises:
        FederationError: Too few nodes are connected, or answer.
        PrivacyError: Nodes declared terms that do not go together.
    """
    limits = settings.federation
    nodes = wait_for_nodes(grid, max(limits.min_nodes, before), limits.round_timeout)
    if len(nodes) < limits.min_nodes:
        raise FederationError(
            f"{len(nodes)} nodes connected within {limits.round_timeout:g} s; federation.min-nodes: {limits.min_nodes}"
        )
    if len(nodes) < before:
        raise FederationError(
            f"--resume needs the same nodes: there were {before}, and {len(nodes)} are connected after "
            f"{limits.round_timeout:g} s"
        )
    request = wire.pack_request(EnrollmentRequest(catalogue=public.fingerprint, popularity=popularity))
    items = 0 if public.own else len(public.items.positions)
    sites = enrolled_names(Path(limits.sites)) if limits.sites else None
    tally = Tally(sent=len(nodes), folds=folds_replies(grid))
    replies = deliver(grid, Broadcast(content=request, nodes=nodes, kind="query"), limits.round_timeout)

    def unpacked(content: RecordDict, node: int) -> Enrollment:
        enrollment = _enrollment(content, items, None if tally.folds else node)
        if not tally.folds:
            check_terms(enrollment, settings)
            if sites is not None:
                check_name(str(enrollment.names[0]), node, sites)
        return enrollment

    answers = list(tally.read_of(replies, unpacked))
    if replies.failures is not None and not tally.folds:
        for answer in answers:
            replies.failures.enrolled(int(answer.node_ids[0]), str(answer.names[0]))
    tally.check(limits)
    return Roster.of(answers, federation_privacy(answers, settings))


def _enrollment(content: RecordDict, items: int, node: int | None) -> Enrollment:
    """Read an answer; only a grid that folds may enroll more than one node with it.

    Args:
        content: Of the message.
        items: Size of the catalogue.
        node: Flower's id of the node that was asked; None where the grid folds.

    Raises:
        WireError: It is no enrolment, or one of several nodes, or of another node.
    """
    enrollment = wire.unpack_enrollment(content, items)
    if node is None:
        return enrollment
    if len(enrollment.node_ids) != 1:
        raise WireError(f"a node must enroll itself alone, got {len(enrollment.node_ids)} nodes")
    if enrollment.node_ids[0] != node:
        raise WireError(f"a node must enroll itself: wanted node {node}, got {enrollment.node_ids[0]}")
    return enrollment


def initial_parameters(settings: Settings, public: ItemFeatures, roster: Roster) -> Parameters:
    """Return the first meta-initialization: drawn, or that of a warm start.

    The score bias of a ranking model is the log popularity that the nodes reported, if they did, and the mean of a
    rating model that of the ratings they reported.
    """
    if settings.model.target == "rating":
        rating = initial_rating_model(settings, public.features.vectors, public.items)
        drawn = {name: value.detach() for name, value in rating.named_parameters()}
        if roster.rating_mean is None:
            return drawn
        return drawn | {MEAN: torch.full((1,), roster.rating_mean - middle(roster.rating_scale))}
    if settings.run.init:
        parameters = warm_parameters(settings, public)
        if settings.federation.lora_rank:
            parameters = adapted(parameters, initial_model(settings, public.text))
    else:
        model = initial_model(settings, public.text)
        parameters = {name: value.detach() for name, value in model.named_parameters()}
    if public.own:  # nobody has this bias but the server, which ranks for nobody
        parameters[ITEM_BIAS] = torch.zeros(len(public.items.positions))
    elif roster.item_counts.any() or not settings.run.init:
        parameters[ITEM_BIAS] = torch.from_numpy(roster.log_popularity())
    return parameters


@dataclass(slots=True)
class RunKeeper:
    """Keeps the best checkpoint and the resume point of a run, and decides when to stop early."""

    folder: Path
    settings: Settings
    public: ItemFeatures
    roster: Roster
    optimizer: OuterOptimizer
    untrained: Parameters
    best: Best
    releases: Releases

    @property
    def exhausted(self) -> bool:
        """Whether validation has not improved for as long as the run may wait."""
        patience = self.settings.federation.patience
        return bool(patience) and self.best.stale >= patience

    def begin(self, done: int) -> None:
        """Make the run one that can be resumed from its first moment on."""
        if not done:
            save_resume_point(self._resume_point(0), self.folder)
        write_text(self.folder / SETTINGS_FILE, self.settings.to_json() + "\n")

    def round_done(self, number: int, metrics: MetricRecord) -> bool:
        """Take in a finished round; return whether to go on."""
        limits = self.settings.federation
        rates = self.settings.model.target == "rating"
        value = metrics.get("validation_mae" if rates else f"validation_ndcg@{self.settings.evaluation.k}")
        last = number == limits.rounds
        if isinstance(value, int | float):
            self.best = self.best.judged(number, float(value), lower_is_better=rates)
            if self.best.round_number == number:
                self._save_checkpoint(number, float(value))
        stop = last or self.exhausted
        if stop and self.best.value is None:
            self._save_checkpoint(number, None)
            self.best = Best(round_number=number)
        if stop or number % limits.checkpoint_every == 0:
            save_resume_point(self._resume_point(number), self.folder)
        return not stop

    def asking(self, number: int) -> None:
        """Count a release of the nodes that are about to be asked, where it costs them anything."""
        if self.roster.privacy is not None:
            self.releases.count(META_UPDATE)

    def stopped(self, number: int) -> None:
        """Keep what there is after round ``number``: too few nodes are left to go on."""
        self._save_checkpoint(number, None)
        self.best = Best(round_number=number)
        save_resume_point(self._resume_point(number), self.folder)

    def finish(self) -> dict[str, Any]:
        """Write what the run came to, for whoever reports on it, and return it."""
        rounds = read_metrics(self.folder / METRICS_FILE)
        seconds = sum(line["seconds"] for line in rounds)
        users = sum(line.get("users", line["weight"]) for line in rounds)
        training = {
            "rounds": len(rounds),
            "best_round": self.best.round_number,
            "best_validation": self.best.value,
            "regressions": read_blends(self.folder),
            "parameters": sum(value.numel() for value in (self.untrained | self.optimizer.parameters).values()),
            "text_encoder": self.public.features.encoder,
            "nodes": len(self.roster.training),
            "training_users": self.roster.training.total,
            "privacy": self._privacy(len(rounds)),
            "train": {
                "wall_seconds": seconds,
                "users_per_second": users / seconds if seconds else 0.0,
                "bytes_down": sum(line["bytes_down"] for line in rounds),
                "bytes_up": sum(line["bytes_up"] for line in rounds),
            },
        }
        write_json(self.folder / TRAINING_FILE, training)
        return training

    def _privacy(self, rounds: int) -> dict[str, Any] | None:
        """Return the guarantee of the run so far, by the releases that nodes were asked for."""
        privacy = self.roster.privacy
        if privacy is None:
            return None
        counted = self.releases.counted()
        # Simulated noise is addressed by the round: a round that is run again releases the same again.
        asked = rounds if privacy.terms.randomness == "simulated" else counted.get(META_UPDATE, 0)
        asked = participations(privacy.terms.mode, asked, self.settings.federation.cohort, len(self.roster.training))
        return privacy.report(asked, popularity=counted.get(POPULARITY, 0) > 0)

    def _save_checkpoint(self, number: int, value: float | None) -> None:
        save_checkpoint(
            Checkpoint(
                parameters=merged(self.untrained | self.optimizer.average),
                settings=self.settings,
                items=self.public.items,
                text=self.public.features.vectors,
                text_encoder=self.public.features.encoder,
                rating_scale=self.roster.rating_scale,
                round_number=number,
                validation=value,
            ),
            self.folder,
        )

    def _resume_point(self, number: int) -> ResumePoint:
        return ResumePoint(
            round_number=number,
            parameters=self.optimizer.parameters,
            untrained={name: value for name, value in self.untrained.items() if name in ENROLLED},
            optimizer=self.optimizer.state(),
            best=self.best,
            roster=self.roster.fingerprint,
            nodes=self.roster.size,
            items=self.public.fingerprint,
            settings=self.settings,
        )
