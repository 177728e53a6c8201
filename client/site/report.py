"""What `metarec site status` shows."""

import os
from dataclasses import asdict
from typing import Any

from client.consent import excluded_users
from client.site.counts import read_counts
from client.site.folder import Site
from client.site.ledger_state import ledger_state
from client.site.status import read_status
from metarec_shared.errors import MetaRecError


def report(site: Site) -> dict[str, Any]:
    """Return how a site is doing, as JSON has it; what cannot be read is said, never left out."""
    status, counts = read_status(site.state), read_counts(site.state)
    found: dict[str, Any] = {"name": site.settings.name, "server": site.settings.server, "state": "never started"}
    if status is not None:
        found |= asdict(status)
        if status.state != "stopped" and not _lives(status.pid):
            found["state"] = "dead"
    found["excluded"] = _tried(lambda: len(excluded_users(site.excluded)))
    ledger = _tried(lambda: ledger_state(site.privacy_file))
    found["ledger"] = asdict(ledger) | {"left": ledger.left} if hasattr(ledger, "left") else ledger
    found["data"] = None if counts is None else asdict(counts)
    return found


def table(found: dict[str, Any]) -> str:
    """Return a report as a short table."""
    ledger, message, data = found["ledger"], found.get("last_message"), found["data"]
    lines = {"site": f"{found['name']}, server {found['server']}", "state": found["state"]}
    if "since" in found:
        lines["state"] += f" since {found['since']}"
        lines["node"] = found["node"] or "-"
        lines["restarts"] = str(found["restarts"])
        lines["messages"] = ", ".join(f"{count:,} {kind}" for kind, count in found["messages"].items()) or "none"
    if message:
        lines["last message"] = (
            f"{message['kind']}, run {message['run']}, round {message['round'] or '-'}, {message['time']}"
        )
    if found.get("error"):
        lines["last error"] = found["error"]
    if isinstance(ledger, dict):
        lines["epsilon"] = (
            f"{ledger['spent']:.4g} spent, {ledger['left']:.4g} left of {ledger['budget']:g} at delta "
            f"{ledger['delta']:g}, {ledger['releases']:,} releases"
        )
    else:
        lines["epsilon"] = ledger or "privacy mode none: nobody is protected"
    lines["excluded users"] = str(found["excluded"])
    if data:
        lines["data"] = (
            f"{data['users']:,} users, {data['interactions']:,} interactions, {data['skipped']:,} rows skipped"
        )
    return "\n".join(f"{name + ':':<16}{value}" for name, value in lines.items())


def _tried(read: Any) -> Any:
    try:
        return read()
    except (MetaRecError, OSError) as error:
        return f"cannot be read: {error}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
