"""Flower's SuperLink behind a gate: other machines reach what nodes need, and nothing else.

One port serves everything in Flower 1.41: what nodes call, what operators call (register a node, start a run, which is
code that this machine executes) and what running apps call. Flower authenticates nodes, but not operators. So whatever
is not a node's request is answered only where it comes from this machine.

``python -m server.coordinator.superlink DIR ARGUMENTS``: a coordinator's folder, and what ``flower-superlink`` takes.
"""

import ipaddress
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from metarec_shared.exposition import serve_figures
from metarec_shared.log_lines import Line
from server.coordinator.home import Home
from server.coordinator.metrics import CoordinatorCollector, node_states
from server.failures import one_line

logger = logging.getLogger("flwr")

NODES = "/v1/fleet/"
"""Beginning of the paths that nodes call."""


SIGNED = (b"flwr-public-key", b"flwr-signature", b"flwr-timestamp")
"""Headers of a node's request; whether they are right Flower finds out, after it has read all of the request."""

FORWARDED = (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip")
"""Headers of a request that somebody passed on: it may come from anywhere."""

BUSY_MILLISECONDS = 60_000
"""How long a request waits while others write to the database; with ten nodes on two cores Flower's 5 s do not do."""

MOST_BYTES = 1_000_000_000
"""Of a request; messages travel in pieces, one an array."""


class Gate:
    """Refuse what comes from another machine and is no node's request, and what no node sends.

    Args:
        app: What stands behind the gate.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass or refuse it."""
        if scope["type"] in ("http", "websocket") and (status := refused(scope)):
            client = scope.get("client") or ("unknown", 0)
            logger.warning("refused %s from %s: %d", one_line(str(scope.get("path")), 80), client[0], status)
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"only for nodes\n"})
            return
        await self.app(scope, receive, send)


def refused(scope: Scope) -> int:
    """Return the HTTP status with which a request is refused; 0: it may pass.

    A node's may come from anywhere, if it is signed and says its length; any other from this machine, if nobody passed
    it on.
    """
    client, headers = scope.get("client"), dict(scope.get("headers", ()))
    if not str(scope.get("path", "")).startswith(NODES):
        here = client is not None and _is_here(client[0]) and not any(name in headers for name in FORWARDED)
        return 0 if here else 403
    if not all(name in headers for name in SIGNED):
        return 401
    length = headers.get(b"content-length", b"")
    if not length.isdigit():
        return 411
    return 413 if int(length) > MOST_BYTES else 0


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
    from flwr.supercore import sql_mixin
    from flwr.superlink.cli.flower_superlink import flower_superlink

    sql_mixin.SQLITE_PRAGMAS = patient(sql_mixin.SQLITE_PRAGMAS)  # type: ignore[attr-defined, assignment]
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


def patient(pragmas: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return settings of the database that let a request wait for its turn where Flower's would have it fail."""
    return (*(pair for pair in pragmas if pair[0] != "busy_timeout"), ("busy_timeout", str(BUSY_MILLISECONDS)))


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
