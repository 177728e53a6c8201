"""A coordinator and three sites, data from PostgreSQL, CSV and Parquet, over TLS; and what happens to them."""

import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import create_engine

from tests.e2e.comparison import assert_close_runs
from tests.e2e.partner_sites import (
    PRIVATE_RUN,
    Federation,
    federation,
    keep_ledger,
    make_site,
    meta_updates,
    ok,
    options,
    set_number,
    write_data,
)
from tests.e2e.processes import free_ports, lines_of, started, wait_until
from tests.postgres import new_database, postgres, read_only_role

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")]

SITES = ("000000000", "000000001", "000000002")
"""The names that a simulation gives its nodes."""

USERS = 420
ROUNDS = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("federation")


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[Federation]:
    """Return a federation whose server and sites run; the first site reads a database, as a role that may only read."""
    parts = write_data(root / "whole", USERS, len(SITES))
    with postgres(root) as address, federation(root) as made:
        (root / "shop.url").touch(mode=0o600)
        (root / "shop.url").write_text(_fill_database(address, parts[0]))
        port = str(made.port)
        ok(made.command("server", "init", made.home, "--port", port, "--catalogue", root / "whole"))
        made.ports = [made.port, *free_ports(3)]
        set_number(made.home / "server.toml", "metrics-port", made.ports[1])
        made.start_server()
        for place, (name, part) in enumerate(zip(SITES, parts, strict=True)):
            make_site(made, name)
            data = made.sites[name] / "data"
            if place == 0:
                set_number(made.sites[name] / "site.toml", "port", made.ports[2])
                set_number(made.sites[name] / "site.toml", "metrics-port", made.ports[3])
                (data / "source.toml").write_text(SOURCE.format(url=root / "shop.url"))
            elif place == 1:
                part.to_csv(data / "interactions.csv", index=False)
            else:
                part.to_parquet(data / "interactions.parquet", index=False)
            made.start(name)
        made.wait_for(SITES)
        yield made


SOURCE = """
[interactions]
url-file = "{url}"
table = "orders"
incremental = "number"

[interactions.columns]
user_id = "customer"
item_id = "sku"
rating = "stars"
timestamp = "ordered"
"""


def _fill_database(address: str, part: pd.DataFrame) -> str:
    """Put a site's part into a database, and return the address for a role that may only read it."""
    database = new_database(address, "shop")
    engine = create_engine(database)
    orders = part.rename(columns={"user_id": "customer", "item_id": "sku", "rating": "stars", "timestamp": "ordered"})
    orders.insert(0, "number", range(len(orders)))
    orders.to_sql("orders", engine, index=False)
    engine.dispose()
    return read_only_role(database, "reader", "orders")


def run(made: Federation, name: str, *more: str, **values: str | float | bool) -> subprocess.CompletedProcess[str]:
    arguments = ["--name", name, "--rounds", str(ROUNDS), *options(federation__min_nodes=2, **values), *more]
    return made.command("server", "run", made.home, *arguments, timeout=900)


@pytest.fixture(scope="module")
def undisturbed(running: Federation) -> Path:
    """Return the folder of a run that nothing happened to."""
    said = ok(run(running, "undisturbed"))
    assert "finished: metarec recommend" in said
    return running.home / "runs" / "undisturbed"


def test_every_site_passes_its_own_check(running: Federation) -> None:
    checks = json.loads(ok(running.command("site", "check", running.sites[SITES[0]], "--json")))
    assert {one["name"] for one in checks} >= {"data", "catalogue", "privacy", "server", "clock", "enrolment", "disk"}
    assert [one for one in checks if not one["passed"]] == []


def test_a_run_on_sites_is_the_simulation_of_the_same_nodes(running: Federation, undisturbed: Path) -> None:
    out = running.root / "simulated"
    arguments = ["--data", running.root / "whole", "--nodes", "3", "--out", out, "--no-baselines"]
    ok(running.command("simulate", *arguments, *options(federation__rounds=ROUNDS)))
    assert_close_runs(out, undisturbed)
    simulated, deployed = (json.loads((run / "result.json").read_text()) for run in (out, undisturbed))
    assert deployed.keys() == simulated.keys()
    for key in ("rounds", "best_round", "nodes", "training_users", "parameters", "text_encoder"):
        assert deployed[key] == simulated[key], key
    assert deployed["best_validation"] == pytest.approx(simulated["best_validation"], abs=1e-5)


def test_a_server_that_is_killed_in_a_round_goes_on_to_the_same_parameters(
    running: Federation, undisturbed: Path
) -> None:
    folder = running.home / "runs" / "disturbed"
    arguments = ["--name", "disturbed", "--rounds", str(ROUNDS), *options(federation__min_nodes=2), "--detach"]
    ok(running.command("server", "run", running.home, *arguments))
    wait_until(lambda: lines_of(folder / "metrics.jsonl") >= 2, "two rounds")
    running.kill("server")
    running.start_server()
    running.wait_for(SITES)
    ok(run(running, "disturbed", "--resume"))
    assert_close_runs(undisturbed, folder)
    assert lines_of(folder / "metrics.jsonl") == ROUNDS


def test_a_site_that_is_killed_in_a_round_is_missed_and_comes_back(running: Federation) -> None:
    folder, victim = running.home / "runs" / "absent", SITES[1]
    values = {"regression__enabled": False, "federation__min_nodes": 2}
    arguments = ["--name", "absent", "--rounds", "6", *options(**values), "--detach"]
    ok(running.command("server", "run", running.home, *arguments))
    wait_until(lambda: lines_of(folder / "metrics.jsonl") >= 1, "a round")
    os.kill(running.processes[victim].pid, signal.SIGKILL)  # its SuperNode ends with it
    running.processes[victim].wait()
    wait_until(lambda: lines_of(folder / "metrics.jsonl") >= 2, "a round without the site")
    running.start(victim)
    wait_until((folder / "result.json").exists, "the run ends")
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["nodes"] for line in rounds][:2] == [3, 2], "the others went on"
    assert rounds[-1]["nodes"] == 3, "it took part again"
    failures = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert {failure["name"] for failure in failures} == {victim}
    status = json.loads(ok(running.command("server", "status", running.home, "--json")))
    told = next(run for run in status["runs"] if run["name"] == "absent")["failures"]
    assert told[0]["site"] == victim
    assert sum(one["count"] for one in told) == len(failures)


def test_five_private_rounds_are_five_rows_in_each_ledger(running: Federation) -> None:
    for site in SITES:
        keep_ledger(running, site)
    more = [part for key, value in PRIVATE_RUN.items() for part in ("--set", f"{key}={value}")]
    ok(run(running, "private", *more))
    for site in SITES:
        assert meta_updates(running, site) == [1, 2, 3, 4, 5]
    result = json.loads((running.home / "runs" / "private" / "result.json").read_text())
    simulated = json.loads((running.root / "simulated" / "result.json").read_text())
    assert result.keys() == simulated.keys()
    assert result["privacy"]["mode"] == "site"


def test_a_revoked_site_gets_nothing_more_and_the_others_go_on(running: Federation) -> None:
    gone = SITES[2]
    ok(running.command("server", "revoke", running.home, gone))
    check = running.command("site", "check", running.sites[gone], "--json")
    assert check.returncode == 1
    failed = {one["name"]: one["said"] for one in json.loads(check.stdout) if not one["passed"]}
    assert "does not know this key" in failed["enrolment"]
    assert set(running.states()) == set(SITES) - {gone}
    log = running.log(gone)
    wait_until(lambda: "key" in log.read_text()[-5000:], "the site's log says why")


def test_other_machines_reach_what_nodes_call_and_nothing_else(running: Federation) -> None:
    trusted = ssl.create_default_context(cafile=str(running.home / "invitation" / "ca.crt"))
    paths = ("/v1/fleet/pull-messages", "/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs")
    answers = {}
    for source in ("127.0.0.1", "127.0.0.2"):  # the second is not this machine's own address
        for path in paths:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", running.port, timeout=20, source_address=(source, 0), context=trusted
            )
            passed_on = {"X-Forwarded-For": "127.0.0.1"} if source == "127.0.0.2" else {}
            connection.request("POST", path, body=b"", headers=passed_on)
            answers[source, path] = connection.getresponse().status
            connection.close()
    assert [answers["127.0.0.2", path] for path in paths] == [401, 403, 403, 403]
    assert 403 not in [answers["127.0.0.1", path] for path in paths]


def test_random_bytes_at_every_port_change_nothing(running: Federation) -> None:
    """A thousand at each: the server's, its metrics', a SuperNode's own, a site's metrics'."""
    draw = random.Random(0)
    for port in running.ports:
        for _ in range(1000):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
                one.sendall(draw.randbytes(draw.randrange(1, 300)))
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as one:
        one.sendall(b"GET /v1/control/list-runs HTTP/1.1\r\nHost: here\r\n\r\n")
        one.settimeout(20)
        assert not one.recv(100).startswith(b"HTTP/1.1 200"), "plain text where TLS is spoken"
    site = SITES[0]
    assert running.states()[site] == "online"
    for port in (running.ports[1], running.ports[3]):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            assert json.loads(answer.read())["healthy"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert b"metarec_site" in answer.read()
    assert all(process.poll() is None for name, process in running.processes.items() if name != SITES[2])


def test_stopping_a_site_leaves_no_process(root: Path) -> None:
    """A site that waits for a server which is not there."""
    with federation(root / "alone") as made:
        (root / "alone").mkdir(exist_ok=True)
        ok(made.command("server", "init", made.home, "--port", str(made.port), "--catalogue", root / "whole"))
        ok(
            made.command(
                "site", "init", root / "alone" / "site", "--invitation", made.home / "invitation", "--name", "x"
            )
        )
        with started("site", "start", root / "alone" / "site", env=made.env, log=root / "alone.log") as process:
            wait_until(lambda: (root / "alone" / "site" / "state" / "status.json").exists(), "it started", process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
