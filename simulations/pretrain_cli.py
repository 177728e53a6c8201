"""The command ``metarec pretrain``; heavy imports stand where they are used."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from server.run_settings import run_settings
from simulations.cli import Device, Engine

pretrain_app = typer.Typer(add_completion=False)


class ObjectiveChoice(StrEnum):
    """Losses of pre-training."""

    MASKED_ITEM = "masked-item"
    AUTOREGRESSIVE = "autoregressive"
    CONTRASTIVE = "contrastive"


@pretrain_app.command()
def pretrain(
    objective: Annotated[ObjectiveChoice, typer.Option(help="Loss; autoregressive makes the encoder a GPT-2.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with the data, public data for example; without it, generated data.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; without it, metarec-runs/<time>.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of pre-training.")] = 200,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="In this process, or Flower's simulation engine.")] = Engine.IN_PROCESS,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes the users are spread over.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where tensors live.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of every draw, the split of users included.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
) -> None:
    """Pre-train a recommender by rounds of a simulated federation; `metarec simulate --init` starts from it."""
    options = {
        "data.path": None if data is None else str(data),
        "run.out": None if out is None else str(out),
        "run.device": None if device is None else device.value,
        "run.seed": seed,
        "run.resume": resume or None,
        "federation.nodes": nodes,
        "federation.rounds": rounds,
        "pretraining.objective": objective.value,
        "pretraining.rounds": rounds,
        "model.encoder": "gpt2" if objective is ObjectiveChoice.AUTOREGRESSIVE else None,
    }
    settings = run_settings(config, assignments or [], options)

    from rich.console import Console

    from metarec_shared.checkpoint import load_checkpoint
    from simulations.simulate import train

    notes, folder = Console(stderr=True, highlight=False), Path(settings.run.out)

    def say(line: str) -> None:
        notes.print(line, markup=False, soft_wrap=True)

    train(settings, engine.value, say)
    checkpoint = load_checkpoint(folder)
    judged = (
        ""
        if checkpoint.validation is None
        else f", validation nDCG@{settings.evaluation.k} {checkpoint.validation:.4f}"
    )
    say(f"pre-trained: {folder}, round {checkpoint.round_number}{judged}")
    encoder = "" if settings.model.encoder == "bert" else f" --set model.encoder={settings.model.encoder}"
    say(f"meta-learn from it: metarec simulate --data DIR --init {folder}{encoder}")
