"""The command ``metarec tune``; heavy imports stand where they are used."""

from pathlib import Path
from typing import Annotated

import typer

from server.run_settings import run_settings
from simulations.cli import Device
from simulations.tuning.choices import DEFAULT_TRIALS, Pruner, Sampler

tune_app = typer.Typer(add_completion=False)


@tune_app.command()
def tune(
    data: Annotated[Path | None, typer.Option(help="Folder with the data; without it, generated data.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the study; a study that is there goes on.")] = Path(
        "metarec-runs/study"
    ),
    trials: Annotated[int, typer.Option(min=1, help="Trials in all; a grid has one a combination.")] = DEFAULT_TRIALS,
    sampler: Annotated[Sampler, typer.Option(help="How the next trial's settings are chosen.")] = Sampler.TPE,
    pruner: Annotated[Pruner, typer.Option(help="How poor trials are ended early.")] = Pruner.MEDIAN,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file of what is searched; without it, the built-in one.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, metavar="MINUTES", help="Stop after so long, to be gone on with.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampler.")] = 0,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", help="Seeds of a trial's runs, their mean counts: 7, or 0,3, or 0-4.")
    ] = "0",
    config: Annotated[Path | None, typer.Option(help="TOML file of settings that all trials share.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="One such setting; may be repeated.")
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Where tensors live.")] = None,
) -> None:
    """Search for settings by validation users; a study that was stopped goes on by the same command."""
    from rich.console import Console

    from metarec_shared.errors import SettingsError
    from metarec_shared.settings import parse_assignments
    from simulations.evaluation.benchmark import parse_seeds
    from simulations.tuning.plan import Plan
    from simulations.tuning.space import BUILT_IN, load_space
    from simulations.tuning.tune import tune as run_study

    options = {
        "data.path": None if data is None else str(data),
        "run.out": str(out),
        "run.device": None if device is None else device.value,
    }
    settings = run_settings(config, assignments or [], options)
    searched = load_space(space or BUILT_IN, settings)
    if both := sorted(parse_assignments(assignments or []).keys() & searched.distributions.keys()):
        raise SettingsError(f"--set gives {', '.join(both)}, which the search space varies; leave it out of one")
    plan = Plan(
        settings=settings,
        space=searched,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        seeds=tuple(parse_seeds(seeds)),
        trials=trials,
        timeout=float("inf") if timeout is None else 60 * timeout,
    )
    notes = Console(stderr=True, highlight=False)
    typer.echo(run_study(plan, out, lambda line: notes.print(line, markup=False, soft_wrap=True)))
