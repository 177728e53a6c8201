"""Weights & Biases in offline mode: a folder that ``wandb sync`` uploads, if and when its owner runs that."""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarec_shared.files import write_text
from server.tracking.tracker import PROJECT, TrackedRun, numbers, tagged

if TYPE_CHECKING:
    from wandb import Run

_POINTER = "wandb-run"
_OFFLINE = {
    "WANDB_ERROR_REPORTING": "false",  # else the library reports to its makers from offline runs, too
    "WANDB_SILENT": "true",
}


class WandbOffline:
    """Write a run's figures to ``wandb/offline-run-*`` in the tracking folder.

    An offline run cannot be appended to, so a resumed run is written anew, from the rounds that metrics.jsonl has kept,
    in place of the folder that was cut short. Neither machine, user, code, packages nor output are recorded.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self) -> None:
        os.environ.update(_OFFLINE)  # read when the library is imported
        import wandb

        self._wandb = wandb
        self._run: Run | None = None

    def start(self, run: TrackedRun) -> None:
        """Begin an offline run that holds the settings and the rounds that are recorded already."""
        pointer = run.folder / _POINTER
        if run.recorded and pointer.exists():
            _discard(run.tracking_folder, pointer.read_text(encoding="utf-8").strip())
        logging.getLogger("wandb").setLevel(logging.WARNING)
        run.tracking_folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=PROJECT,
            name=run.name,
            dir=str(run.tracking_folder),
            config=run.described(),
            mode="offline",
            reinit="create_new",
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                host="",
                username="",
                program="",
                x_executable="",
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_viewer=True,
                x_save_requirements=False,
            ),
        )
        write_text(pointer, f"{Path(self._run.settings.sync_dir).name}\n")
        for line in run.recorded:
            self.log(line["round"], line)

    def log(self, round_number: int, figures: Mapping[str, Any]) -> None:
        """Log the figures at the round's step."""
        assert self._run is not None
        self._run.log(tagged(figures), step=round_number)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Put the numbers of ``result`` into the summary and close the run, as failed where there is none."""
        if self._run is not None:
            self._run.summary.update(numbers(result or {}, "result/"))
            self._run.finish(exit_code=1 if result is None else 0)


def _discard(folder: Path, name: str) -> None:
    """Remove the folder of a run that is written anew."""
    if name.startswith("offline-run-") and Path(name).name == name:
        shutil.rmtree(folder / "wandb" / name, ignore_errors=True)
