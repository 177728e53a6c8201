"""TensorBoard: event files in the run's folder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from server.tracking.tracker import TrackedRun, tagged

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FOLDER = "tensorboard"
_FLUSH_SECONDS = 10


class TensorBoardEvents:
    """Write a run's figures as TensorBoard scalars to ``tensorboard/`` in its folder."""

    def __init__(self) -> None:
        self._events: SummaryWriter | None = None

    def start(self, run: TrackedRun) -> None:
        """Open the events; of a resumed run's, TensorBoard is told to forget the rounds that do not count."""
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import, and only a server records

        folder = run.folder / FOLDER
        there = folder.exists()
        purged = (run.recorded[-1]["round"] if run.recorded else 0) + 1 if there else None
        self._events = SummaryWriter(str(folder), purge_step=purged, flush_secs=_FLUSH_SECONDS)
        if not there:
            for line in run.recorded:
                self.log(line["round"], line)

    def log(self, round_number: int, figures: Mapping[str, Any]) -> None:
        """Add one scalar a figure at the round's step."""
        assert self._events is not None
        for tag, value in tagged(figures).items():
            self._events.add_scalar(tag, value, round_number)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Write out what is buffered and close the events."""
        if self._events is not None:
            self._events.close()
