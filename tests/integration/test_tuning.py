"""Studies from the command line to the report, on a federation that takes a second."""

import csv
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from client.node import Nodes
from metarec_shared.dataset import Dataset
from metarec_shared.errors import CheckpointError, FederationError, SettingsError
from metarec_shared.population import Population
from metarec_shared.settings import Settings, load_toml
from metarec_shared.sources import load_dataset
from metarec_shared.split import Role
from server.run_folder import read_metrics
from server.tracking import TrackedRun
from simulations.simulate import simulate
from simulations.tune_cli import tune_app
from simulations.tuning import objective as objectives
from simulations.tuning import plan as plans
from simulations.tuning import study as studies
from simulations.tuning.choices import Pruner, Sampler
from simulations.tuning.objective import Watch
from simulations.tuning.plan import Plan
from simulations.tuning.space import load_space
from simulations.tuning.trials import Trials, trial_name
from simulations.tuning.tune import tune
from tests.e2e.processes import lines_of, wait_until
from tests.small import SMALL_RUN, small_settings

SPACE = """
"outer.learning-rate" = { low = 1e-4, high = 0.1, log = true }
"tasks.id-dropout" = { low = 0.0, high = 0.6 }
"adaptation.steps" = { choices = [1, 2] }
"""
QUICK = {
    "run__trackers": "",
    "regression__enabled": False,
    "federation__rounds": 2,
    "federation__evaluate_every": 1,
    "evaluation__validation_draws": 1,
}
GRID = '"outer.learning-rate" = { choices = [0.004, 0.02] }\n"adaptation.steps" = { low = 1, high = 2 }\n'


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return a_plan(tmp_path, SPACE, sampler=Sampler.RANDOM, pruner=Pruner.NONE, trials=2)


def a_plan(folder: Path, space: str, *, settings: Settings | None = None, **changes: Any) -> Plan:
    path = folder / "space.toml"
    path.write_text(space)
    settings = settings or small_settings(**QUICK)
    return Plan(settings=settings, space=load_space(path, settings), **changes)


def quiet(line: str) -> None:
    pass


def opened(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="metarec", storage=f"sqlite:///{folder / 'study.db'}")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def small_options(**values: object) -> list[str]:
    changes = {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
    return [part for key, value in {**SMALL_RUN, **changes}.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def test_the_command_leaves_settings_that_simulate_takes_and_a_report_that_says_what_was_tuned(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(GRID)
    out = tmp_path / "study"
    arguments = ["--out", str(out), "--space", str(tmp_path / "space.toml"), "--sampler", "grid"]
    options = small_options(**{**QUICK, "run__trackers": "tensorboard", "regression__enabled": True})
    found = CliRunner().invoke(tune_app, [*arguments, *options])
    assert found.exit_code == 0, found.output
    assert "4 of 4 trials: 4 finished, 0 pruned, 0 failed" in found.stdout
    values = {(row["outer.learning-rate"], row["adaptation.steps"]): float(row["validation"]) for row in rows(out)}
    assert values.keys() == {(rate, steps) for rate in ("0.004", "0.02") for steps in ("1", "2")}
    best = max(values, key=lambda key: values[key])
    found_best = Settings().with_values(load_toml(out / "best.toml"), "best.toml")
    assert (found_best.outer.learning_rate, found_best.adaptation.steps) == (float(best[0]), int(best[1]))
    page = (out / "report.html").read_text()
    for said in ("2 settings", "4 of 4: 4 finished, 0 pruned, 0 failed", "grid: every combination", "optimistic"):
        assert said in page
    assert page.count("<svg") == 1
    assert "It takes 8 finished trials" in page
    assert not list(out.glob("trials/*/*.safetensors"))

    from server.run_settings import run_settings

    again = run_settings(out / "best.toml", [], {"run.out": str(tmp_path / "run")})
    assert again.outer.learning_rate == float(best[0])
    result = simulate(again, "in-process", quiet, baselines=False)
    assert result["regressions"]["random"][str(again.evaluation.support)]["validation"] == pytest.approx(values[best])


def test_a_trials_value_is_the_validation_metric_that_selected_its_checkpoint(tmp_path: Path, plan: Plan) -> None:
    tune(plan, tmp_path / "study", quiet)
    for trial in opened(tmp_path / "study").trials:
        lines = read_metrics(tmp_path / "study" / "trials" / f"{trial_name(trial)}-seed-0" / "metrics.jsonl")
        evaluated = {line["round"]: line["validation_ndcg@10"] for line in lines if "validation_ndcg@10" in line}
        assert trial.value == max(evaluated.values())
        assert trial.intermediate_values == {
            round_number: max(value for other, value in evaluated.items() if other <= round_number)
            for round_number in evaluated
        }


def test_the_first_trial_is_the_settings_as_they_are(tmp_path: Path, plan: Plan) -> None:
    tune(replace(plan, sampler=Sampler.TPE), tmp_path / "study", quiet)
    first, second = opened(tmp_path / "study").trials
    assert first.params == {"outer.learning-rate": 0.004, "tasks.id-dropout": 0.2, "adaptation.steps": 1}
    assert second.params != first.params


def test_no_test_user_is_evaluated(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            if Role.TEST in (*arguments, *named.values()):
                raise AssertionError("a test user was asked for")
            return method(self, *arguments, **named)

        return call

    for owner, name in ((Population, "users"), (Population, "judged"), (Nodes, "judged"), (Nodes, "users_in")):
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    settings = small_settings(**{**QUICK, "regression__enabled": True})
    tune(replace(plan, settings=settings), tmp_path / "study", quiet)
    assert [trial.state for trial in opened(tmp_path / "study").trials] == [TrialState.COMPLETE] * 2
    run = replace(settings.run, out=str(tmp_path / "run"))
    with pytest.raises(AssertionError, match="a test user was asked for"):
        simulate(replace(settings, run=run), "in-process", quiet, baselines=False)


def test_what_test_users_did_changes_no_value(tmp_path: Path) -> None:
    dataset = load_dataset(small_settings())
    values = {}
    for name, swapped in (("as-it-is", False), ("swapped", True)):
        write_csv(tmp_path / name, dataset, swapped=swapped)
        settings = small_settings(**{**QUICK, "data__path": str(tmp_path / name), "regression__enabled": True})
        tune(a_plan(tmp_path, SPACE, settings=settings, trials=1), tmp_path / f"study-{name}", quiet)
        values[name] = [row["validation"] for row in rows(tmp_path / f"study-{name}")]
    assert values["as-it-is"] == values["swapped"]
    assert float(values["swapped"][0]) > 0


def write_csv(folder: Path, dataset: Dataset, *, swapped: bool) -> None:
    """Write the data; ``swapped`` gives every test user other items than he had."""
    folder.mkdir()
    catalogue, histories = dataset.catalogue, dataset.interactions
    roles = Population.of(histories, dataset.rating_scale, 0).roles
    assert (roles == Role.TEST).sum() > 3
    lines = ["user_id,item_id,rating,timestamp"]
    for user, user_id in enumerate(histories.user_ids):
        items = histories.history(user)
        if swapped and roles[user] == Role.TEST:
            others = np.setdiff1d(np.arange(len(catalogue)), items)
            items = np.resize(others, len(items))[: len(others)]
        lines += [f"{user_id},{catalogue.item_ids[item]},{1 + item % 5},{place}" for place, item in enumerate(items)]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    texts = [f"{item_id},Title {place}" for place, item_id in enumerate(catalogue.item_ids)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *texts]) + "\n")


def test_a_trial_over_several_seeds_is_worth_their_mean(tmp_path: Path, plan: Plan) -> None:
    tune(replace(plan, seeds=(0, 3), trials=1), tmp_path / "study", quiet)
    (trial,) = opened(tmp_path / "study").trials
    values = [
        json.loads((tmp_path / "study" / "trials" / f"0000-seed-{seed}" / "training.json").read_text())[
            "best_validation"
        ]
        for seed in (0, 3)
    ]
    assert values[0] != values[1]
    assert trial.value == pytest.approx(np.mean(values))
    assert sorted(trial.intermediate_values) == [1, 2, 3, 4]
    assert trial.intermediate_values[4] == trial.value
    assert "mean over 2 seeds" in (tmp_path / "study" / "report.html").read_text()


def test_a_trial_that_is_not_worth_going_on_with_is_pruned_at_its_next_evaluation(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    threshold = optuna.pruners.ThresholdPruner(lower=2.0)  # no nDCG is above 1
    monkeypatch.setattr(studies, "pruner_of", lambda plan: threshold)
    said: list[str] = []
    tune(plan, tmp_path / "study", said.append)
    assert [trial.state for trial in opened(tmp_path / "study").trials] == [TrialState.PRUNED] * 2
    for run in (tmp_path / "study" / "trials").iterdir():
        assert [line["round"] for line in read_metrics(run / "metrics.jsonl")] == [1]
    assert [row["state"] for row in rows(tmp_path / "study")] == ["pruned", "pruned"]
    assert "  pruned at round 1" in said
    assert "0 finished, 2 pruned, 0 failed" in (tmp_path / "study" / "report.html").read_text()
    assert not (tmp_path / "study" / "best.toml").exists()


@pytest.mark.parametrize("pruner", [Pruner.MEDIAN, Pruner.HYPERBAND])
def test_a_poor_trial_is_pruned_and_a_good_one_is_not(plan: Plan, pruner: Pruner) -> None:
    plan = replace(plan, pruner=pruner, settings=small_settings(federation__rounds=27, federation__evaluate_every=1))
    study = optuna.create_study(direction="maximize", pruner=plans.pruner_of(plan), study_name="metarec")

    def pruned(level: float) -> bool:
        trial = study.ask()
        watch = Watch(trial, "validation_ndcg@10")
        watch.start(TrackedRun(folder=Path("run"), settings=plan.settings))
        try:
            for number in range(1, 28):
                watch.log(number, {"validation_ndcg@10": level * number / 27})
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            return True
        study.tell(trial, watch.best)
        return False

    for place in range(12):
        pruned(0.5 + place / 100)
    assert sum(pruned(0.01) for _ in range(6)) >= 4
    assert not any(pruned(0.9 + place / 100) for place in range(6))


def test_a_trial_is_not_pruned_where_it_ends(plan: Plan) -> None:
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=2.0))
    watch = Watch(study.ask(), "validation_ndcg@10", last=3)
    watch.log(3, {"validation_ndcg@10": 0.1})
    with pytest.raises(optuna.TrialPruned):
        watch.log(2, {"validation_ndcg@10": 0.1})


def test_a_study_killed_in_a_trial_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    longer = {**QUICK, "federation__rounds": 20, "federation__evaluate_every": 10}
    settings = small_settings(**longer)
    plan = a_plan(tmp_path, SPACE, settings=settings, sampler=Sampler.RANDOM, pruner=Pruner.NONE, trials=2)
    out = tmp_path / "killed"
    command = [
        *("--out", str(out), "--space", str(tmp_path / "space.toml"), "--sampler", "random", "--pruner", "none"),
        *("--trials", "2", *small_options(**longer)),
    ]
    program = f"from simulations.tune_cli import tune_app; tune_app({command!r})"
    metrics = out / "trials" / "0000-seed-0" / "metrics.jsonl"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log, env=dict(os.environ))
        try:
            wait_until(lambda: lines_of(metrics) >= 5, "five rounds of the first trial", process)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL
    assert [trial.state for trial in opened(out).trials] == [TrialState.RUNNING]
    begun = read_metrics(metrics)
    tune(plan, out, quiet)
    tune(plan, tmp_path / "whole", quiet)
    shown = ("trial", "state", "validation", "rounds", "outer.learning-rate", "tasks.id-dropout", "adaptation.steps")
    killed, whole = ([[row[key] for key in shown] for row in rows(folder)] for folder in (out, tmp_path / "whole"))
    assert [row[1:] for row in killed] == [row[1:] for row in whole]
    states = [(trial_name(trial), trial.state) for trial in opened(out).trials]
    assert states[:2] == [("0000", TrialState.FAIL), ("0000", TrialState.COMPLETE)]
    assert Trials.of(opened(out)).done == 2
    assert read_metrics(metrics)[:4] == begun[:4]  # with their seconds: these rounds were not run again
    assert [line["round"] for line in read_metrics(metrics)] == list(range(1, 21))
    before = (out / "trials.csv").read_text()
    tune(plan, out, quiet)  # there is nothing left to do
    assert (out / "trials.csv").read_text() == before


def test_ctrl_c_leaves_a_report_and_the_study_goes_on(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = objectives.run_federation
    calls = []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        run(*arguments)

    monkeypatch.setattr(objectives, "run_federation", interrupted)
    out = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        tune(plan, out, quiet)
    assert "1 of 2: 1 finished, 0 pruned, 0 failed; 1 begun or queued" in (out / "report.html").read_text()
    tune(plan, out, quiet)
    assert len(calls) == 3
    assert [row["state"] for row in rows(out)] == ["finished", "finished"]
    assert Trials.of(opened(out)).waiting == ()


def test_a_study_whose_time_is_up_stops_in_a_run_and_goes_on(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = objectives.run_federation

    def hurried(grid: Any, settings: Settings, observers: list[Watch]) -> None:
        observers[0].deadline = 0.0
        run(grid, settings, observers)

    said: list[str] = []
    with monkeypatch.context() as hurry:
        hurry.setattr(objectives, "run_federation", hurried)
        tune(plan, tmp_path / "study", said.append)
    assert "the time is up; the same command goes on" in said
    assert len(read_metrics(tmp_path / "study" / "trials" / "0000-seed-0" / "metrics.jsonl")) == 1
    tune(plan, tmp_path / "study", quiet)
    assert [(row["trial"], row["state"]) for row in rows(tmp_path / "study")] == [
        ("0000", "finished"),
        ("0002", "finished"),
    ]
    said.clear()
    tune(replace(plan, trials=3, timeout=1e-9), tmp_path / "study", said.append)
    assert "the time is up; the same command goes on" in said


def test_a_trial_whose_process_is_killed_again_and_again_counts_as_failed(tmp_path: Path, plan: Plan) -> None:
    out = tmp_path / "study"
    tune(replace(plan, trials=1), out, quiet)
    first = None
    for _ in range(3):
        study = opened(out)
        trial = study.ask(plan.space.distributions)
        first = first or trial_name(trial)
        assert trial_name(trial) == first
        studies._give_back(study, killed=1)
    trials = Trials.of(opened(out))
    assert [trial_name(trial) for trial in trials.failed] == [first]
    assert trials.waiting == ()
    tune(plan, out, quiet)
    assert rows(out)[1]["error"] == "its process was killed 3 times"


def test_a_trial_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = objectives.run_federation

    def failing(grid: Any, settings: Settings, observers: Any) -> None:
        if "0001" in settings.run.out:
            raise FederationError("0 of 5 nodes answered")
        run(grid, settings, observers)

    monkeypatch.setattr(objectives, "run_federation", failing)
    tune(replace(plan, trials=3), tmp_path / "study", quiet)
    assert [row["state"] for row in rows(tmp_path / "study")] == ["finished", "failed", "finished"]
    assert "0 of 5 nodes answered" in (tmp_path / "study" / "report.html").read_text()


def test_a_study_of_which_nothing_works_stops(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise FederationError("0 of 5 nodes answered")

    monkeypatch.setattr(objectives, "run_federation", failing)
    with pytest.raises(FederationError, match="0 of 5 nodes answered"):
        tune(replace(plan, trials=20), tmp_path / "study", quiet)
    assert len(opened(tmp_path / "study").trials) == 3


def test_another_study_in_the_folder_is_not_gone_on_with(tmp_path: Path, plan: Plan) -> None:
    out = tmp_path / "study"
    tune(replace(plan, trials=1), out, quiet)
    other = a_plan(tmp_path, SPACE.replace("0.6", "0.5"))
    changed = {
        r"other search space: tasks.id-dropout was '0 to 0.6', is '0 to 0.5'": replace(plan, space=other.space),
        r"other data": replace(plan, settings=small_settings(**QUICK, generator__seed=1)),
        r"other objective: validation nDCG@10, random order, not validation nDCG@5, random order": replace(
            plan, settings=small_settings(**QUICK, evaluation__k=5)
        ),
        r"other settings: federation.rounds was '2', is '3'": replace(
            plan, settings=small_settings(**{**QUICK, "federation__rounds": 3})
        ),
        r"other seeds: \[0\], not \[0, 1\]": replace(plan, seeds=(0, 1)),
        r"other sampler: random, not tpe": replace(plan, sampler=Sampler.TPE),
        r"other pruner: none, not median": replace(plan, pruner=Pruner.MEDIAN),
        r"other seed of the sampler: 0, not 1": replace(plan, seed=1),
    }
    for message, another in changed.items():
        with pytest.raises(CheckpointError, match=message):
            tune(another, out, quiet)
    moved = small_settings(**{**QUICK, "run__out": "elsewhere", "run__trackers": "tensorboard"})
    tune(replace(plan, settings=moved), out, quiet)
    assert len(rows(out)) == 2


def test_one_process_at_a_time_works_on_a_study(tmp_path: Path, plan: Plan) -> None:
    out = tmp_path / "study"
    out.mkdir()
    lock = sqlite3.connect(out / "study.lock", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CheckpointError, match="another metarec tune is at work there"):
        tune(plan, out, quiet)
    lock.close()


def test_a_study_is_kept_in_its_folder_whatever_the_folder_is_called(tmp_path: Path, plan: Plan) -> None:
    for name in ("a?b", "a?c", "a#b", "50%25", "{0}", "sp ace ü"):
        out = tmp_path / "studies" / name
        tune(replace(plan, trials=1), out, quiet)
        assert (out / "study.db").stat().st_size > 0
        assert [row["trial"] for row in rows(out)] == ["0000"]
        assert (out / "trials" / "0000-seed-0" / "training.json").exists()  # run here, not found in another study
    assert len(list((tmp_path / "studies").iterdir())) == 6


def test_a_file_that_is_no_study_is_named(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.db").write_text("nothing of the kind, however long it is" * 100)
    with pytest.raises(CheckpointError, match=r"study\.db: cannot be read as a study"):
        tune(plan, tmp_path / "study", quiet)


def test_privacy_is_not_tuned(tmp_path: Path, plan: Plan) -> None:
    private = small_settings(privacy__mode="site", privacy__randomness="simulated", federation__clip_norm=1.0)
    with pytest.raises(SettingsError, match=r"tune needs privacy.mode = none: nodes that guard their users report no"):
        tune(replace(plan, settings=private), tmp_path / "study", quiet)


def test_a_setting_cannot_be_both_given_and_searched(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(SPACE)
    arguments = ["--space", str(tmp_path / "space.toml"), "--out", str(tmp_path), "--set", "tasks.id-dropout=0.1"]
    found = CliRunner().invoke(tune_app, arguments)
    assert isinstance(found.exception, SettingsError)
    assert "--set gives tasks.id-dropout, which the search space varies" in str(found.exception)


def test_the_setting_that_decides_is_the_most_important_one(tmp_path: Path, plan: Plan) -> None:
    from simulations.tuning.report import importances

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = study.ask(plan.space.distributions)
        rate = trial.params["outer.learning-rate"]
        study.tell(trial, -((math.log10(rate) + 2.5) ** 2) + 0.01 * trial.params["tasks.id-dropout"])
    found = importances(study, Trials.of(study))
    assert found is not None
    assert max(found, key=lambda key: found[key]) == "outer.learning-rate"
    assert sum(found.values()) == pytest.approx(1.0)
    few = optuna.create_study(direction="maximize")
    assert importances(few, Trials.of(few)) is None


def test_trackers_of_all_trials_write_to_one_place(tmp_path: Path, plan: Plan) -> None:
    pytest.importorskip("wandb")
    settings = small_settings(**{**QUICK, "run__trackers": "wandb,tensorboard"})
    tune(replace(plan, settings=settings), tmp_path / "study", quiet)
    assert len(list((tmp_path / "study" / "wandb").glob("offline-run-*"))) == 2
    assert len(list((tmp_path / "study" / "trials").glob("*/tensorboard"))) == 2


def test_a_rating_model_is_not_tuned(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(SettingsError, match=r"tune needs model\.target = ranking"):
        tune(replace(plan, settings=small_settings(model__target="rating")), tmp_path / "study", quiet)
