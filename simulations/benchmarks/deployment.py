"""Real sites on one machine: the server's memory and the time of a round, as functions of the number of nodes.

``python -m simulations.benchmarks.deployment [--nodes 2,5,10,20] [--rounds 2] [--json FILE]``

Every federation is made by the operators' own commands: a coordinator, a folder a site, TLS, keys, one supervised
SuperNode a site, over invented data of equal size. Memory is resident memory of the server's processes, the SuperLink
and the ServerApp, sampled while the run is under way; a round is what the server records. All nodes share the machine's
cores, and every message starts a process at each node, so the time of a round is nearly all start-up: on machines of
their own nodes start at the same time.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from metarec_shared.errors import FederationError
from simulations.benchmarks.measure import machine, print_table, resident_megabytes, write_figures

ITEMS, USERS, HISTORY = 200, 20, 20
"""Of each site's invented data."""

SECONDS_TO_START = 600.0
SAMPLE_SECONDS = 0.5
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One federation: seconds of its rounds, and peak memory of the server's processes in MB."""

    nodes: int
    rounds: list[float]
    superlink: float
    serverapp: float


def main(
    nodes: Annotated[str, typer.Option(help="Numbers of nodes, by commas.")] = "2,5,10,20",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each federation.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure federations of real SuperNodes."""
    measured = []
    for count in (int(part) for part in nodes.split(",")):
        with tempfile.TemporaryDirectory(prefix="metarec-deployment-") as folder:
            measured.append(measure(Path(folder), count, rounds))
        last = measured[-1]
        typer.echo(f"{count} nodes: rounds of {', '.join(f'{s:.1f}' for s in last.rounds)} s", err=True)
    first = statistics.median(measured[0].rounds)
    print_table(
        f"{rounds} rounds of real sites on one machine",
        ["nodes", "s a round", "ratio", "SuperLink, MB", "ServerApp, MB"],
        [
            [
                one.nodes,
                statistics.median(one.rounds),
                statistics.median(one.rounds) / first,
                one.superlink,
                one.serverapp,
            ]
            for one in measured
        ],
        f"{machine()}; all nodes share its cores",
    )
    write_figures(json_file, {"federations": [asdict(one) for one in measured]})


def measure(folder: Path, nodes: int, rounds: int) -> Measured:
    """Make a federation of ``nodes`` sites in ``folder``, run it, and take it down."""
    env = {**os.environ, **_QUIET, "METAREC_CACHE": str(folder / "cache"), "HOME": str(folder / "home")}
    home, ports = folder / "coordinator", _free_ports(nodes + 1)
    _write_items(folder / "shop")
    _metarec(env, "server", "init", home, "--port", ports[0], "--catalogue", folder / "shop")
    with contextlib.ExitStack() as running:
        server = running.enter_context(_started(env, folder / "server.log", "server", "start", home))
        _wait(lambda: _status(env, home) is not None, "the server answers")
        for number in range(nodes):
            site = folder / f"site-{number}"
            _make_site(env, home, site, ports[number + 1], number)
            running.enter_context(_started(env, folder / f"site-{number}.log", "site", "start", site))
        _wait(lambda: _online(env, home) == nodes, f"{nodes} sites are online")
        settings = (
            f"federation.min-nodes={nodes}", "federation.round-timeout=900", "regression.enabled=false",
            "regression.start-prior=false", "text.builtin-steps=2", "model.width=32",
        )  # fmt: skip
        options = [part for value in settings for part in ("--set", value)]
        command = ["server", "run", home, "--name", "run", "--rounds", rounds, *options]
        with _started(env, folder / "run.log", *command) as run:
            peaks = [0.0, 0.0]
            while run.poll() is None:
                peaks = [max(pair) for pair in zip(peaks, _server_megabytes(server.pid), strict=True)]
                time.sleep(SAMPLE_SECONDS)
        if run.returncode:
            raise FederationError((folder / "run.log").read_text(encoding="utf-8", errors="replace")[-2000:])
    lines = (home / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [float(json.loads(line)["seconds"]) for line in lines]
    return Measured(nodes=nodes, rounds=seconds, superlink=peaks[0], serverapp=peaks[1])


def _write_items(folder: Path) -> None:
    folder.mkdir()
    rows = [f"{item},A thing of kind {item % 17} and number {item}" for item in range(ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *rows]) + "\n", encoding="utf-8")


def _make_site(env: dict[str, str], home: Path, site: Path, port: int, number: int) -> None:
    _metarec(env, "site", "init", site, "--invitation", home / "invitation", "--name", site.name, "--mode", "none")
    settings = site / "site.toml"
    settings.write_text(
        settings.read_text(encoding="utf-8").replace("port = 9094", f"port = {port}", 1), encoding="utf-8"
    )
    rng = np.random.default_rng(number)
    rows = [
        f"{site.name}-{user},{item},{place}"
        for user in range(USERS)
        for place, item in enumerate(rng.permutation(ITEMS)[:HISTORY])
    ]
    text = "\n".join(["user_id,item_id,timestamp", *rows]) + "\n"
    (site / "data" / "interactions.csv").write_text(text, encoding="utf-8")
    _metarec(env, "server", "enroll", home, site / "site.key.pub", "--name", site.name)


def _metarec(env: dict[str, str], *arguments: object) -> str:
    command = [str(Path(sys.executable).parent / "metarec"), *(str(argument) for argument in arguments)]
    finished = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    if finished.returncode:
        raise FederationError(f"metarec {arguments[0]} {arguments[1]}: {finished.stderr[-500:]}")
    return finished.stdout


@contextlib.contextmanager
def _started(env: dict[str, str], log: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(Path(sys.executable).parent / "metarec"), *(str(argument) for argument in arguments)]
    with log.open("wb") as output, subprocess.Popen(command, env=env, stdout=output, stderr=output) as process:  # noqa: S603
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _status(env: dict[str, str], home: Path) -> dict[str, list[dict[str, str]]] | None:
    try:
        found: dict[str, list[dict[str, str]]] = json.loads(_metarec(env, "server", "status", home, "--json"))
    except FederationError:
        return None
    return found


def _online(env: dict[str, str], home: Path) -> int:
    status = _status(env, home)
    return 0 if status is None else sum(site["status"] == "online" for site in status["sites"])


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not condition():
        if time.monotonic() > deadline:
            raise FederationError(f"waited in vain: {what}")
        time.sleep(1.0)


def _server_megabytes(superlink: int) -> tuple[float, float]:
    """Return the resident memory of the SuperLink and of all its ServerApps, in MB."""
    apps = [pid for pid in _descendants(superlink) if "flwr-serverapp" in _command(pid)]
    return resident_megabytes([superlink]), resident_megabytes(apps)


def _descendants(parent: int) -> Sequence[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(above, []).append(int(folder.name))
    found, queue = [], [parent]
    while queue:
        queue += children.get(one := queue.pop(), [])
        found.append(one)
    return found[1:]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


if __name__ == "__main__":
    typer.run(main)
