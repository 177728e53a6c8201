"""The command ``metarec export``. What takes long to import is imported where it is used."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


class ExportFormat(StrEnum):
    """What a model is exported as."""

    ONNX = "onnx"
    WEB = "web"


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="Folder of a run.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Folder that is made.", metavar="DIR")],
    as_format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="onnx: one graph that adapts and recommends, and a catalogue. web: these and a page whose visitors' "
            "browsers run them; needs npm.",
        ),
    ] = ExportFormat.ONNX,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize to 8 bits: about a quarter of the size.")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Items recommended where nobody says how many.")] = 10,
    neighbours: Annotated[
        int | None, typer.Option(min=1, help="Prune task regressions to the largest weights of each item; all if left.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Export a model to run anywhere without PyTorch, adaptation included."""
    from client.export.export import Choices, export_onnx
    from client.export.web_page import export_web

    choices = Choices(int8=int8, neighbours=neighbours, top_k=top_k, replace=force)
    sizes = (export_web if as_format is ExportFormat.WEB else export_onnx)(model, out, choices)
    for name, size in sizes.items():
        typer.echo(f"{out / name}  {size:,} bytes")
