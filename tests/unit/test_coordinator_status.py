"""What a coordinator shows of its federation: status, figures for Prometheus, health."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metarec_shared.cli import run as metarec
from metarec_shared.errors import FederationError, SettingsError
from metarec_shared.exposition import serve_figures
from server.coordinator.home import Home
from server.coordinator.init import initialize
from server.coordinator.metrics import CoordinatorCollector
from server.coordinator.runs import POLL_SECONDS, follow, run_id_of, run_names, start_run
from tests.fake_flwr import FakeFlower
from tests.small import small_settings


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Make a coordinator's folder with two sites and two runs, the second of them under way."""
    home = initialize(tmp_path / "coordinator", {})[0]
    home.write_sites({"site-1": {"node": "11", "key": "SHA256:a"}, "site-2": {"node": "12", "key": "SHA256:b"}})
    for name in ("first", "second"):
        folder = home.runs / name
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps({"federation": {"rounds": 10}}))
        lines = [{"round": number, "seconds": 4.0} for number in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"round": 4, "sec')
    failure = {"round": 2, "kind": "train", "node": "12", "name": "site-2", "cause": "no answer within 60 s"}
    text = json.dumps(failure) + "\n"
    (home.runs / "second" / "failures.jsonl").write_text(text + text + '{"round": 3, "na')
    (home.folder / "runs.json").write_text(json.dumps({"101": "first", "102": "second"}))
    return home


def figures(url: str) -> dict[tuple[str, ...], float]:
    """Return what Prometheus would read, by name and labels."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_sites_rounds_and_failures(home: Home) -> None:
    states: Mapping[str, str] = {"11": "online", "12": "offline", "99": "online"}

    def health() -> tuple[bool, dict[str, Any]]:
        return states["11"] == "online", {"sites": 2}

    server = serve_figures(CoordinatorCollector(home, lambda: states), health, 0)
    base = f"http://127.0.0.1:{server.server_port}"
    try:
        found = figures(f"{base}/metrics")
        with urllib.request.urlopen(f"{base}/health", timeout=20) as answer:
            assert json.loads(answer.read()) == {"healthy": True, "sites": 2}
        states = {"11": "offline"}
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{base}/health", timeout=20)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/etc/passwd", timeout=20)
    finally:
        server.shutdown()
        server.server_close()
    assert (found["metarec_site_online", "site-1"], found["metarec_site_online", "site-2"]) == (1.0, 0.0)
    assert (found["metarec_run_rounds", "second"], found["metarec_run_rounds_wanted", "second"]) == (3.0, 10.0)
    assert found["metarec_round_seconds", "second"] == 4.0
    assert found["metarec_site_failures_total", "second", "site-2"] == 2.0
    assert 300 * 86400 < found["metarec_certificate_seconds",] < 400 * 86400


@pytest.fixture
def fake_flwr(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFlower:
    fake = FakeFlower(tmp_path, monkeypatch)
    nodes = [
        {"node-id": "11", "status": "online", "online-at": "2026-01-02", "offline-at": "N/A"},
        {"node-id": "12", "status": "offline", "online-at": "2026-01-01", "offline-at": "2026-01-03"},
    ]
    runs = [
        {"run-id": "102", "status": "running", "status-details": "N/A"},
        {"run-id": "101", "status": "finished:completed", "status-details": "N/A"},
    ]
    fake.say("supernode", nodes=nodes)
    fake.say("list", runs=runs)
    fake.say("run", **{"run-id": "103"})
    return fake


def test_status_names_sites_progress_and_causes(
    home: Home, fake_flwr: FakeFlower, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metarec(["server", "status", str(home.folder), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert [(s["name"], s["status"], s["seen"]) for s in status["sites"]] == [
        ("site-1", "online", "2026-01-02"),
        ("site-2", "offline", "2026-01-03"),
    ]
    running, done = status["runs"]
    assert (running["name"], running["rounds"], running["wanted"], running["seconds_left"]) == ("second", 3, 10, 28.0)
    assert running["failures"] == [{"site": "site-2", "cause": "no answer within 60 s", "count": 2}]
    assert done["name"] == "first"
    assert metarec(["server", "status", str(home.folder)]) == 0
    table = capsys.readouterr().out
    assert "0:28" in table
    assert "no answer within 60 s" in table
    assert metarec(["server", "status", str(home.folder), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_server_that_does_not_answer_is_said(
    home: Home, fake_flwr: FakeFlower, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_flwr.fail("supernode", "connection refused")
    assert metarec(["server", "status", str(home.folder), "--quiet"]) == 2
    assert "flwr supernode list failed: connection refused" in capsys.readouterr().err


def test_a_run_waits_for_the_one_that_is_under_way(home: Home, fake_flwr: FakeFlower) -> None:
    with pytest.raises(FederationError, match="run second is under way"):
        start_run(home, "third", small_settings())
    assert not (home.runs / "third.toml").exists()


def test_a_run_whose_log_ends_before_it_is_asked_after_now_and_then(home: Home, fake_flwr: FakeFlower) -> None:
    fake_flwr.say("log")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            fake_flwr.say("list", runs=[{"run-id": "102", "status": "finished:completed", "status-details": "N/A"}])

    fake_flwr.say("list", runs=[{"run-id": "102", "status": "running", "status-details": "N/A"}])
    assert follow(home, 102, wait).finished
    assert waits == [POLL_SECONDS] * 3


def test_a_started_run_is_known_by_its_name(home: Home, fake_flwr: FakeFlower) -> None:
    fake_flwr.say("list", runs=[])
    assert start_run(home, "third", small_settings()) == 103
    assert run_names(home) == ["first", "second", "third"]
    assert run_id_of(home, "third") == 103
    with pytest.raises(SettingsError, match="no run fourth; there are first, second, third"):
        run_id_of(home, "fourth")
    overrides = (home.runs / "third.toml").read_text()
    assert f'out = "{home.runs / "third"}"' in overrides
