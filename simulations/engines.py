"""The engines a simulated federation runs on; ServerApp and ClientApp are the same on each."""

import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import telemetry
from numpy.typing import NDArray

from client.app import app as client_app
from client.data_source import load_partition, load_population, load_target, simulated_guard, simulated_nodes
from client.node import Nodes
from metarec_shared.errors import FederationError, SettingsError
from metarec_shared.settings import Settings
from server.app import app as server_app
from server.delivery import POLL_SECONDS
from simulations.grid import NODE_FAILED, InProcessGrid

FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

logger = logging.getLogger(__name__)


def run_in_process(settings: Settings) -> None:
    """Run the federation in this process: the grid answers for all nodes of a message with one computation."""
    server_app(in_process_grid(settings), _server_context(settings))


def in_process_grid(settings: Settings) -> InProcessGrid:
    """Return the grid that answers for all nodes of a simulated federation."""
    nodes = node_count(settings)
    return InProcessGrid(load_target(settings), nodes, lambda node_ids: nodes_by_id(settings, nodes, node_ids))


def run_on_ray(settings: Settings) -> None:
    """Run the federation on Flower's simulation engine: every node's message is handled by a Ray worker.

    Raises:
        SettingsError: Ray is not installed.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in FLOWER_ENVIRONMENT.items()})
    telemetry.FLWR_TELEMETRY_ENABLED = os.environ["FLWR_TELEMETRY_ENABLED"]  # Flower read it when it was imported
    _quiet_flower()
    try:
        import ray  # noqa: F401
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise SettingsError("--engine ray needs Ray: pip install 'metarec[ray]'") from error
    load_target(settings)  # so that workers find the text vectors in the cache
    nodes = node_count(settings)
    server = _ConfiguredServerApp(settings.flat(), nodes)
    try:
        run_simulation(
            server_app=server,
            client_app=_ConfiguredClientApp(settings.flat()),
            num_supernodes=nodes,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"include_dashboard": False, "log_to_driver": False},
            },
        )
    finally:
        server.stopped.set()


ENGINES = {"in-process": run_in_process, "ray": run_on_ray}


def node_count(settings: Settings) -> int:
    """Return the number of simulated nodes; by default one a user, and one site where that clips and noises.

    Raises:
        SettingsError: There are more nodes than users.
        PrivacyError: The settings do not determine the terms of privacy, or a site would have too few users.
    """
    default = 1 if settings.privacy.mode == "site" else len(load_population(settings).interactions)
    nodes = settings.federation.nodes or default
    load_partition(settings, nodes)
    simulated_guard(settings, nodes)
    return nodes


def nodes_by_id(settings: Settings, count: int, node_ids: NDArray[np.int64]) -> Nodes:
    """Return some of ``count`` simulated nodes by their Flower ids, counted from 1."""
    return simulated_nodes(settings, count, node_ids - 1, node_ids.astype(np.uint64))


def _server_context(settings: Settings) -> Context:
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings.flat())


def _quiet_flower() -> None:
    """Leave it to the ServerApp to say which nodes failed and why, unless debugging."""
    for name in ("alembic", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    flower = logging.getLogger("flwr")
    if logger.isEnabledFor(logging.DEBUG):
        flower.propagate = False  # it has a handler of its own
    else:
        flower.setLevel(logging.CRITICAL)


class _ConfiguredServerApp(ServerApp):
    """The ServerApp under an engine call that has no place for a run configuration.

    Flower starts it in a thread, before all nodes are registered, and neither stops the thread nor lets the process end
    without it when the engine fails or is interrupted.
    """

    def __init__(self, run_config: dict[str, Any], nodes: int) -> None:
        super().__init__()
        self._run_config = run_config
        self._nodes = nodes
        self.stopped = threading.Event()

    def __call__(self, grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < self._nodes and not self.stopped.wait(POLL_SECONDS):
            pass
        pull = grid.pull_messages

        def pull_while_running(message_ids: Iterable[str]) -> Iterable[Message]:
            if self.stopped.is_set():
                raise FederationError("the engine has stopped")
            return pull(message_ids)

        grid.pull_messages = pull_while_running  # type: ignore[method-assign]
        server_app(grid, replace(context, run_config=self._run_config))


class _ConfiguredClientApp(ClientApp):
    """The ClientApp under an engine call that has no place for a run configuration.

    An error is answered in one line; what Flower makes of it is a worker's traceback for every node.
    """

    def __init__(self, run_config: dict[str, Any]) -> None:
        super().__init__()
        self._run_config = run_config

    def __call__(self, message: Message, context: Context) -> Message:
        try:
            return client_app(message, replace(context, run_config=self._run_config))
        except Exception as error:  # whatever a node raises is that node's failure
            return Message(Error(code=NODE_FAILED, reason=f"{type(error).__name__}: {error}"), reply_to=message)
