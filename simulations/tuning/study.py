"""A study: trials of settings one after the other, kept in a SQLite file, so that it goes on wherever it was stopped.

A trial's draws depend on the study's seed and on how many trials came before it, not on when the study was interrupted:
a study that was stopped and gone on with suggests what it would have suggested.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.pool import QueuePool

from metarec_shared.errors import CheckpointError, MetaRecError
from metarec_shared.fingerprint import data_fingerprint
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset
from simulations.protocols import Say
from simulations.tuning.objective import Objective, OutOfTime
from simulations.tuning.plan import Plan, first_values, planned, pruner_of, sampler_of
from simulations.tuning.space import listed
from simulations.tuning.trials import ERROR, FOLDER, KILLS, MOST_KILLS, STOPPED, Trials, trial_name, value_of

STUDY_FILE = "study.db"
TRIALS_FOLDER = "trials"

_NAME = "metarec"
_ABOUT = "about"
_HOPELESS = 3  # failures before any trial works
_PLACES = {"run.out": "", "run.device": "auto", "run.memory-gb": 0.0, "data.path": "", "data.catalogue": ""}
_DROPPED = ("README.md", "model.json", "model.safetensors", "resume.safetensors", "catalogue.json")


def run_study(
    plan: Plan, out: Path, say: Say, *, after_trial: Callable[[optuna.Study], None] = lambda study: None
) -> Trials:
    """Run the trials of a study that are not run yet.

    Args:
        plan: What the study is.
        out: Its folder.
        say: Told, in a line each, what happens next.
        after_trial: Called with the study after every trial, and at the end, however that comes.

    Returns:
        What became of the trials.

    Raises:
        SettingsError: The plan cannot be carried out.
        CheckpointError: The folder holds another study, or another process is at work in it.
        MetaRecError: No trial works.
    """
    first = first_values(plan)
    plan = planned(plan)
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + plan.timeout
    with _alone(out), _opened(plan, out) as study:
        _claim(study, plan, out)
        _give_back(study, killed=1)
        for values in first:
            study.enqueue_trial(values, skip_if_exists=True)
        objective = Objective(
            settings=_of_trials(plan.settings, out),
            seeds=plan.seeds,
            longest_run=plan.space.longest_run(plan.settings),
            folder=out / TRIALS_FOLDER,
        )
        try:
            while (done := Trials.of(study).done) < plan.trials:
                if time.monotonic() > deadline:
                    raise OutOfTime
                study.sampler = sampler_of(plan, done)
                trial = study.ask(plan.space.distributions)
                say(f"trial {done + 1} of {plan.trials}: {listed(trial.params)}")
                _carry_out(study, trial, objective, deadline, say)
                after_trial(study)
        except OutOfTime:
            say("the time is up; the same command goes on")
        finally:
            _give_back(study, killed=0)
            after_trial(study)
        return Trials.of(study)


def _carry_out(study: optuna.Study, trial: optuna.Trial, objective: Objective, deadline: float, say: Say) -> None:
    """Run a trial and tell the study what became of it; one that is interrupted stays unfinished.

    Raises:
        OutOfTime: The time is up.
        MetaRecError: It fails like all the others before it.
    """
    name, began = trial_name(trial), time.monotonic()
    try:
        value = objective(trial, name, deadline)
    except (OutOfTime, KeyboardInterrupt):
        trial.set_user_attr(STOPPED, True)
        raise
    except optuna.TrialPruned as pruned:
        study.tell(trial, state=TrialState.PRUNED)
        say(f"  pruned {pruned}")
    except Exception as error:
        trial.set_user_attr(ERROR, " ".join(str(error).split()) or type(error).__name__)
        study.tell(trial, state=TrialState.FAIL)
        found = Trials.of(study)
        if not isinstance(error, MetaRecError) or (len(found.failed) >= _HOPELESS == found.done):
            raise
        say(f"  failed: {error}")
    else:
        study.tell(trial, value)
        best = Trials.of(study).best
        assert best is not None
        seconds = time.monotonic() - began
        say(f"  {value:.4f} after {seconds:,.0f} s; best {value_of(best):.4f}, trial {trial_name(best)}")
    _drop_weights(objective.folder, name)


def _of_trials(settings: Settings, out: Path) -> Settings:
    """Return the settings with one place for the trackers of all trials."""
    run = settings.run
    return replace(settings, run=replace(run, tracking_folder=run.tracking_folder or str(out.absolute())))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder against other processes; the lock ends with the process, however that ends.

    Raises:
        CheckpointError: Another process holds it.
    """
    with closing(sqlite3.connect(out / "study.lock", timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise CheckpointError(f"{out}: another metarec tune is at work there ({error})") from error
        yield


@contextmanager
def _opened(plan: Plan, out: Path) -> Iterator[optuna.Study]:
    """Open the study in ``out``, or begin it.

    Raises:
        CheckpointError: The file is no study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    path = (out / STUDY_FILE).absolute()
    try:
        # Not by a URL, in which ?, % and {} of a folder's name would mean something else.
        storage = optuna.storages.RDBStorage(
            "sqlite://",
            engine_kwargs={"creator": partial(sqlite3.connect, path, check_same_thread=False), "poolclass": QueuePool},
        )
    except Exception as error:  # SQLAlchemy's and alembic's own
        raise CheckpointError(f"{path}: cannot be read as a study: {error}") from error
    try:
        yield optuna.create_study(
            storage=storage, study_name=_NAME, direction="maximize", pruner=pruner_of(plan), load_if_exists=True
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _claim(study: optuna.Study, plan: Plan, out: Path) -> None:
    """Write what the study is for, or compare with what it says.

    Raises:
        CheckpointError: It is another one.
    """
    settings = plan.settings.flat() | _PLACES | dict.fromkeys(("run.trackers", "run.tracking-folder"), "")
    about: dict[str, Any] = {
        "data": data_fingerprint(load_dataset(plan.settings)),
        "objective": plan.metric,
        "search space": plan.space.described(),
        "settings": {key: str(value) for key, value in settings.items()},
        "seeds": list(plan.seeds),
        "sampler": plan.sampler.value,
        "pruner": plan.pruner.value,
        "seed of the sampler": plan.seed,
    }
    before = study.user_attrs.get(_ABOUT)
    if before is None:
        study.set_user_attr(_ABOUT, about)
    elif different := [
        _difference(name, before.get(name), value) for name, value in about.items() if before.get(name) != value
    ]:
        raise CheckpointError(
            f"{out}: the study there was made with other {'; other '.join(different)}; give another --out"
        )


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "data":
        return name
    if not isinstance(before, dict) or not isinstance(now, dict):
        return f"{name}: {before}, not {now}"
    changed = [key for key in before | now if before.get(key) != now.get(key)]
    return f"{name}: " + ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)


def _give_back(study: optuna.Study, *, killed: int) -> None:
    """Mark trials that nobody runs any more as failed, and let each be gone on with, in its own folders.

    Args:
        study: Nobody else works on it.
        killed: 1 where they were cut short without a word, which is counted; 0 where they were stopped.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        values = trial.params or trial.system_attrs.get("fixed_params", {})
        study.tell(trial.number, state=TrialState.FAIL)
        kills = trial.user_attrs.get(KILLS, 0) + (0 if STOPPED in trial.user_attrs else killed)
        if values and kills < MOST_KILLS:
            study.enqueue_trial(values, user_attrs={FOLDER: trial_name(trial), KILLS: kills})


def _drop_weights(folder: Path, name: str) -> None:
    """Remove what is large from the folders of a trial that is over; its figures stay."""
    for run in folder.glob(f"{name}-seed-*"):
        for part in _DROPPED:
            (run / part).unlink(missing_ok=True)
