"""A run exported for devices: does it recommend the same, how large is it, what does a user cost.

``python -m simulations.benchmarks.edge --model RUN [--data DIR] [--users 500] [--json FILE]``

For cold-start users of the run, in each order of histories: the graph against PyTorch, list by list. Then exports that
are quantized or pruned, nDCG@10 against file size. Then, in turns, adapting and recommending for one user at a time on
one core: the graph through ONNX Runtime, the model in PyTorch, and the scoring of EASE and item-kNN, which sum rows of
a dense matrix; their regularization does not change what they cost and is not tuned. Last, the memory of a process that
loads the graph and recommends, and nothing else.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from client.export.export import Choices, export_onnx
from client.export.exported import GRAPH_FILE
from client.export.runtime import EdgeRecommender
from client.history import Profile
from client.recommend import recommend
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.device import one_thread
from metarec_shared.split import Role
from simulations.baselines.baseline import Baseline
from simulations.baselines.ease import fit_ease
from simulations.baselines.item_knn import fit_item_knn
from simulations.benchmarks.cold_users import Cells, K, Ranked, cold_users, compared, ndcg
from simulations.benchmarks.measure import machine, print_table, ratio, take_turns, write_figures
from simulations.run_data import data_settings, training_population

USERS_A_TURN = 20
REGULARIZATION, NEIGHBOURS, SHRINKAGE = 500.0, 200, 10.0

_MEMORY = """
import json, sys
from pathlib import Path
from client.export.runtime import EdgeRecommender
from client.history import Item, Profile
edge = EdgeRecommender(Path(sys.argv[1]))
for positions in json.load(sys.stdin):
    edge.recommend(Profile(items=[Item(position=position) for position in positions]), 10)
assert "torch" not in sys.modules
lines = Path("/proc/self/status").read_text().splitlines()
print(max(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)
"""


def parity(cells: Cells, edge: EdgeRecommender, torch_path: Callable[[Profile], Ranked]) -> dict[str, float]:
    """Compare the graph with PyTorch, one user at a time."""
    profiles = [user.profile for users in cells.values() for user in users]
    return compared([edge.recommend(one, K) for one in profiles], [torch_path(one) for one in profiles])


def variants(run: Path, folder: Path, cells: Cells, pruned: Sequence[int]) -> list[dict[str, Any]]:
    """Export each variant; return its size and nDCG@10, the float one of all weights first."""
    rows: list[dict[str, Any]] = []
    for neighbours in (None, *pruned):
        for int8 in (False, True):
            out = folder / f"{neighbours or 'all'}-{'int8' if int8 else 'float'}"
            typer.echo(f"exporting {out.name}", err=True)
            size = export_onnx(run, out, Choices(int8=int8, neighbours=neighbours))[GRAPH_FILE]
            edge = EdgeRecommender(out)
            values = {
                order: ndcg(users, edge.recommend_all([user.profile for user in users], K))
                for order, users in cells.items()
                if users
            }
            row: dict[str, Any] = {"neighbours": neighbours, "int8": int8, "bytes": size, "ndcg@10": values}
            first = rows[0] if rows else row
            row["of_bytes"] = size / first["bytes"]
            row["of_ndcg"] = {order: value / first["ndcg@10"][order] for order, value in values.items()}
            rows.append(row)
    return rows


def cost(
    cells: Cells,
    edges: dict[str, EdgeRecommender],
    torch_path: Callable[[Profile], Ranked],
    baselines: dict[str, Baseline],
    turns: int,
) -> dict[str, Any]:
    """Return milliseconds a user of every way to recommend, and how many times as long as the graph it takes."""
    profiles = [user.profile for users in cells.values() for user in users[:USERS_A_TURN]]

    def by_baseline(baseline: Baseline) -> Callable[[Profile], object]:
        def score(profile: Profile) -> object:
            support = torch.tensor([[item.position for item in profile.items]])
            scores = baseline.scores(support, torch.ones_like(support, dtype=torch.bool))[0]
            scores[support[0]] = -math.inf
            return scores.topk(K)

        return score

    ways: dict[str, Callable[[Profile], object]] = {
        **{name: partial(edge.recommend, k=K) for name, edge in edges.items()},
        "PyTorch": torch_path,
        **{name: by_baseline(baseline) for name, baseline in baselines.items()},
    }

    def for_all(way: Callable[[Profile], object]) -> None:
        for profile in profiles:
            way(profile)

    seconds = take_turns({name: partial(for_all, way) for name, way in ways.items()}, turns)
    graph = seconds[next(iter(edges))]
    return {
        name: {
            "ms": 1000 * statistics.median(times) / len(profiles),
            "ratio": (found := ratio(times, graph)).median,
            "ratio_low": found.low,
            "ratio_high": found.high,
        }
        for name, times in seconds.items()
    }


def memory_megabytes(folder: Path, cells: Cells) -> float:
    """Return the peak resident memory of a process that loads an exported model and recommends, in MB."""
    histories = [[item.position for item in user.profile.items] for users in cells.values() for user in users]
    command = [sys.executable, "-c", _MEMORY, str(folder)]
    finished = subprocess.run(command, input=json.dumps(histories), capture_output=True, text=True, check=True)  # noqa: S603
    return float(finished.stdout)


def main(
    model: Annotated[Path, typer.Option(help="Folder of a run.", metavar="RUN")],
    data: Annotated[Path | None, typer.Option(help="Folder with the data; without it, the run's own.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Cold-start users, at most.")] = 500,
    turns: Annotated[int, typer.Option(min=1, help="Turns that times are medians of.")] = 11,
    pruned: Annotated[str, typer.Option(help="Weights kept of each item, by commas.")] = "100,50,20",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure an exported run against the run itself and against simple baselines."""
    checkpoint = load_checkpoint(model)
    population = training_population(checkpoint, data_settings(checkpoint, data))
    cells, recommender = cold_users(checkpoint, population, users), checkpoint.full_model()
    train, items = population.interactions.take(population.users(Role.TRAINING)), len(checkpoint.items.catalogue)
    train = replace(train, items=checkpoint.items.positions[train.items].astype(np.int32))
    baselines: dict[str, Baseline] = {
        "EASE": fit_ease(train, items, REGULARIZATION),
        "item-kNN": fit_item_knn(train, items, NEIGHBOURS, SHRINKAGE),
    }

    def torch_path(profile: Profile) -> Ranked:
        return recommend(recommender, profile, K)

    with tempfile.TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        sizes = variants(model, folder, cells, [int(part) for part in pruned.split(",") if part.strip()])
        edges = {"onnx": EdgeRecommender(folder / "all-float"), "onnx int8": EdgeRecommender(folder / "all-int8")}
        figures = {
            "machine": machine(),
            "items": items,
            "parity": parity(cells, edges["onnx"], torch_path),
            "variants": sizes,
            "cost": cost(cells, edges, torch_path, baselines, turns),
            "memory_mb": {one: memory_megabytes(folder / f"all-{one}", cells) for one in ("float", "int8")},
        }
    _print(figures)
    write_figures(json_file, figures)


def _print(figures: dict[str, Any]) -> None:
    found, orders = figures["parity"], list(figures["variants"][0]["ndcg@10"])
    print_table(
        "The graph against PyTorch",
        ("lists", "identical", "largest difference of a score", "over the score"),
        [(found["lists"], f"{found['identical']:.2%}", found["score_difference"], found["relative_difference"])],
    )
    print_table(
        "Size against nDCG@10, as shares of the float graph with all weights",
        ("weights an item", "", "bytes", "share", *orders, *(f"{order}, share" for order in orders)),
        [
            (
                row["neighbours"] or "all",
                "int8" if row["int8"] else "float",
                row["bytes"],
                row["of_bytes"],
                *(row["ndcg@10"][order] for order in orders),
                *(row["of_ndcg"][order] for order in orders),
            )
            for row in figures["variants"]
        ],
    )
    print_table(
        "One user at a time, one core",
        ("", "ms", "times the graph", "lowest", "highest"),
        [(name, one["ms"], one["ratio"], one["ratio_low"], one["ratio_high"]) for name, one in figures["cost"].items()],
        figures["machine"],
    )
    print_table(
        "Peak resident memory of a process with the graph alone", ("", "MB"), list(figures["memory_mb"].items())
    )


if __name__ == "__main__":
    typer.run(main)
