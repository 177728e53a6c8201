"""What every part of the default recipe buys, and what was left out of it would: one choice changed at a time.

``python -m simulations.benchmarks.ablation --data FOLDER [--seeds 0-4] [--only "a;b"] [--starts DIR] [--out DIR]
[--json FILE]``

Every choice is compared with the defaults over the same seeds: same split, same draws, one node a user. It is judged by
validation users, in random and in time order, and with few support items (the mean over both orders and ``FEW``); a
choice pays if it is better by more than two standard errors in one of these and nowhere worse by as much. Test users
are shown beside, and decide nothing; but what is blended in as validation users choose (task regression, start prior)
cannot look worse on these, so read its rows by test users. Runs are cached in ``--out``, so more seeds or choices are
added by the same command. ``--starts`` adds choices that start from runs on public data, as ``metarec pretrain`` makes
them, and differ in what is fine-tuned.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.evaluation import batched, cold_user_tasks, evaluate, model_scorer
from metarec_shared.files import write_json
from metarec_shared.population import Population
from metarec_shared.settings import Settings, parse_assignments
from metarec_shared.sources import load_training_dataset
from metarec_shared.split import Role
from metarec_shared.tasks import Order
from simulations.benchmarks.choices import Choice, compared, wanted_choices
from simulations.benchmarks.measure import machine, print_table, write_figures
from simulations.evaluation.benchmark import parse_seeds
from simulations.protocols import orders_of
from simulations.repeated import run_once

SOURCE = "ablation benchmark"
BASE = "defaults"
FIGURES_FILE = "validation-test-and-few.json"
ROLES = {"validation": Role.VALIDATION, "test": Role.TEST}
FEW = (1, 3, 5)
"""Support items of users with few of them."""

_PRETRAINED = 100


def _pretrained(**values: Any) -> dict[str, Any]:
    return {"pretraining.rounds": _PRETRAINED, **{key.replace("__", "."): value for key, value in values.items()}}


CHOICES: dict[str, Choice] = {
    BASE: Choice(lever="-"),
    "no inner loop": Choice(lever="steps", values={"adaptation.steps": 0}),
    "3 steps": Choice(lever="steps", values={"adaptation.steps": 3}),
    "5 steps": Choice(lever="steps", values={"adaptation.steps": 5}),
    "first inner rate 0.05": Choice(lever="steps", values={"adaptation.learning-rate": 0.05}),
    "MAML (on a user vector: ANIL)": Choice(lever="method", values={"adaptation.method": "maml"}),
    "first-order MAML": Choice(lever="method", values={"adaptation.method": "fomaml"}),
    "Reptile": Choice(lever="method", values={"adaptation.method": "reptile"}),
    "Reptile, rate 0.05": Choice(
        lever="method", values={"adaptation.method": "reptile", "adaptation.learning-rate": 0.05}
    ),
    "proximal, strength 1": Choice(lever="method", values={"adaptation.method": "proximal"}),
    "proximal, strength 0.1": Choice(
        lever="method", values={"adaptation.method": "proximal", "adaptation.proximal": 0.1}
    ),
    "hypernetwork": Choice(lever="method", values={"adaptation.method": "hypernetwork"}),
    "adapts the head": Choice(lever="adapted", values={"adaptation.parameters": "head"}),
    "adapts LoRA": Choice(lever="adapted", values={"adaptation.parameters": "lora"}),
    "adapts everything": Choice(lever="adapted", values={"adaptation.parameters": "all"}),
    "self-training, 5 pseudo-labels": Choice(lever="addition", values={"adaptation.pseudo-labels": 5}),
    "self-training, 20 pseudo-labels": Choice(lever="addition", values={"adaptation.pseudo-labels": 20}),
    "adversarial, radius 0.5": Choice(lever="addition", values={"adaptation.perturbation": 0.5}),
    "adversarial, radius 2": Choice(lever="addition", values={"adaptation.perturbation": 2.0}),
    "the adapted model alone": Choice(lever="addition", values={"regression.enabled": False}),
    "no start prior": Choice(lever="addition", values={"regression.start-prior": False}),
    "no likeness of text": Choice(lever="addition", values={"regression.text-blend": False}),
    "in time order, decay 0.9": Choice(lever="addition", values={"regression.decay": 0.9}),
    "inner rates as they are, however few the items": Choice(lever="addition", values={"adaptation.evidence": False}),
    "no tasks in time order": Choice(lever="addition", values={"tasks.time-share": 0.0, "model.order-aware": False}),
    "one state token": Choice(lever="addition", values={"model.order-aware": False}),
    "ranks in time": Choice(lever="addition", values={"model.recency": True}),
    "ranks in time, reordered": Choice(lever="addition", values={"model.recency": True, "tasks.reorder": 0.3}),
    "a tenth substituted by text": Choice(lever="addition", values={"tasks.substitute": 0.1}),
    "support dropout": Choice(lever="addition", values={"tasks.support-dropout": 0.15}),
    "support of one size": Choice(lever="addition", values={"tasks.vary-support": 0.0}),
    "no tasks from the start of histories": Choice(lever="addition", values={"tasks.start-share": 0.0}),
    "ratings predicted beside": Choice(lever="addition", values={"model.rating-weight": 0.1}),
    "feedback": Choice(lever="addition", values={"model.feedback": True}),
    "no ID vectors": Choice(lever="addition", values={"model.item-ids": False}),
    "masked items first": Choice(lever="pre-training", values=_pretrained(pretraining__objective="masked-item")),
    "contrasted crops first": Choice(lever="pre-training", values=_pretrained(pretraining__objective="contrastive")),
    "GPT-2": Choice(lever="pre-training", values={"model.encoder": "gpt2"}),
    "GPT-2, next items first": Choice(
        lever="pre-training", values=_pretrained(model__encoder="gpt2", pretraining__objective="autoregressive")
    ),
    "masked language modelling on item texts": Choice(lever="pre-training", values={"text.adapt-steps": 300}),
}

FINE_TUNED: dict[str, Choice] = {
    "from the start, everything": Choice(lever="fine-tuning"),
    "from the start, LoRA in the encoder's place": Choice(lever="fine-tuning", values={"federation.lora-rank": 4}),
    "from the start, head, biases, inner rates": Choice(
        lever="fine-tuning", values={"federation.released": "head,item_bias,adaptation"}
    ),
    "from the start, biases, inner rates": Choice(
        lever="fine-tuning", values={"federation.released": "item_bias,adaptation"}
    ),
}
"""Choices of a run that starts from another one."""


def figures_of(settings: Settings, folder: Path) -> dict[str, float]:
    """Return nDCG@k of validation and test users in every order the data has and with few items, of a run made once.

    Args:
        settings: The run's.
        folder: The run's.
    """
    path = folder / FIGURES_FILE
    run_once(settings, folder, _say)  # refuses a folder of other settings
    if not path.exists():
        dataset = load_training_dataset(settings)
        population = Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)
        score, sizes = model_scorer(load_checkpoint(folder).model(), adapt=True), settings.evaluation
        found: dict[str, float] = {}
        for role_name, role in ROLES.items():
            users = population.judged(role, sizes.users)

            def judged(order: Order, support: int, role: Role = role, users: NDArray[np.int64] = users) -> float:
                draws = sizes.validation_draws if order == "random" and role is Role.VALIDATION else 1
                tasks = [
                    task
                    for draw in range(draws)
                    for task in cold_user_tasks(
                        population, users, order, support, sizes.query, population.rating_scale, draw
                    )
                ]
                return float(evaluate(score, batched(tasks), sizes.k)[f"ndcg@{sizes.k}"].mean())

            orders = orders_of(dataset.interactions)
            found |= {f"{role_name} {order}": judged(order, sizes.support) for order in orders}
            few = [judged(order, support) for order in orders for support in FEW if support < sizes.support]
            if few:
                found[f"{role_name} few"] = statistics.mean(few)
        write_json(path, found)
    figures: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def pays(figures: Mapping[str, float]) -> bool:
    """Return whether a choice is better on validation users by more than two standard errors, and nowhere worse."""
    columns = [name.removesuffix("_percent_se") for name in figures if name.endswith("_percent_se")]
    judged = [
        (figures[f"{column}_percent"], figures[f"{column}_percent_se"])
        for column in columns
        if column.startswith("validation")
    ]
    return any(gain > 2 * error for gain, error in judged) and all(gain >= -2 * error for gain, error in judged)


def main(
    data: Annotated[str, typer.Option(help="Folder with the data.")],
    seeds: Annotated[str, typer.Option(help="Seeds: 7, 0,3 or 0-4.")] = "0-4",
    only: Annotated[str, typer.Option(help="Choices to run, by semicolons; empty: all.")] = "",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of every run, table.key=value; repeatable.")
    ] = None,
    starts: Annotated[
        Path | None, typer.Option(help="Folder with a run to start from for each seed, seed-0, seed-1 and so on.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are kept.")] = Path(
        "metarec-runs/ablation"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Change one choice of the defaults at a time, and say what it buys."""
    choices = CHOICES if starts is None else CHOICES | FINE_TUNED
    numbers, names = parse_seeds(seeds), wanted_choices(choices, only)
    given = Settings().with_values({"data.path": data, **parse_assignments(assignments or [])}, SOURCE)
    base = _columns(given, choices[BASE], BASE, numbers, out, starts)
    rows = []
    for name in dict.fromkeys([BASE, *names]):
        found = _columns(given, choices[name], name, numbers, out, starts)
        figures = compared(found, base)
        rows.append({"lever": choices[name].lever, "choice": name, **figures, "pays": pays(figures)})
        _say(f"{name}: " + ", ".join(f"{column} {rows[-1][column]:.4f}" for column in base))
    print_table(
        f"{Path(data).name}, {len(numbers)} seeds, nDCG@{given.evaluation.k}: percent of the defaults",
        ["choice", "lever", *(part for column in base for part in (column, "±")), "pays"],
        [
            [row["choice"], row["lever"]]
            + [
                f"{row[column + key]:{sign}.1f}"
                for column in base
                for key, sign in (("_percent", "+"), ("_percent_se", ""))
            ]
            + ["yes" if row["pays"] else "-"]
            for row in rows
        ],
        f"{machine()}; differences are paired over seeds",
    )
    write_figures(json_file, {"data": Path(data).name, "seeds": numbers, "rows": rows})


def _columns(
    given: Settings, choice: Choice, name: str, seeds: list[int], out: Path, starts: Path | None
) -> dict[str, list[float]]:
    """Return the figures of a choice, a list over seeds for each column."""
    rounds = choice.values.get("pretraining.rounds", 0)
    values = {**choice.values, "federation.rounds": given.federation.rounds + rounds}
    found: dict[str, list[float]] = {}
    for seed in seeds:
        start = {"run.init": f"{starts}/seed-{seed}"} if name in FINE_TUNED else {}
        seeded = given.with_values({**values, **start, "run.seed": seed}, f"{SOURCE}, {name}")
        for column, value in figures_of(seeded, out / choice.slug(name) / f"seed-{seed}").items():
            found.setdefault(column, []).append(value)
    return found


def _say(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    typer.run(main)
