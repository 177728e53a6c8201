"""Print figures as a table: methods down, cells of the protocol across."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from metarec_shared.comparison import compare, metric_name, show


def print_cold_user(console: Console, cold_user: Mapping[str, Any], k: int) -> None:
    """Print nDCG@k of every method on a result's cold users, a column an order."""
    print_cells(console, [{"order": order, **block} for order, block in cold_user.items() if block is not None], k)


def print_cells(console: Console, cells: Sequence[Mapping[str, Any]], k: int) -> None:
    """Print nDCG@k of every method, a column a cell of the protocol."""
    metric = f"ndcg@{k}"
    table = Table("", title=f"{metric_name(metric)} (higher is better)", caption="on users never seen in meta-training")
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
