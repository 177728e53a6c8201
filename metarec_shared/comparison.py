"""The figures of a result, method by method, as the model card and the report show them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_METHOD_NAMES = {
    "metarec": "MetaRec",
    "unadapted": "MetaRec before adaptation",
    "not_adapted": "Same model, no inner loop",
    "ease": "EASE",
    "item_knn": "Item-kNN",
    "popularity": "Popularity",
    "chance": "Chance",
}
_CENTRALIZED = frozenset({"ease", "item_knn", "popularity"})
_NOT_COMPARED = frozenset({"precision", "auc"})
"""Metrics that result.json holds but that say nothing beside recall and nDCG of full-catalogue rankings."""
_METRIC_NAMES = {"ndcg": "nDCG", "hr": "HR", "recall": "Recall", "mrr": "MRR"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFigures:
    """One method's figures.

    Attributes:
        key: The method's key in result.json.
        name: The method's name for people.
        centralized: Whether the method needs every interaction in one place.
        values: Its value of each metric of the comparison, None where it has none.
    """

    key: str
    name: str
    centralized: bool
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Methods by metrics, on the same users.

    Attributes:
        users: Users the figures are a mean over, None where the result does not say.
        metrics: Names of the metrics for people, in the result's order.
        methods: MetaRec first, then its own variants, then the baselines.
    """

    users: int | None
    metrics: tuple[str, ...]
    methods: tuple[MethodFigures, ...]

    def best(self, metric: int) -> str:
        """Return the best value of the metric at position ``metric``, as ``show`` writes it."""
        values = [method.values[metric] for method in self.methods]
        return show(max((value for value in values if value is not None), default=None))


def compare(figures: Mapping[str, Any] | None) -> Comparison | None:
    """Read one block of result.json, such as ``result["cold_user"]["random"]``.

    Args:
        figures: Methods with their metrics beside counts such as ``users``; None where the protocol does not apply.

    Returns:
        The comparison, or None where there is nothing to compare.
    """
    methods = {key: block for key, block in (figures or {}).items() if isinstance(block, Mapping)}
    if figures is None or not methods:
        return None
    keys = sorted(
        methods, key=lambda key: list(_METHOD_NAMES).index(key) if key in _METHOD_NAMES else len(_METHOD_NAMES)
    )
    metrics = [
        name
        for name, value in methods[keys[0]].items()
        if _is_number(value) and name.partition("@")[0] not in _NOT_COMPARED
    ]
    if not metrics:
        return None
    return Comparison(
        users=figures.get("users"),
        metrics=tuple(metric_name(name) for name in metrics),
        methods=tuple(_method_figures(key, methods[key], metrics) for key in keys),
    )


def metric_name(key: str) -> str:
    """Write a metric's key for people.

    >>> metric_name("ndcg@10")
    'nDCG@10'
    """
    name, at, cutoff = key.partition("@")
    return _METRIC_NAMES.get(name, name) + at + cutoff


def show(value: float | None) -> str:
    """Write a metric's value with four decimals, a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def _method_figures(key: str, block: Mapping[str, Any], metrics: list[str]) -> MethodFigures:
    return MethodFigures(
        key=key,
        name=_METHOD_NAMES.get(key, key.replace("_", " ")),
        centralized=key in _CENTRALIZED,
        values=tuple(float(block[name]) if _is_number(block.get(name)) else None for name in metrics),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
