"""The ClientApp of a deployed site: its own privacy file decides, whatever the run's configuration says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from client.data_source import load_population
from client.privacy.ledger import Ledger
from client.privacy.policy import Policy, load_policy
from metarec_shared import sources, wire
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import (
    AlreadyAnswered,
    BudgetSpent,
    MetaRecError,
    PrivacyError,
    Refusal,
    SettingsError,
    WireError,
)
from metarec_shared.exchange import EnrollmentRequest, EvaluateRequest, Parameters, TrainRequest
from metarec_shared.initialization import initial_model, travelling_names
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from metarec_shared.split import Role
from server.norm_bound import UpdateCheck
from server.privacy import check_terms, federation_privacy
from server.roster import Roster
from simulations.grid import InProcessGrid  # noqa: F401 - gives this process the identity that Flower asks for
from tests.integration.test_in_process_federation import make_grid
from tests.small import small_settings

ITEMS, USERS = 30, 150

RUN = {
    "privacy__mode": "site",
    "privacy__noise_multiplier": 1.0,
    "privacy__popularity_noise": 10.0,
    "privacy__sampling_rate": 0.1,
    "federation__clip_norm": 1.0,
    "model__item_ids": False,
}

FILE = """
[privacy]
mode = "site"
users = 120
clip-norm = 1.0
noise-multiplier = 1.0
sampling-rate = 0.1
popularity-noise = 10.0
ledger = "ledger.sqlite"
witness = "elsewhere/witness.json"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Make a site with data, a privacy file and a ledger."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    titles = [f"{i},A film about number {i}" for i in range(ITEMS)]
    (tmp_path / "data" / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    rows = [f"u{user},{item}" for user in range(USERS) for item in rng.permutation(ITEMS)[: rng.integers(4, 15)]]
    (tmp_path / "data" / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    (tmp_path / "privacy.toml").write_text(FILE)
    make_ledger(tmp_path, 8.0)
    make_grid(small_settings())  # Flower's identity of this process
    return tmp_path


def make_ledger(site: Path, epsilon: float) -> Ledger:
    files = site / "ledger.sqlite", site / "elsewhere" / "witness.json"
    for file in files:
        file.unlink(missing_ok=True)
    return Ledger.create(*files, epsilon=epsilon, delta=1e-5, plan=load_policy(site / "privacy.toml").plan())


def open_ledger(site: Path) -> Ledger:
    return Ledger.open(site / "ledger.sqlite", site / "elsewhere" / "witness.json")


def ask(
    site: Path,
    kind: str,
    *,
    rate: float = 0.1,
    round_number: int = 1,
    run_id: int = 77,
    file: bool = True,
    scale: tuple[float, float] | None = None,
    node: dict[str, Any] | None = None,
    **values: Any,
) -> RecordDict:
    """Send a message to the site's ClientApp; return the content of its reply."""
    server = small_settings(data__path=str(site / "data"), **RUN | values)
    public = load_item_features(server)
    model = initial_model(server, public.text)
    parameters: Parameters = dict(model.named_parameters())
    sent = {name: parameters[name] for name in travelling_names(server, parameters)}
    scales = None if scale is None else RatingScale(low=scale[0], high=scale[1])
    requests = {
        "query": EnrollmentRequest(catalogue=public.fingerprint),
        "train": TrainRequest(
            round_number=round_number, sampling_rate=rate, rating_scale=scales, catalogue=public.fingerprint
        ),
        "evaluate": EvaluateRequest(
            role=Role.VALIDATION, orders=("random",), supports=(10,), adapt=True, draws=1, sampling_rate=1.0,
            rating_scale=None, catalogue=public.fingerprint,
        ),
    }  # fmt: skip
    content = wire.pack_request(requests[kind], None if kind == "query" else wire.pack_parameters(sent))
    node_config: dict[str, Any] = (node or {}) | {"data-path": str(site / "data"), "name": "site-1"}
    if file:
        node_config["privacy-file"] = str(site / "privacy.toml")
    run_config = {key: value for key, value in server.flat().items() if key != "data.path"}
    context = Context(run_id=run_id, node_id=5, node_config=node_config, state=RecordDict(), run_config=run_config)
    return client_app(Message(content, 5, kind), context).content


def refusal(content: RecordDict) -> Refusal:
    with pytest.raises(Refusal) as caught:
        wire.check_refusal(content)
    return caught.value


def test_a_site_answers_a_run_that_keeps_to_its_file_and_charges_its_ledger(site: Path) -> None:
    enrollment = wire.unpack_enrollment(ask(site, "query"), ITEMS)
    assert enrollment.training_users.tolist() == [120]
    assert enrollment.validation_users.tolist() == [0]
    assert enrollment.terms is not None
    assert (enrollment.terms.mode, enrollment.terms.noise_multiplier, enrollment.terms.randomness) == (
        "site", 1.0, "secure"
    )  # fmt: skip
    replies = [ask(site, "train", round_number=number) for number in (1, 2)]
    for reply in replies:
        assert set(reply) == {"arrays", "numbers"}
        assert dict(reply.metric_records["numbers"]) == {"weight": 12.0, "nodes": 1}
    releases = open_ledger(site).releases()
    assert [(one.mechanism.name, one.round_number) for one in releases] == [
        ("popularity", 0), ("meta-update", 1), ("meta-update", 2)
    ]  # fmt: skip
    assert {one.run for one in releases} == {"77"}


def test_noise_of_a_deployment_is_another_every_time(site: Path) -> None:
    replies = (ask(site, "train", round_number=number) for number in (1, 2))
    first, second = (wire.unpack_parameters(reply.array_records["arrays"]) for reply in replies)
    assert not torch.equal(first["item_bias"], second["item_bias"])
    assert all(value.std() > 0.3 for value in first.values() if value.numel() > 100)


def test_a_site_that_is_asked_again_releases_no_fresh_noise(site: Path) -> None:
    assert "numbers" in ask(site, "query")
    assert "numbers" in ask(site, "train", round_number=3)
    again = ask(site, "train", round_number=3)
    assert set(again) == {"refusal"}
    said = refusal(again)
    assert isinstance(said, AlreadyAnswered)
    assert str(said) == "round 3 of run 77 was answered already; asking again would be a new release"
    assert isinstance(refusal(ask(site, "query")), AlreadyAnswered)
    assert [(one.mechanism.name, one.round_number) for one in open_ledger(site).releases()] == [
        ("popularity", 0), ("meta-update", 3)
    ]  # fmt: skip
    assert "numbers" in ask(site, "train", round_number=3, run_id=78)  # a run that is resumed is another one, and costs
    assert [one.run for one in open_ledger(site).releases()] == ["77", "77", "78"]


def test_what_a_site_declares_does_not_follow_its_data(site: Path) -> None:
    rows = (site / "data" / "interactions.csv").read_text().splitlines()
    (site / "data" / "interactions.csv").write_text("\n".join(rows[: len(rows) // 2]) + "\n")
    enrollment = wire.unpack_enrollment(ask(site, "query"), ITEMS)
    assert enrollment.training_users.tolist() == [120]
    assert ask(site, "train").metric_records["numbers"]["weight"] == 12.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"privacy__mode": "none"}, "privacy.mode is site here, the run's is none"),
        ({"privacy__mode": "central"}, "privacy.mode is site here, the run's is central"),
        ({"privacy__noise_multiplier": 0.0}, "give privacy.epsilon"),
        ({"privacy__noise_multiplier": 0.5}, "noise-multiplier is at least 1 here, the run's is 0.5"),
        ({"privacy__noise_multiplier": 0.0, "privacy__epsilon": float("inf")}, "noise-multiplier is at least 1 here"),
        ({"privacy__sampling_rate": 1.0}, "sampling-rate is at most 0.1 here, the run's is 1"),
        ({"federation__clip_norm": 1e9}, r"clip-norm is at most 1 here, the run's is 1e\+09"),
        ({"federation__clip_norm": 0.0}, "needs federation.clip-norm of at least 1e-06"),
        ({"privacy__item_ids": True, "model__item_ids": True}, "item_ids: not released here"),
        ({"privacy__delta": 1e-3}, "delta is at most 1e-05 here"),
        ({"privacy__popularity_noise": 1.0}, "popularity-noise is at least 10 here, the run's is 1"),
        ({"privacy__popularity_norm": 100.0}, "popularity-norm is at most 10 here"),
        ({"privacy__randomness": "simulated"}, "privacy.randomness must be secure here"),
    ],
)
def test_a_run_that_is_laxer_than_the_sites_file_is_refused(site: Path, values: dict[str, Any], message: str) -> None:
    for kind in ("query", "train"):
        assert message.replace("\\", "") in str(refusal(ask(site, kind, **values)))
    assert not open_ledger(site).releases()


def test_a_hostile_run_configuration_gets_nothing(site: Path) -> None:
    hostile = {
        "privacy__mode": "site", "privacy__noise_multiplier": 0.0, "privacy__epsilon": float("inf"),
        "privacy__sampling_rate": 1.0, "federation__clip_norm": 1e9, "privacy__item_ids": True,
        "model__item_ids": True,
    }  # fmt: skip
    reply = ask(site, "train", rate=1.0, **hostile)
    assert isinstance(refusal(reply), Refusal)
    assert not reply.array_records
    assert not open_ledger(site).releases()


def test_a_stricter_run_is_answered_as_strictly(site: Path) -> None:
    values = {"privacy__noise_multiplier": 3.0, "privacy__sampling_rate": 0.05, "federation__clip_norm": 0.5}
    reply = ask(site, "train", rate=0.05, **values)
    assert reply.metric_records["numbers"]["weight"] == pytest.approx(6.0)
    noise = wire.unpack_parameters(reply.array_records["arrays"])
    spread = torch.cat([value.flatten() for value in noise.values()]).std()
    assert 1.4 < float(spread) < 1.6


def test_a_request_for_more_users_than_the_terms_allow_is_refused_before_anything_is_charged(site: Path) -> None:
    assert "a sampling rate of 0.9 was asked for, at most 0.1" in str(refusal(ask(site, "train", rate=0.9)))
    assert not open_ledger(site).releases()


@pytest.mark.parametrize("scale", [(-1e308, 1e308), (-3.5e38, 1.0), (1e308, 1.7e308)])
def test_a_scale_that_breaks_some_users_is_refused_before_anybody_is_drawn(
    site: Path, scale: tuple[float, float]
) -> None:
    with pytest.raises(MetaRecError, match="a rating scale must be empty or two numbers of at most"):
        ask(site, "train", scale=scale)
    assert not open_ledger(site).releases()


@pytest.mark.parametrize(
    "values",
    [
        {"data__rating_low": 1.0, "data__rating_high": 4.0},
        {"data__on_bad_rows": "skip"},
    ],
)
def test_a_run_cannot_ask_questions_by_saying_which_rows_are_errors(site: Path, values: dict[str, Any]) -> None:
    rows = (site / "data" / "interactions.csv").read_text().splitlines()[1:]
    rated = [f"{row},{1 + place % 5}" for place, row in enumerate(rows)]
    (site / "data" / "interactions.csv").write_text("\n".join(["user_id,item_id,rating", *rated]) + "\n")
    assert "numbers" in ask(site, "train", **values)
    (site / "data" / "interactions.csv").write_text("\n".join(["user_id,item_id,rating", *rated, "u1,1,five"]) + "\n")
    for cached in (load_population, sources._dataset):
        cached.cache_clear()  # a deployed node answers every message in a process of its own
    with pytest.raises(MetaRecError, match="DataError, see the node's log"):
        ask(site, "train", **values)


def test_how_a_sites_rows_are_read_is_said_in_its_own_configuration(site: Path) -> None:
    with (site / "data" / "interactions.csv").open("a") as file:
        file.write("u1,\n")
    with pytest.raises(MetaRecError, match="DataError"):
        ask(site, "train")
    assert "numbers" in ask(site, "train", node={"on-bad-rows": "skip"})
    with pytest.raises(MetaRecError, match="SettingsError, see the node's log"):
        ask(site, "train", node={"on-bad-rows": "maybe"})


def test_an_error_of_reading_data_says_nothing_of_it(site: Path) -> None:
    (site / "data" / "interactions.csv").write_text("user_id,item_id,rating\nalice,1,secret\n")
    with pytest.raises(MetaRecError) as caught:
        ask(site, "train")
    assert str(caught.value) == "DataError, see the node's log"


def test_metrics_of_users_are_not_released(site: Path) -> None:
    assert "messages of type evaluate are not answered here" in str(refusal(ask(site, "evaluate")))


def test_without_a_privacy_file_nothing_leaves(site: Path) -> None:
    for kind in ("query", "train", "evaluate"):
        assert "names no privacy-file" in str(refusal(ask(site, kind, file=False)))


def test_a_site_whose_budget_is_spent_says_so(site: Path) -> None:
    make_ledger(site, 2.6)
    answered = 0
    for number in range(1, 60):
        reply = ask(site, "train", round_number=number)
        if "refusal" in reply:
            break
        answered += 1
    assert isinstance(refusal(reply), BudgetSpent)
    assert 0 < answered == len(open_ledger(site).releases())
    assert open_ledger(site).spent() <= 2.6


@pytest.mark.parametrize("file", ["ledger.sqlite", "elsewhere/witness.json"])
def test_without_its_ledger_a_site_releases_nothing(site: Path, file: str) -> None:
    (site / file).unlink()
    with pytest.raises(MetaRecError):
        ask(site, "train")
    with pytest.raises(MetaRecError):
        ask(site, "query")


def test_nothing_is_released_when_the_charge_fails(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Ledger, **_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Ledger, "charge", fail)
    with pytest.raises(MetaRecError, match="OSError, see the node's log"):
        ask(site, "train")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("users = 120", "users = 99"), PrivacyError, "at least 100, got 99: .* take mode = central"),
        (("users = 120", "users = -1"), SettingsError, "users must be at least 0"),
        (('mode = "site"', 'mode = "sight"'), SettingsError, "mode must be one of none, site, central, local"),
        (("clip-norm = 1.0", "clip = 1.0"), SettingsError, "unknown setting privacy.clip"),
        (('witness = "elsewhere/witness.json"', ""), PrivacyError, "witness must name a second file"),
        (("[privacy]", "[private]"), SettingsError, r"wanted one table \[privacy\], got private"),
        (("users = 120", 'users = 120\nmessages = "train,gossip"'), SettingsError, "no type 'gossip'"),
        (("users = 120", 'users = 120\nmessages = "evaluate"'), PrivacyError, "the answer to evaluate is not noised"),
        (("users = 120", 'users = 120\nmessages = "query.moments"'), PrivacyError, "query.moments is not noised"),
        (("users = 120", "users = 120 120"), SettingsError, "not TOML"),
    ],
)
def test_a_privacy_file_that_does_not_protect_is_refused(
    tmp_path: Path, change: tuple[str, str], error: type[Exception], message: str
) -> None:
    (tmp_path / "privacy.toml").write_text(FILE.replace(*change))
    with pytest.raises(error, match=message):
        load_policy(tmp_path / "privacy.toml")


def test_a_site_that_protects_nobody_says_so_in_its_own_file(site: Path) -> None:
    (site / "privacy.toml").write_text('[privacy]\nmode = "none"\n')
    values = {"privacy__mode": "none", "federation__clip_norm": 0.0}
    assert wire.unpack_enrollment(ask(site, "query", **values), ITEMS).terms is None
    for _ in range(2):  # who protects nobody may answer again
        update = ask(site, "train", rate=1.0, **values)
    assert update.metric_records["numbers"]["users"] > 0
    assert "numbers" in ask(site, "evaluate", **values)
    assert Settings().privacy.mode == "none"


@pytest.mark.parametrize(("weight", "taken"), [(0.0, True), (18.0, True), (6.0, True), (5.0, False), (30.0, False)])
def test_the_server_takes_what_a_site_sends_and_not_a_multiple_of_it(site: Path, weight: float, taken: bool) -> None:
    (site / "privacy.toml").write_text(FILE + f"weight = {weight}\n")
    settings = small_settings(**RUN)
    enrollment = wire.unpack_enrollment(ask(site, "query"), ITEMS)
    check_terms(enrollment, settings)
    roster = Roster.of([enrollment], federation_privacy([enrollment], settings))
    for number in (1, 2, 3):
        content = ask(site, "train", round_number=number)
        like = wire.unpack_parameters(content.array_records["arrays"])
        update = wire.unpack_meta_update(content, like)
        numbers = sum(value.numel() for value in like.values())
        check = UpdateCheck(settings=settings, roster=roster, sampling_rate=0.1, parameters=numbers)
        if not taken:
            with pytest.raises(
                WireError, match="meta-update of site-1: weight must be from 6 to 24, half to twice the "
            ):
                check.check(update, 5)
            continue
        check.check(update, 5)
        thrice = {name: 3.0 * value for name, value in update.gradients.items()}
        with pytest.raises(WireError, match=r"meta-update of site-1: norm .* is above .*clip norm, weight and noise"):
            check.check(replace(update, gradients=thrice), 5)
        with pytest.raises(WireError, match="a meta-update of node 6, which is none of those that train"):
            check.check(update, 6)


def test_a_site_that_solves_its_noise_from_epsilon_declares_what_the_server_expects(site: Path) -> None:
    values = {"privacy__noise_multiplier": 0.0, "privacy__epsilon": 1.0, "privacy__sampling_rate": 0.0}
    settings = small_settings(**RUN | values)
    enrollment = wire.unpack_enrollment(ask(site, "query", **values), ITEMS)
    assert enrollment.terms is not None
    assert enrollment.terms.noise_multiplier > 1.0
    check_terms(enrollment, settings)
    louder = replace(enrollment.terms, noise_multiplier=2 * enrollment.terms.noise_multiplier)
    with pytest.raises(WireError, match=r"the run's noise multiplier is .*, got"):
        check_terms(replace(enrollment, terms=louder), settings)
    for rate in (0.0, 5.0):
        odd = replace(enrollment.terms, sampling_rate=rate)
        with pytest.raises(WireError, match=r"terms of privacy: .*sampling rate"):
            check_terms(replace(enrollment, terms=odd), settings)


def test_moments_of_tasks_are_answered_only_where_nobody_is_protected() -> None:
    Policy(mode="none").check_kind("query.moments")
    for refused in (Policy(mode="site"), Policy(mode="none", messages="query,train")):
        with pytest.raises(Refusal, match=r"messages of type query\.moments are not answered here"):
            refused.check_kind("query.moments")
