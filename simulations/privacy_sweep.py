"""What privacy costs: the same run at several epsilons and seeds, as a table, a chart and a report."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from metarec_shared.errors import SettingsError
from metarec_shared.files import write_json, write_text
from metarec_shared.privacy.terms import META_UPDATE
from metarec_shared.settings import Settings
from simulations.protocols import Say
from simulations.repeated import run_once
from simulations.report_charts import COLOURS, STYLE, svg
from simulations.report_template import PALETTE

SWEEP_FILE = "sweep.json"
ORDERS = ("random", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One epsilon, over seeds.

    Attributes:
        epsilon: The target; inf: clipped but not noised.
        noise_multiplier: Noise of a meta-update over its sensitivity, the mean over seeds.
        spent: The epsilon that was claimed, the largest over seeds; None where none can be.
        values: By order, nDCG@k of every seed; an order that the data does not have is missing.
        popularity: The same of the popularity baseline, which is not private.
    """

    epsilon: float
    noise_multiplier: float
    spent: float | None
    values: dict[str, list[float]]
    popularity: dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All points, and what they share."""

    dataset: str
    mode: str
    users: int
    nodes: int
    delta: float
    k: int
    seeds: list[int]
    init: str
    points: list[Point]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: an infinite epsilon is written "inf"."""
        return {
            **{key: getattr(self, key) for key in ("dataset", "mode", "users", "nodes", "delta", "k", "seeds", "init")},
            "points": [
                {
                    "epsilon": _shown(point.epsilon),
                    "noise_multiplier": point.noise_multiplier,
                    "epsilon_spent": point.spent,
                    **{f"ndcg_{order}": summary(values) for order, values in point.values.items()},
                    **{f"popularity_{order}": summary(values) for order, values in point.popularity.items()},
                    "values": point.values,
                }
                for point in self.points
            ],
        }


def summary(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard error; one seed alone has no error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "se": error}


def sweep(settings: Settings, epsilons: Sequence[float], seeds: Sequence[int], out: Path, say: Say) -> Sweep:
    """Run every epsilon with every seed; cells that are finished already are read, unfinished ones go on.

    Args:
        settings: Of the runs, a mode of privacy set.
        epsilons: Targets; inf: clipping alone.
        seeds: Of the runs.
        out: Folder, one below it a run.
        say: Told, in a line each, what happens next.

    Raises:
        SettingsError: Privacy is off, or there is nothing to run.
        MetaRecError: A run fails.
    """
    if settings.privacy.mode == "none" or not epsilons or not seeds:
        raise SettingsError("a sweep needs privacy.mode = site, central or local, an epsilon and a seed")
    results = {}
    for number, (epsilon, seed) in enumerate([(e, s) for e in epsilons for s in seeds], start=1):
        say(f"{number} of {len(epsilons) * len(seeds)}: epsilon {_shown(epsilon)}, seed {seed}")
        results[epsilon, seed] = _cell(settings, epsilon, seed, out / f"epsilon-{_shown(epsilon)}-seed-{seed}", say)
    found = Sweep(
        **_shared(results[epsilons[0], seeds[0]], settings),
        seeds=list(seeds),
        points=[
            _point(epsilon, [results[epsilon, seed] for seed in seeds], settings.evaluation.k) for epsilon in epsilons
        ],
    )
    write_json(out / SWEEP_FILE, found.to_dict())
    write_text(out / "sweep.md", markdown(found))
    write_text(out / "report.html", _report(found))
    return found


def markdown(found: Sweep) -> str:
    """Return the table of a sweep."""
    orders = [order for order in ORDERS if order in found.points[0].values]
    lines = [
        f"| epsilon (delta {found.delta:g}) | noise multiplier | "
        + " | ".join(f"{order} order" for order in orders)
        + " |",
        "|---|---|" + "---|" * len(orders),
    ]
    for point in found.points:
        cells = [_cell_text(point.values[order]) for order in orders]
        lines.append(f"| {_shown(point.epsilon)} | {point.noise_multiplier:.3g} | " + " | ".join(cells) + " |")
    cells = [_cell_text(found.points[0].popularity[order]) for order in orders]
    lines.append("| popularity, not private | - | " + " | ".join(cells) + " |")
    return "\n".join([f"{_title(found)}", "", *lines, ""])


def _cell(settings: Settings, epsilon: float, seed: int, folder: Path, say: Say) -> dict[str, Any]:
    wanted = replace(settings, run=replace(settings.run, seed=seed), privacy=replace(settings.privacy, epsilon=epsilon))
    return run_once(wanted, folder, say)


def _shared(result: dict[str, Any], settings: Settings) -> dict[str, Any]:
    return {
        "dataset": result["dataset"]["name"],
        "mode": result["privacy"]["mode"],
        "users": result["training_users"],
        "nodes": result["nodes"],
        "delta": result["privacy"]["delta"],
        "k": settings.evaluation.k,
        "init": Path(settings.run.init).name,
    }


def _point(epsilon: float, results: Sequence[dict[str, Any]], k: int) -> Point:
    updates = [
        mechanism["noise_multiplier"]
        for result in results
        for mechanism in result["privacy"]["mechanisms"]
        if mechanism["name"] == META_UPDATE
    ]
    spent = [result["privacy"]["epsilon"] for result in results]
    values: dict[str, dict[str, list[float]]] = {
        method: {
            order: [result["cold_user"][order][method][f"ndcg@{k}"] for result in results]
            for order in ORDERS
            if results[0]["cold_user"][order]
        }
        for method in ("metarec", "popularity")
    }
    return Point(
        epsilon=epsilon,
        noise_multiplier=statistics.mean(updates),
        spent=None if None in spent else max(spent),
        values=values["metarec"],
        popularity=values["popularity"],
    )


def _shown(epsilon: float) -> str:
    return f"{epsilon:g}"


def _cell_text(values: Sequence[float]) -> str:
    figures = summary(values)
    return f"{figures['mean']:.4f}" + (f" ± {figures['se']:.4f}" if figures["se"] is not None else "")


def _title(found: Sweep) -> str:
    start = f", started from {found.init}" if found.init else ", from scratch"
    return (
        f"{found.dataset}: {found.users:,} users at {found.nodes:,} node{'s' if found.nodes > 1 else ''}, mode "
        f"{found.mode}{start}; nDCG@{found.k} on test users, mean and standard error over {len(found.seeds)} seeds; "
        "simulated noise"
    )


def _chart(found: Sweep) -> Markup:
    """Draw utility against epsilon; the number of users stands in the legend, for it decides what epsilon costs."""
    places = range(len(found.points))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for order, colour, marker in zip(ORDERS, ("accent", "other"), "os", strict=True):
            if order not in found.points[0].values:
                continue
            figures = [summary(point.values[order]) for point in found.points]
            means, errors = ([f[key] or 0.0 for f in figures] for key in ("mean", "se"))
            label = f"{order} order, {found.users:,} users"
            axes.errorbar(places, means, yerr=errors, color=COLOURS[colour], marker=marker, capsize=3, label=label)
            level = statistics.mean(found.points[0].popularity[order])
            axes.axhline(level, color=COLOURS[colour], linestyle=":", linewidth=1, label=f"popularity, {order} order")
        axes.set_xticks(places, labels=[_shown(point.epsilon) for point in found.points])
        axes.set_xlabel(f"epsilon (delta {found.delta:g})")
        axes.set_ylabel(f"nDCG@{found.k}")
        axes.set_ylim(bottom=0.0)
        axes.legend(frameon=False, fontsize=9)
        return svg(figure, "sweep", f"{_title(found)}: nDCG@{found.k} against epsilon.")


_PAGE = (
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>MetaRec: what privacy costs</title><style>"""
    + PALETTE
    + """
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 860px;
  margin: 0 auto; padding: 24px; }
svg { width: 100%; height: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: 6px 8px; border-top: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } p { color: var(--muted); } .scroll { overflow-x: auto; }
</style></head><body>
<h1>What privacy costs</h1>
<p>{{ title }}</p>
{{ chart }}
<div class="scroll"><table><thead><tr>{% for cell in rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
<p>Unit of privacy: one user's whole history. Hyper-parameters were fixed beforehand and are not charged. Noise is
simulated, drawn from the runs' seeds. The popularity baseline counts raw interactions.</p>
</body></html>
"""
)


def _report(found: Sweep) -> str:
    lines = [line for line in markdown(found).splitlines() if line.startswith("|") and not line.startswith("|---")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return page.render(title=_title(found), chart=_chart(found), rows=rows)
