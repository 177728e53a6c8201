"""What a site shows of itself: figures, health, a table."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from client.privacy.ledger import Ledger
from client.privacy.policy import load_policy
from client.site import metrics
from client.site.cli import site_app
from client.site.counts import Counts, write_counts
from client.site.folder import Site
from client.site.metrics import serve_metrics
from client.site.status import Status, read_status, write_status
from tests.sites import make_invitation, make_site

PRIVACY = """
[privacy]
mode = "site"
users = 120
noise-multiplier = 1.0
sampling-rate = 0.1
popularity-noise = 0.0
witness = "witness.json"
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Make a site that has spent something and leaves two users out."""
    made = make_site(tmp_path / "site", make_invitation(tmp_path / "invitation", Ed25519PrivateKey.generate()))
    made.privacy_file.write_text(PRIVACY)
    (made.folder / "excluded.txt").write_text("u1\nu2\n")
    plan = load_policy(made.privacy_file).plan()
    ledger = Ledger.create(
        made.folder / "ledger.sqlite", made.folder / "witness.json", epsilon=8.0, delta=1e-5, plan=plan
    )
    ledger.charge(run="1", round_number=1, mechanism=plan[0])
    return made


RUNNING = Status(pid=os.getpid(), node="42", restarts=2).now("connected").received("query", "7", "").received(
    "train", "7", "3"
)  # fmt: skip


class Shown:
    """A status that a test changes."""

    def __init__(self) -> None:
        self.status = RUNNING


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def served(site: Site, shown: Shown) -> Iterator[ThreadingHTTPServer]:
    server = serve_metrics(site, lambda: shown.status, 0)
    yield server
    server.shutdown()
    server.server_close()


def get(server: ThreadingHTTPServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def figures(server: ThreadingHTTPServer) -> dict[tuple[str, ...], float]:
    text = get(server, "/metrics")[1]
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_a_sites_figures(site: Site, served: ThreadingHTTPServer) -> None:
    found = figures(served)
    spent = Ledger.open(site.folder / "ledger.sqlite", site.folder / "witness.json").spent()
    assert found == {
        ("metarec_site_up",): 1.0,
        ("metarec_site_connected",): 1.0,
        ("metarec_site_restarts_total",): 2.0,
        ("metarec_site_messages_total", "query"): 1.0,
        ("metarec_site_messages_total", "train"): 1.0,
        ("metarec_site_last_round",): 3.0,
        ("metarec_site_privacy_readable",): 1.0,
        ("metarec_site_excluded_users",): 2.0,
        ("metarec_site_epsilon_spent",): pytest.approx(spent),
        ("metarec_site_epsilon_left",): pytest.approx(8.0 - spent),
    }
    write_counts(site.state, Counts(users=150, interactions=1000, skipped=4))
    assert figures(served)[("metarec_site_rows_skipped",)] == 4.0


def test_the_accountant_is_asked_only_when_the_ledger_changed(
    site: Site, served: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = metrics.ledger_state
    monkeypatch.setattr(metrics, "ledger_state", lambda file: asked.append(file) or real(file))
    before = [figures(served)[("metarec_site_epsilon_spent",)] for _ in range(3)]
    assert len(asked) == 1
    ledger = Ledger.open(site.folder / "ledger.sqlite", site.folder / "witness.json")
    ledger.charge(run="1", round_number=2, mechanism=ledger.plan[0])
    assert figures(served)[("metarec_site_epsilon_spent",)] > before[0]
    assert len(asked) == 2


def test_what_cannot_be_read_is_said_and_the_rest_stays(site: Site, served: ThreadingHTTPServer) -> None:
    (site.folder / "witness.json").unlink()
    found = figures(served)
    assert found[("metarec_site_privacy_readable",)] == 0.0
    assert ("metarec_site_epsilon_spent",) not in found
    assert found[("metarec_site_connected",)] == 1.0


@pytest.mark.parametrize(("state", "code"), [("connected", 200), ("unreachable", 503), ("refused", 503)])
def test_health_is_good_while_connected(served: ThreadingHTTPServer, shown: Shown, state: str, code: int) -> None:
    shown.status = RUNNING.now(state)
    status, text = get(served, "/health")
    assert (status, json.loads(text)["healthy"], json.loads(text)["state"]) == (code, code == 200, state)
    assert get(served, "/secret")[0] == 404
    assert served.server_address[0] == "127.0.0.1"


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_status(tmp_path, RUNNING)
    assert read_status(tmp_path) == RUNNING
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path) is None


def test_time_in_a_state_begins_with_another_state() -> None:
    later = RUNNING.now("connected", error="x")
    assert (later.since, later.error) == (RUNNING.since, "x")
    assert Status(state="starting", since="2020").now("stopped").since != "2020"


def test_status_shows_a_table_and_json(site: Site) -> None:
    write_status(site.state, RUNNING)
    write_counts(site.state, Counts(users=150, interactions=1000, skipped=4))
    table = CliRunner().invoke(site_app, ["status", str(site.folder)]).stdout
    for part in (
        "clinic, server 127.0.0.1:9092", "connected since", "node:           42", "1 query, 1 train",
        "train, run 7, round 3", "left of 8 at delta 1e-05, 1 releases", "excluded users: 2", "4 rows skipped",
    ):  # fmt: skip
        assert part in table, part
    found = json.loads(CliRunner().invoke(site_app, ["status", str(site.folder), "--json"]).stdout)
    assert found["ledger"]["left"] == pytest.approx(8.0 - found["ledger"]["spent"])
    assert (found["state"], found["data"]["users"]) == ("connected", 150)


def test_a_supervisor_that_was_killed_is_called_dead(site: Site) -> None:
    write_status(site.state, Status(state="connected", pid=2**22 + 1, since="x"))
    site.excluded.unlink()
    (site.folder / "witness.json").unlink()
    table = CliRunner().invoke(site_app, ["status", str(site.folder)]).stdout
    assert "dead since x" in table
    assert table.count("cannot be read: ") == 2
