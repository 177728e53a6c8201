"""A round of many one-user nodes: the in-process grid against Flower's simulation engine on Ray.

``python -m simulations.benchmarks.engine [--nodes 10,100,1000,10000] [--json FILE]``

The same ServerApp and ClientApp, the default model, the generated data set, every node asked in every round. A
round's time is what the server records from its first message to its outer step; the median over rounds leaves out the
first, in which Ray's workers start and load the data. Ray is measured up to ``--ray-up-to`` nodes and extrapolated
beyond, in proportion to the nodes.
"""

import json
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import load_file

from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_training_dataset
from metarec_shared.split import Role
from server.run_folder import METRICS_FILE, RESUME_FILE, read_metrics
from simulations.benchmarks.measure import machine, print_table, write_figures
from simulations.engines import ENGINES

ROUNDS = 3
USERS_PER_NODE_MARGIN = 1.4
"""Generated users for each wanted node: four in five meta-train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of nodes.

    Attributes:
        nodes: One-user nodes asked in a round.
        seconds_in_process: Seconds of a round.
        seconds_ray: The same on Ray.
        measured: Whether Ray was measured, not extrapolated.
        difference: Largest difference of a parameter after all rounds; None where Ray was not measured.
    """

    nodes: int
    seconds_in_process: float
    seconds_ray: float
    measured: bool
    difference: float | None

    def figures(self) -> dict[str, Any]:
        """Return the row as it stands in the JSON file."""
        return {
            "nodes": self.nodes,
            "seconds_in_process": self.seconds_in_process,
            "seconds_ray": self.seconds_ray,
            "speedup": self.seconds_ray / self.seconds_in_process,
            "ray": "measured" if self.measured else "extrapolated",
            "difference": self.difference,
        }


def settings_for(nodes: int, items: int, folder: Path) -> Settings:
    """Return the settings of a federation in which exactly ``nodes`` one-user nodes meta-train, all in every round."""
    values = {
        "generator.users": max(20, round(nodes * USERS_PER_NODE_MARGIN)),
        "generator.items": items,
        "text.encoder": "builtin",
        "federation.rounds": ROUNDS,
        "federation.cohort": nodes,
        "federation.evaluate-every": ROUNDS,
        "federation.checkpoint-every": ROUNDS,
        "federation.round-timeout": 3600.0,
        "evaluation.users": 1,
        "run.out": str(folder),
    }
    settings = Settings().with_values(values, "engine benchmark")
    dataset = load_training_dataset(settings)
    population = Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)
    last = int(population.users(Role.TRAINING)[nodes - 1])
    return replace(settings, generator=replace(settings.generator, users=max(20, last + 1)))


def seconds_a_round(engine: str, settings: Settings) -> float:
    """Run a federation on ``engine``; return the median seconds of a round but the first."""
    ENGINES[engine](settings)
    rounds = read_metrics(Path(settings.run.out) / METRICS_FILE)
    return float(statistics.median(line["seconds"] for line in rounds[1:]))


def largest_difference(left: Path, right: Path) -> float:
    """Return the largest difference between the meta-initializations that two runs ended with."""
    ours, theirs = (load_file(folder / RESUME_FILE) for folder in (left, right))
    names = [name for name in ours if name.startswith("parameters/")]
    return max(float((ours[name] - theirs[name]).abs().max()) for name in names)


def measure(nodes: int, items: int, *, ray: bool) -> Row:
    """Measure one number of nodes."""
    with tempfile.TemporaryDirectory() as name:
        folders = {engine: Path(name) / engine for engine in ENGINES}
        settings = {engine: settings_for(nodes, items, folder) for engine, folder in folders.items()}
        ours = seconds_a_round("in-process", settings["in-process"])
        theirs = seconds_a_round("ray", settings["ray"]) if ray else float("nan")
        difference = largest_difference(*folders.values()) if ray else None
    return Row(nodes=nodes, seconds_in_process=ours, seconds_ray=theirs, measured=ray, difference=difference)


def extrapolated(row: Row, largest: Row) -> Row:
    """Return ``row`` with Ray's time in proportion to that of the largest measured one."""
    return replace(row, seconds_ray=largest.seconds_ray * row.nodes / largest.nodes)


def main(
    nodes: Annotated[str, typer.Option(help="Numbers of nodes, by commas.")] = "10,100,1000,10000",
    items: Annotated[int, typer.Option(help="Items of the generated catalogue.")] = 400,
    ray_up_to: Annotated[int, typer.Option(help="Most nodes that Ray is measured with.")] = 1000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Compare the engines on one round of many one-user nodes."""
    rows: list[Row] = []
    for count in sorted({int(part) for part in nodes.split(",")}):
        typer.echo(f"{count} nodes", err=True)
        row = measure(count, items, ray=count <= ray_up_to)
        measured = [earlier for earlier in rows if earlier.measured]
        rows.append(row if row.measured or not measured else extrapolated(row, measured[-1]))
    columns = ("nodes", "in process, s", "Ray, s", "", "speedup", "difference")
    figures = [row.figures() for row in rows]
    cells = [
        (f["nodes"], f["seconds_in_process"], f["seconds_ray"], f["ray"], f["speedup"], f["difference"] or "-")
        for f in figures
    ]
    note = f"seconds of a round, median of {ROUNDS - 1}; difference of parameters after {ROUNDS} rounds; {machine()}"
    print_table("One round of one-user nodes, the same ServerApp and ClientApp", columns, cells, note)
    write_figures(json_file, {"rows": json.loads(json.dumps(figures).replace("NaN", "null"))})


if __name__ == "__main__":
    typer.run(main)
