"""The commands ``metarec data describe``, ``pack``, ``download`` and ``graph``.

What takes long to import is imported where it is used: ``metarec --help`` loads this module.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from metarec_shared.dataset import Dataset

app = typer.Typer(
    help="Describe or pack a folder of data, download a public data set, or embed a graph of the items.",
    no_args_is_help=True,
)

_BAR_WIDTH = 40
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class BadRows(StrEnum):
    """What to do with rows that cannot be read."""

    ERROR = "error"
    SKIP = "skip"


class Downloadable(StrEnum):
    """Data sets that can be downloaded."""

    ML_1M = "ml-1m"
    ML_100K = "ml-100k"


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Folder in a known layout.", show_default=False)]
OnBadRows = Annotated[BadRows, typer.Option(help="Stop at a row that cannot be read, or skip it.")]


@app.command()
def describe(directory: Directory, on_bad_rows: OnBadRows = BadRows.ERROR) -> None:
    """Print what a folder of data holds, and what is wrong with it."""
    from rich.console import Console

    from metarec_shared.readers import read_dataset
    from metarec_shared.settings import DataSettings

    settings = DataSettings(path=str(directory), on_bad_rows=on_bad_rows.value)
    dataset = read_dataset(directory, settings)
    console = Console(highlight=False)
    _print_summary(console, dataset)
    _print_lengths(console, dataset.interactions.lengths)
    for problem in dataset.problems:
        console.print(f"Problem: {problem.sentence()}", style="yellow", markup=False, soft_wrap=True)
    if not dataset.problems:
        console.print("No problems found.")


@app.command()
def pack(
    directory: Directory,
    out: Annotated[Path, typer.Option(metavar="DIR2", help="Folder that is made.", show_default=False)],
    on_bad_rows: OnBadRows = BadRows.ERROR,
) -> None:
    """Pack a folder of data into one that opens at once and is never copied into memory; every command takes it."""
    from rich.filesize import decimal

    from metarec_shared.packed import check_absent, write_packed
    from metarec_shared.readers import read_dataset
    from metarec_shared.settings import DataSettings

    check_absent(out)
    dataset = read_dataset(directory, DataSettings(path=str(directory), on_bad_rows=on_bad_rows.value))
    write_packed(dataset, out)
    for problem in dataset.problems:
        typer.echo(f"Problem: {problem}")
    size = sum(path.stat().st_size for path in out.iterdir())
    typer.echo(
        f"{out}: {len(dataset.interactions):,} users, {len(dataset.catalogue):,} items, "
        f"{len(dataset.interactions.items):,} interactions in {decimal(size)}"
    )


@app.command()
def download(
    name: Annotated[Downloadable, typer.Argument(help="Data set.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder in which the data set's own folder is made.")] = (
        Path("data")
    ),
) -> None:
    """Download a public data set from GroupLens, for research use under its README's terms."""
    from metarec_shared.download import download as fetch

    folder = fetch(name.value, out)
    typer.echo(f"{folder}: ready; its README states the terms of use")


@app.command()
def graph(
    edges: Annotated[
        Path, typer.Argument(metavar="EDGES", help="Edge list: columns head, tail, weight.", show_default=False)
    ],
    directory: Directory,
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="File that is made.", show_default=False)],
    width: Annotated[int, typer.Option(min=1, help="Numbers a vector.")] = 32,
) -> None:
    """Embed a knowledge graph of the items, for --set data.item-vectors=FILE.npz; nodes need the same file."""
    from metarec_shared.errors import DataError
    from metarec_shared.graph_vectors import embed_graph
    from metarec_shared.item_vectors import write_item_vectors
    from metarec_shared.readers import read_catalogue
    from metarec_shared.settings import DataSettings

    if out.suffix != ".npz":
        raise DataError(f"{out}: vectors of a graph are written to a file ending in .npz")
    catalogue = read_catalogue(directory, DataSettings(path=str(directory)))
    vectors = embed_graph(edges, catalogue, width)
    write_item_vectors(out, vectors)
    typer.echo(f"{out}: vectors of {len(vectors.item_ids):,} of {len(catalogue):,} items, {width} numbers each")


def _print_summary(console: "Console", dataset: "Dataset") -> None:
    from rich.table import Table
    from rich.text import Text

    interactions = dataset.interactions
    users, items, count = len(interactions), len(dataset.catalogue), len(interactions.items)
    facts = {
        "layout": dataset.layout,
        "users": f"{users:,}",
        "items": f"{items:,}",
        "interactions": f"{count:,}",
        "density": f"{count / (users * items):.3%}",
        "ratings": _ratings(dataset),
        "order of a history": "time" if interactions.has_time else "file (no timestamps)",
    }
    table = Table.grid(padding=(0, 2))
    for fact, value in facts.items():
        table.add_row(fact, Text(value))
    console.print(Text(dataset.name, style="bold"))
    console.print(table)


def _ratings(dataset: "Dataset") -> str:
    import numpy as np

    ratings, scale = dataset.interactions.ratings, dataset.rating_scale
    if np.isnan(ratings).all():
        return "none"
    if scale is not None:
        return f"on a scale of {scale.low:g} to {scale.high:g}"
    return f"from {np.nanmin(ratings):g} to {np.nanmax(ratings):g}, no fixed scale"


def _print_lengths(console: "Console", lengths: "NDArray[np.int64]") -> None:
    """Print quantiles of the history lengths and a bar for each doubling of the length."""
    import numpy as np

    quantiles = np.quantile(lengths, _QUANTILES, method="inverted_cdf")
    names = ("shortest", "quarter", "median", "three quarters", "longest")
    described = ", ".join(f"{name} {value:,}" for name, value in zip(names, quantiles, strict=True))
    console.print(f"\nHistory lengths: {described}", soft_wrap=True)
    exponents = np.frexp(lengths)[1]  # 0 for 0, 1 for 1, 2 for 2..3, 3 for 4..7
    counts = np.bincount(exponents)
    block = "█" if console.encoding.lower().startswith("utf") else "#"
    for exponent in range(int(exponents.min()), len(counts)):
        low, high = 2**exponent // 2, max(2**exponent - 1, 0)
        span = f"{low:,}" if low == high else f"{low:,}-{high:,}"
        bar = block * int(np.ceil(_BAR_WIDTH * counts[exponent] / counts.max()))
        console.print(f"{span:>15}  {counts[exponent]:>9,}  {bar}".rstrip(), markup=False)
    console.print()
