"""Keep a SuperNode running: start it again when it ends, and say in plain words what happens to it."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from client.site.events import Event, Kind, event_of, plain
from client.site.process import Child
from client.site.status import Status, write_status

logger = logging.getLogger("site")
output = logging.getLogger("supernode")

TICK = 0.5
"""Seconds after which a request to stop is noticed."""

REJOIN_WAIT = 10.0
"""Seconds between tries while the server takes the last connection for alive: about 45 s after a node was killed."""

REFUSED_WAIT = 60.0
"""Seconds between tries while the server refuses this site: somebody has to act first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """What stands between a site and its server.

    Attributes:
        said: What it is and what to do.
        refused: Whether the server refuses this site: then somebody has to act, and waiting alone does not help.
    """

    said: str
    refused: bool


class Backoff:
    """Seconds to wait before the next start: 1, 2, 4 ... 60, from the first again after two minutes of life.

    Args:
        first: The first wait.
        most: The longest.
        healthy: Seconds of life after which the next wait is the first again.
    """

    def __init__(self, *, first: float = 1.0, most: float = 60.0, healthy: float = 120.0) -> None:
        self._first, self._most, self._healthy = first, most, healthy
        self._next = first

    def after(self, lifetime: float) -> float:
        """Return how long to wait after a SuperNode that lived for ``lifetime`` seconds."""
        if lifetime >= self._healthy:
            self._next = self._first
        wait, self._next = self._next, min(2 * self._next, self._most)
        return wait


class Supervisor:
    """Runs a SuperNode until it is asked to stop.

    Args:
        launch: Starts one.
        why: Looks what stands between this site and its server; None: nothing does.
        approved: The file of what was approved; a SuperNode is started anew when it changes.
        state: The folder for the status.
        clock: Seconds, monotonic.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        launch: Callable[[], Child],
        *,
        why: Callable[[], Obstacle | None],
        approved: Path,
        state: Path,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._launch, self._why, self._approved, self._state = launch, why, approved, state
        self._clock, self._sleep = clock, sleep
        self._backoff = Backoff()
        self._stopping = False
        self._run, self._round = "", ""
        self._wait: float | None = None
        self._explained = self._unwritten = False
        self.status = Status(pid=os.getpid())

    def stop(self) -> None:
        """Ask for the end; a signal handler may."""
        self._stopping = True

    def run(self) -> None:
        """Run SuperNodes until ``stop`` was called; none is left behind.

        Raises:
            MetaRecError: What was approved cannot be read, so none can be started.
        """
        try:
            while not self._stopping:
                self._note("starting", "")
                if (child := self._started()) is not None:
                    self._live(child)
        finally:
            self._set(self.status.now("stopped"))
            logger.info("stopped")

    def _started(self) -> Child | None:
        """Start a SuperNode; None where the disk does not let one start: that is said, and tried again later."""
        try:
            return self._launch()
        except OSError as error:
            self._error(f"no SuperNode can be started: {error}")
            self._wait, self._explained = None, True
            self._pause(0.0)
            return None

    def _live(self, child: Child) -> None:
        """Watch one SuperNode from its start to its end, and wait as long as the next one has to."""
        began, approved = self._clock(), self._stamp()
        self._wait, self._explained = None, False
        try:
            while not (self._stopping or child.ended()):
                self._hear(child.read(TICK))
                if self._stamp() != approved:
                    logger.info("something else was approved: the SuperNode starts anew")
                    return
        finally:
            child.stop()
            while (line := child.read(0.0)) is not None:
                self._hear(line)
        if not self._stopping:
            self._pause(self._clock() - began)

    def _pause(self, lifetime: float) -> None:
        backoff = self._backoff.after(lifetime)
        if not self._explained and self.status.state in ("starting", "connected") and (obstacle := self._why()):
            if obstacle.refused:  # Flower ends a node whose request is answered by 401, and does not say why
                self._refused(obstacle.said)
            else:
                self._note("unreachable", obstacle.said)
        wait = backoff if self._wait is None else self._wait
        if self.status.state in ("starting", "connected"):
            self._set(self.status.now("waiting"))
        self._set(replace(self.status, restarts=self.status.restarts + 1))
        logger.warning("the SuperNode ended after %.0f s; the next one starts in %.0f s", lifetime, wait)
        until = self._clock() + wait
        while not self._stopping and (left := until - self._clock()) > 0:
            self._sleep(min(left, TICK))

    def _hear(self, line: str | None) -> None:
        if line is None or not (said := plain(line)):
            return
        output.info("%s", said)
        if event := event_of(said):
            self._take(event)

    def _take(self, event: Event) -> None:
        match event.kind:
            case Kind.CONNECTED:
                self._set(replace(self.status, node=event.first))
                self._note("connected", f"as node {event.first}")
            case Kind.RECONNECTED:
                if self.status.state == "unreachable":
                    self._note("connected", "again")
            case Kind.UNREACHABLE:
                if self.status.state != "unreachable":
                    obstacle = self._why()
                    self._note("unreachable", obstacle.said if obstacle else "the server does not answer; waiting")
            case Kind.UNTRUSTED:
                obstacle = self._why()
                self._refused(obstacle.said if obstacle else "the server's certificate was not accepted")
            case Kind.NOT_ACTIVATED:
                self._not_activated()
            case Kind.REFUSED_REQUEST:
                self._refused(f"the server refuses this node: {event.first}")
            case Kind.RUN:
                self._run, self._round = event.first, event.second
            case Kind.RECEIVED:
                self._set(self.status.received(event.first, self._run, self._round))
                logger.info("%s of run %s, round %s came", event.first, self._run, self._round or "-")
            case Kind.ANSWERED:
                logger.info("answered run %s, round %s", self._run, self._round or "-")
            case Kind.FOREIGN_BUNDLE | Kind.REFUSAL:
                self._error(event.first)
            case Kind.NOT_SENT:
                self._error(f"a reply could not be sent: {event.first}")
            case Kind.PORT_TAKEN:
                self._error(f"site.port is taken: {event.first}; choose another one in site.toml")

    def _not_activated(self) -> None:
        """Tell a key that the server does not know from a node that it still takes for online."""
        if obstacle := self._why():
            self._refused(obstacle.said)
            return
        self._wait, self._explained = REJOIN_WAIT, True
        self._note("waiting", "the server takes this site's last connection for alive; it forgets it within a minute")

    def _refused(self, reason: str) -> None:
        self._wait, self._explained = REFUSED_WAIT, True
        self._note("refused", reason)

    def _note(self, state: str, said: str) -> None:
        bad = state in ("refused", "unreachable")
        self._set(self.status.now(state, **({"error": said} if bad else {})))
        logger.log(logging.WARNING if bad else logging.INFO, "%s%s", state, f": {said}" if said else "")

    def _error(self, said: str) -> None:
        self._set(replace(self.status, error=said))
        logger.warning("%s", said)

    def _set(self, status: Status) -> None:
        """Take over a status, and write it down if the disk lets us: a full one must not end the supervisor."""
        self.status = status
        try:
            write_status(self._state, status)
            self._unwritten = False
        except OSError as error:
            if not self._unwritten:
                logger.warning("the status cannot be written, so it is out of date: %s", error)
            self._unwritten = True

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._approved.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino
