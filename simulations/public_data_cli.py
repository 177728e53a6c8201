"""The command ``metarec data match``; heavy imports stand where they are used."""

from pathlib import Path
from typing import Annotated

import typer

match_app = typer.Typer(add_completion=False)


@match_app.command()
def match(
    public: Annotated[list[Path], typer.Argument(help="Folders of public data sets.")],
    onto: Annotated[Path, typer.Option(help="Folder of the private data set whose catalogue it shall have.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    drop_first_year: Annotated[
        int | None, typer.Option(help="Leave out users whose first rating lies in this year.")
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out who shares more of his ratings with one private user.")
    ] = 0.6,
    least: Annotated[int, typer.Option(min=1, help="Leave out users with fewer matched interactions.")] = 5,
) -> None:
    """Make a public data set over a private one's catalogue, to meta-train a warm start on."""
    from simulations.public_data import match_public_data

    for source in match_public_data(public, onto, out, first_year=drop_first_year, overlap=overlap, least=least):
        typer.echo(
            f"{source.name}: {source.users:,} users, {source.interactions:,} interactions with "
            f"{source.matched_items:,} items; left out {source.dropped_by_year} by the year, "
            f"{source.dropped_by_overlap} by overlap, {source.dropped_short} with too few"
        )
    typer.echo(str(out))
