"""The command ``metarec benchmark``; heavy imports stand where they are used."""

from pathlib import Path
from typing import Annotated

import typer

from server.run_settings import run_settings
from simulations.cli import Device

benchmark_app = typer.Typer(add_completion=False)


@benchmark_app.command()
def benchmark(
    name: Annotated[str, typer.Argument(help="Evaluation protocol.", metavar="NAME")],
    data: Annotated[Path | None, typer.Option(help="Folder with the data; without it, generated data.")] = None,
    onto: Annotated[
        Path | None, typer.Option(help="Folder with the data of test users, for the protocol cross-domain.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds: 7, or 0,3, or 0-4.", metavar="SEEDS")] = "0",
    methods: Annotated[str, typer.Option(help="Methods, by commas; without it, all.", metavar="NAME,...")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the table; finished cells are kept.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings for our model's runs.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Where tensors live.")] = None,
) -> None:
    """Compare methods by an evaluation protocol, over seeds, in one table."""
    from rich.console import Console

    from metarec_shared.files import write_text
    from simulations.evaluation.benchmark import parse_seeds, run_benchmark
    from simulations.evaluation.registry import protocol_named
    from simulations.evaluation.render import markdown, page

    protocol = protocol_named(name)
    folder = out or Path("metarec-runs") / f"benchmark-{name}"
    options = {
        "data.path": None if data is None else str(data),
        "evaluation.onto": None if onto is None else str(onto),
        "run.out": str(folder),
        "run.device": None if device is None else device.value,
    }
    settings = run_settings(config, assignments or [], options)
    wanted = [part.strip() for part in methods.split(",") if part.strip()]
    notes = Console(stderr=True, highlight=False)
    table = run_benchmark(
        protocol, settings, parse_seeds(seeds), wanted, folder,
        lambda line: notes.print(line, markup=False, soft_wrap=True),
    )  # fmt: skip
    write_text(folder / "table.md", markdown(table))
    write_text(folder / "report.html", page(table))
    notes.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    typer.echo(markdown(table))
