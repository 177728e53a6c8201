"""Trackers with the real libraries: what each has written is read back, from disk, by what is not ours."""

import getpass
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarec_shared.errors import SettingsError
from metarec_shared.settings import Settings
from metarec_shared.settings_checks import TRACKERS
from server.recorder import Recorder
from server.result import TRAINING_FILE
from server.run_folder import read_metrics
from server.tracking import TrackedRun, open_trackers, registry
from server.tracking.tracker import tagged
from server.tracking.wandb_offline import WandbOffline
from simulations.engines import run_in_process
from tests import wandb_files
from tests.integration.test_private_federation import SITE
from tests.small import small_settings

ROUNDS = [
    {"round": 1, "train_loss": 2.0, "seconds": 0.1},
    {"round": 2, "train_loss": 1.5, "seconds": 0.1, "validation_ndcg@10": 0.25},
    {"round": 3, "train_loss": float("nan"), "seconds": 0.1},
    {"round": 4, "train_loss": 1.0, "seconds": 0.1, "validation_ndcg@10": 0.5},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for MLflow's store, which takes seconds to create."""
    pytest.importorskip("mlflow")
    return tmp_path_factory.mktemp("tracking")


def settings_of(folder: Path, trackers: str, **values: object) -> Settings:
    return small_settings(run__trackers=trackers, run__tracking_folder=str(folder), **values)


def record(run: Path, settings: Settings, rounds: list[dict[str, Any]], resume_from: int = 0, *, whole: bool) -> None:
    run.mkdir(exist_ok=True)
    with Recorder(run, settings, open_trackers(settings), resume_from=resume_from) as recorder:
        for figures in rounds:
            recorder.record(figures)
        if whole:
            recorder.finish({"rounds": 4, "best_validation": 0.5, "train": {"bytes_up": 7}, "text_encoder": "/x/y"})


def wandb_runs(folder: Path) -> list[Path]:
    return [wandb_files.finished(path) for path in (folder / "wandb").glob("offline-run-*/*.wandb")]


def wandb_file(folder: Path) -> Path:
    (found,) = wandb_runs(folder)
    return found


def expected() -> list[dict[str, float]]:
    return [tagged(figures) for figures in ROUNDS]


def test_every_name_that_the_settings_allow_is_a_tracker() -> None:
    assert tuple(registry.TRACKERS) == TRACKERS
    with pytest.raises(
        SettingsError, match=r"run.trackers must be some of tensorboard, wandb, mlflow, by commas, got x"
    ):
        small_settings(run__trackers="wandb,x")
    assert open_trackers(small_settings(run__trackers="")) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=rf"run.trackers = {name} needs {name}: pip install 'metarec\[{name}\]'"):
        open_trackers(small_settings(run__trackers=name))


def test_figures_are_grouped_and_what_is_not_finite_is_left_out() -> None:
    figures = {"round": 3, "train_loss": 1, "validation_ndcg@10": 0.5, "nodes": 4, "seconds": None, "x": float("inf")}
    assert tagged(figures) == {"train/loss": 1.0, "validation/ndcg@10": 0.5, "round/nodes": 4.0}


def test_no_place_on_this_machine_is_told(tmp_path: Path) -> None:
    places = ("run__out", "run__init", "run__tracking_folder", "data__path", "data__item_vectors", "evaluation__onto")
    settings = small_settings(**dict.fromkeys(places, str(tmp_path)), text__encoder=str(tmp_path / "bert"))
    (tmp_path / "bert").mkdir()
    described = TrackedRun(folder=tmp_path / "run", settings=settings).described()
    assert not any(str(tmp_path) in str(value) for value in described.values())
    assert described["text.encoder"] == "bert"
    assert described["outer.learning-rate"] == settings.outer.learning_rate


def test_weights_and_biases_has_every_round_the_settings_and_the_result(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    settings = settings_of(tmp_path / "all", "wandb")
    record(tmp_path / "run", settings, ROUNDS, whole=True)
    path = wandb_file(tmp_path / "all")
    found = wandb_files.history(path)
    own = ("_step", "_timestamp", "_runtime")
    assert [{key: value for key, value in step.items() if key not in own} for step in found] == expected()
    assert [step["_step"] for step in found] == [1, 2, 3, 4]
    assert wandb_files.config(path) == TrackedRun(folder=tmp_path / "run", settings=settings).described()
    summary = wandb_files.summary(path)
    assert summary["result/best_validation"] == 0.5
    assert summary["result/train/bytes_up"] == 7
    assert "result/text_encoder" not in summary
    assert wandb_files.exit_code(path) == 0


def test_weights_and_biases_is_told_nothing_of_machine_user_or_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")  # whatever the user's environment says
    record(tmp_path / "run", settings_of(tmp_path / "all", "wandb"), ROUNDS, whole=True)
    path = wandb_file(tmp_path / "all")
    kinds = {found.WhichOneof("record_type") for found in wandb_files.records(path)}
    assert kinds <= {"header", "run", "telemetry", "summary", "history", "exit", "final", "footer"}
    run = next(found.run for found in wandb_files.records(path) if found.WhichOneof("record_type") == "run")
    assert (run.host, run.git.remote_url) == ("", "")
    content = path.read_bytes()
    for secret in (str(tmp_path), str(Path.cwd()), sys.executable):
        assert secret.encode() not in content
    assert not list(path.parent.glob("files/*"))


def test_a_resumed_run_is_one_run_of_weights_and_biases(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    settings = settings_of(tmp_path / "all", "wandb")
    record(tmp_path / "other", settings, ROUNDS[:1], whole=True)
    record(tmp_path / "run", settings, ROUNDS[:3], whole=False)
    (cut,) = (path for path in wandb_runs(tmp_path / "all") if _steps(path) == [1, 2, 3])
    assert wandb_files.exit_code(cut) == 1
    record(tmp_path / "run", settings, ROUNDS[2:], resume_from=2, whole=True)
    found = sorted(_steps(path) for path in wandb_runs(tmp_path / "all"))
    assert found == [[1], [1, 2, 3, 4]]
    assert not cut.exists()


def _steps(path: Path) -> list[int]:
    return [step["_step"] for step in wandb_files.history(path)]


def test_mlflow_has_every_round_the_settings_and_the_result(tmp_path: Path, store: Path) -> None:
    from mlflow import MlflowClient

    settings = settings_of(store, "mlflow", run__seed=1)
    record(tmp_path / "whole", settings, ROUNDS, whole=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    run = _mlflow_run(client, "whole")
    described = TrackedRun(folder=tmp_path / "whole", settings=settings).described()
    assert run.data.params == {key: str(value) for key, value in described.items()}
    for tag in ("train/loss", "validation/ndcg@10", "round/seconds"):
        history = client.get_metric_history(run.info.run_id, tag.replace("@", "_at_"))
        wanted = [(figures["round"], tagged(figures)[tag]) for figures in ROUNDS if tag in tagged(figures)]
        assert [(metric.step, metric.value) for metric in history] == wanted
    assert run.data.metrics["result/best_validation"] == 0.5
    assert run.info.status == "FINISHED"
    assert getpass.getuser() not in (run.info.user_id, *run.data.tags.values())


def test_a_resumed_run_is_one_run_of_mlflow(tmp_path: Path, store: Path) -> None:
    from mlflow import MlflowClient

    settings = settings_of(store, "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    record(tmp_path / "cut", settings, ROUNDS[:3], whole=False)
    assert _mlflow_run(client, "cut").info.status == "KILLED"
    record(tmp_path / "cut", settings, ROUNDS[2:], resume_from=2, whole=True)
    run = _mlflow_run(client, "cut")
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "round/seconds")]
    assert steps == [1, 2, 3, 4]


def _mlflow_run(client: Any, name: str) -> Any:
    experiment = client.get_experiment_by_name("metarec").experiment_id
    (run,) = (run for run in client.search_runs([experiment]) if run.info.run_name == name)
    return run


def test_tensorboard_that_is_asked_for_only_when_a_run_is_resumed_has_the_earlier_rounds(tmp_path: Path) -> None:
    settings = small_settings(run__trackers="")
    record(tmp_path / "run", settings, ROUNDS[:2], whole=False)
    settings = small_settings(run__trackers="tensorboard")
    record(tmp_path / "run", settings, ROUNDS[2:], resume_from=2, whole=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("round/seconds")] == [1, 2, 3, 4]


def test_trackers_of_a_private_run_are_told_what_the_server_records_and_no_more(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    settings = settings_of(tmp_path / "all", "wandb,tensorboard", **SITE, federation__rounds=2)
    settings = replace(settings, run=replace(settings.run, out=str(tmp_path / "run")))
    run_in_process(settings)
    recorded = [tagged(line) for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    own = ("_step", "_timestamp", "_runtime")
    told = [
        {key: value for key, value in step.items() if key not in own}
        for step in wandb_files.history(wandb_file(tmp_path / "all"))
    ]
    assert told == recorded
    assert not any("loss" in key or "validation" in key or "users" in key for line in told for key in line)
    assert (tmp_path / "run" / TRAINING_FILE).exists()


def test_a_tracker_that_fails_to_start_lets_those_before_it_finish(tmp_path: Path) -> None:
    finished = []

    class Quiet:
        def start(self, run: TrackedRun) -> None: ...
        def log(self, round_number: int, figures: Any) -> None: ...
        def finish(self, result: Any) -> None:
            finished.append(result)

    class Broken(Quiet):
        def start(self, run: TrackedRun) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Recorder(tmp_path, Settings(), [Quiet(), Broken()])
    assert finished == [None, None]


OFFLINE = """
import atexit, socket, sys
from pathlib import Path
asked = []
atexit.register(lambda: print("asked:", asked))  # called last: what libraries send when they end has been sent
def refused(*arguments, **_):
    asked.append(arguments[0])
    raise OSError("no network")
socket.getaddrinfo = socket.gethostbyname = refused
connect = socket.socket.connect
def local_only(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        refused(address)
    return connect(self, address)
socket.socket.connect = local_only
from metarec_shared.settings import Settings
from server.recorder import Recorder
from server.tracking import open_trackers
folder = Path(sys.argv[1])
values = {"run.trackers": "tensorboard,wandb,mlflow", "run.tracking-folder": sys.argv[2]}
settings = Settings().with_values(values, "test")
with Recorder(folder, settings, open_trackers(settings)) as recorder:
    recorder.record({"round": 1, "train_loss": 1.0, "seconds": 0.1})
    recorder.finish({"rounds": 1})
"""


def test_no_tracker_asks_the_network_for_anything(tmp_path: Path, store: Path) -> None:
    pytest.importorskip("wandb")
    command = [sys.executable, "-c", OFFLINE, str(tmp_path), str(store)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "asked: []"


def test_weights_and_biases_reports_no_errors_to_its_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    WandbOffline()
    assert wandb.env.error_reporting_enabled() is False
