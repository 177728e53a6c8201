"""The commands ``metarec server ...``: what a coordinator does. Heavy imports stand where they are used."""

from pathlib import Path
from typing import Annotated

import typer

server_app = typer.Typer(help="Coordinate a federation of partner sites.", no_args_is_help=True, add_completion=False)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.", show_default=False)]


@server_app.command()
def init(
    folder: Folder,
    federation: Annotated[str, typer.Option(help="Name of the federation.")] = "metarec",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 9092,
    names: Annotated[str, typer.Option(help="Names and addresses of the server, by commas, the public one first.")] = (
        "localhost,127.0.0.1"
    ),
    text_encoder: Annotated[str, typer.Option(help="What makes text vectors: builtin, a folder, a hub name.")] = (
        "builtin"
    ),
    catalogue: Annotated[
        Path | None, typer.Option(help="Folder with the items, in any layout; published at once.")
    ] = None,
) -> None:
    """Make a coordinator's folder: authority, certificate, keys, settings, files for systemd and containers."""
    from server.coordinator.init import initialize

    given: dict[str, str | int] = {
        "federation": federation,
        "host": host,
        "port": port,
        "names": names,
        "text-encoder": text_encoder,
    }
    _, until = initialize(folder, given)
    typer.echo(f"made {folder}; the server's certificate is valid until {until:%Y-%m-%d}")
    if catalogue is not None:
        publish(folder, catalogue)
    else:
        typer.echo(f"next: metarec server publish {folder} --catalogue FOLDER")
    typer.echo(f"then: metarec server start {folder}")


@server_app.command()
def publish(
    folder: Folder,
    catalogue: Annotated[Path | None, typer.Option(help="Folder with the items; without it those of before.")] = None,
    item_vectors: Annotated[Path | None, typer.Option(help="File of further item vectors, published beside.")] = None,
) -> None:
    """Make the signed invitation anew: the items, the apps that sites will run, the server's address."""
    from metarec_shared.invitation import key_fingerprint
    from server.coordinator.certificates import load_signing_key
    from server.coordinator.home import Home
    from server.coordinator.publish import publish as make_invitation
    from server.coordinator.publish import take_catalogue

    home = Home(folder)
    home.settings()
    if catalogue is not None:
        typer.echo(f"published {take_catalogue(home, catalogue, item_vectors):,} items")
    made = make_invitation(home)
    typer.echo(f"invitation: {home.invitation}, for every site; server {made.server}")
    typer.echo(f"bundle    {made.bundle}")
    typer.echo(f"catalogue {made.catalogue}")
    typer.echo(f"signed by {key_fingerprint(load_signing_key(home).public_key())}: tell sites this by another way")


@server_app.command()
def renew(folder: Folder, days: Annotated[int, typer.Option(min=1, help="How long it is valid.")] = 397) -> None:
    """Make a new certificate of the server, from the authority that sites trust already."""
    from server.coordinator.certificates import issue_certificate
    from server.coordinator.flower import write_connection
    from server.coordinator.home import Home
    from server.coordinator.init import certificate_names

    home = Home(folder)
    settings = home.settings()
    until = issue_certificate(home, certificate_names(settings), days)
    write_connection(home, settings)
    typer.echo(f"valid until {until:%Y-%m-%d}; restart the server for it to count")


@server_app.command()
def start(folder: Folder) -> None:
    """Run the server in the foreground; SIGTERM ends it, and its state stays."""
    from server.coordinator.start import start_server

    start_server(folder)


@server_app.command()
def enroll(
    folder: Folder,
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The site's public key.", show_default=False)],
    name: Annotated[str, typer.Option(help="Name of the site.", show_default=False)],
) -> None:
    """Let a site take part."""
    from server.coordinator.home import Home
    from server.coordinator.sites import enroll_site

    typer.echo(f"enrolled {name}, key {enroll_site(Home(folder), key, name)}")


@server_app.command()
def revoke(folder: Folder, name: Annotated[str, typer.Argument(help="Name of the site.", show_default=False)]) -> None:
    """Let a site take part no more, from now on."""
    from server.coordinator.home import Home
    from server.coordinator.sites import revoke_site

    revoke_site(Home(folder), name)
    typer.echo(f"revoked {name}")


@server_app.command()
def run(
    folder: Folder,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of meta-training.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run; without it, the time.")] = "",
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run --name.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the run's end.")] = False,
) -> None:
    """Start a run on the sites that are there, and follow it."""
    from metarec_shared.errors import FederationError, SettingsError
    from server.coordinator.home import Home
    from server.coordinator.runs import default_name, follow, start_run
    from server.coordinator.settings import deployed_settings

    if resume and not name:
        raise SettingsError("--resume wants the run's --name")
    home, name = Home(folder), name or default_name()
    settings = deployed_settings(home, config, assignments or [], rounds=rounds, resume=resume)
    run_id = start_run(home, name, settings)
    typer.echo(f"run {name} ({run_id}): {home.runs / name}", err=True)
    if detach:
        return
    try:
        ended = follow(home, run_id)
    except KeyboardInterrupt:
        typer.echo(f"the run goes on: metarec server status {folder}; metarec server stop {folder} {name}", err=True)
        raise
    if ended.status != "finished:completed":
        raise FederationError(f"run {name} ended as {ended.status}: {ended.details}; go on with --name {name} --resume")
    typer.echo(f"finished: metarec recommend --model {home.runs / name}")


@server_app.command()
def stop(folder: Folder, name: Annotated[str, typer.Argument(help="Name of the run.", show_default=False)]) -> None:
    """Stop a run; it can be resumed from its last checkpoint."""
    from server.coordinator.home import Home
    from server.coordinator.runs import run_id_of, stop_run

    home = Home(folder)
    stop_run(home, run_id_of(home, name))
    typer.echo(f"stopped {name}; go on with: metarec server run {folder} --name {name} --resume")


@server_app.command()
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing; the exit code says it.")] = False,
) -> None:
    """Say which sites are there, how far the runs are, and what failed where."""
    from server.coordinator.home import Home
    from server.coordinator.status import print_json, print_tables, status_of

    found = status_of(Home(folder))
    if not quiet:
        (print_json if as_json else print_tables)(found)
