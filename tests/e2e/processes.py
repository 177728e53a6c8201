"""Start the real commands as processes of their own, wait for conditions, and find what they leave behind."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.small import SMALL_RUN

BIN = Path(sys.executable).parent
MARK = "METAREC_TEST_PROCESS"
"""Environment variable that every process of a test inherits, however far it detaches itself."""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a test's processes: a cache of their own in ``folder``, and a mark."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    own = {"PATH": path, "METAREC_CACHE": str(folder / "cache"), MARK: uuid.uuid4().hex}
    return {**os.environ, **QUIET, **own, **more}


def small(**values: object) -> list[str]:
    """Return the options of a small run; keys of ``values`` use __ for the dot, _ for -."""
    changes = {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
    return [part for key, value in {**SMALL_RUN, **changes}.items() for part in ("--set", f"{key}={value}")]


def metarec(*arguments: object, env: Mapping[str, str], timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Run ``metarec`` to its end."""
    command = [str(BIN / "metarec"), *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def started(*arguments: object, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``metarec`` with its output in ``log``; on leaving, it is not running any more."""
    command = [str(BIN / "metarec"), *(str(argument) for argument in arguments)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=env, stdout=output, stderr=output, preexec_fn=_hear_interrupts) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _hear_interrupts() -> None:
    """Undo what a shell does to the children of a command in the background: it lets them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for ``condition``; fail if ``process`` ends before it holds, or after four minutes."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None, f"ended before: {what}"
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def lines_of(path: Path) -> int:
    """Return how many whole lines a file has by now."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def alive(env: Mapping[str, str]) -> list[int]:
    """Return the ids of all living processes that were started, by whomever, in the environment ``env``."""
    mark = f"{MARK}={env[MARK]}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found
