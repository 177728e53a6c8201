"""Whole private rounds through the in-process grid: what each mode sends, noises, claims and refuses."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from client.app import answer
from client.data_source import load_learner, load_population
from metarec_shared import wire
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import BudgetSpent, PrivacyError
from metarec_shared.exchange import EnrollmentRequest, TrainRequest
from metarec_shared.privacy.accounting import epsilon_of
from metarec_shared.privacy.terms import Terms, participations, run_terms
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from metarec_shared.split import Role
from server.federation import enroll_nodes, initial_parameters
from server.result import TRAINING_FILE
from server.run_folder import read_metrics
from simulations.engines import node_count, nodes_by_id
from simulations.grid import InProcessGrid
from tests.integration.test_in_process_federation import assert_same, make_grid, run
from tests.small import small_settings

SITE = {
    "generator__users": 200,
    "privacy__mode": "site",
    "privacy__noise_multiplier": 1.0,
    "privacy__popularity_noise": 5.0,
    "privacy__sampling_rate": 0.25,
    "privacy__randomness": "simulated",
    "federation__clip_norm": 1.0,
    "model__item_ids": False,
}
CENTRAL = SITE | {"privacy__mode": "central"}
LOCAL = SITE | {"privacy__mode": "local"}


def privacy_of(folder: Path) -> dict[str, Any]:
    privacy: dict[str, Any] = json.loads((folder / TRAINING_FILE).read_text())["privacy"]
    return privacy


def train(settings: Settings, node_ids: Iterable[int], round_number: int = 1, rate: float = 0.25) -> RecordDict:
    learner, nodes = load_learner(settings), node_count(settings)
    public = load_item_features(settings)
    request = TrainRequest(
        round_number=round_number, sampling_rate=rate, rating_scale=None, catalogue=public.fingerprint
    )
    parameters = {name: value.detach() for name, value in learner.model.named_parameters()}
    sent = {name: parameters[name] for name in learner._travelling}
    group = nodes_by_id(settings, nodes, np.array(list(node_ids)))
    return answer(learner, group, wire.pack_request(request, wire.pack_parameters(sent)), "train")


def gradients(content: RecordDict) -> torch.Tensor:
    parameters = wire.unpack_parameters(content.array_records["arrays"])
    return torch.cat([value.flatten() for value in parameters.values()]).double()


@pytest.mark.parametrize("values", [SITE, CENTRAL, LOCAL])
def test_a_reply_holds_the_sum_and_public_constants_alone(values: dict[str, Any]) -> None:
    settings = small_settings(**values)
    replies = [train(settings, [1], number) for number in (1, 2)]
    for reply in replies:
        assert set(reply) == {"arrays", "numbers"}
        assert set(reply.metric_records["numbers"]) == {"weight", "nodes"}
    assert replies[0].metric_records["numbers"] == replies[1].metric_records["numbers"]
    assert "item_ids" not in replies[0].array_records["arrays"]


def test_a_site_adds_noise_of_the_clip_norm_to_a_sum_of_clipped_gradients() -> None:
    noised = gradients(train(small_settings(**SITE), [1]))
    exact = gradients(
        train(small_settings(**SITE | {"privacy__epsilon": math.inf, "privacy__noise_multiplier": 0.0}), [1])
    )
    drawn = int(load_population(small_settings(**SITE)).roles.shape[0])
    assert float(exact.norm()) <= drawn
    noise = (noised - exact).numpy()
    assert abs(noise.std() - 1.0) < 5 / np.sqrt(2 * len(noise))


def test_a_device_that_noises_for_itself_noises_twice_the_clip_norm_in_every_round() -> None:
    exact = gradients(
        train(small_settings(**LOCAL | {"privacy__epsilon": math.inf, "privacy__noise_multiplier": 0.0}), [3])
    )
    noised = gradients(train(small_settings(**LOCAL), [3]))
    assert float(exact.norm()) <= 1.0 + 1e-5
    noise = (noised - exact).numpy()
    assert abs(noise.std() / 2.0 - 1.0) < 5 / np.sqrt(2 * len(noise))


def test_a_device_whose_coin_says_no_still_replies_and_its_reply_weighs_the_same() -> None:
    settings = small_settings(**CENTRAL)
    roles = load_population(settings).roles
    devices = 1 + np.flatnonzero(roles == Role.TRAINING)[:40]
    replies = [train(settings, [device]) for device in devices]
    silent = [not gradients(reply).any() for reply in replies]
    assert 0 < sum(silent) < 40
    assert {reply.metric_records["numbers"]["weight"] for reply in replies} == {0.25}
    assert max(float(gradients(reply).norm()) for reply in replies) <= 1.0 + 1e-5


def test_an_empty_draw_is_noised_all_the_same() -> None:
    settings = small_settings(**SITE | {"privacy__sampling_rate": 1e-6})
    reply = gradients(train(settings, [1], rate=1e-6))
    assert abs(reply.std() - 1.0) < 0.1


@pytest.mark.parametrize("values", [SITE | {"federation__nodes": 1}, CENTRAL, LOCAL])
def test_folded_nodes_release_the_sum_of_what_each_would_release(values: dict[str, Any], tmp_path: Path) -> None:
    sgd = {"outer__optimizer": "sgd", "outer__learning_rate": 0.1, "federation__rounds": 2}
    for name, fold in (("folded", True), ("each", False)):
        settings = small_settings(run__out=str(tmp_path / name), **values | sgd)
        run(settings, make_grid(settings, fold=fold))
    assert_same(tmp_path / "folded", tmp_path / "each", atol=1e-4)


@pytest.mark.parametrize(
    ("values", "releases", "rate", "mechanisms"),
    [
        (SITE, 4, 0.25, {"meta-update", "popularity"}),
        (CENTRAL, 4, 0.25, {"meta-update", "popularity"}),
        (LOCAL, 1, 1.0, {"meta-update"}),
    ],
)
def test_a_run_says_what_it_guarantees(
    values: dict[str, Any], releases: int, rate: float, mechanisms: set[str], tmp_path: Path
) -> None:
    run(small_settings(run__out=str(tmp_path / "run"), **values))
    privacy = privacy_of(tmp_path / "run")
    assert (privacy["mode"], privacy["unit"], privacy["delta"]) == (values["privacy__mode"], "user", 1e-5)
    assert (privacy["accountant"], privacy["clip_norm"], privacy["noise"]) == ("prv", 1.0, "simulated noise")
    assert {one["name"] for one in privacy["mechanisms"]} == mechanisms
    update = next(one for one in privacy["mechanisms"] if one["name"] == "meta-update")
    assert update == {
        "name": "meta-update", "noise_multiplier": 1.0, "sampling_rate": rate, "releases": releases
    }  # fmt: skip
    terms = run_terms(small_settings(**values), 160)
    assert terms is not None
    composed = [terms.meta_update(releases)] + ([terms.popularity()] if "popularity" in mechanisms else [])
    assert privacy["epsilon"] == pytest.approx(epsilon_of(composed, 1e-5))
    checkpoint = load_checkpoint(tmp_path / "run")
    assert (checkpoint.round_number, checkpoint.validation) == (4, None)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all("users" not in line and "train_loss" not in line for line in lines)
    assert not any(key.startswith("validation") for line in lines for key in line)


def test_the_noise_is_solved_for_from_epsilon(tmp_path: Path) -> None:
    values = SITE | {"privacy__noise_multiplier": 0.0, "privacy__popularity_noise": 0.0, "privacy__epsilon": 3.0}
    run(small_settings(run__out=str(tmp_path / "run"), **values))
    assert 2.7 < privacy_of(tmp_path / "run")["epsilon"] <= 3.0


def test_clipping_alone_claims_no_epsilon(tmp_path: Path) -> None:
    values = SITE | {"privacy__noise_multiplier": 0.0, "privacy__popularity_noise": 0.0, "privacy__epsilon": math.inf}
    run(small_settings(run__out=str(tmp_path / "run"), **values))
    assert privacy_of(tmp_path / "run")["epsilon"] is None


def test_devices_that_noise_for_themselves_are_asked_in_turn() -> None:
    settings = small_settings(**LOCAL | {"federation__rounds": 50})
    grid = make_grid(settings)
    roster = enroll_nodes(grid, settings, load_item_features(settings))
    asked = np.concatenate([roster.cohort(0, number, 16).nodes for number in range(1, 51)])
    _, times = np.unique(asked, return_counts=True)
    assert (
        times.max()
        <= participations("local", 50, 16, len(roster.training))
        == math.ceil(50 * 16 / len(roster.training))
    )
    assert not roster.item_counts.any()


def test_item_counts_leave_a_site_noised_and_a_device_bounded() -> None:
    exact = small_settings(generator__users=200)
    counts = {}
    for name, settings in (("raw", exact), ("site", small_settings(**SITE)), ("central", small_settings(**CENTRAL))):
        counts[name] = enroll_nodes(make_grid(settings), settings, load_item_features(settings)).item_counts
    deviation = 5.0 * 10.0
    for name in ("site", "central"):
        assert (counts[name] == np.rint(counts[name])).all()
        assert 0 < np.abs(counts[name] - counts["raw"]).mean() < 2 * deviation
    device = nodes_by_id(small_settings(**CENTRAL | {"privacy__popularity_norm": 1.0}), 200, np.array([1, 2, 3, 4]))
    learner = load_learner(small_settings(**CENTRAL))
    for place in range(4):
        one = nodes_by_id(small_settings(**CENTRAL | {"privacy__popularity_norm": 1.0}), 200, np.array([place + 1]))
        request = wire.pack_request(EnrollmentRequest(catalogue=learner.catalogue))
        reply = wire.unpack_enrollment(answer(learner, one, request, "query"), 40)
        assert np.linalg.norm(reply.item_counts) <= 1.0 + 1e-9
        assert reply.validation_users.tolist() == [0]
    assert len(device) == 4


def test_a_site_with_few_users_is_pointed_to_the_other_modes() -> None:
    with pytest.raises(PrivacyError, match=r"at least 100 meta-training users .* or mode = central or local"):
        node_count(small_settings(**SITE | {"federation__nodes": 4}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"federation__clip_norm": 0.0}, "needs federation.clip-norm of at least 1e-06"),
        ({"privacy__noise_multiplier": 0.0}, "give privacy.epsilon"),
        ({"privacy__randomness": "secure"}, "set privacy.randomness = simulated"),
        ({"privacy__mode": "central", "traffic__update_bits": 8}, "central needs traffic.update-bits = 32"),
    ],
)
def test_settings_that_cannot_be_private_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        node_count(small_settings(**SITE | values))


class RefusingGrid(InProcessGrid):
    """Its nodes answer to the last of their budget: node ``n`` refuses after round ``budgets[n]``."""

    budgets: dict[int, int]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            question_round = self.rounds.get(reply.metadata.reply_to_message_id, 0)
            if question_round > self.budgets.get(reply.metadata.src_node_id, 10**9):
                reply.content = wire.pack_refusal(BudgetSpent("the budget of epsilon 1 is spent"))
            yield reply

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        identifiers = list(super().push_messages(messages))
        self.asked = getattr(self, "asked", [])
        self.rounds = getattr(self, "rounds", {})
        for identifier, message in zip(identifiers, messages, strict=True):
            if message.metadata.message_type == "train":
                self.rounds[identifier] = int(message.metadata.group_id)
                self.asked.append((int(message.metadata.group_id), message.metadata.dst_node_id))
        return identifiers


def refusing(settings: Settings, budgets: dict[int, int]) -> RefusingGrid:
    grid = make_grid(settings, fold=False, kind=RefusingGrid)
    assert isinstance(grid, RefusingGrid)
    grid.budgets = budgets
    return grid


SITES = SITE | {"generator__users": 420, "federation__nodes": 3, "federation__rounds": 6, "federation__min_nodes": 2}


def test_the_server_names_who_refuses_goes_on_with_the_rest_and_asks_them_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small_settings(run__out=str(tmp_path / "run"), **SITES)
    grid = refusing(settings, {2: 3})
    run(settings, grid)
    assert "node 000000001 (2) failed: refused (BudgetSpent): the budget of epsilon 1 is spent" in caplog.text
    assert [node for number, node in grid.asked if number == 4] == [1, 2, 3]
    assert [node for number, node in grid.asked if number == 5] == [1, 3]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["nodes"] for line in lines] == [3, 3, 3, 2, 2, 2]
    assert load_checkpoint(tmp_path / "run").round_number == 6


def test_the_run_stops_cleanly_when_too_few_nodes_are_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = small_settings(run__out=str(tmp_path / "run"), **SITES)
    run(settings, refusing(settings, {1: 2, 2: 4}))
    assert "stopped after round 4: too few nodes are left" in caplog.text
    assert load_checkpoint(tmp_path / "run").round_number == 4
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4


def test_raw_and_noised_updates_are_not_added_up_unless_that_is_allowed() -> None:
    settings = small_settings(**SITES)
    raw = small_settings(generator__users=420, federation__nodes=3)

    class MixedGrid(InProcessGrid):
        def _content(self, node_ids: Any, question: Message) -> RecordDict:
            if node_ids.tolist() == [3]:
                nodes = nodes_by_id(raw, 3, node_ids)
                return answer(self._learner, nodes, question.content, question.metadata.message_type)
            return super()._content(node_ids, question)

    public = load_item_features(settings)
    with pytest.raises(PrivacyError, match="1 of 3 nodes send raw updates and the others noised ones"):
        enroll_nodes(make_grid(settings, fold=False, kind=MixedGrid), settings, public)
    allowed = small_settings(**SITES | {"privacy__allow_mixed": True})
    roster = enroll_nodes(make_grid(allowed, fold=False, kind=MixedGrid), allowed, public)
    assert roster.privacy is not None
    report = roster.privacy.report(6, popularity=True)
    assert (report["epsilon"], report["raw_nodes"]) == (None, 1)


def test_a_private_run_goes_on_bit_for_bit_and_asks_for_item_counts_once(tmp_path: Path) -> None:
    whole = small_settings(run__out=str(tmp_path / "whole"), **SITE)
    run(whole)
    part = small_settings(run__out=str(tmp_path / "part"), **SITE)
    grid = make_grid(part)
    real, asked = grid._content, []

    def killed(node_ids: Any, question: Message) -> RecordDict:
        asked.append(question.metadata.message_type)
        if asked.count("train") == 3:
            raise KeyboardInterrupt
        return real(node_ids, question)

    grid._content = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(part, grid)
    wanted = []
    again = make_grid(part)
    ours = again._content

    def watched(node_ids: Any, question: Message) -> RecordDict:
        if question.metadata.message_type == "query":
            wanted.append(wire.unpack_request(EnrollmentRequest, question.content).popularity)
        return ours(node_ids, question)

    again._content = watched  # type: ignore[method-assign]
    run(small_settings(run__out=str(tmp_path / "part"), run__resume=True, **SITE), again)
    assert wanted == [False]
    assert_same(tmp_path / "whole", tmp_path / "part")
    assert privacy_of(tmp_path / "part") == privacy_of(tmp_path / "whole")


def test_a_warm_start_begins_where_the_other_run_ended_and_keeps_its_id_vectors(tmp_path: Path) -> None:
    run(small_settings(generator__users=200, run__out=str(tmp_path / "public")))
    before = load_checkpoint(tmp_path / "public").parameters
    values = SITE | {"model__item_ids": True, "run__init": str(tmp_path / "public"), "outer__learning_rate": 0.0}
    settings = small_settings(run__out=str(tmp_path / "private"), **values)
    run(settings)
    after = load_checkpoint(tmp_path / "private").parameters
    for name, value in before.items():
        if name != "item_bias":
            torch.testing.assert_close(after[name], value, msg=name)
    public = load_item_features(settings)
    roster = enroll_nodes(make_grid(settings), settings, public)
    bias = initial_parameters(settings, public, roster)["item_bias"]
    torch.testing.assert_close(bias, torch.from_numpy(roster.log_popularity()))


def test_terms_are_hashable_so_that_nodes_can_be_counted_by_them() -> None:
    terms = run_terms(small_settings(**SITE), 160)
    assert isinstance(terms, Terms)
    assert len({terms, terms}) == 1
