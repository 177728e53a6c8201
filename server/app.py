"""The ServerApp: meta-trains on whatever nodes the engine connects."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from metarec_shared.settings import Settings
from server.federation import run_federation
from server.result import write_result

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run configuration and run the federation."""
    settings = Settings().with_values(context.run_config, "run configuration")
    if not settings.run.out:
        settings = replace(settings, run=replace(settings.run, out=str(_default_folder())))
    if not logging.getLogger().hasHandlers():
        _show_progress(Path(settings.run.out).absolute())
    run_federation(grid, settings)
    if settings.federation.sites:  # a deployment: nobody but the sites may look at test users
        write_result(settings, "deployment")


def _default_folder() -> Path:
    """Return a folder that does not depend on where Flower's SuperLink was started, which is the working directory."""
    return Path.home() / ".metarec" / "runs" / time.strftime("%Y%m%d-%H%M%S")


def _show_progress(folder: Path) -> None:
    """Log to stderr, from where Flower streams it; Flower sets up no logging but its own."""
    for name in ("metarec_shared", "server"):
        ours = logging.getLogger(name)
        ours.handlers = [logging.StreamHandler()]
        ours.setLevel(logging.INFO)
    logging.getLogger(__name__).info("run folder: %s", folder)
