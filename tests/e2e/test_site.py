"""A site against a real SuperLink: enrolment, an approved and a foreign bundle, kills; minutes."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.site.enrolment import Enrolment, ask_enrolment
from client.site.folder import Site
from client.site.keys import read_key
from client.site.status import Status, read_status
from metarec_shared.bundle import write_app
from tests.e2e.deployment import SITE, Link, flwr, site_command, superlink
from tests.e2e.processes import alive, free_ports, wait_until
from tests.sites import make_invitation, make_site
from tests.small import SMALL_RUN

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")]


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """Return a running SuperLink."""
    with superlink(tmp_path_factory.mktemp("link")) as running:
        yield running


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the apps that call the installed MetaRec."""
    folder = tmp_path_factory.mktemp("app") / "app"
    write_app(folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, link: Link) -> Site:
    """Return a site that approved the bundle of the installed MetaRec, with a fast encoder; it is not enrolled yet."""
    folder = tmp_path_factory.mktemp("site")
    invitation = make_invitation(
        folder / "invitation",
        Ed25519PrivateKey.generate(),
        authority=link.authority,
        server=f"127.0.0.1:{link.port}",
    )
    made = make_site(folder / "site", invitation)
    text = (made.folder / "site.toml").read_text()
    (made.folder / "site.toml").write_text(text.replace("port = 9094", f"port = {free_ports(1)[0]}", 1))
    (made.folder / "site.toml").chmod(0o600)
    return made


@contextmanager
def running(site: Site, link: Link) -> Iterator[subprocess.Popen[bytes]]:
    """Run a site; it is stopped by SIGTERM unless it has ended."""
    with (site.folder / "output.log").open("ab") as log:
        process = subprocess.Popen([*SITE, "start", str(site.folder)], env=link.env, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def status(site: Site) -> Status:
    found = read_status(site.state)
    return Status() if found is None else found


def checks(site: Site, link: Link) -> dict[str, tuple[bool, str]]:
    ran = site_command("check", site.folder, "--json", link=link)
    found = {one["name"]: (one["passed"], one["said"]) for one in json.loads(ran.stdout)}
    assert (ran.returncode == 0) == all(passed for passed, _ in found.values())
    return found


def supernodes(link: Link) -> list[int]:
    found = []
    for process in alive(link.env):
        try:
            arguments = (Path("/proc") / str(process) / "cmdline").read_bytes()
        except OSError:
            continue
        if b"client.site.supernode" in arguments:
            found.append(process)
    return found


def processes(site: Site) -> list[int]:
    """Return all processes that a site's SuperNode started, and itself, by Flower's folder in their environment."""
    mark, found = f"FLWR_HOME={site.state / 'flower'}".encode(), []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def run_federation(link: Link, app: Path, catalogue: Path, out: Path) -> subprocess.CompletedProcess[str]:
    values = {
        **SMALL_RUN, "text.encoder": "random", "federation.rounds": 1, "federation.round-timeout": 200.0,
        "data.path": str(catalogue), "run.out": str(out), "regression.enabled": False,
    }  # fmt: skip
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    return flwr("run", ".", "here", "--stream", "--run-config", config, link=link, cwd=app)


def test_a_site_from_its_enrolment_to_its_end(site: Site, link: Link, app: Path, tmp_path: Path) -> None:
    found = checks(site, link)
    assert not found["enrolment"][0]
    assert f"send {site.key}.pub to the coordinator" in found["enrolment"][1]
    assert {name for name, (passed, _) in found.items() if not passed} == {"enrolment"}

    with running(site, link) as process:
        wait_until(lambda: status(site).state == "refused", "the server refuses an unknown key", process)
        assert "does not know this key" in status(site).error
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert status(site).state == "stopped"
    assert not processes(site)

    registered = flwr("supernode", "register", f"{site.key}.pub", "here", "--name", "clinic", link=link, cwd=tmp_path)
    assert registered.returncode == 0, registered.stdout + registered.stderr
    assert all(passed for passed, _ in checks(site, link).values())

    with running(site, link) as process:
        wait_until(lambda: status(site).state == "connected", "connected", process)
        assert all(passed for passed, _ in checks(site, link).values()), "a check does not disturb a running node"
        second = site_command("start", site.folder, link=link)
        assert second.returncode != 0
        assert f"runs already, as process {process.pid}" in " ".join(second.stderr.split())

        ran = run_federation(link, app, site.catalogue, tmp_path / "out")
        assert (tmp_path / "out" / "training.json").exists(), ran.stdout + ran.stderr
        assert status(site).messages.get("train") == 1

        code = app / "metarec_app" / "client_app.py"
        code.write_text(code.read_text() + "\n")
        run_federation(link, app, site.catalogue, tmp_path / "foreign")
        assert "is refused: this site approved" in status(site).error
        assert status(site).state == "connected"
        assert not (tmp_path / "foreign" / "training.json").exists()

        (node,) = supernodes(link)
        os.kill(node, signal.SIGKILL)
        wait_until(lambda: status(site).state == "waiting", "it waits for the server to forget the node", process)
        wait_until(lambda: status(site).state == "connected", "connected again", process)
        assert status(site).restarts >= 1

        (node,) = supernodes(link)
        process.kill()
        process.wait(10)
        wait_until(lambda: not processes(site), "the SuperNode ends with its supervisor, and its processes with it")
    assert ask_enrolment(f"127.0.0.1:{link.port}", site.authority, read_key(site.key)) is Enrolment.KNOWN
