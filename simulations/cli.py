"""The commands ``metarec simulate`` and ``metarec evaluate``; heavy imports stand where they are used."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

simulate_app = typer.Typer(add_completion=False)
evaluate_app = typer.Typer(add_completion=False)


class Engine(StrEnum):
    """What runs the nodes."""

    IN_PROCESS = "in-process"
    RAY = "ray"


class Device(StrEnum):
    """Where tensors live."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class PrivacyMode(StrEnum):
    """Who clips users' meta-gradients and who adds noise to them."""

    NONE = "none"
    SITE = "site"
    CENTRAL = "central"
    LOCAL = "local"


class Protocol(StrEnum):
    """Who and what is ranked."""

    COLD_USER = "cold-user"
    COLD_ITEM = "cold-item"


class OrderChoice(StrEnum):
    """Order in which histories are read."""

    RANDOM = "random"
    TIME = "time"


@simulate_app.command()
def simulate(
    data: Annotated[Path | None, typer.Option(help="Folder with the data; without it, generated data.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; without it, metarec-runs/<time>.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="In this process, or Flower's simulation engine.")] = Engine.IN_PROCESS,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes the users are spread over.")] = None,
    one_node_per_user: Annotated[bool, typer.Option("--one-node-per-user", help="The default.")] = False,
    device: Annotated[Device | None, typer.Option(help="Where tensors live.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of every draw, the split of users included.")] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0, help="Memory the process may take; larger cohorts are computed in parts.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Start from this run, for example one on public data.")
    ] = None,
    privacy: Annotated[
        PrivacyMode | None, typer.Option(help="Differential privacy of a user's whole history: who adds noise.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(min=0, help="Privacy budget of the whole run; the noise is solved for.")
    ] = None,
    delta: Annotated[float | None, typer.Option(min=0, help="Chance that epsilon does not hold.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    hold_out_items: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="Share of items hidden from training, for cold-item.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also train the model without inner loop and fit centralized baselines.")
    ] = True,
) -> None:
    """Meta-train a recommender in a simulated federation, compare it with baselines, and write a report."""
    if one_node_per_user and nodes is not None:
        raise typer.BadParameter("give either --nodes or --one-node-per-user")
    options = {
        "data.path": None if data is None else str(data),
        "run.out": None if out is None else str(out),
        "run.device": None if device is None else device.value,
        "run.seed": seed,
        "run.memory-gb": memory_gb,
        "run.init": None if init is None else str(init),
        "run.resume": resume or None,
        "privacy.mode": None if privacy is None else privacy.value,
        "privacy.epsilon": epsilon,
        "privacy.delta": delta,
        "federation.nodes": 0 if one_node_per_user else nodes,
        "data.hold-out-items": hold_out_items,
    }
    from rich.console import Console

    from metarec_shared.model_card import privacy_facts
    from server.run_settings import run_settings
    from simulations.results_table import print_cold_user, print_ratings
    from simulations.simulate import simulate as run_simulation

    settings = run_settings(config, assignments or [], options)
    notes, console = Console(stderr=True, highlight=False), Console(highlight=False)
    notes.print(f"run folder: {settings.run.out}", markup=False, soft_wrap=True)
    result = run_simulation(settings, engine.value, lambda line: notes.print(line, markup=False), baselines=baselines)
    notes.print(f"report: {Path(settings.run.out) / 'report.html'}", markup=False, soft_wrap=True)
    if settings.model.target == "rating":
        print_ratings(console, result["ratings"])
    else:
        print_cold_user(console, result["cold_user"], settings.evaluation.k)
    if result["privacy"]:
        facts = privacy_facts(result["privacy"])
        for name in ("Mode", "Guarantee", "Unit of privacy", "Neighbours", "Trusted", "Not protected"):
            notes.print(f"{name}: {facts[name]}", markup=False, soft_wrap=True)


@evaluate_app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="Folder of a run.", metavar="RUN")],
    data: Annotated[Path | None, typer.Option(help="Folder with the data; without it, the run's own.")] = None,
    protocol: Annotated[Protocol, typer.Option(help="Cold users, or cold items.")] = Protocol.COLD_USER,
    support: Annotated[str, typer.Option(help="Support set sizes.", metavar="N,N,...")] = "1,3,5,10",
    order: Annotated[OrderChoice | None, typer.Option(help="Order of histories; without it, every order.")] = None,
    on_bad_rows: Annotated[
        str | None, typer.Option(help="error or skip; without it, as in the run.", metavar="error|skip")
    ] = None,
    user_attributes: Annotated[
        str | None, typer.Option(help="What users tell; without it, as in the run.", metavar="COLUMN,...")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Evaluate a run on users it has never seen."""
    from rich.console import Console

    from metarec_shared.files import write_json
    from simulations.evaluate import evaluate_cold_items, evaluate_cold_users
    from simulations.results_table import print_cells

    notes, console = Console(stderr=True, highlight=False), Console(highlight=False)
    sizes = _sizes(support)

    def say(line: str) -> None:
        notes.print(line, markup=False, soft_wrap=True)

    chosen = {"data.on-bad-rows": on_bad_rows, "data.user-attributes": user_attributes}
    reading = {key: value for key, value in chosen.items() if value is not None}
    if protocol is Protocol.COLD_ITEM:
        if order is OrderChoice.TIME:
            raise typer.BadParameter("the protocol cold-item has no time order")
        figures = evaluate_cold_items(model, data, sizes, reading, say)
    else:
        figures = evaluate_cold_users(model, data, sizes, None if order is None else order.value, reading, say)
    if json_file is not None:
        write_json(json_file, figures)
    print_cells(console, figures["cells"], figures["k"], figures["users"])


def _sizes(text: str) -> list[int]:
    from metarec_shared.errors import SettingsError

    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise SettingsError(f"--support must be whole numbers from 1, separated by commas, got {text!r}")
    return sizes
