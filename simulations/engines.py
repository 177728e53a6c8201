"""The engines a simulated federation runs on; ServerApp and ClientApp are the same on each."""

import os
from dataclasses import replace
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.app import app as client_app
from client.data_source import load_learner, load_node, load_partition, load_population
from client.node import Node
from metarec_shared.errors import SettingsError
from metarec_shared.settings import Settings
from server.app import app as server_app
from simulations.grid import InProcessGrid

FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def run_in_process(settings: Settings) -> None:
    """Run the federation in this process: the grid answers for all nodes of a message with one computation."""
    nodes = simulated_nodes(settings)
    grid = InProcessGrid(load_learner(settings), nodes, lambda node_id: simulated_node(settings, nodes, node_id))
    server_app(grid, _server_context(settings))


def run_on_ray(settings: Settings) -> None:
    """Run the federation on Flower's simulation engine: every node's message is handled by a Ray worker.

    Raises:
        SettingsError: Ray is not installed.
    """
    try:
        import ray  # noqa: F401
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise SettingsError("--engine ray needs Ray: pip install 'metarec[ray]'") from error
    os.environ.update({key: os.environ.get(key, value) for key, value in FLOWER_ENVIRONMENT.items()})
    load_learner(settings)  # so that workers find the text vectors in the cache
    run_simulation(
        server_app=_ConfiguredServerApp(settings.flat()),
        client_app=_ConfiguredClientApp(settings.flat()),
        num_supernodes=simulated_nodes(settings),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


ENGINES = {"in-process": run_in_process, "ray": run_on_ray}


def simulated_nodes(settings: Settings) -> int:
    """Return the number of simulated nodes; by default one a user.

    Raises:
        SettingsError: There are more nodes than users.
    """
    nodes = settings.federation.nodes or len(load_population(settings).interactions)
    load_partition(settings, nodes)
    return nodes


def simulated_node(settings: Settings, nodes: int, node_id: int) -> Node:
    """Return the simulated node with Flower id ``node_id``, counted from 1."""
    return load_node(settings, {"partition-id": node_id - 1, "num-partitions": nodes}, node_id)


def _server_context(settings: Settings) -> Context:
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings.flat())


class _ConfiguredServerApp(ServerApp):
    """The ServerApp under an engine call that has no place for a run configuration."""

    def __init__(self, run_config: dict[str, Any]) -> None:
        super().__init__()
        self._run_config = run_config

    def __call__(self, grid: Grid, context: Context) -> None:
        server_app(grid, replace(context, run_config=self._run_config))


class _ConfiguredClientApp(ClientApp):
    """The ClientApp under an engine call that has no place for a run configuration."""

    def __init__(self, run_config: dict[str, Any]) -> None:
        super().__init__()
        self._run_config = run_config

    def __call__(self, message: Message, context: Context) -> Message:
        context.run_config = self._run_config
        return client_app(message, context)
