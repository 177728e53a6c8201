"""Start runs on the SuperLink, follow them, and say how they go."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metarec_shared.errors import FederationError, SettingsError
from metarec_shared.files import write_json, write_text
from metarec_shared.settings import Settings
from metarec_shared.toml_text import toml_tables
from server.coordinator.flower import CONNECTION, environment, flwr, programs
from server.coordinator.home import Home
from server.failures import FAILURES_FILE
from server.run_folder import METRICS_FILE, SETTINGS_FILE, check_folder, read_metrics

RUNS_FILE = "runs.json"
POLL_SECONDS = 20.0
"""Seconds between questions whether a run has ended, where its log does not say so; asking starts a process."""

CAUSES = 200
"""Letters of a cause that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        name: Its name, that of its folder.
        run_id: Flower's.
        status: Flower's, for example ``running`` or ``finished:completed``.
        details: What Flower says beside it.
        rounds: Rounds that are done.
        wanted: Rounds in all.
        seconds_left: Time left by the pace of the last rounds; None before the first.
        failures: How often each cause was met at each site, ``{(site, cause): count}``.
    """

    name: str
    run_id: int
    status: str
    details: str
    rounds: int
    wanted: int
    seconds_left: float | None
    failures: dict[tuple[str, str], int]

    @property
    def finished(self) -> bool:
        """Whether the run has come to an end, good or bad."""
        return self.status.startswith("finished")


def start_run(home: Home, name: str, settings: Settings) -> int:
    """Submit a run; return Flower's id of it.

    Args:
        home: The coordinator's folder.
        name: Of the run's folder.
        settings: What the run is to do; where it lies is added here.

    Raises:
        FederationError: The SuperLink does not take it, or another run is under way.
        CheckpointError: The folder holds a run that is not resumed, or none to resume.
    """
    folder = (home.runs / name).absolute()
    check_folder(folder, resume=settings.run.resume)
    if under_way := [one for one in _listed(home) if not one["status"].startswith("finished")]:
        raise FederationError(
            f"run {_names(home).get(under_way[0]['run-id'], under_way[0]['run-id'])} is under way; wait for it, or "
            "metarec server stop"
        )
    settings = replace(settings, run=replace(settings.run, out=str(folder)))
    overrides = home.runs / f"{name}.toml"
    write_text(overrides, toml_tables(settings.flat()))
    answer = flwr(home, "run", str(home.app.absolute()), CONNECTION, "--run-config", str(overrides.absolute()))
    run_id = int(answer["run-id"])
    write_json(home.folder / RUNS_FILE, _names(home) | {str(run_id): name})
    return run_id


def follow(home: Home, run_id: int, sleep: Callable[[float], None] = time.sleep) -> Progress:
    """Show a run's log as it is written, until the run has come to an end; return how it ended."""
    command = [str(programs() / "flwr"), "log", str(run_id), CONNECTION, "--stream"]
    with subprocess.Popen(command, env=dict(environment(home)), cwd=home.folder) as log:  # noqa: S603
        try:
            found = None
            while found is None or not found.finished:
                if found is not None and log.poll() is not None:
                    sleep(POLL_SECONDS)  # the log ended, and the run has not: the server was too busy to show it
                with contextlib.suppress(subprocess.TimeoutExpired):
                    log.wait(POLL_SECONDS)  # it ends soon after the run
                found = progress(home, run_id)
        finally:
            log.terminate()
    return found


def progress(home: Home, run_id: int) -> Progress:
    """Return how far a run is.

    Raises:
        FederationError: The SuperLink does not answer, or knows no such run.
    """
    listed = flwr(home, "list", CONNECTION, "--run-id", str(run_id))["runs"]
    if not listed:
        raise FederationError(f"the server knows no run {run_id}")
    return _progress(home, listed[0], _names(home))


def latest(home: Home) -> list[Progress]:
    """Return how far all runs are that the SuperLink knows, the latest first."""
    names = _names(home)
    return [_progress(home, one, names) for one in _listed(home)]


def run_id_of(home: Home, name: str) -> int:
    """Return Flower's id of the latest run of a name.

    Raises:
        SettingsError: There is none.
    """
    ids = [int(run_id) for run_id, known in _names(home).items() if known == name]
    if not ids:
        raise SettingsError(f"no run {name}; there are {', '.join(sorted(set(_names(home).values()))) or 'none'}")
    return ids[-1]


def stop_run(home: Home, run_id: int) -> None:
    """Stop a run; what it wrote stays, and it can be resumed."""
    flwr(home, "stop", str(run_id), CONNECTION)


def default_name() -> str:
    """Return a name for a run that was given none."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def _listed(home: Home) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = flwr(home, "list", CONNECTION)["runs"]
    return runs


def _names(home: Home) -> dict[str, str]:
    path = home.folder / RUNS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def run_names(home: Home) -> list[str]:
    """Return the names of all runs that were started, the latest last."""
    return list(dict.fromkeys(reversed(_names(home).values())))[::-1]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a run has written so far, by which its progress is told."""

    folder: Path

    def rounds(self) -> list[dict[str, Any]]:
        """Return the figures of the rounds that are done."""
        return read_metrics(self.folder / METRICS_FILE)

    def wanted(self) -> int:
        """Return how many rounds there will be; 0 before the run has begun."""
        path = self.folder / SETTINGS_FILE
        if not path.exists():
            return 0
        return int(json.loads(path.read_text(encoding="utf-8"))["federation"]["rounds"])

    def failures(self) -> dict[tuple[str, str], int]:
        """Return how often each cause was met at each site; half a last line is passed over."""
        path, counts = self.folder / FAILURES_FILE, dict[tuple[str, str], int]()
        if not path.exists():
            return counts
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                failure = json.loads(line)
                key = (str(failure["name"] or failure["node"]), str(failure["cause"])[:CAUSES])
                counts[key] = counts.get(key, 0) + 1
        return counts


def _progress(home: Home, listed: dict[str, Any], names: dict[str, str]) -> Progress:
    name = names.get(str(listed["run-id"]), str(listed["run-id"]))
    files = RunFiles(home.runs / name)
    rounds, wanted = files.rounds(), files.wanted()
    recent = [line["seconds"] for line in rounds[-5:] if line.get("seconds") is not None]
    left = sum(recent) / len(recent) * max(0, wanted - len(rounds)) if recent else None
    return Progress(
        name=name,
        run_id=int(listed["run-id"]),
        status=str(listed["status"]),
        details=str(listed.get("status-details", "")),
        rounds=len(rounds),
        wanted=wanted,
        seconds_left=left,
        failures=files.failures(),
    )
