"""Trackers by the names that ``run.trackers`` gives them; their libraries are imported when they are asked for."""

from collections.abc import Callable

from metarec_shared.errors import SettingsError
from metarec_shared.settings import Settings
from server.tracking.mlflow_store import MlflowStore
from server.tracking.tensorboard_events import TensorBoardEvents
from server.tracking.tracker import Tracker
from server.tracking.wandb_offline import WandbOffline

TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoardEvents,
    "wandb": WandbOffline,
    "mlflow": MlflowStore,
}


def open_trackers(settings: Settings) -> list[Tracker]:
    """Return the trackers that a run asks for.

    Raises:
        SettingsError: The library of one is not installed.
    """
    opened = []
    for name in settings.run.tracker_names:
        try:
            opened.append(TRACKERS[name]())
        except ImportError as error:
            raise SettingsError(f"run.trackers = {name} needs {name}: pip install 'metarec[{name}]'") from error
    return opened
