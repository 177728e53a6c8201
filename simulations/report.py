"""The report of a run: one HTML file that needs nothing beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from metarec_shared.comparison import Comparison, compare, show
from metarec_shared.errors import CheckpointError
from metarec_shared.files import write_text
from metarec_shared.model_card import NO_PRIVACY, privacy_facts
from metarec_shared.settings import flatten
from server.run_folder import METRICS_FILE, read_metrics
from simulations.report_charts import learning_curve, method_bars
from simulations.report_template import PAGE

REPORT_FILE = "report.html"

_ORDERS = {"random": "Random order", "time": "Time order"}
_SAMPLES_TOP = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecommendation:
    """What one test user told the model, and what it answered.

    Attributes:
        support: Title and, where there is one, rating of each support item.
        recommended: Title and score of the top items, best first.
    """

    support: Sequence[tuple[str, float | None]]
    recommended: Sequence[tuple[str, float]]


def write_report(run: Path, samples: Sequence[SampleRecommendation]) -> Path:
    """Write the report of a finished run.

    Args:
        run: Folder with result.json, settings.json and metrics.jsonl; with ``not_adapted/metrics.jsonl`` the curves
            of the run without inner loop are drawn too.
        samples: Recommendations to show; they make the report as private as the data they come from.

    Returns:
        The path of the report, ``run/report.html``.

    Raises:
        CheckpointError: A file of the run is missing or damaged.
    """
    result, settings = _read(run / "result.json"), _read(run / "settings.json")
    rounds, not_adapted = (read_metrics(folder / METRICS_FILE) for folder in (run, run / "not_adapted"))
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    text = page.render(
        show=show,
        curves=_curves(result, rounds, not_adapted),
        settings={key: _setting(value) for key, value in flatten(settings, str(run / "settings.json")).items()},
        samples=[_shortened(sample) for sample in samples],
        privacy=privacy_facts(result["privacy"]) if result.get("privacy") else None,
        no_privacy=NO_PRIVACY,
        **_header(result),
        **_comparisons(result),
    )
    write_text(run / REPORT_FILE, text)
    return run / REPORT_FILE


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read, so there is no report: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: wanted a JSON object, got {type(value).__name__}")
    return value


def _shortened(sample: SampleRecommendation) -> SampleRecommendation:
    return SampleRecommendation(support=sample.support, recommended=sample.recommended[:_SAMPLES_TOP])


def _curves(result: Mapping[str, Any], rounds: list[dict[str, Any]], not_adapted: list[dict[str, Any]]) -> list[Any]:
    validation = next(
        (key for line in rounds for key in line if key.startswith("validation_ndcg")), "validation_ndcg@10"
    )
    label = "validation nDCG" + validation.removeprefix("validation_ndcg")
    curves = [
        learning_curve("train_loss", "training loss", rounds, not_adapted),
        learning_curve(validation, label, rounds, not_adapted, result.get("best_round")),
    ]
    return [curve for curve in curves if curve is not None]


def _header(result: Mapping[str, Any]) -> dict[str, Any]:
    dataset = result.get("dataset") or {}
    facts = [(key.capitalize(), f"{dataset[key]:,}") for key in ("users", "items", "interactions") if key in dataset]
    facts += [
        (name, str(result[key]))
        for name, key in (("Seed", "seed"), ("Engine", "engine"), ("Text encoder", "text_encoder"))
        if result.get(key) is not None
    ]
    return {"dataset": dataset.get("name") or "Unnamed data", "facts": facts, "key_figures": _key_figures(result)}


def _key_figures(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the figures of the page's head: name, value, note."""
    figures, train = [], result.get("train") or {}
    for order, title in _ORDERS.items():
        if comparison := compare((result.get("cold_user") or {}).get(order)):
            figures.append(
                (f"{comparison.metrics[0]}, {title.lower()}", show(comparison.methods[0].values[0]), _lead(comparison))
            )
    if result.get("best_round"):
        figures.append(("Best round", f"{result['best_round']:,}", f"of {result.get('rounds', 0):,}"))
    if "users_per_second" in train:
        wall = f"{train['wall_seconds']:,.0f} s of meta-training" if "wall_seconds" in train else "in meta-training"
        figures.append(("Users per second", f"{train['users_per_second']:,.0f}", wall))
    if "bytes_down" in train:
        figures.append(("Sent to nodes", _bytes(train["bytes_down"]), f"{_bytes(train.get('bytes_up', 0))} back"))
    if "parameters" in result:
        figures.append(("Parameters", f"{result['parameters']:,}", "in the meta-initialization"))
    return figures


def _lead(comparison: Comparison) -> str:
    """Say how far MetaRec is ahead of, or behind, the best centralized baseline."""
    own = comparison.methods[0].values[0]
    baselines = [(m.values[0], m.name) for m in comparison.methods if m.centralized and m.values[0]]
    if not baselines or own is None:
        return "MetaRec, test users"
    value, name = max(baselines)
    return f"{own / value - 1:+.1%} against {name}"


def _comparisons(result: Mapping[str, Any]) -> dict[str, Any]:
    cold_user, cold_item = result.get("cold_user") or {}, result.get("cold_item") or {}
    tables = {order: compare(cold_user.get(order)) for order in _ORDERS}
    settings: Mapping[str, Any] = next((cold_user[order] for order, table in tables.items() if table), {})
    return {
        "orders": [
            (_ORDERS[order], table, method_bars(f"bars-{order}", table)) for order, table in tables.items() if table
        ],
        "has_time": tables["time"] is not None,
        "support": settings.get("support", "few"),
        "query": settings.get("query", "few"),
        "cold_item": compare(cold_item),
        "cold_items": f"{cold_item.get('items', 0):,}",
    }


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) or "(empty)"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
