"""A benchmark's table as Markdown and as a page with charts."""

import matplotlib
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from simulations.evaluation.benchmark import Table
from simulations.evaluation.protocol import CHANCE, OURS, Method
from simulations.report_charts import COLOURS, STYLE, svg
from simulations.report_template import PALETTE

_MISSING = "–"


def markdown(table: Table) -> str:
    """Return one table a shown metric: methods down, cells across, the best of each cell in bold."""
    lines = [f"## {table.protocol.name}: {table.dataset}", "", table.protocol.about, ""]
    lines += [_caption(table), ""]
    for metric in _metrics(table):
        cells = _cells_with(table, metric)
        better = "lower" if metric in table.protocol.lower_is_better else "higher"
        lines += [f"{metric} ({better} is better)", ""]
        lines += ["| method | " + " | ".join(_heading(table, cell) for cell in cells) + " |"]
        lines += ["|---|" + "---|" * len(cells)]
        best = {cell: _best(table, cell, metric) for cell in cells}
        for method in _methods(table):
            texts = [_text(table, method.name, cell, metric, best[cell]) for cell in cells]
            lines.append(f"| {_name(method)} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def page(table: Table) -> str:
    """Return a self-contained HTML page: charts and the same tables."""
    charts = [
        {"metric": metric, "svgs": [_chart(table, cell, metric) for cell in _cells_with(table, metric)]}
        for metric in _metrics(table)
    ]
    rows = [
        {
            "metric": metric,
            "heads": ["method", *(_heading(table, cell) for cell in _cells_with(table, metric))],
            "rows": [
                [_name(method), *(_text(table, method.name, c, metric, None) for c in _cells_with(table, metric))]
                for method in _methods(table)
            ],
        }
        for metric in _metrics(table)
    ]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return template.render(
        title=f"{table.protocol.name}: {table.dataset}",
        about=table.protocol.about,
        caption=_caption(table),
        charts=charts,
        tables=rows,
        methods=_methods(table),
    )


def _caption(table: Table) -> str:
    seeds = len(table.seeds)
    over = f"mean and standard error over {seeds} seeds" if seeds > 1 else f"seed {table.seeds[0]} alone"
    return f"Test users, {over}. Methods marked * see all meta-training users' interactions in one place."


def _methods(table: Table) -> list[Method]:
    return [method for method in table.protocol.methods if method.name in table.figures]


def _metrics(table: Table) -> list[str]:
    return [metric for metric in table.protocol.shown if _cells_with(table, metric)]


def _cells_with(table: Table, metric: str) -> list[str]:
    return [cell for cell in table.cells if any(table.summary(name, cell, metric) for name in table.figures)]


def _name(method: Method) -> str:
    return f"{method.name}*" if method.centralized else method.name


def _heading(table: Table, cell: str) -> str:
    users = [figure[0] for name in table.figures if (figure := table.summary(name, cell, "users"))]
    return f"{cell} ({users[0]:,.0f} users)" if users else cell


def _best(table: Table, cell: str, metric: str) -> float | None:
    means = [figure[0] for name in table.figures if (figure := table.summary(name, cell, metric))]
    if not means:
        return None
    return min(means) if metric in table.protocol.lower_is_better else max(means)


def _text(table: Table, method: str, cell: str, metric: str, best: float | None) -> str:
    figure = table.summary(method, cell, metric)
    if figure is None:
        return _MISSING
    mean, error = figure
    text = f"{mean:.4f}" if error is None else f"{mean:.4f} ± {error:.4f}"
    return f"**{text}**" if mean == best else text


def _chart(table: Table, cell: str, metric: str) -> Markup:
    """Draw one cell as bars with their standard errors: ours strong, chance and centralized ones grey."""
    shown = [(method, found) for method in _methods(table) if (found := table.summary(method.name, cell, metric))]
    shown.reverse()
    means = [mean for _, (mean, _) in shown]
    errors = [error or 0.0 for _, (_, error) in shown]
    with matplotlib.rc_context(STYLE | {"axes.spines.bottom": False, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(5.2, 0.8 + 0.3 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(shown)), means, color=[_colour(method) for method, _ in shown], height=0.66)
        axes.errorbar(means, range(len(shown)), xerr=errors, fmt="none", ecolor=COLOURS["ink"], capsize=2)
        axes.set_yticks(range(len(shown)), labels=[_name(method) for method, _ in shown])
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        axes.set_title(_heading(table, cell), fontsize=10)
        axes.set_xlabel(metric)
        text = "; ".join(
            f"{method.name} {mean:.4f}" for (method, _), mean in reversed(list(zip(shown, means, strict=True)))
        )
        return svg(figure, f"{cell}-{metric}", f"{metric} of {cell} by method: {text}.")


def _colour(method: Method) -> str:
    if method.name == OURS:
        return COLOURS["accent"]
    return COLOURS["weak"] if method.centralized or method.name == CHANCE else COLOURS["second"]


_PAGE = (
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>"""
    + PALETTE
    + """
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 1120px;
  margin: 0 auto; padding: 24px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 16px; }
svg { width: 100%; height: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: 6px 8px; border-top: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, dd { text-align: left; } p, dd { color: var(--muted); } .scroll { overflow-x: auto; }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ about }}</p><p>{{ caption }}</p>
{% for part in charts %}<h2>{{ part.metric }}</h2><div class="charts">
{% for chart in part.svgs %}<div>{{ chart }}</div>{% endfor %}</div>
{% endfor %}<h2>Tables</h2>
{% for table in tables %}<h3>{{ table.metric }}</h3><div class="scroll"><table><thead><tr>
{% for cell in table.heads %}<th>{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
{% endfor %}<h2>Methods</h2><dl>{% for method in methods %}<dt>{{ method.name }}</dt><dd>{{ method.about }}</dd>
{% endfor %}</dl></body></html>
"""
)
