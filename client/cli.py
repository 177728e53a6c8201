"""The command ``metarec recommend``. What takes long to import is imported where it is used."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


class Format(StrEnum):
    """How recommendations are printed."""

    TABLE = "table"
    JSON = "json"


@app.command()
def recommend(
    model: Annotated[Path, typer.Option(help="Folder of a run.", metavar="RUN")],
    history: Annotated[
        str,
        typer.Option(
            help="File with one item id or title a line, and by choice a rating and a time, after tabs; - for stdin."
        ),
    ],
    catalogue: Annotated[
        Path | None,
        typer.Option(help="Folder with items, also new ones; without it those of the run.", metavar="DIR"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Items to recommend.")] = 10,
    output: Annotated[Format, typer.Option("--format", help="How to print them.")] = Format.TABLE,
) -> None:
    """Recommend items for a history; nothing leaves this machine."""
    from client.answer_history import answer_history, print_json, print_table

    answer = answer_history(model, history, top_k, catalogue)
    (print_json if output is Format.JSON else print_table)(answer)
