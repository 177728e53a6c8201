"""What a study leaves for others: the best settings as TOML, the trials as CSV."""

import csv
import io
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from metarec_shared.files import write_text
from metarec_shared.settings import Settings
from metarec_shared.toml_text import toml_tables
from simulations.tuning.plan import Plan
from simulations.tuning.trials import Trials, error_of, trial_name, value_of

BEST_FILE = "best.toml"
TRIALS_FILE = "trials.csv"

_OF_A_RUN = ("run.out", "run.resume", "run.seed")
_STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def write_best(plan: Plan, trials: Trials, path: Path) -> None:
    """Write the settings of the best trial, for ``metarec simulate --config``; nothing where no trial is finished."""
    best = trials.best
    if best is None:
        return
    settings = plan.settings.with_values(best.params, trial_name(best))
    head = [
        f"# The best of {trials.done} trials ({trials}): trial {trial_name(best)}.",
        f"# {plan.metric}: {value_of(best):.4f}; it was selected by this figure, which is optimistic for that reason.",
    ]
    write_text(path, "\n".join([*head, "", _toml(settings, set(best.params))]))


def write_trials(plan: Plan, trials: Trials, path: Path) -> None:
    """Write one row a trial that has come to an end, in the order in which they were begun."""
    keys = [parameter.key for parameter in plan.space.parameters]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "validation", "rounds", "seconds", *keys, "error"])
    for trial in in_order(trials):
        row = [trial_name(trial), _STATES[trial.state], figure(trial), trial.last_step, seconds(trial)]
        writer.writerow([*row, *(trial.params.get(key) for key in keys), error_of(trial)])
    write_text(path, text.getvalue())


def in_order(trials: Trials) -> list[FrozenTrial]:
    """Return the trials that have come to an end, in the order in which they were begun."""
    return sorted((*trials.finished, *trials.pruned, *trials.failed), key=trial_name)


def figure(trial: FrozenTrial) -> float | None:
    """Return a finished trial's value, the last that was reported of a pruned one, None of a failed one."""
    if trial.state == TrialState.COMPLETE:
        return value_of(trial)
    if trial.state == TrialState.PRUNED and trial.last_step is not None:
        return trial.intermediate_values[trial.last_step]
    return None


def seconds(trial: FrozenTrial) -> float | None:
    """Return how long a trial took, since it was last gone on with."""
    return None if trial.duration is None else round(trial.duration.total_seconds(), 1)


def _toml(settings: Settings, searched: set[str]) -> str:
    """Return what was searched and what differs from the defaults, as TOML; the data by its absolute path."""
    defaults = Settings().flat()
    changed = {
        key: value
        for key, value in settings.flat().items()
        if key in searched or (value != defaults[key] and key not in _OF_A_RUN)
    }
    for place in ("data.path", "run.init"):
        if place in changed:
            changed[place] = str(Path(str(changed[place])).absolute())
    return toml_tables(changed)
