"""Run the service: start, look for newer models, stop without losing an accepted call."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from client.service.address import joined_address, split_address
from client.service.answers import Answer, recommend_all
from client.service.batcher import Batcher
from client.service.calls import Calls
from client.service.limits import Limits
from client.service.methods import SERVICE, Methods
from client.service.metrics import ServiceCollector, serve_metrics
from client.service.requests import Asked
from client.service.security import TokenInterceptor, check_exposure, read_token, server_credentials
from client.service.served import Models
from metarec_shared.errors import ServiceError, SettingsError
from metarec_shared.log_lines import Line, LogFormat

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""What is left for answers that are on their way, and for streams that never end, when all calls are answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How a service runs.

    Attributes:
        model: Folder of the run.
        listen: ``HOST:PORT``; port 0: a free one.
        tls_cert: Certificate chain, PEM; None: no TLS.
        tls_key: Its key.
        auth_token_file: File of the token that every call must bear; None: none needs one.
        insecure: Whether it may listen beyond this machine without TLS.
        metrics_port: Port of metrics and health on the loopback interface; 0: none.
        max_batch: Most users of one pass of the model.
        max_wait: Most seconds that a batch waits to fill.
        max_waiting: Most calls that wait.
        max_batches: Most RecommendBatches that are answered at a time.
        workers: Threads that compute.
        grace: Seconds that accepted calls have when the service stops.
        linger: Seconds for which a stopping service goes on to say so to whoever calls, and looks at its health.
        look_every: Seconds between two looks for a newer model.
        limits: How much a call may ask for.
    """

    model: Path
    listen: str = "127.0.0.1:50051"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    auth_token_file: Path | None = None
    insecure: bool = False
    metrics_port: int = 0
    max_batch: int = 64
    max_wait: float = 0.002
    max_waiting: int = 1024
    max_batches: int = 16
    workers: int = 1
    grace: float = 30.0
    linger: float = 0.5
    look_every: float = 2.0
    limits: Limits = field(default_factory=Limits)


class Service:
    """A service that answers calls between ``start`` and ``stop``, in one event loop.

    Args:
        settings: How it runs.
        loaded: Called when a model has been loaded.

    Raises:
        CheckpointError: The folder holds no usable model that ranks.
        SettingsError: It would be open to others unprotected, or an address is none.
        TrustError: Token, certificate or key cannot be used.
    """

    def __init__(self, settings: ServeSettings, loaded: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._host, self.port = split_address(settings.listen, "--listen")
        if (settings.tls_cert is None) != (settings.tls_key is None):
            raise SettingsError("--tls-cert and --tls-key: wanted both or neither")
        token = None if settings.auth_token_file is None else read_token(settings.auth_token_file)
        check_exposure(
            self._host, tls=settings.tls_cert is not None, token=token is not None, insecure=settings.insecure
        )
        self._credentials = (
            None
            if settings.tls_cert is None or settings.tls_key is None
            else server_credentials(settings.tls_cert, settings.tls_key)
        )
        self._interceptors = [] if token is None else [TokenInterceptor(token)]
        self.models = Models(settings.model, loaded)
        self.batcher: Batcher[Asked, Answer] = Batcher(
            lambda asked: recommend_all(self.models.served, asked),
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            max_waiting=settings.max_waiting,
            workers=settings.workers,
            computed=lambda users: self.figures.computed(users),
        )
        self.methods = Methods(
            self.models,
            self.batcher,
            settings.limits,
            window=settings.max_batch,
            places=max(1, settings.max_waiting // 2),  # the other half is for calls of one user
            batches=settings.max_batches,
        )
        self.figures = ServiceCollector(self.models, lambda: self.batcher.waiting + self.methods.waiting)
        self.calls = Calls(self.figures)
        self._serving = False
        self._metrics: ThreadingHTTPServer | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return joined_address(self._host, self.port)

    @property
    def metrics_port(self) -> int:
        """Port of the metrics; 0: there are none."""
        return 0 if self._metrics is None else int(self._metrics.server_address[1])

    async def start(self, *, metrics: bool = False) -> None:
        """Listen, and answer.

        Args:
            metrics: Whether to serve metrics whatever the port, 0 being a free one.

        Raises:
            ServiceError: The port is taken, or cannot be listened to.
            OSError: The port for metrics is taken.
        """
        self._health, self._server = health.aio.HealthServicer(), self._build()
        self._server.add_generic_rpc_handlers((self.methods.handler(self.calls),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._bind()
        if metrics or self._settings.metrics_port:
            self._metrics = serve_metrics(self.figures, self._state, self._settings.metrics_port)
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self._serving = True
        self._watch = asyncio.create_task(self._look_for_models())
        logger.info("listening on %s; the model is %s", self.address, self.models.served.version)

    async def reload(self) -> bool:
        """Load what is in the run's folder beside the calls; return whether another model is served now."""
        return await asyncio.to_thread(self.models.reload)

    async def stop(self) -> None:
        """Say that no more is served, answer the calls that were accepted and no new one, and end.

        New calls are told UNAVAILABLE for a moment before the port is closed: gRPC itself drops what it has read and
        not yet handed over.
        """
        self._serving = False
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        self.calls.stopping = True
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.linger)
        ending = time.monotonic() + self._settings.grace
        while self.figures.open and time.monotonic() < ending:
            await asyncio.sleep(0.005)
        await self._server.stop(FLUSH_SECONDS)
        await asyncio.to_thread(self.batcher.close)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.shutdown)
            self._metrics.server_close()
        logger.info("stopped: %d calls were accepted, %d answered", self.calls.accepted, self.calls.answered)

    def _build(self) -> grpc.aio.Server:
        limits = self._settings.limits
        return grpc.aio.server(
            interceptors=self._interceptors,
            options=[
                ("grpc.so_reuseport", 0),  # a second service on one port is an error, not a stranger that shares it
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_metadata_size", limits.metadata_bytes),
                ("grpc.absolute_max_metadata_size", 2 * limits.metadata_bytes),
            ],
            maximum_concurrent_rpcs=4 * self._settings.max_waiting,
        )

    def _bind(self) -> None:
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(self.address)
            else:
                self.port = self._server.add_secure_port(self.address, self._credentials)
        except RuntimeError as error:
            raise ServiceError(f"--listen: cannot listen on {self.address}: is the port taken?") from error

    def _state(self) -> tuple[bool, dict[str, Any]]:
        return self._serving, {"model": self.models.served.version}

    async def _look_for_models(self) -> None:
        while True:
            await asyncio.sleep(self._settings.look_every)
            await asyncio.to_thread(self.models.look)


def run_service(settings: ServeSettings, log_format: LogFormat) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP loads the model anew.

    Raises:
        MetaRecError: As ``Service``.
        OSError: As ``Service.start``.
    """
    os.umask(0o077)
    _log(log_format)
    torch.set_num_threads(1)  # matrices are small: more threads cost more than they bring
    asyncio.run(_serve(Service(settings, loaded=spare_from_collection)))


def spare_from_collection() -> None:
    """Have the garbage collector look at what is there now for the last time.

    Libraries and model are some hundred thousand objects that stay. Looking at them all again takes a fifth of a second
    in which nobody is answered, and would happen every other second under load.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def _serve(service: Service) -> None:
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    await service.start()
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.create_task(service.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    heard: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: ending.set,
        signal.SIGINT: ending.set,
        signal.SIGHUP: reload,
    }
    for number, hear in heard.items():
        loop.add_signal_handler(number, hear)
    await ending.wait()
    await service.stop()


def _log(log_format: LogFormat) -> None:
    """Send log lines to stderr, and nowhere else."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(Line(log_format))
    root.addHandler(lines)
    root.setLevel(logging.INFO)
