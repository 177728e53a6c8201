"""What ``metarec server status`` says."""

import json
import sys
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from server.coordinator.home import Home
from server.coordinator.runs import Progress, latest
from server.coordinator.sites import Site, site_states

SHOWN_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Sites and runs of a federation, the latest run first."""

    sites: list[Site]
    runs: list[Progress]


def status_of(home: Home) -> Status:
    """Ask the server.

    Raises:
        FederationError: It does not answer.
    """
    home.settings()
    return Status(sites=site_states(home), runs=latest(home)[:SHOWN_RUNS])


def print_json(status: Status) -> None:
    """Print it as one JSON object."""
    runs = [
        asdict(run) | {"failures": [{"site": s, "cause": c, "count": n} for (s, c), n in sorted(run.failures.items())]}
        for run in status.runs
    ]
    value = {"sites": [asdict(site) for site in status.sites], "runs": runs}
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_tables(status: Status) -> None:
    """Print it for people."""
    console = Console(highlight=False)
    sites = Table("site", "status", "since", "node")
    for site in status.sites:
        sites.add_row(site.name, site.status, site.seen, site.node_id)
    console.print(sites, markup=False)
    runs = Table("run", "status", "rounds", "time left")
    for run in status.runs:
        runs.add_row(run.name, run.status, f"{run.rounds}/{run.wanted}", _left(run))
    console.print(runs, markup=False)
    if status.runs and status.runs[0].failures:
        failures = Table("site", "failures", "cause", title=f"run {status.runs[0].name}")
        for (name, cause), count in sorted(status.runs[0].failures.items()):
            failures.add_row(name, str(count), cause)
        console.print(failures, markup=False)


def _left(run: Progress) -> str:
    if run.finished or run.seconds_left is None:
        return "-"
    minutes, seconds = divmod(round(run.seconds_left), 60)
    return f"{minutes}:{seconds:02d}"
