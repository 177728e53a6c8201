"""Make a coordinator's folder: certificate authority, server certificate, signing key, settings, files to deploy it."""

import shutil
from datetime import datetime
from pathlib import Path

from metarec_shared.errors import FederationError
from metarec_shared.files import write_text
from metarec_shared.settings import parse_table
from metarec_shared.template_files import rendered
from server.coordinator.certificates import issue_certificate, make_authority, make_signing_key
from server.coordinator.flower import write_connection
from server.coordinator.home import Home, ServerSettings

LOOPBACK = ("localhost", "127.0.0.1")
"""Names that every certificate is for: the coordinator's own commands come from the same machine."""

_TEMPLATES = ("server.toml", "deploy/Dockerfile", "deploy/compose.yaml", "deploy/metarec-server.service")


def initialize(folder: Path, given: dict[str, str | int]) -> tuple[Home, datetime]:
    """Make a coordinator's folder; nothing is left of it if that fails.

    Args:
        folder: Where; it must not exist, or be empty.
        given: What differs from the defaults of ``ServerSettings``, by kebab-case key.

    Returns:
        The folder, and until when the server's certificate is valid.

    Raises:
        FederationError: There is something in the folder.
        SettingsError: A setting is out of range.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FederationError(f"{folder}: wanted an empty folder or none")
    settings: ServerSettings = parse_table(ServerSettings(), "server", given, "options")
    home = Home(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    try:
        _write_templates(home, settings)
        home.settings()  # what was written can be read
        make_authority(home, settings.federation)
        until = issue_certificate(home, certificate_names(settings))
        make_signing_key(home)
        write_connection(home, settings)
        for made in (home.folder / "keys", home.flower):
            made.chmod(0o700)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return home, until


def certificate_names(settings: ServerSettings) -> tuple[str, ...]:
    """Return what the server's certificate is for: its names and addresses, and this machine."""
    return tuple(dict.fromkeys((*settings.host_names, *LOOPBACK)))


def _write_templates(home: Home, settings: ServerSettings) -> None:
    for name in _TEMPLATES:
        text = rendered("server.coordinator", f"templates/{name}", server=settings, folder=str(home.folder.absolute()))
        write_text(home.folder / name, text)
