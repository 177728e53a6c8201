"""What an attacker learns from the messages of a federation: which items a user had, and who took part.

``python -m simulations.benchmarks.membership [--data FOLDER] [--json FILE]``

First one release at a time: a user's update, and sums over users, raw and clipped and noised. Then whole private runs:
every reply, the item counts and the final model. The attacker is the server: it knows the parameters of every round.
The statistic of an attack is chosen on other users than those it is judged on. An AUC of 0.5 is chance; how the tests
are kept from being won by popularity and taste is in ``histories``, the statistics are in ``attack``.

A private run is judged beside what (epsilon, delta) allows any attacker, and beside the tighter bound that the
accountant's whole profile of (epsilon, delta) sets. An item more or less replaces a history, so for items both hold
with twice epsilon. An epsilon of inf clips and adds no noise: it shows that the tests find what there is to find.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from client.data_source import load_learner
from metarec_shared.privacy.accounting import epsilon_of
from metarec_shared.privacy.terms import Terms
from metarec_shared.settings import PRIVATE_DEFAULTS, Settings
from simulations.benchmarks.attack import auc_bound, for_replacement
from simulations.benchmarks.attacked_run import attack_run
from simulations.benchmarks.histories import load_histories
from simulations.benchmarks.measure import machine, print_table, timed, write_figures
from simulations.benchmarks.single_release import TESTS, attack, releases

BUILTIN_STEPS = 20
"""Pre-training of the built-in encoder: what its vectors mean matters little here."""

_PROFILE = (1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)
"""Deltas at which the accountant is asked for an epsilon, to bound the AUC."""


def base_settings(data: str, encoder: str, users: int, items: int, seed: int) -> Settings:
    """Return the settings that all attacked runs share."""
    same_model = {key: value for key, value in PRIVATE_DEFAULTS.items() if key.startswith(("model.", "tasks."))}
    values = {
        **same_model,
        "data.path": data,
        "generator.users": users,
        "generator.items": items,
        "text.encoder": encoder,
        "text.builtin-steps": BUILTIN_STEPS,
        "run.seed": seed,
        "run.device": "cpu",
    }
    return Settings().with_values(values, "membership benchmark")


def private_settings(base: Settings, epsilon: float, delta: float, rounds: int, rate: float) -> Settings:
    """Return the settings of a private run of one site."""
    values = {
        **PRIVATE_DEFAULTS,
        "privacy.mode": "site",
        "privacy.epsilon": epsilon,
        "privacy.delta": delta,
        "privacy.sampling-rate": rate,
        "model.item-ids": False,
        "federation.rounds": rounds,
    }
    return base.with_values(values, "membership benchmark")


def bounds_of(terms: Terms, epsilon: float, rounds: int) -> dict[str, float]:
    """Return the highest AUC that the terms of a run leave any attacker, by (epsilon, delta) and by the profile."""
    if not terms.noise_multiplier:
        return {"user_bound": 1.0, "user_profile_bound": 1.0, "item_bound": 1.0, "item_profile_bound": 1.0}
    mechanisms = [terms.meta_update(rounds), *([terms.popularity()] if terms.releases_popularity else [])]
    claimed = [(epsilon, terms.delta)]
    profile = [*claimed, *((epsilon_of(mechanisms, delta), delta) for delta in _PROFILE)]
    return {
        "user_bound": auc_bound(claimed),
        "user_profile_bound": auc_bound(profile),
        "item_bound": auc_bound(for_replacement(claimed)),
        "item_profile_bound": auc_bound(for_replacement(profile)),
    }


def measure_run(
    base: Settings, *, epsilon: float, delta: float, rounds: int, rate: float, targets: int
) -> dict[str, Any]:
    """Attack one private run."""
    settings = private_settings(base, epsilon, delta, rounds, rate)
    histories = load_histories(settings, len(load_learner(settings).model.text))
    found = attack_run(settings, histories, targets)
    terms = found.pop("terms")
    run = {"epsilon": epsilon if math.isfinite(epsilon) else None, "delta": delta, "rounds": rounds, "rate": rate}
    return run | found | bounds_of(terms, epsilon, rounds)


def main(
    data: Annotated[str, typer.Option(help="Folder with data; empty: generated.")] = "",
    encoder: Annotated[str, typer.Option(help="Text encoder, as in the settings.")] = "builtin",
    users: Annotated[int, typer.Option(help="Generated users.")] = 3000,
    items: Annotated[int, typer.Option(help="Generated items.")] = 400,
    groups: Annotated[str, typer.Option(help="Users of the sums, by commas.")] = "1,4,16,64",
    noises: Annotated[str, typer.Option(help="Noise multipliers of single releases, by commas.")] = "0.5,1,2",
    targets: Annotated[int, typer.Option(help="Users whose single releases are attacked.")] = 32,
    epsilons: Annotated[str, typer.Option(help="Epsilons of whole runs, by commas; inf: clip alone.")] = "inf,2",
    delta: Annotated[float, typer.Option(help="Delta of whole runs.")] = 1e-5,
    rounds: Annotated[int, typer.Option(help="Rounds of a whole run.")] = 100,
    rate: Annotated[float, typer.Option(help="Chance of a user to be in a round of a whole run.")] = 0.1,
    run_targets: Annotated[int, typer.Option(help="Members, and as many others, attacked in a whole run.")] = 900,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Attack single releases and whole private runs, and compare with what the guarantee allows."""
    base = base_settings(data, encoder, users, items, seed)
    singles: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []

    def attack_singles() -> None:
        histories = load_histories(base, len(load_learner(base).model.text))
        wanted = releases(tuple(map(int, groups.split(","))), tuple(map(float, noises.split(","))))
        singles.extend(attack(base, histories, release, targets) for release in wanted)

    def attack_runs() -> None:
        runs.extend(
            measure_run(base, epsilon=epsilon, delta=delta, rounds=rounds, rate=rate, targets=run_targets)
            for epsilon in map(float, filter(None, epsilons.split(",")))
        )

    seconds = {"singles": timed(attack_singles), "runs": timed(attack_runs)}
    _print_singles(singles)
    if runs:
        _print_runs(runs)
    write_figures(json_file, {"single": singles, "runs": runs, "seconds": seconds})


def _print_singles(rows: list[dict[str, Any]]) -> None:
    cells = [
        [row["released"], row["users"], row["protection"], *(_shown(row[test]) for test in TESTS), _popularity(row)]
        for row in rows
    ]
    tests = ("drawn or withheld", "history or withheld", "drawn or nobody's", "popularity")
    columns = ("released", "users", "update", *tests)
    print_table("Which items a user had, from one release: AUC", columns, cells, machine())


def _print_runs(rows: list[dict[str, Any]]) -> None:
    cells = [
        [
            f"epsilon {row['epsilon'] or 'inf'}, noise {row['noise']:.3g}: {test}",
            _shown(row[test]),
            row[test]["statistic"],
            f"{row[f'{test}_profile_bound']:.3f}",
            f"{row[f'{test}_bound']:.3f}",
        ]
        for row in rows
        for test in ("user", "item")
    ]
    columns = ("whole run: who, what", "AUC", "by", "bound of the profile", "bound of (epsilon, delta)")
    print_table(f"Members and their items, from {rows[0]['rounds']} rounds and the final model", columns, cells)


def _popularity(row: dict[str, Any]) -> str:
    """Return what popularity alone reaches in the last test; in the others it is chance."""
    return f"{row[TESTS[-1]]['popularity']:.3f}"


def _shown(found: dict[str, Any]) -> str:
    return f"{found['auc']:.3f} ± {found['standard_error']:.3f}"


if __name__ == "__main__":
    typer.run(main)
