"""The commands ``metarec serve`` and ``metarec client``. What takes long to import is imported where it is used."""

import contextlib
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli import Format
from metarec_shared.errors import SettingsError

if TYPE_CHECKING:
    from client.service.caller import Caller

serve_app = typer.Typer(add_completion=False)
client_app = typer.Typer(help="Ask a running service.", no_args_is_help=True, add_completion=False)


class LogLines(StrEnum):
    """For whom log lines are."""

    TEXT = "text"
    JSON = "json"


@serve_app.command()
def serve(
    model: Annotated[Path | None, typer.Option(help="Folder of a run.", metavar="RUN")] = None,
    http: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Serve the web page of metarec export --format web, in place of a model."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where to listen, 127.0.0.1 at 50051 or, a web page, 8080; port 0: a free one."
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM, mode 0600.")] = None,
    auth_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Token that every call must bear; mode 0600.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without TLS.")] = False,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of /metrics and /health on 127.0.0.1; 0: none.")
    ] = 0,
    max_batch: Annotated[int, typer.Option(min=1, max=1024, help="Most users of one pass of the model.")] = 64,
    max_wait_ms: Annotated[float, typer.Option(min=0, max=1000, help="How long a batch waits to fill.")] = 2.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="Most calls that wait; more are refused.")] = 1024,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Threads that compute.")] = 1,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that accepted calls have after SIGTERM.")] = 30.0,
    log_format: Annotated[LogLines, typer.Option(help="Log lines for people or for machines.")] = LogLines.TEXT,
) -> None:
    """Serve a model by gRPC; SIGHUP, or a new model in the folder, replaces it, SIGTERM ends it. Or a web page."""
    if http is not None and model is None:
        protected = {"--tls-cert": tls_cert, "--tls-key": tls_key, "--auth-token-file": auth_token_file}
        wrong = [name for name, value in {**protected, "--metrics-port": metrics_port}.items() if value]
        if wrong:
            raise SettingsError(f"serve --http: {', '.join(wrong)} is for a model; a page is served as plain HTTP")
        _serve_page(http, listen or "127.0.0.1:8080", public=insecure)
        return
    if model is None or http is not None:
        raise SettingsError("serve: give either --model RUN or --http DIR")
    from client.service.serve import ServeSettings, run_service

    settings = ServeSettings(
        model=model,
        listen=listen or "127.0.0.1:50051",
        tls_cert=tls_cert,
        tls_key=tls_key,
        auth_token_file=auth_token_file,
        insecure=insecure,
        metrics_port=metrics_port,
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000,
        max_waiting=max_waiting,
        workers=workers,
        grace=grace,
    )
    run_service(settings, log_format.value)


def _serve_page(folder: Path, listen: str, *, public: bool) -> None:
    from client.export.web_server import PageServer
    from client.service.address import split_address

    host, port = split_address(listen, "--listen")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which shells keep from what they background
    with PageServer(folder, host, port, public=public) as server:
        typer.echo(f"the page is at {server.url}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


HistoryFile = Annotated[
    str | None,
    typer.Option(
        "--history",
        metavar="FILE",
        help="One item id or title a line, and by choice a rating and a time, after tabs; - for stdin.",
    ),
]
StateFile = Annotated[Path | None, typer.Option("--state", metavar="FILE", help="What adapt wrote.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print the answer.")]
HowMany = Annotated[int, typer.Option("--top-k", min=1, max=(1 << 32) - 1, help="How many items.")]


@client_app.callback()
def connect(
    context: typer.Context,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Of the service.")] = "127.0.0.1:50051",
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Authority that signed its certificate, PEM; TLS is used.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="The service's token; mode 0600.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")] = 10.0,
) -> None:
    """Ask a running service."""
    from client.service.caller import Caller

    context.obj = context.with_resource(Caller(address, authority=tls_ca, token_file=token_file, timeout=timeout))


@client_app.command()
def recommend(
    context: typer.Context,
    history: HistoryFile = None,
    state: StateFile = None,
    top_k: HowMany = 10,
    exclude: Annotated[list[str] | None, typer.Option(help="An item that is not wanted; may be repeated.")] = None,
    diversity: Annotated[float, typer.Option(min=0, max=1, help="How much unlike each other they shall be.")] = 0.0,
    output: OutputFormat = Format.TABLE,
) -> None:
    """Recommend items for a history or a state; without either, for somebody new."""
    from client.service.shown import show_items

    answer = _caller(context).recommend(history, state, top_k, exclude or (), diversity)
    show_items(answer, answer.items, answer.skipped, as_json=output is Format.JSON)


@client_app.command()
def similar(
    context: typer.Context,
    item: Annotated[str, typer.Argument(help="Its id or exact title.", show_default=False)],
    top_k: HowMany = 10,
    output: OutputFormat = Format.TABLE,
) -> None:
    """Show the items most like an item, by their texts."""
    from client.service.shown import show_items

    answer = _caller(context).similar(item, top_k)
    show_items(answer, answer.items, (), as_json=output is Format.JSON)


@client_app.command()
def explain(
    context: typer.Context,
    item: Annotated[str, typer.Argument(help="Its id or exact title.", show_default=False)],
    history: HistoryFile = None,
    state: StateFile = None,
    output: OutputFormat = Format.TABLE,
) -> None:
    """Show which items of a history speak for an item."""
    from client.service.shown import show_explanation

    show_explanation(_caller(context).explain(item, history, state), as_json=output is Format.JSON)


@client_app.command()
def adapt(
    context: typer.Context,
    history: Annotated[str, typer.Option(metavar="FILE", help="As of recommend.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to keep the state; mode 0600.", show_default=False)],
    output: OutputFormat = Format.TABLE,
) -> None:
    """Keep a history as a state."""
    from client.service.shown import show_state

    show_state(_caller(context).adapt(history, out), out, as_json=output is Format.JSON)


@client_app.command()
def update(
    context: typer.Context,
    state: Annotated[Path, typer.Option(metavar="FILE", help="What adapt wrote.", show_default=False)],
    history: Annotated[str, typer.Option(metavar="FILE", help="What is new, as of recommend.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to keep it; the same file without it.")
    ] = None,
    output: OutputFormat = Format.TABLE,
) -> None:
    """Take further interactions into a state."""
    from client.service.shown import show_state

    show_state(_caller(context).update(state, history, out or state), out or state, as_json=output is Format.JSON)


def _caller(context: typer.Context) -> "Caller":
    caller: Caller = context.obj
    return caller
