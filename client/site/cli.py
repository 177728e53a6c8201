"""The commands ``metarec site init``, ``approve``, ``check``, ``start``, ``status`` and ``exclude``.

What takes long to import is imported where it is used: ``metarec --help`` loads this module.
"""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

site_app = typer.Typer(
    help="Join a federation as a site, and keep its node running.", no_args_is_help=True, add_completion=False
)

SiteFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.", show_default=False)]
InvitationFolder = Annotated[
    Path, typer.Option("--invitation", metavar="FOLDER", help="What the coordinator gave.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class PrivacyMode(StrEnum):
    """Who clips and who adds noise."""

    SITE = "site"
    NONE = "none"
    CENTRAL = "central"
    LOCAL = "local"


@site_app.command()
def init(
    folder: SiteFolder,
    invitation: InvitationFolder,
    name: Annotated[str, typer.Option(help="What this site is called; the server sees it.", show_default=False)],
    fingerprint: Annotated[
        str, typer.Option(metavar="SHA256:...", help="Of the coordinator's signing key, if you have it already.")
    ] = "",
    mode: Annotated[PrivacyMode, typer.Option(help="Which privacy file to begin with.")] = PrivacyMode.SITE,
) -> None:
    """Make a site's folder from an invitation."""
    from client.site.setup import init_site
    from client.site.templates import ledger_command

    folder = folder.absolute()
    terms, found = init_site(folder, invitation, name, fingerprint=fingerprint, mode=mode.value)
    typer.echo(f"{folder} is site {name} of federation {terms.federation}, whose server is {terms.server}")
    if not fingerprint:
        typer.echo(f"signed by {found}: compare it with the coordinator by phone before you go on")
    steps = [
        f"send {folder / 'site.key.pub'} to the coordinator (site.key never leaves this machine)",
        f"put interactions.csv, interactions.parquet or source.toml into {folder / 'data'}",
    ]
    if command := ledger_command(folder, mode.value):
        steps += [
            f"fill in {folder / 'privacy.toml'}: how many users this site declares, and what is the least noise",
            f"make the ledger, with what that file says: {command}",
        ]
    steps += [f"metarec site check {folder}", f"metarec site start {folder}"]
    for number, step in enumerate(steps, start=1):
        typer.echo(f"{number}. {step}")


@site_app.command()
def approve(
    folder: SiteFolder,
    invitation: InvitationFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show what a newer invitation changes, and take it over."""
    from client.site.approve import open_newer, take_over
    from client.site.folder import load_site

    site = load_site(folder)
    terms, differences = open_newer(site, invitation)
    if not differences:
        typer.echo("nothing differs from what was approved")
    for line in differences:
        typer.echo(line)
    if differences and not yes and not typer.confirm("approve this?"):
        raise typer.Exit(1)
    todo = take_over(site, invitation, terms)
    typer.echo(f"approved: bundle {terms.bundle}, catalogue {terms.catalogue}; a running site starts anew with them")
    for number, step in enumerate(todo, start=1):
        typer.echo(f"{number}. {step}")


@site_app.command()
def check(folder: SiteFolder, as_json: AsJson = False) -> None:
    """Check everything that a site needs before it starts; exit code 1 if something is not right."""
    from client.site.checks import run_checks

    checks = run_checks(folder)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in checks], indent=2, ensure_ascii=False))
    else:
        for one in checks:
            typer.echo(f"{'pass' if one.passed else 'FAIL'}  {one.name}: {one.said}")
    if not all(one.passed for one in checks):
        raise typer.Exit(1)


@site_app.command()
def start(folder: SiteFolder) -> None:
    """Run the site's node in the foreground, and start it again whenever it ends; SIGTERM or Ctrl-C stops it."""
    from client.site.folder import load_site
    from client.site.start import run_site

    run_site(load_site(folder))


@site_app.command()
def status(
    folder: SiteFolder,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing; exit code 1 unless connected.")] = False,
) -> None:
    """Show how the site is doing and what it has spent."""
    from client.site.folder import load_site
    from client.site.report import report, table

    found = report(load_site(folder))
    if quiet:
        raise typer.Exit(0 if found["state"] == "connected" else 1)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else table(found))


@site_app.command()
def exclude(
    folder: SiteFolder,
    users: Annotated[list[str] | None, typer.Argument(metavar="[USER]...", help="Ids, as in the data.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="File of ids, one a line.")] = None,
) -> None:
    """Leave users out of everything this site computes from the next message on."""
    from client.site.exclusion import exclude as add
    from client.site.exclusion import unknown_places
    from client.site.folder import load_site
    from metarec_shared.errors import MetaRecError

    listed = [] if file is None else [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    asked = [*(users or []), *listed]
    if not asked:
        raise typer.BadParameter("name users, or a --file of them")
    site = load_site(folder)
    new = add(site, asked)
    typer.echo(f"{new:,} more users are excluded, from the next message on; {len(asked) - new:,} were already")
    try:
        if missing := unknown_places(site, asked):
            shown = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
            typer.echo(f"warning: not in the data: {len(missing):,} of {len(asked):,}, number {shown} of those given")
    except MetaRecError as error:
        typer.echo(f"warning: whether they are in the data is not known: {type(error).__name__}, `metarec site check`")
