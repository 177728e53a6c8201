"""MLflow: a local SQLite store, shown by ``mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db``."""

import logging
import os
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from metarec_shared.files import write_text
from server.tracking.tracker import PROJECT, TrackedRun, numbers, tagged

STORE = "mlflow.db"
_POINTER = "mlflow-run"
_EVERY_ROUND = "round/seconds"
"""A figure that every round has, by which a resumed run's rounds are found."""

_FLUSH_SECONDS = 10.0
_AT_ONCE = 500  # metrics; the store takes 1,000
_PARAMETERS_AT_ONCE = 100


class MlflowStore:
    """Write a run's figures to ``mlflow.db`` in the tracking folder, in the experiment ``metarec``.

    Figures are written in batches, every ten seconds or so: a transaction takes as long as a round. What a killed run
    had not written is written when it is resumed, from the rounds that metrics.jsonl has kept.

    Raises:
        ImportError: mlflow is not installed.
    """

    def __init__(self) -> None:
        os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"})  # read at import
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client_of, self._metric, self._parameter = MlflowClient, Metric, Param
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()
        self._run = ""
        self._known: set[int] = set()

    def start(self, run: TrackedRun) -> None:
        """Create a run with the settings as its parameters, or open the one that is resumed."""
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        run.tracking_folder.mkdir(parents=True, exist_ok=True)
        self._client = self._client_of(tracking_uri=f"sqlite:///{run.tracking_folder / STORE}")
        pointer = run.folder / _POINTER
        self._run = self._reopened(pointer) if run.recorded else ""
        if self._run:
            steps = self._client.get_metric_history(self._run, _EVERY_ROUND)
            self._known = {metric.step for metric in steps}
        else:
            self._run = self._created(run)
            write_text(pointer, f"{self._run}\n")
        for line in run.recorded:
            self.log(line["round"], line)

    def log(self, round_number: int, figures: Mapping[str, Any]) -> None:
        """Log the figures at the round's step; a round that the store has is the same when it is run again."""
        if round_number in self._known:
            return
        now = int(time.time() * 1000)
        self._pending += [self._metric(_name(key), value, now, round_number) for key, value in tagged(figures).items()]
        if len(self._pending) >= _AT_ONCE or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flush()

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Log the numbers of ``result`` and end the run, as killed where there is none."""
        if self._run:
            now = int(time.time() * 1000)
            found = numbers(result or {}, "result/")
            self._pending += [self._metric(_name(key), value, now, 0) for key, value in found.items()]
            self._flush()
            self._client.set_terminated(self._run, "KILLED" if result is None else "FINISHED")

    def _reopened(self, pointer: Path) -> str:
        """Return the run that ``pointer`` names, running again; empty where the store does not have it."""
        from mlflow.exceptions import MlflowException

        if not pointer.exists():
            return ""
        name = pointer.read_text(encoding="utf-8").strip()
        try:
            self._client.update_run(name, status="RUNNING")
        except MlflowException:
            return ""
        return name

    def _created(self, run: TrackedRun) -> str:
        experiment = self._client.get_experiment_by_name(PROJECT)
        if experiment is None:
            place = (run.tracking_folder / "mlflow-artifacts").as_uri()
            number = self._client.create_experiment(PROJECT, artifact_location=place)
        else:
            number = experiment.experiment_id
        name: str = self._client.create_run(number, run_name=run.name).info.run_id
        parameters = iter([self._parameter(key, str(value)) for key, value in run.described().items()])
        while part := list(islice(parameters, _PARAMETERS_AT_ONCE)):
            self._client.log_batch(name, params=part)
        return name

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        while pending:
            self._client.log_batch(self._run, metrics=pending[:_AT_ONCE])
            pending = pending[_AT_ONCE:]
        self._flushed = time.monotonic()


def _name(tag: str) -> str:
    """Return a tag as MLflow allows it."""
    return tag.replace("@", "_at_")
