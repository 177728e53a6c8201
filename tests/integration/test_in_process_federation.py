"""Whole rounds through the in-process grid with the real ServerApp and ClientApp."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from numpy.typing import NDArray

from client.app import app as client_app
from client.data_source import load_learner, load_partition, load_population
from client.meta_update import meta_update
from client.node import Nodes
from metarec_shared import wire
from metarec_shared.broadcast import Broadcast
from metarec_shared.checkpoint import load_checkpoint, load_tensors
from metarec_shared.errors import CheckpointError, FederationError
from metarec_shared.exchange import EnrollmentRequest, TrainRequest
from metarec_shared.meta_gradient import per_user_meta_gradients
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from metarec_shared.split import Role
from metarec_shared.tasks import TaskBatch
from server.app import app as server_app
from server.federation import enroll_nodes, initial_parameters
from server.outer_optimizer import OuterOptimizer
from server.result import TRAINING_FILE
from server.run_folder import RESUME_FILE, read_metrics
from simulations.engines import node_count, nodes_by_id
from simulations.grid import InProcessGrid
from tests.small import small_settings


def make_grid(settings: Settings, *, fold: bool = True, kind: type[InProcessGrid] = InProcessGrid) -> InProcessGrid:
    nodes = node_count(settings)
    return kind(load_learner(settings), nodes, lambda ids: nodes_by_id(settings, nodes, ids), fold=fold)


def run(settings: Settings, grid: InProcessGrid | None = None) -> None:
    grid = grid or make_grid(settings)
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings.flat()))


def parameters_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).parameters


def assert_same(left: Path, right: Path, atol: float = 0.0) -> None:
    there = parameters_of(right)
    for name, value in parameters_of(left).items():
        torch.testing.assert_close(there[name], value, atol=atol, rtol=0.0, msg=name)


def test_a_federation_learns_and_leaves_a_loadable_run(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path / "run"), federation__rounds=30)
    run(settings)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["round"] for line in lines] == list(range(1, 31))
    first, last = (np.mean([line["train_loss"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last < first - 0.1
    training = json.loads((tmp_path / "run" / TRAINING_FILE).read_text())
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.round_number == training["best_round"]
    best = max(line["validation_ndcg@10"] for line in lines if "validation_ndcg@10" in line)
    assert checkpoint.validation == pytest.approx(best)
    assert training["parameters"] == sum(p.numel() for p in checkpoint.model().parameters())
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert "metarec recommend" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("weighting", ["users", "nodes"])
def test_one_round_over_four_uneven_nodes_is_one_centralized_outer_step(tmp_path: Path, weighting: str) -> None:
    settings = small_settings(
        run__out=str(tmp_path / "run"),
        federation__rounds=1,
        federation__nodes=4,
        federation__partition="skewed",
        federation__cohort=1000,
        federation__weighting=weighting,
        outer__averaging=0.0,
        outer__optimizer="sgd",  # Adam's first step makes much of a gradient that is 0 but for rounding
        outer__learning_rate=0.1,
    )
    run(settings)
    partition, population, learner = load_partition(settings, 4), load_population(settings), load_learner(settings)
    assert len({len(partition.of(node)) for node in range(4)}) > 1
    public = load_item_features(settings)
    initial = initial_parameters(settings, public, enroll_nodes(make_grid(settings), settings, public))
    learner.load(initial)
    total = {name: torch.zeros_like(value) for name, value in initial.items()}
    weight = 0.0
    for node in range(4):
        users = np.array([u for u in partition.of(node) if population.roles[u] == Role.TRAINING])
        scale = population.rating_scale
        tasks = population.training_tasks(users, 1, settings.tasks, settings.model.width, scale)
        each = per_user_meta_gradients(learner.model, tasks, learner.id_mask(1)).gradients
        share = 1.0 if weighting == "users" else 1.0 / len(users)
        weight += share * len(users)
        total = {name: value + share * each[name].sum(0) for name, value in total.items()}
    optimizer = OuterOptimizer(settings.outer, initial, settings.federation.rounds)
    optimizer.step({name: value / weight for name, value in total.items()}, 1)
    trained = parameters_of(tmp_path / "run")
    for name, value in optimizer.parameters.items():
        torch.testing.assert_close(trained[name], value, atol=1e-5, rtol=0.0, msg=name)


def test_folded_replies_give_the_same_run_as_single_ones(tmp_path: Path) -> None:
    folders = {}
    for fold in (True, False):
        folders[fold] = tmp_path / str(fold)
        settings = small_settings(run__out=str(folders[fold]), outer__optimizer="sgd", outer__learning_rate=0.1)
        run(settings, make_grid(settings, fold=fold))
    assert_same(folders[True], folders[False], atol=1e-5)
    folded, single = (read_metrics(folder / "metrics.jsonl") for folder in folders.values())
    for left, right in zip(folded, single, strict=True):
        for name in ("users", "nodes", "bytes_down", "bytes_up", "failures"):
            assert left[name] == right[name], name
        assert left["train_loss"] == pytest.approx(right["train_loss"], rel=1e-5)


def test_replies_to_one_content_are_folded_into_one(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path))
    for fold, replies in ((True, 1), (False, 60)):
        grid, content = make_grid(settings, fold=fold), wire.pack_request(_enrollment_request(settings))
        identifiers = list(grid.push_messages(Broadcast(content=content, nodes=range(1, 61), kind="query")))
        assert len(identifiers) == replies
        assert len(list(grid.pull_messages(identifiers))) == replies
        assert list(grid.pull_messages(identifiers)) == []


def _enrollment_request(settings: Settings) -> EnrollmentRequest:
    return EnrollmentRequest(catalogue=load_item_features(settings).fingerprint)


@pytest.mark.parametrize("weighting", ["users", "nodes"])
def test_nodes_that_draw_nobody_are_no_failures(tmp_path: Path, weighting: str) -> None:
    settings = small_settings(
        run__out=str(tmp_path), federation__nodes=15, federation__cohort=10, federation__weighting=weighting
    )
    run(settings)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["failures"] for line in lines] == [0, 0, 0, 0]
    assert len({line["users"] for line in lines}) > 1


def test_sampled_users_weigh_so_that_the_expected_update_is_that_of_all_users(tmp_path: Path) -> None:
    """The mean over many rounds of the Poisson-sampled sum over the public weight is the mean over all users."""
    settings = small_settings(run__out=str(tmp_path), federation__nodes=1)
    learner, node = load_learner(settings), nodes_by_id(settings, 1, np.array([1]))
    population = load_population(settings)
    users = population.users(Role.TRAINING)
    counts, weights = [], []
    for round_number in range(1, 401):
        request = TrainRequest(
            round_number=round_number, sampling_rate=0.3, rating_scale=None, catalogue=learner.catalogue
        )
        counts.append(len(node.draw(request).users))
        weights.append(0.3 * len(users))
    assert np.mean(counts) == pytest.approx(np.mean(weights), abs=4 * np.sqrt(0.21 * len(users) / 400))


def test_the_partition_does_not_change_who_learns_what(tmp_path: Path) -> None:
    """Every user in every round: one node a user, four uneven nodes and one site are the same computation."""
    folders = []
    for nodes, partition in ((0, "even"), (4, "skewed"), (1, "even")):
        folders.append(tmp_path / f"{nodes}")
        run(
            small_settings(
                run__out=str(folders[-1]),
                federation__nodes=nodes,
                federation__partition=partition,
                federation__cohort=1000,
                outer__optimizer="sgd",
            )
        )
    assert_same(folders[0], folders[1], atol=1e-5)
    assert_same(folders[0], folders[2], atol=1e-5)


def test_the_client_app_answers_as_the_vectorized_computation_does(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path))
    learner, grid = load_learner(settings), make_grid(settings)
    parameters = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    request = TrainRequest(round_number=3, sampling_rate=1.0, rating_scale=None, catalogue=learner.catalogue)
    content = wire.pack_request(request, wire.pack_parameters(parameters))
    together = meta_update(learner, parameters, nodes_by_id(settings, 60, np.arange(1, 61)), request)
    total, users = {name: torch.zeros_like(value) for name, value in parameters.items()}, 0
    for node_id in range(1, 61):
        context = Context(
            run_id=1,
            node_id=node_id,
            node_config={"partition-id": node_id - 1, "num-partitions": 60},
            state=RecordDict(),
            run_config=settings.flat(),
        )
        message = Message(content, node_id, "train")
        update = wire.unpack_meta_update(client_app(message, context).content, parameters)
        total = {name: value + update.gradients[name] for name, value in total.items()}
        users += update.users
    assert users == together.users > 0
    assert list(grid.get_node_ids()) == list(range(1, 61))
    for name, value in total.items():
        torch.testing.assert_close(together.gradients[name], value, atol=1e-4, rtol=1e-4, msg=name)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(small_settings(run__out=str(tmp_path / name), run__seed=seed))
    assert_same(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(parameters_of(tmp_path / "a")["head.weight"], parameters_of(tmp_path / "c")["head.weight"])


class StoppingGrid(InProcessGrid):
    """Breaks off in the middle of a round, as a killed process does."""

    pushes_left = 6

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if self.pushes_left == 0:
            raise KeyboardInterrupt
        self.pushes_left -= 1
        return super().push_messages(messages)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_run_broken_off_and_resumed_ends_bit_for_bit_like_one_never_stopped(tmp_path: Path, optimizer: str) -> None:
    values = {"federation__rounds": 7, "outer__optimizer": optimizer, "federation__checkpoint_every": 2}
    run(small_settings(run__out=str(tmp_path / "whole"), **values))
    broken = small_settings(run__out=str(tmp_path / "broken"), **values)
    with pytest.raises(KeyboardInterrupt):
        run(broken, make_grid(broken, kind=StoppingGrid))
    assert len(read_metrics(tmp_path / "broken" / "metrics.jsonl")) < 7
    run(replace(broken, run=replace(broken.run, resume=True)))
    assert_same(tmp_path / "whole", tmp_path / "broken")
    whole, resumed = (load_tensors(tmp_path / name / RESUME_FILE)[0] for name in ("whole", "broken"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    metrics = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    for left, right in zip(*metrics, strict=True):
        assert {**left, "seconds": 0} == {**right, "seconds": 0}


def test_early_stopping_keeps_the_best_round_and_ends_the_run(tmp_path: Path) -> None:
    settings = small_settings(
        run__out=str(tmp_path / "run"),
        federation__rounds=60,
        federation__evaluate_every=1,
        federation__patience=3,
        outer__learning_rate=0.0,
    )
    run(settings)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) == 4
    assert load_checkpoint(tmp_path / "run").round_number == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outer__learning_rate": 0.5}, "outer.learning-rate was 0.004, is 0.5"),
        ({"generator__seed": 5}, "the settings the run was made with: generator.seed was 0, is 5"),
    ],
)
def test_resume_refuses_other_settings(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    run(small_settings(run__out=str(tmp_path), federation__rounds=2))
    other = small_settings(run__out=str(tmp_path), federation__rounds=2, run__resume=True, **changes)
    with pytest.raises(CheckpointError, match=message):
        run(other)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path), federation__rounds=1)
    run(settings)
    with pytest.raises(CheckpointError, match="already holds a run; go on with --resume"):
        run(settings)


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        run(small_settings(run__out=str(tmp_path / "nothing"), run__resume=True))


def failing(should_fail: Callable[[int], bool], what: str) -> type[InProcessGrid]:
    """Return a grid whose nodes fail, hang or answer garbage from the first training round on."""

    class FailingGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = []
            for reply in super().pull_messages(message_ids):
                node = reply.metadata.src_node_id
                if reply.metadata.message_type != "train" or not should_fail(node):
                    replies.append(reply)
                elif what == "error":
                    replies.append(Message(Error(code=1, reason="disk full"), reply_to=_question(reply)))
                elif what == "garbage":
                    reply.content["arrays"] = wire.pack_parameters({"nonsense": torch.zeros(2)})
                    replies.append(reply)
                elif what == "nan":
                    arrays = wire.unpack_parameters(reply.content.array_records["arrays"])
                    arrays["head.bias"] = torch.full_like(arrays["head.bias"], torch.nan)
                    reply.content["arrays"] = wire.pack_parameters(arrays)
                    replies.append(reply)
            return replies

    return FailingGrid


def _question(reply: Message) -> Message:
    question = Message(RecordDict(), reply.metadata.src_node_id, reply.metadata.message_type)
    question.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return question


@pytest.mark.parametrize("what", ["error", "garbage", "nan", "silence"])
def test_single_nodes_that_fail_are_counted_and_the_run_goes_on(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small_settings(run__out=str(tmp_path), federation__round_timeout=0.5, federation__rounds=2)
    grid = make_grid(settings, fold=False, kind=failing(lambda node: node % 4 == 0, what))
    run(settings, grid)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert len(lines) == 2
    assert sum(line["failures"] for line in lines) > 0
    assert all(line["failures"] + line["nodes"] == 16 for line in lines)
    assert "node" in caplog.text
    assert ("did not answer in time" if what == "silence" else "failed") in caplog.text


@pytest.mark.parametrize("what", ["error", "garbage", "nan", "silence"])
def test_a_run_in_which_every_node_fails_ends_with_a_clear_error(tmp_path: Path, what: str) -> None:
    settings = small_settings(run__out=str(tmp_path), federation__round_timeout=0.5)
    grid = make_grid(settings, fold=False, kind=failing(lambda _: True, what))
    with pytest.raises(FederationError, match=r"16 of 16 nodes failed or did not answer within 0\.5 s"):
        run(settings, grid)


def test_a_simulated_node_that_raises_is_left_out_of_the_folded_reply(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path), federation__rounds=2)
    nodes = node_count(settings)
    enrolled = False

    def load(node_ids: NDArray[np.int64]) -> Nodes:
        if enrolled and (node_ids % 5 == 0).any():
            raise OSError("unreadable")
        return nodes_by_id(settings, nodes, node_ids)

    class EnrollingGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            nonlocal enrolled
            yield from super().pull_messages(message_ids)
            enrolled = True

    run(settings, EnrollingGrid(load_learner(settings), nodes, load))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert sum(line["failures"] for line in lines) > 0
    assert all(line["failures"] + line["nodes"] == 16 for line in lines)


def test_no_node_connected_ends_with_a_clear_error(tmp_path: Path) -> None:
    class EmptyGrid(InProcessGrid):
        def get_node_ids(self) -> Iterable[int]:
            return []

    settings = small_settings(run__out=str(tmp_path), federation__round_timeout=0.2)
    with pytest.raises(FederationError, match=r"0 nodes connected within 0\.2 s; federation.min-nodes: 1"):
        run(settings, make_grid(settings, kind=EmptyGrid))


def test_nodes_with_another_text_encoder_than_the_servers_are_refused(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path))
    other = load_learner(small_settings(text__builtin_steps=3))
    grid = InProcessGrid(other, 60, lambda ids: nodes_by_id(settings, 60, ids))
    with pytest.raises(FederationError, match=r"60 of 60 nodes failed .*the last said: .*the server's items are"):
        run(settings, grid)


def test_a_user_whose_meta_gradient_is_not_finite_costs_only_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Population.training_tasks

    def poisoned(self: Population, users: NDArray[np.int64], *arguments: Any) -> TaskBatch:
        tasks = real(self, users, *arguments)
        assert tasks.dropout is not None
        tasks.dropout[torch.from_numpy(users % 6 == 0)] = torch.nan
        return tasks

    monkeypatch.setattr(Population, "training_tasks", poisoned)
    run(small_settings(run__out=str(tmp_path)))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert sum(line["failures"] for line in lines) > 0
    assert all(line["failures"] + line["nodes"] == 16 for line in lines)


def test_a_reply_of_another_grid_stands_for_one_node_whatever_it_claims(tmp_path: Path) -> None:
    class BoastingGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                reply.content.metric_records["numbers"]["nodes"] = 1000
            return replies

    settings = small_settings(run__out=str(tmp_path))
    run(settings, make_grid(settings, fold=False, kind=BoastingGrid))
    assert [line["nodes"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [16, 16, 16, 16]


def test_time_order_cannot_select_where_there_are_no_timestamps(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path), evaluation__select_by="time")
    population = replace(
        load_population(settings), interactions=replace(load_population(settings).interactions, has_time=False)
    )
    grid = InProcessGrid(
        load_learner(settings), 60, lambda ids: replace(nodes_by_id(settings, 60, ids), population=population)
    )
    with pytest.raises(FederationError, match="the last said: the data has no timestamps"):
        run(settings, grid)


def test_nothing_of_a_private_interaction_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    settings = small_settings(run__out=str(tmp_path))
    run(settings, make_grid(settings, fold=False, kind=failing(lambda node: node % 4 == 0, "garbage")))
    users = load_population(settings).interactions.user_ids
    assert caplog.records
    assert not any(user in caplog.text for user in users)


def test_a_foreign_error_reaches_the_server_by_its_type_only(tmp_path: Path) -> None:
    def load(node_ids: NDArray[np.int64]) -> Nodes:
        raise KeyError("user 4711")

    settings = small_settings(run__out=str(tmp_path))
    with pytest.raises(FederationError, match="the last said: KeyError, see the node's log"):
        run(settings, InProcessGrid(load_learner(settings), 60, load))
