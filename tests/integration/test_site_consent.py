"""What a site's operator decided holds at every message: the approved catalogue, and users who are left out."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from client.consent import excluded_users
from client.data_source import load_node, load_population, site_settings
from client.limits import MOST, check_limits
from metarec_shared import sources, wire
from metarec_shared.errors import MetaRecError, Refusal
from metarec_shared.invitation import content_hash
from metarec_shared.settings import PRIVATE_DEFAULTS, RATING_DEFAULTS, Settings
from metarec_shared.split import Role
from tests.integration.test_deployed_client import USERS, ask, open_ledger, refusal
from tests.integration.test_deployed_client import site as site  # a fixture
from tests.small import small_settings


@pytest.fixture
def approved(site: Path) -> dict[str, Any]:
    """Give the site a catalogue of its own, approved; return the node's configuration of it."""
    (site / "catalogue").mkdir()
    shutil.copy(site / "data" / "items.csv", site / "catalogue")
    return {"catalogue-path": str(site / "catalogue"), "catalogue-hash": content_hash(site / "catalogue")}


def forget() -> None:
    """Forget what was read: a deployed node answers every message in a process of its own."""
    for cached in (load_population, sources._dataset):
        cached.cache_clear()


def node_of(site: Path, **config: str) -> Any:
    forget()
    named = {key.replace("_", "-"): value for key, value in config.items()} | {"data-path": str(site / "data")}
    return load_node(site_settings(small_settings(), named), named, 5)


def test_an_approved_catalogue_is_answered_for(site: Path, approved: dict[str, Any]) -> None:
    assert "numbers" in ask(site, "train", node=approved)


@pytest.mark.parametrize("kind", ["query", "train"])
def test_a_catalogue_that_nobody_approved_is_refused_by_both_hashes_before_anything_is_charged(
    site: Path, approved: dict[str, Any], kind: str
) -> None:
    with (site / "catalogue" / "items.csv").open("a") as file:
        file.write("99,A film that was slipped in\n")
    said = str(refusal(ask(site, kind, node=approved)))
    assert approved["catalogue-hash"] in said
    assert content_hash(site / "catalogue") in said
    assert not open_ledger(site).releases()


def test_a_catalogue_that_points_elsewhere_is_refused_though_its_hash_was_approved(
    site: Path, approved: dict[str, Any]
) -> None:
    (site / "catalogue" / "source.toml").write_text('[items]\nfile = "../data/items.csv"\n')
    node = approved | {"catalogue-hash": content_hash(site / "catalogue")}
    assert "points at files or a database elsewhere" in str(refusal(ask(site, "train", node=node)))


def test_without_its_catalogue_a_site_refuses(site: Path, approved: dict[str, Any]) -> None:
    shutil.rmtree(site / "catalogue")
    said = str(refusal(ask(site, "train", node=approved)))
    assert (
        said == f"the catalogue here cannot be read; this site approved the content hash {approved['catalogue-hash']}"
    )
    assert "without a catalogue-path" in str(refusal(ask(site, "train", node={"catalogue-hash": "aa"})))


def test_items_come_from_the_catalogue_and_interactions_from_the_data(site: Path, approved: dict[str, Any]) -> None:
    items = site / "data" / "items.csv"
    before = items.read_text()
    items.unlink()
    settings = site_settings(small_settings(), approved | {"data-path": str(site / "data")})
    forget()
    dataset = sources.load_dataset(settings)
    assert (len(dataset.catalogue), len(dataset.interactions)) == (30, USERS)
    items.write_text(before)


def test_a_run_cannot_name_a_folder_of_items(site: Path) -> None:
    run = Settings().with_values({"data.catalogue": "/etc"}, "run")
    assert site_settings(run, {"data-path": str(site / "data")}).data.catalogue == ""


def test_excluded_users_are_gone_from_the_next_message_on(site: Path) -> None:
    file = site / "excluded.txt"
    file.write_text("")
    whole = node_of(site, excluded_file=str(file))
    file.write_text("u7\n\n  u11 \nnobody\n")
    fewer = node_of(site, excluded_file=str(file))
    names = set(fewer.population.interactions.user_ids.tolist())
    assert set(whole.population.interactions.user_ids.tolist()) - names == {"u7", "u11"}
    assert len(fewer.users) == len(fewer.population.keys) == USERS - 2
    lost = int(whole.population.interactions.lengths.sum() - fewer.population.interactions.lengths.sum())
    histories = dict(zip(whole.population.interactions.user_ids, whole.population.interactions.lengths, strict=True))
    assert lost == histories["u7"] + histories["u11"]
    assert "numbers" in ask(site, "train", node={"excluded-file": str(file)})


def test_other_users_keep_their_histories_and_roles(site: Path) -> None:
    (site / "excluded.txt").write_text("u0\n")
    whole, fewer = node_of(site), node_of(site, excluded_file=str(site / "excluded.txt"))
    for name in ("u1", "u149"):
        histories = []
        for node in (whole, fewer):
            people = node.population.interactions
            place = people.user_ids.tolist().index(name)
            histories.append((people.history(place).tolist(), node.population.roles[place]))
        assert histories[0] == histories[1]


def test_a_site_whose_users_are_all_excluded_answers_as_with_an_empty_draw(site: Path) -> None:
    (site / "excluded.txt").write_text("".join(f"u{user}\n" for user in range(USERS)))
    node = {"excluded-file": str(site / "excluded.txt")}
    assert len(node_of(site, excluded_file=str(site / "excluded.txt")).users) == 0
    enrollment = wire.unpack_enrollment(ask(site, "query", node=node), 30)
    assert enrollment.training_users.tolist() == [120], "what a site declares does not follow its data"
    assert dict(ask(site, "train", node=node).metric_records["numbers"]) == {"weight": 12.0, "nodes": 1}
    assert Role.TRAINING in set(node_of(site).population.roles.tolist())


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_nothing_leaves_where_nobody_can_tell_who_is_excluded(site: Path, content: bytes | None) -> None:
    file = site / "excluded.txt"
    if content is not None:
        file.write_bytes(content)
    said = str(refusal(ask(site, "train", node={"excluded-file": str(file)})))
    assert said == "the file of excluded users cannot be read here, so nothing leaves"
    with pytest.raises(Refusal):
        excluded_users(file)
    assert not open_ledger(site).releases()


def test_a_catalogue_without_interactions_beside_a_generated_population_is_no_data() -> None:
    forget()
    with pytest.raises(MetaRecError, match=r"data\.catalogue needs data\.path"):
        sources.load_dataset(small_settings(data__catalogue="/nowhere"))


def test_a_run_does_not_choose_what_makes_a_sites_text_vectors(site: Path) -> None:
    run = small_settings(text__encoder="somebody/else", text__revision="main")
    own = {"data-path": str(site / "data"), "text-encoder": "builtin"}
    assert site_settings(run, own).text.encoder == "builtin"
    assert site_settings(run, own).text.revision == ""
    elsewhere = {"text__encoder": "/etc", "data__path": str(site / "data")}
    assert "numbers" in ask(site, "train", node={"text-encoder": "builtin"})
    assert site_settings(small_settings(**elsewhere), own).text.encoder == "builtin"


def test_a_run_cannot_take_a_sites_machine_for_itself(site: Path) -> None:
    for key, value in (("text__builtin_steps", 10**9), ("model__layers", 1000), ("tasks__support", 10**6)):
        settings = small_settings(**{key: value})
        with pytest.raises(Refusal, match=r"is at most .* here, the run's is"):
            check_limits(settings)
    check_limits(Settings())
    for defaults in (PRIVATE_DEFAULTS, RATING_DEFAULTS):
        check_limits(Settings().with_values(defaults, "test"))
    limits = {name for name in MOST if name not in Settings().flat()}
    assert not limits, "a limit of a setting that is not there limits nothing"


def test_a_site_with_items_of_its_own_answers_no_run_that_wants_all_to_know_the_same(site: Path) -> None:
    for kind in ("query", "train"):
        said = str(refusal(ask(site, kind, node={"own-catalogue": True})))
        assert said == "the items here are this site's own: federation.catalogues must be own, the run's is one"
    assert open_ledger(site).releases() == []


def test_the_server_is_told_no_path_of_a_site(site: Path) -> None:
    (site / "ledger.sqlite").unlink()
    with pytest.raises(MetaRecError) as caught:
        ask(site, "train")
    assert str(caught.value) == "LedgerError, see the node's log"
