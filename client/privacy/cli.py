"""The commands ``metarec privacy init``, ``status``, ``history``, ``set-budget`` and ``audit``: a site's privacy.

What takes long to import is imported where it is used: ``metarec --help`` loads this module.
"""

from pathlib import Path
from typing import Annotated

import typer

privacy_app = typer.Typer(
    help="Make, show and change a site's privacy ledger.", no_args_is_help=True, add_completion=False
)

LedgerFile = Annotated[Path, typer.Option("--ledger", metavar="FILE", help="The ledger.", show_default=False)]
WitnessFile = Annotated[
    Path,
    typer.Option(
        "--witness", metavar="FILE", help="Witness of the ledger's last row, best on another disk.", show_default=False
    ),
]
Epsilon = Annotated[float, typer.Option(help="What may be spent in all.", show_default=False)]


@privacy_app.command()
def init(
    ledger: LedgerFile,
    witness: WitnessFile,
    epsilon: Epsilon,
    delta: Annotated[float, typer.Option(help="Chance that epsilon does not hold.", show_default=False)],
    noise_multiplier: Annotated[
        float, typer.Option(help="Lowest noise of meta-updates, over their sensitivity.", show_default=False)
    ],
    sampling_rate: Annotated[
        float, typer.Option(help="Highest chance of a user to take part in a round.", show_default=False)
    ],
    popularity_noise: Annotated[
        float, typer.Option(help="Lowest noise of item counts, over their sensitivity; 0: they never leave.")
    ] = 0.0,
    popularity_releases: Annotated[
        int, typer.Option(min=1, help="Runs that may have item counts; budget is reserved for them.")
    ] = 3,
) -> None:
    """Make the ledger of a population that has none, with a budget and what is planned to be released."""
    from client.privacy.ledger import Ledger
    from metarec_shared.privacy.accounting import Mechanism
    from metarec_shared.privacy.terms import META_UPDATE, POPULARITY

    plan = [Mechanism(name=META_UPDATE, noise_multiplier=noise_multiplier, sampling_rate=sampling_rate)]
    if popularity_noise:
        plan.append(
            Mechanism(
                name=POPULARITY, noise_multiplier=popularity_noise, sampling_rate=1.0, releases=popularity_releases
            )
        )
    made = Ledger.create(ledger, witness, epsilon=epsilon, delta=delta, plan=plan)
    typer.echo(f"population {made.population_id}: epsilon {epsilon:g} at delta {delta:g}, nothing spent")


@privacy_app.command()
def status(ledger: LedgerFile, witness: WitnessFile) -> None:
    """Print what was spent and what is left."""
    from client.privacy.ledger import Ledger

    opened = Ledger.open(ledger, witness)
    epsilon, delta = opened.budget
    lines = {
        "population": opened.population_id,
        "unit": "one user's whole history",
        "budget": f"epsilon {epsilon:g} at delta {delta:g}",
        "spent": f"epsilon {opened.spent():.4g}",
        "accountant": opened.accountant,
        "releases": str(len(opened.releases())),
    }
    for one in opened.plan:
        left = f"{opened.affordable(one)} (noise {one.noise_multiplier:g}, sampling rate {one.sampling_rate:g})"
        lines[f"left of {one.name}"] = left
    for name, value in lines.items():
        typer.echo(f"{name + ':':<22}{value}")
    typer.echo("the guarantee is per site: a person at two sites composes")


@privacy_app.command()
def history(
    ledger: LedgerFile,
    witness: WitnessFile,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it there instead.")] = None,
) -> None:
    """Print every release that was charged."""
    from client.privacy.ledger import Ledger
    from metarec_shared.files import write_json

    releases = Ledger.open(ledger, witness).releases()
    rows = [
        {
            "number": one.number,
            "time": one.time,
            "run": one.run,
            "round": one.round_number,
            "mechanism": one.mechanism.name,
            "noise_multiplier": one.mechanism.noise_multiplier,
            "sampling_rate": one.mechanism.sampling_rate,
        }
        for one in releases
    ]
    if json_file is not None:
        write_json(json_file, rows)
        return
    for row in rows:
        typer.echo(" ".join(str(value) for value in row.values()))


@privacy_app.command()
def set_budget(
    ledger: LedgerFile,
    witness: WitnessFile,
    epsilon: Epsilon,
    delta: Annotated[
        float | None, typer.Option(help="Chance that epsilon does not hold; as before if left out.")
    ] = None,
) -> None:
    """Change what may be spent in all; the change is recorded, and what was spent stays spent."""
    from client.privacy.ledger import Ledger

    opened = Ledger.open(ledger, witness)
    opened.set_budget(epsilon=epsilon, delta=opened.budget[1] if delta is None else delta)
    typer.echo(f"budget: epsilon {epsilon:g} at delta {opened.budget[1]:g}; spent: epsilon {opened.spent():.4g}")


@privacy_app.command()
def audit(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures there.")
    ] = None,
) -> None:
    """Measure what the client's replies tell of one user, against what is claimed; minutes, exit code 1 on failure."""
    from client.privacy.audit import audit_command

    audit_command(json_file)
