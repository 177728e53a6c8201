"""A SuperNode as a child process: its output line by line, and an end that leaves nothing behind."""

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

_PARENT_DEATH_SIGNAL, _CHILD_SUBREAPER = 1, 36  # prctl(2)
GRACE = 15.0
"""Seconds that a SuperNode has to end by itself; Flower's own exit takes up to 5."""


class Child(Protocol):
    """A running SuperNode."""

    def read(self, timeout: float) -> str | None:
        """Return the next line of its output, None where none comes in time."""

    def ended(self) -> bool:
        """Say whether it has ended."""

    def stop(self) -> None:
        """End it and whatever it started; return when nothing is left."""


class SuperNode:
    """A child in a process group of its own.

    Args:
        command: What to run.
        environment: Its environment.
        folder: Its working directory.
        grace: Seconds it has to end by itself.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, *, grace: float = GRACE
    ) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._grace = grace
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._collect, name="supernode-output", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process, which is also its group."""
        return self._process.pid

    def read(self, timeout: float) -> str | None:
        """Return the next line of its output, None where none comes in time."""
        try:
            return self._lines.get(timeout=timeout)
        except queue.Empty:
            return None

    def ended(self) -> bool:
        """Say whether it has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it, by SIGTERM first, then its group; return when nothing is left."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for number, patience in ((signal.SIGTERM, self._grace), (signal.SIGKILL, self._grace)):
            if self._group_is_gone(number, patience):
                return

    def _group_is_gone(self, number: int, patience: float) -> bool:
        """Send a signal to what is left of the group and wait until nothing is."""
        deadline = time.monotonic() + patience
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        while True:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-self.pid, os.WNOHANG)[0]:  # orphans of the group that became children of ours
                    pass
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)

    def _collect(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line.decode(errors="replace"))


def adopt_orphans() -> None:
    """Become the parent of what a dead child leaves running, so that it can be waited for; Linux only."""
    _prctl(_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """End this process when its parent does, even by SIGKILL; Linux only.

    Args:
        parent: The process that must be the parent; where it is none any more, this process ends now.
    """
    _prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
