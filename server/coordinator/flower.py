"""Call Flower's own commands, with the coordinator's folder as Flower's home."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarec_shared.errors import FederationError
from metarec_shared.files import write_text
from metarec_shared.toml_text import toml_tables
from server.coordinator.home import Home, ServerSettings

CONNECTION = "metarec"
"""What Flower's configuration calls the SuperLink of this folder."""

SECONDS = 60.0
"""How long one of Flower's commands may take."""

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


_NEVER = ("FORWARDED_ALLOW_IPS", "FLWR_INTERNAL_")
"""Beginnings of variables that would have the server believe what a request says of its origin, or open other ports."""


def programs() -> Path:
    """Return the folder with Flower's programs, those of this Python."""
    return Path(sys.executable).parent


def environment(home: Home) -> Mapping[str, str]:
    """Return the environment that Flower's programs run in: no telemetry, no look-ups, and its home in ours."""
    path = os.pathsep.join([str(programs()), os.environ.get("PATH", "")])
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_NEVER)}
    return {**ours, **_QUIET, "FLWR_HOME": str(home.flower.absolute()), "PATH": path}


def write_connection(home: Home, settings: ServerSettings) -> None:
    """Tell Flower's commands where the SuperLink is: on this machine, behind its certificate."""
    superlink = {"address": f"127.0.0.1:{settings.port}", "root-certificates": str(home.authority.absolute())}
    text = toml_tables({"superlink.default": CONNECTION})
    text += toml_tables({f"{CONNECTION}.{key}": value for key, value in superlink.items()}, prefix="superlink.")
    write_text(home.flower / "config.toml", text)


def flwr(home: Home, *arguments: str, seconds: float = SECONDS) -> dict[str, Any]:
    """Run one of Flower's commands and return the JSON object it prints.

    Raises:
        FederationError: It fails, prints something else, or does not end.
    """
    command = [str(programs() / "flwr"), *arguments, "--format", "json"]
    said = f"flwr {' '.join(arguments[:2])}"
    try:
        finished = subprocess.run(  # noqa: S603 - Flower's own program, arguments are a list
            command,
            env=environment(home),
            cwd=home.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FederationError(f"{said} did not end within {seconds:g} s; is the server running?") from error
    answer = _parsed(finished.stdout)
    if answer is None or not answer.get("success", False):
        reason = (answer or {}).get("error-message") or _last_line(finished.stderr) or _last_line(finished.stdout)
        raise FederationError(f"{said} failed: {reason}")
    return answer


def _parsed(text: str) -> dict[str, Any] | None:
    """Return the JSON object in what a command printed; notes may stand before it."""
    start = text.find("{")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else (None, 0)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
