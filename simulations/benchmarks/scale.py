"""Federations of a thousand to a million virtual devices: time and memory of a round, and what they grow with.

``python -m simulations.benchmarks.scale [--json FILE]``

Histories are made up and written as a packed data set, which a run maps from disk. Every federation runs in a process
of its own, whose peak memory is the system's figure for it, and those of one table take turns. A round is what a server
records, with one device a user. Enrolment, which every device answers once, is listed beside it.
"""

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import Dataset, RatingScale
from metarec_shared.packed import write_packed
from metarec_shared.settings import Settings
from simulations.benchmarks.cohort import draw_histories
from simulations.benchmarks.measure import machine, print_table, write_figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """The sizes of one federation.

    Attributes:
        devices: Virtual devices, one user each.
        cohort: Users a round.
        items: Items of the catalogue.
        history: Mean history length.
    """

    devices: int
    cohort: int
    items: int
    history: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run: seconds of its rounds and of enrolment, users of a round, and peak resident memory in GB."""

    rounds: list[float]
    users: float
    enrolment: float
    gigabytes: float


def write_data(federation: Federation, folder: Path, seed: int = 0) -> None:
    """Write the packed data set of a federation."""
    rng = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(100)]
    titles = tuple(f"Item {item}" for item in range(federation.items))
    texts = tuple(f"{title}. {' '.join(rng.choice(words, 6))}" for title in titles)
    write_packed(
        Dataset(
            name="made up",
            layout="generated",
            catalogue=Catalogue(item_ids=tuple(map(str, range(federation.items))), titles=titles, texts=texts),
            interactions=draw_histories(rng, federation.devices, federation.items, federation.history),
            rating_scale=RatingScale(low=1.0, high=5.0),
        ),
        folder,
    )


def run(federation: Federation, data: Path, rounds: int) -> Measured:
    """Run one federation in this process."""
    from metarec_shared.sources import load_item_features
    from server.federation import enroll_nodes
    from server.run_folder import METRICS_FILE, read_metrics
    from simulations.engines import in_process_grid, run_in_process

    with tempfile.TemporaryDirectory() as name:
        values = {
            "data.path": str(data),
            "text.encoder": "builtin",
            "text.builtin-steps": 5,
            "federation.rounds": rounds,
            "federation.cohort": federation.cohort,
            "federation.evaluate-every": rounds,
            "federation.checkpoint-every": rounds,
            "evaluation.users": 10,
            "run.out": name,
        }
        settings = Settings().with_values(values, "scale benchmark")
        public, grid = load_item_features(settings), in_process_grid(settings)
        began = time.perf_counter()
        enroll_nodes(grid, settings, public)
        enrolment = time.perf_counter() - began
        run_in_process(settings)
        lines = read_metrics(Path(name) / METRICS_FILE)[1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(
        rounds=[float(line["seconds"]) for line in lines],
        users=statistics.mean(line["users"] for line in lines),
        enrolment=enrolment,
        gigabytes=peak / 1e9,
    )


def measure(federations: list[Federation], rounds: int, turns: int) -> list[Measured]:
    """Run federations in turn, each time in a new process; return for each the rounds of all turns."""
    found: dict[Federation, list[Measured]] = {federation: [] for federation in federations}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folders = {federation: Path(name) / str(number) for number, federation in enumerate(federations)}
        for federation, folder in folders.items():
            with context.Pool(1) as pool:
                pool.apply(write_data, (federation, folder))
        for turn in range(turns):
            for federation, folder in folders.items():
                typer.echo(f"turn {turn + 1} of {turns}: {federation}", err=True)
                with context.Pool(1) as pool:
                    found[federation].append(pool.apply(run, (federation, folder, rounds)))
    return [
        Measured(
            rounds=[second for measured in each for second in measured.rounds],
            users=statistics.mean(measured.users for measured in each),
            enrolment=statistics.median(measured.enrolment for measured in each),
            gigabytes=max(measured.gigabytes for measured in each),
        )
        for each in found.values()
    ]


def tables(largest: int, cohort: int, items: int, history: int) -> dict[str, list[Federation]]:
    """Return the federations of each table: one size grows, the others stay."""
    usual = Federation(devices=min(100_000, largest), cohort=cohort, items=items, history=history)
    devices = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= largest]
    return {
        "devices": [replace(usual, devices=count) for count in devices],
        "cohort": [replace(usual, cohort=round(cohort * share)) for share in (0.25, 0.5, 1, 2, 4)],
        "items": [replace(usual, items=round(items * share)) for share in (0.25, 1, 4)],
        "history": [replace(usual, history=round(history * share)) for share in (0.5, 1, 4)],
    }


def _reference(grows: str, federations: list[Federation]) -> int:
    """Return which row the others are compared with: in the table of devices that of 10,000, else the first."""
    return min(
        range(len(federations)), key=lambda row: abs(federations[row].devices - 10_000) if grows == "devices" else 0
    )


def figures_of(grows: str, federations: list[Federation], found: list[Measured]) -> list[dict[str, Any]]:
    """Return the rows of a table as they stand in the JSON file."""
    base = statistics.median(found[_reference(grows, federations)].rounds)
    rows = []
    for federation, measured in zip(federations, found, strict=True):
        seconds = statistics.median(measured.rounds)
        rows.append(
            {
                **asdict(federation),
                "grows": grows,
                "seconds_a_round": seconds,
                "ratio": seconds / base,
                "microseconds_a_user": 1e6 * seconds / measured.users,
                "enrolment_seconds": measured.enrolment,
                "peak_gb": measured.gigabytes,
            }
        )
    return rows


def main(
    largest: Annotated[int, typer.Option(help="Most devices.")] = 1_000_000,
    cohort: Annotated[int, typer.Option(help="Users a round where the cohort does not grow.")] = 1_000,
    items: Annotated[int, typer.Option(help="Items where the catalogue does not grow.")] = 1_000,
    history: Annotated[int, typer.Option(help="Mean history length where histories do not grow.")] = 40,
    rounds: Annotated[int, typer.Option(help="Rounds of a run; the first does not count.")] = 6,
    turns: Annotated[int, typer.Option(help="Turns.")] = 3,
    only: Annotated[
        str, typer.Option(help="Tables, by commas: devices, cohort, items, history.")
    ] = "devices,cohort,items,history",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure time and memory of simulated federations as functions of their sizes."""
    rows = []
    for grows, federations in tables(largest, cohort, items, history).items():
        if grows not in only.split(","):
            continue
        part = figures_of(grows, federations, measure(federations, rounds, turns))
        rows += part
        columns = ("devices", "cohort", "items", "history", "s a round", "ratio", "us a user", "enrolment s", "peak GB")
        keys = ("seconds_a_round", "ratio", "microseconds_a_user", "enrolment_seconds", "peak_gb")
        cells = [[f"{row[name]:,}" for name in columns[:4]] + [row[key] for key in keys] for row in part]
        print_table(f"What grows: {grows}", columns, cells, machine())
    write_figures(json_file, {"rows": json.loads(json.dumps(rows))})


if __name__ == "__main__":
    typer.run(main)
