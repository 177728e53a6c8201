"""``metarec tune``: run a study and write down, after every trial, what there is."""

from pathlib import Path

import optuna

from metarec_shared.sources import load_dataset
from simulations.protocols import Say
from simulations.tuning.outcome import BEST_FILE, TRIALS_FILE, write_best, write_trials
from simulations.tuning.plan import Plan, planned
from simulations.tuning.report import REPORT_FILE, write_study_report
from simulations.tuning.space import shown
from simulations.tuning.study import run_study
from simulations.tuning.trials import Trials, trial_name, value_of


def tune(plan: Plan, out: Path, say: Say) -> str:
    """Run the trials of a study that are not run yet; leave best.toml, trials.csv and report.html beside study.db.

    Args:
        plan: What the study is.
        out: Its folder.
        say: Told, in a line each, what happens next.

    Returns:
        What was found, for people.

    Raises:
        MetaRecError: As ``run_study`` does.
    """
    plan = planned(plan)
    name = load_dataset(plan.settings).name

    def write(study: optuna.Study) -> None:
        trials = Trials.of(study)
        write_best(plan, trials, out / BEST_FILE)
        write_trials(plan, trials, out / TRIALS_FILE)
        write_study_report(study, plan, out / REPORT_FILE, name)

    trials = run_study(plan, out, say, after_trial=write)
    say(f"report: {out / REPORT_FILE}")
    return _summary(plan, trials, out)


def _summary(plan: Plan, trials: Trials, out: Path) -> str:
    best = trials.best
    lines = [f"{trials.done} of {plan.trials} trials: {trials}"]
    if best is not None:
        lines += [f"best trial {trial_name(best)}, {plan.metric} {value_of(best):.4f} (selected, so optimistic):"]
        lines += [f"  {key} = {shown(value)}" for key, value in best.params.items()]
        lines += [f"go on with: metarec simulate --config {out / BEST_FILE}"]
    return "\n".join(lines)
