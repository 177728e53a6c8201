"""The ServerApp: meta-trains on whatever nodes the engine connects."""

from dataclasses import replace

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from metarec_shared.settings import Settings
from server.federation import default_out, run_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run configuration and run the federation."""
    settings = Settings().with_values(context.run_config, "run configuration")
    if not settings.run.out:
        settings = replace(settings, run=replace(settings.run, out=default_out()))
    run_federation(grid, settings)
