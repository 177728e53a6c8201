"""The command ``metarec recommend``. What takes long to import is imported where it is used."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from metarec_shared.errors import DataError

app = typer.Typer(add_completion=False)

_TOP_K = 10


class Format(StrEnum):
    """How recommendations are printed."""

    TABLE = "table"
    JSON = "json"


@app.command()
def recommend(
    model: Annotated[Path, typer.Option(help="Folder of a run, or an exported model.onnx.", metavar="RUN")],
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
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Items to recommend; else 10, or what was chosen at export.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="What you tell of yourself, if the model reads it; may be repeated.", metavar="COLUMN=VALUE"),
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print them.")] = Format.TABLE,
) -> None:
    """Recommend items for a history; nothing leaves this machine."""
    from client.answer import print_json, print_table
    from client.export.exported import is_exported

    if is_exported(model):
        from client.export.answer_history import answer_with_exported

        if catalogue is not None:
            raise DataError(f"--catalogue: {model} has its own; to recommend new items, give --model the run's folder")
        answer = answer_with_exported(model, history, top_k, attribute or ())
    else:
        from client.answer_history import answer_history

        answer = answer_history(model, history, top_k or _TOP_K, catalogue, attribute or ())
    (print_json if output is Format.JSON else print_table)(answer)
