"""Print figures as a table: methods down, cells of the protocol across."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from metarec_shared.comparison import compare, metric_name, show


def print_cold_user(console: Console, cold_user: Mapping[str, Any], k: int) -> None:
    """Print nDCG@k of every method on a result's cold users, a column an order."""
    cells = [{"order": order, **block} for order, block in cold_user.items() if block is not None]
    print_cells(console, cells, k, "users never seen in meta-training")


def print_cells(console: Console, cells: Sequence[Mapping[str, Any]], k: int, who: str) -> None:
    """Print nDCG@k of every method, a column a cell of the protocol.

    Args:
        console: Where to print.
        cells: Blocks as in result.json, with their order.
        k: Cut-off.
        who: Whose figures these are.
    """
    metric = f"ndcg@{k}"
    table = Table("", title=f"{metric_name(metric)} (higher is better)", caption=who)
    columns = []
    for cell in cells:
        table.add_column(f"{cell['order']} order\nsupport {cell['support']}\n{cell['users']} users", justify="right")
        comparison = compare(cell)
        index = comparison.metrics.index(metric_name(metric)) if comparison else 0
        columns.append({m.key: (m, m.values[index]) for m in (comparison.methods if comparison else ())})
    for key in dict.fromkeys(key for column in columns for key in column):
        method = next(column[key][0] for column in columns if key in column)
        label = method.name + (" (centralized)" if method.centralized else "")
        table.add_row(label, *(show(column[key][1]) if key in column else "–" for column in columns))
    console.print(table)


def print_ratings(console: Console, figures: Mapping[str, Any] | None) -> None:
    """Print the errors of predicted ratings of every method; nothing where nobody was evaluated.

    Args:
        console: Where to print.
        figures: The block "ratings" of result.json.
    """
    if figures is None:
        return
    table = Table("", title="error of ratings (lower is better)", caption=f"{figures['users']} users never seen")
    metrics = list(figures["metarec"])
    for metric in metrics:
        table.add_column(metric.upper(), justify="right")
    for method in ("metarec", "unadapted"):
        table.add_row(method, *(show(figures[method][metric]) for metric in metrics))
    console.print(table)
