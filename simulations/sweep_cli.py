"""The command ``metarec privacy sweep``; heavy imports stand where they are used."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from server.run_settings import run_settings
from simulations.cli import PrivacyMode

sweep_app = typer.Typer(add_completion=False)


@sweep_app.command()
def sweep(
    data: Annotated[Path | None, typer.Option(help="Folder with the data; without it, generated data.")] = None,
    epsilon: Annotated[
        str, typer.Option(help="Targets, by commas; inf: clip, add no noise.", metavar="E,E,...")
    ] = "inf,8,4,2,1",
    delta: Annotated[float | None, typer.Option(help="Chance that epsilon does not hold.")] = None,
    privacy: Annotated[PrivacyMode, typer.Option(help="Who adds noise.")] = PrivacyMode.SITE,
    seeds: Annotated[str, typer.Option(help="Seeds, by commas.", metavar="N,N,...")] = "0",
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes the users are spread over.")] = None,
    init: Annotated[Path | None, typer.Option(metavar="RUN", help="Start every run from this one.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs and the report; finished runs are kept.")] = Path(
        "metarec-runs/privacy-sweep"
    ),
) -> None:
    """Run the same federation at several epsilons; report what privacy costs."""
    from rich.console import Console

    from metarec_shared.errors import SettingsError
    from simulations.privacy_sweep import markdown
    from simulations.privacy_sweep import sweep as run_sweep

    options = {
        "data.path": None if data is None else str(data),
        "run.init": None if init is None else str(init),
        "run.out": str(out),
        "privacy.mode": privacy.value,
        "privacy.delta": delta,
        "federation.nodes": nodes,
    }
    settings = run_settings(config, assignments or [], options)
    try:
        epsilons = [float(part) for part in epsilon.split(",")]
        numbers = [int(part) for part in seeds.split(",")]
    except ValueError as error:
        raise SettingsError(f"--epsilon and --seeds must be numbers, separated by commas: {error}") from error
    if not all(value > 0 for value in epsilons) or min(numbers) < 0:
        raise SettingsError(f"--epsilon must be above 0 and --seeds at least 0, got {epsilon} and {seeds}")
    notes = Console(stderr=True, highlight=False)
    found = run_sweep(
        replace(settings, run=replace(settings.run, out="")), epsilons, numbers, out,
        lambda line: notes.print(line, markup=False, soft_wrap=True),
    )  # fmt: skip
    notes.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)
    typer.echo(markdown(found))
