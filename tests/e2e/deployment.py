"""A SuperLink with TLS and authentication on the loopback interface, as a coordinator runs one, for tests of sites."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.certificates import Authority
from tests.e2e.processes import BIN, alive, environment, free_ports, wait_until

SITE = (sys.executable, "-c", "from client.site.cli import site_app; site_app()")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A running SuperLink.

    Attributes:
        port: Where it listens.
        env: Environment of all that belongs to it, with a FLWR_HOME whose connection ``here`` leads to it.
        authority: Whose certificate it has.
    """

    port: int
    env: dict[str, str]
    authority: Authority


@contextmanager
def superlink(folder: Path) -> Iterator[Link]:
    """Start a SuperLink with its state in ``folder``; all processes with its mark are gone afterwards."""
    authority, port = Authority.new(), free_ports(1)[0]
    root = authority.write(folder / "ca.crt")
    certificate, key = authority.server(folder / "tls")
    home = folder / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{root}"\n'
    )
    env = environment(folder, FLWR_HOME=str(home), HOME=str(folder / "home"))
    command = [
        BIN / "flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--enable-supernode-auth",
        "--ssl-ca-certfile", root, "--ssl-certfile", certificate, "--ssl-keyfile", key,
        "--database", folder / "state.db", "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen([str(part) for part in command], env=env, cwd=folder, stdout=log, stderr=log)
        try:
            wait_until(lambda: _listens(port), "the SuperLink listens", process)
            yield Link(port=port, env=env, authority=authority)
        finally:
            process.terminate()
            process.wait(30)
            for left in alive(env):
                os.kill(left, signal.SIGTERM)
            wait_until(lambda: not alive(env), "all processes of the deployment end")


def flwr(*arguments: object, link: Link, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Flower's command line to its end."""
    command = [str(BIN / "flwr"), *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=link.env, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)


def site_command(*arguments: object, link: Link) -> subprocess.CompletedProcess[str]:
    """Run `metarec site ...` to its end."""
    command = [*SITE, *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=link.env, capture_output=True, text=True, timeout=900, check=False)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
