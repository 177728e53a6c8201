"""A federation on this machine as its operators would make it: their commands, real processes, TLS, keys."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from client.privacy.ledger import Ledger
from metarec_shared.partition import partition_users
from metarec_shared.toml_text import toml_value
from tests.e2e.processes import alive, environment, free_ports, metarec, started, wait_until
from tests.small import SMALL_RUN

ITEMS = 40

SETTINGS = {
    key: value for key, value in SMALL_RUN.items() if not key.startswith("generator.") and key != "federation.rounds"
} | {"federation.cohort": 60, "federation.round-timeout": 120.0, "federation.evaluate-every": 5}


def options(**values: str | float | bool) -> list[str]:
    changes = {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
    return [part for key, value in {**SETTINGS, **changes}.items() for part in ("--set", f"{key}={toml_value(value)}")]


def write_data(folder: Path, users: int, sites: int, seed: int = 0) -> list[pd.DataFrame]:
    """Write a whole data set into ``folder``, and return each site's part of it, as a simulation would spread it."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    titles = [f"{i},A {['red', 'green', 'blue'][i % 3]} film of number {i}" for i in range(ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    rows = [
        (user, item, int(rng.integers(1, 6)), 1000 * user + place)
        for user in range(users)
        for place, item in enumerate(rng.permutation(ITEMS)[: rng.integers(10, 20)])
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    table.to_csv(folder / "interactions.csv", index=False)
    parts = partition_users(users, sites, "even", 0)
    return [table[table.user_id.isin(parts.of(site))] for site in range(sites)]


def ok(finished: subprocess.CompletedProcess[str]) -> str:
    """Return what a command printed, which must have succeeded."""
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


@dataclass
class Federation:
    """A coordinator's folder and its sites', and the processes that run of them."""

    root: Path
    env: Mapping[str, str]
    port: int
    sites: dict[str, Path] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def home(self) -> Path:
        """The coordinator's folder."""
        return self.root / "coordinator"

    def command(self, *arguments: object, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Run a command of ``metarec`` to its end."""
        return metarec(*arguments, env=self.env, timeout=timeout)

    def log(self, name: str) -> Path:
        """Return the log of what was started under a name."""
        return self.root / f"{name}.log"

    def start(self, name: str, **more: str) -> None:
        """Start the server (``server``) or a site, with ``more`` in its environment."""
        arguments = ("server", "start", self.home) if name == "server" else ("site", "start", self.sites[name])
        process = self._stack.enter_context(started(*arguments, env={**self.env, **more}, log=self.log(name)))
        self.processes[name] = process

    def start_server(self) -> None:
        """Start the server and wait until it answers."""
        self.start("server")
        wait_until(lambda: self.answers(), "the server answers", self.processes["server"])

    def answers(self) -> bool:
        """Return whether something listens where the server does."""
        with socket.socket() as one:
            one.settimeout(1.0)
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def states(self) -> dict[str, str]:
        """Return each site's status as the coordinator sees it."""
        status = json.loads(ok(self.command("server", "status", self.home, "--json")))
        return {site["name"]: site["status"] for site in status["sites"]}

    def wait_for(self, names: Sequence[str], status: str = "online") -> None:
        """Wait until the coordinator sees sites in a state; asking costs a second or two of a core."""
        deadline = time.monotonic() + 240
        while (seen := {name: self.states()[name] for name in names}) != dict.fromkeys(names, status):
            assert time.monotonic() < deadline, f"wanted {status}, got {seen}"

    def kill(self, name: str) -> None:
        """Kill a process without warning."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def close(self) -> None:
        """End everything, the sites first."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        self._stack.close()


@contextmanager
def federation(root: Path, **more: str) -> Iterator[Federation]:
    """Give an empty federation whose processes are gone afterwards."""
    env = environment(root, HOME=str(root / "home"), **more)
    made = Federation(root=root, env=env, port=free_ports(1)[0])
    try:
        yield made
    finally:
        made.close()
        for process in alive(env):
            os.kill(process, signal.SIGKILL)


def make_site(made: Federation, name: str, mode: str = "none") -> None:
    """Make a site's folder from the coordinator's invitation, with a port of its own, and enrol its key."""
    folder = made.root / name
    made.sites[name] = folder
    invitation = made.home / "invitation"
    ok(made.command("site", "init", folder, "--invitation", invitation, "--name", name, "--mode", mode))
    set_number(folder / "site.toml", "port", free_ports(1)[0])
    ok(made.command("server", "enroll", made.home, folder / "site.key.pub", "--name", name))


def set_number(path: Path, key: str, value: int) -> None:
    """Change a number in a file of settings, as an operator's editor would."""
    text, count = re.subn(rf"^{key} = \d+", f"{key} = {value}", path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)


PRIVACY = """
[privacy]
mode = "site"
users = 100
clip-norm = 1.0
noise-multiplier = 1.0
sampling-rate = 0.1
popularity-noise = 10.0
ledger = "ledger.sqlite"
witness = "witness.json"
"""
"""A site's privacy file."""

PRIVATE_RUN = {
    "privacy.mode": "site", "privacy.noise-multiplier": 1.0, "privacy.sampling-rate": 0.1,
    "privacy.popularity-noise": 10.0, "federation.clip-norm": 1.0,
}  # fmt: skip
"""Settings of a run that sites with ``PRIVACY`` take part in."""


def keep_ledger(made: Federation, name: str) -> None:
    """Give a site terms of privacy, and a ledger with a budget."""
    folder = made.sites[name]
    (folder / "privacy.toml").write_text(PRIVACY)
    ledger = ["--ledger", folder / "ledger.sqlite", "--witness", folder / "witness.json"]
    budget = ["--epsilon", "8", "--delta", "1e-5", "--noise-multiplier", "1", "--sampling-rate", "0.1"]
    ok(made.command("privacy", "init", *ledger, *budget, "--popularity-noise", "10"))


def meta_updates(made: Federation, name: str) -> list[int]:
    """Return the rounds of the meta-updates that a site's ledger holds."""
    ledger = Ledger.open(made.sites[name] / "ledger.sqlite", made.sites[name] / "witness.json")
    return [one.round_number for one in ledger.releases() if one.mechanism.name == "meta-update"]
