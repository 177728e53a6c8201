"""The report's charts: matplotlib figures as inline SVG that follows the page's colours."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarec_shared.comparison import Comparison, show

# Colours that appear nowhere else stand for the page's CSS variables, so one SVG serves light and dark.
COLOURS = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "accent": "#010206",
    "second": "#010207",
    "other": "#010209",
    "weak": "#010208",
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
    "svg.hashsalt": "metarec",  # same figures, same bytes
    "text.parse_math": False,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
}

Rounds = Sequence[Mapping[str, Any]]


def learning_curve(
    key: str, label: str, rounds: Rounds, not_adapted: Rounds = (), best_round: int | None = None
) -> Markup | None:
    """Draw one of the recorded figures against rounds.

    Args:
        key: Its key in metrics.jsonl.
        label: Its name for people.
        rounds: Lines of metrics.jsonl.
        not_adapted: Lines of the run without inner loop, for a second curve.
        best_round: Round to mark, the one that was selected.

    Returns:
        An ``<svg>`` element, or None where no round has the figure.
    """
    curve, other = _points(key, rounds), _points(key, not_adapted)
    if not curve:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        axes = figure.add_subplot()
        marker = {"marker": "o", "markersize": 3.5} if len(curve) <= 60 else {}
        axes.plot(*zip(*curve, strict=True), color=COLOURS["accent"], linewidth=1.6, label="MetaRec", **marker)  # type: ignore[arg-type]
        if other:
            axes.plot(
                *zip(*other, strict=True),
                color=COLOURS["other"],
                linewidth=1.4,
                linestyle="--",
                label="no inner loop",
            )
        if best_round:
            _mark(axes, best_round, dict(curve).get(best_round))
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        if other or best_round:
            axes.legend(frameon=False, loc="best", fontsize=9)
        (first, start), (last, end) = curve[0], curve[-1]
        text = f"{label} against rounds, from {start:.4g} at round {first} to {end:.4g} at round {last}"
        return svg(figure, key, text + (f"; best round {best_round}." if best_round else "."))


def method_bars(name: str, comparison: Comparison) -> Markup:
    """Draw the first metric of each method as a bar: MetaRec strong, its variants paler, centralized baselines grey."""
    methods = [method for method in reversed(comparison.methods) if method.values[0] is not None]
    values = [method.values[0] or 0.0 for method in methods]
    colours = [_bar_colour(method.key, method.centralized) for method in methods]
    with matplotlib.rc_context(STYLE | {"axes.spines.bottom": False, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(5.2, 0.7 + 0.36 * len(methods)), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh(range(len(methods)), values, color=colours, height=0.66)
        axes.bar_label(bars, labels=[show(value) for value in values], padding=4, fontsize=9)
        axes.set_yticks(range(len(methods)), labels=[method.name for method in methods])
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        axes.set_xlim(0, max(values, default=0) * 1.16 or 1)
        axes.set_xlabel(comparison.metrics[0])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        text = "; ".join(
            f"{method.name} {show(value)}" for method, value in reversed(list(zip(methods, values, strict=True)))
        )
        return svg(figure, name, f"{comparison.metrics[0]} by method: {text}.")


def _points(key: str, rounds: Rounds) -> list[tuple[int, float]]:
    return [(line["round"], line[key]) for line in rounds if line.get(key) is not None]


def _mark(axes: Axes, round_number: int, value: float | None) -> None:
    label = f"best round, {round_number}" if value is None else f"best round, {round_number}: {value:.4f}"
    axes.axvline(round_number, color=COLOURS["muted"], linewidth=1, linestyle=":", label=label)
    if value is not None:
        axes.plot([round_number], [value], marker="o", markersize=7, color=COLOURS["accent"])


def _bar_colour(key: str, centralized: bool) -> str:
    if centralized or key == "chance":
        return COLOURS["weak"]
    return COLOURS["accent"] if key == "metarec" else COLOURS["second"]


def svg(figure: Figure, name: str, text: str) -> Markup:
    """Return the figure as an ``<svg>`` element whose ids are unlike those of the page's other charts."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = re.sub(r"<!--.*?-->\n?", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(text)}" ', 1))  # noqa: S704
