"""What buys utility under privacy: the private defaults, and one choice changed at a time.

``python -m simulations.benchmarks.recipe_choices --data FOLDER [--public FOLDER] [--only a,b] [--json FILE]``

Private defaults must not be chosen on private data, and public data sets are small. So every choice is run on the few
users of a public data set with the noise that a site with many users (``--users``) would need for the same epsilon,
scaled so that noise over the expected number of users of a round is what it would be there. These runs say what a
choice buys; as runs on their own few users they promise next to nothing.

Every choice is compared with the private defaults over the same seeds: same split, same draws. With ``--public``,
all start from a model that was meta-trained there without privacy, one for each kind of adaptation.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from metarec_shared.errors import PrivacyError
from metarec_shared.population import Population
from metarec_shared.privacy.terms import Terms, run_terms
from metarec_shared.settings import PRIVATE_DEFAULTS, Settings
from metarec_shared.sources import load_training_dataset
from metarec_shared.split import Role
from simulations.benchmarks.choices import ORDERS, Choice, compared, wanted_choices
from simulations.benchmarks.measure import machine, print_table, write_figures
from simulations.repeated import run_once

SOURCE = "private recipe benchmark"
BASE = "private defaults"

_SMALL = "head,adaptation,encoder.embeddings"


CHOICES: dict[str, Choice] = {
    BASE: Choice(lever="-"),
    "all but the score bias": Choice(
        lever="released", values={"federation.released": "encoder,head,adaptation,projection,item_norm"}
    ),
    "all but the projection of texts": Choice(
        lever="released", values={"federation.released": "encoder,head,adaptation,item_bias"}
    ),
    "projection, head, step sizes": Choice(
        lever="released", values={"federation.released": "projection,item_norm,head,adaptation"}
    ),
    "head, step sizes, feedback": Choice(lever="released", values={"federation.released": _SMALL}),
    "adapts the head": Choice(lever="adapted", values={"adaptation.parameters": "head"}),
    "LoRA in place of the encoder": Choice(lever="released", values={"federation.lora-rank": 4}),
    "LoRA, head, step sizes": Choice(
        lever="released", values={"federation.lora-rank": 4, "federation.released": "encoder.encoder,head,adaptation"}
    ),
    "adapts LoRA": Choice(lever="adapted", values={"adaptation.parameters": "lora"}),
    "sampling rate 0.025": Choice(lever="cohort", values={"privacy.sampling-rate": 0.025}),
    "sampling rate 0.05": Choice(lever="cohort", values={"privacy.sampling-rate": 0.05}),
    "sampling rate 0.2": Choice(lever="cohort", values={"privacy.sampling-rate": 0.2}),
    "sampling rate 0.4": Choice(lever="cohort", values={"privacy.sampling-rate": 0.4}),
    "25 rounds": Choice(lever="rounds", values={"federation.rounds": 25}),
    "50 rounds": Choice(lever="rounds", values={"federation.rounds": 50}),
    "200 rounds": Choice(lever="rounds", values={"federation.rounds": 200}),
    "400 rounds": Choice(lever="rounds", values={"federation.rounds": 400}),
    "clip norm 0.1": Choice(lever="clipping", values={"federation.clip-norm": 0.1}),
    "clip norm 5": Choice(lever="clipping", values={"federation.clip-norm": 5.0}),
    "clip norm 10": Choice(lever="clipping", values={"federation.clip-norm": 10.0}),
    "learning rate 1e-3": Choice(lever="server", values={"outer.learning-rate": 1e-3}),
    "learning rate 1e-2": Choice(lever="server", values={"outer.learning-rate": 1e-2}),
    "no averaging": Choice(lever="server", values={"outer.averaging": 0.0}),
    "averaging 0.97": Choice(lever="server", values={"outer.averaging": 0.97}),
    "SGD, momentum 0.9, rate 0.1": Choice(
        lever="server", values={"outer.optimizer": "sgd", "outer.learning-rate": 0.1, "outer.momentum": 0.9}
    ),
    "SGD, momentum 0.9, rate 0.3": Choice(
        lever="server", values={"outer.optimizer": "sgd", "outer.learning-rate": 0.3, "outer.momentum": 0.9}
    ),
    "SGD, no momentum, rate 1": Choice(
        lever="server", values={"outer.optimizer": "sgd", "outer.learning-rate": 1.0, "outer.momentum": 0.0}
    ),
    "no item counts": Choice(lever="popularity", values={"privacy.popularity-share": 0.0}),
    "item counts for 0.3 of epsilon": Choice(lever="popularity", values={"privacy.popularity-share": 0.3}),
}


def scaled(settings: Settings, users: int, here: int) -> tuple[Settings, Terms]:
    """Return settings whose noise over the expected users of a round is that of a site with ``users`` users.

    Args:
        settings: With a finite epsilon and a sampling rate, for the large site.
        users: Of the large site.
        here: Users that there are. As many of them are expected in a round as would be there, or all.

    Returns:
        The settings to run, and the terms of the large site.

    Raises:
        PrivacyError: The settings have no epsilon, or switch privacy off.
    """
    terms = run_terms(settings, users)
    if terms is None or not 0.0 < settings.privacy.epsilon < math.inf:
        raise PrivacyError("noise is scaled from privacy.mode = site and a finite privacy.epsilon")
    rate = min(1.0, terms.sampling_rate * users / here)
    shrunk = replace(
        settings.privacy,
        epsilon=0.0,
        sampling_rate=rate,
        noise_multiplier=terms.noise_multiplier * rate * here / (terms.sampling_rate * users),
        popularity_noise=terms.popularity_noise * here / users,
    )
    return replace(settings, privacy=shrunk), terms


def warm_start(base: Settings, public: str, rounds: int, folder: Path) -> str:
    """Meta-train on public data without privacy and return the run's folder."""
    values = {"data.path": public, "federation.rounds": rounds, "data.rating-low": 1, "data.rating-high": 5}
    same_model = {key: value for key, value in PRIVATE_DEFAULTS.items() if key.startswith(("model.", "tasks."))}
    run_once(base.with_values(values | same_model, SOURCE), folder, _say)
    return str(folder)


def main(
    data: Annotated[str, typer.Option(help="Folder with public data, of few users.")],
    public: Annotated[str, typer.Option(help="Folder with other public data, over the same catalogue.")] = "",
    encoder: Annotated[str, typer.Option(help="Text encoder, as in the settings.")] = "builtin",
    epsilon: Annotated[float, typer.Option(help="Of the large site.")] = 2.0,
    users: Annotated[int, typer.Option(help="Users of the large site.")] = 4800,
    seeds: Annotated[str, typer.Option(help="Seeds, by commas.")] = "0,1,2",
    only: Annotated[str, typer.Option(help="Choices to run, by semicolons; empty: all.")] = "",
    warm_rounds: Annotated[int, typer.Option(help="Rounds of meta-training on --public.")] = 600,
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are kept.")] = Path(
        "metarec-runs/private-recipe"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Change one choice of the private recipe at a time, and say what it buys."""
    possible = {n: c for n, c in CHOICES.items() if public or only or "federation.lora-rank" not in c.values}
    names = wanted_choices(possible, only)
    numbers = [int(part) for part in seeds.split(",")]
    plain = Settings().with_values({"data.path": data, "text.encoder": encoder, "run.device": "cpu"}, SOURCE)
    values: dict[str, dict[str, list[float]]] = {}
    rows = []
    for name in dict.fromkeys([BASE, *names]):
        choice = CHOICES[name]
        changed = plain.with_values({k: v for k, v in choice.values.items() if k.startswith("adaptation.")}, SOURCE)
        start = ""
        if public:
            start = warm_start(changed, public, warm_rounds, out / f"public-{changed.adaptation.parameters}")
        private = changed.with_values(
            {
                **PRIVATE_DEFAULTS,
                "privacy.mode": "site",
                "privacy.epsilon": epsilon,
                "run.init": start,
                "model.item-ids": bool(start),
                **choice.values,
            },
            SOURCE,
        )
        results = []
        for seed in numbers:
            seeded = replace(private, run=replace(private.run, seed=seed))
            wanted, terms = scaled(seeded, users, _training_users(seeded))
            results.append(run_once(wanted, out / choice.slug(name) / f"seed-{seed}", _say))
        values[name] = {o: [r["cold_user"][o]["metarec"]["ndcg@10"] for r in results] for o in ORDERS}
        rows.append(
            {
                "lever": choice.lever,
                "choice": name,
                "noise_multiplier": terms.noise_multiplier,
                "expected_users": terms.sampling_rate * users,
                **compared(values[name], values[BASE]),
            }
        )
        _say(f"{name}: " + ", ".join(f"{order} {rows[-1][order]:.4f}" for order in ORDERS))
    print_table(
        f"private recipe at epsilon {epsilon:g} as of a site with {users:,} users, {len(numbers)} seeds; nDCG@10",
        ["choice", "lever", "noise", "users a round", "random", "% of base", "±", "time", "% of base", "±"],
        [
            [r["choice"], r["lever"], r["noise_multiplier"], r["expected_users"]]
            + [
                f"{r[o + k]:{f}}"
                for o in ORDERS
                for k, f in (("", ".4f"), ("_percent", "+.1f"), ("_percent_se", ".1f"))
            ]
            for r in rows
        ],
        f"{machine()}; differences are paired over seeds",
    )
    write_figures(json_file, {"data": Path(data).name, "epsilon": epsilon, "users": users, "rows": rows})


def _training_users(settings: Settings) -> int:
    dataset = load_training_dataset(settings)
    return len(Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed).users(Role.TRAINING))


def _say(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    typer.run(main)
