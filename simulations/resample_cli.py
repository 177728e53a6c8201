"""The command ``metarec data resample``; heavy imports stand where they are used."""

from pathlib import Path
from typing import Annotated

import typer

resample_app = typer.Typer(add_completion=False)


@resample_app.command()
def resample(
    data: Annotated[Path, typer.Argument(help="Folder of the real data.")],
    users: Annotated[int, typer.Option(min=1, help="Meta-training users to draw.")],
    out: Annotated[Path, typer.Option(help="Folder to write, mapped from disk when it is used.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the runs it is for: it decides who meta-trains.")] = 0,
) -> None:
    """Replace meta-training users by many more, drawn from a model that is fitted to them; test users stay real."""
    from metarec_shared.packed import check_absent, write_packed
    from metarec_shared.readers.reading import read_dataset
    from metarec_shared.settings import DataSettings
    from simulations.resampled import resampled

    check_absent(out)
    typer.echo("fitting a model of the meta-training users", err=True)
    dataset = resampled(read_dataset(data, DataSettings()), users, seed)
    write_packed(dataset, out)
    typer.echo(f"{out}: {dataset.interactions!r}")
