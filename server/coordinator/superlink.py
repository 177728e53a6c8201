"""Flower's SuperLink behind a gate: other machines reach what nodes need, and nothing else.

One port serves everything in Flower 1.41: what nodes call, what operators call (register a node, start a run, which is
code that this machine executes) and what running apps call. Flower authenticates nodes, but not operators. So whatever
is not a node's request is answered only where it comes from this machine.

``python -m server.coordinator.superlink DIR ARGUMENTS``: a coordinator's folder, and what ``flower-superlink`` takes.
"""

import ipaddress
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from metarec_shared.exposition import serve_figures
from metarec_shared.log_lines import Line
from server.coordinator.home import Home
from server.coordinator.metrics import CoordinatorCollector, node_states

logger = logging.getLogger("flwr")

NODES = "/v1/fleet/"
"""Beginning of the paths that nodes call."""


class Gate:
    """Answer 403 to whatever comes from another machine and is no node's request.

    Args:
        app: What stands behind the gate.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass or refuse it."""
        if scope["type"] in ("http", "websocket") and not passes(scope):
            client = scope.get("client") or ("unknown", 0)
            logger.warning("refused %s from %s: only this machine may", scope.get("path"), client[0])
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b"only for nodes\n"})
            return
        await self.app(scope, receive, send)


def passes(scope: Scope) -> bool:
    """Return whether a request may pass: a node's from anywhere, any other from this machine."""
    client = scope.get("client")
    return str(scope.get("path", "")).startswith(NODES) or (client is not None and _is_here(client[0]))


def _is_here(host: str) -> bool:
    """Return whether an address is this machine's own: the loopback address itself, not any of its network's."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address) in ("127.0.0.1", "::1")


def main() -> None:
    """Run Flower's SuperLink with the gate before it, and the metrics that the folder's settings ask for."""
    home = Home(Path(sys.argv.pop(1)))
    settings = home.settings()
    port = settings.metrics_port
    import flwr.superlink.main as superlink
    from flwr.superlink.cli.flower_superlink import flower_superlink

    if settings.log_format == "json":
        _log_as_json()
    create = superlink.create_app

    def gated(*arguments: Any, **options: Any) -> Any:
        app = create(*arguments, **options)
        app.add_middleware(Gate)
        if port:
            _serve_metrics(home, app.state.linkstate_factory.state, port)
        return app

    superlink.create_app = gated
    flower_superlink()


def _log_as_json() -> None:
    """Write the lines of Flower and of its web server as JSON objects."""
    from flwr.supercore.logger import FLOWER_LOGGER

    command: Any = import_module("flwr.superlink.cli.flower_superlink")
    handler = logging.StreamHandler()
    handler.setFormatter(Line("json"))
    handler.setLevel(logging.INFO)
    FLOWER_LOGGER.handlers = [handler]
    configured = command.get_uvicorn_log_config

    def as_json(level: int) -> dict[str, Any]:
        config: dict[str, Any] = configured(level)
        config["formatters"] = {name: {"()": Line, "form": "json"} for name in config["formatters"]}
        return config

    command.get_uvicorn_log_config = as_json


def _serve_metrics(home: Home, linkstate: Callable[[], Any], port: int) -> None:
    collector = CoordinatorCollector(home, lambda: node_states(linkstate))

    def health() -> tuple[bool, dict[str, Any]]:
        states = node_states(linkstate)  # the database answers
        return True, {"sites": len(home.sites()), "online": sum(state == "online" for state in states.values())}

    serve_figures(collector, health, port)
    logger.info("metrics: http://127.0.0.1:%d/metrics", port)


if __name__ == "__main__":
    main()
