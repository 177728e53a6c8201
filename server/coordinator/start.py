"""Start Flower's SuperLink for a coordinator's folder."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from metarec_shared.errors import FederationError, TrustError
from server.coordinator.certificates import valid_until
from server.coordinator.flower import environment, write_connection
from server.coordinator.home import Home, ServerSettings


def start_server(folder: Path) -> None:
    """Become the SuperLink: this process is replaced, so that whoever started it watches and ends that.

    Raises:
        SettingsError: The settings cannot be read.
        TrustError: The certificate is missing or has expired, or a key can be read by others.
    """
    home = Home(folder.absolute())
    settings = home.settings()
    check_keys(home)
    write_connection(home, settings)
    home.log.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(home.folder)  # where nothing can be taken for a module of ours
    os.execve(sys.executable, superlink_command(home, settings), dict(environment(home)))  # noqa: S606


def superlink_command(home: Home, settings: ServerSettings) -> list[str]:
    """Return the command that runs the SuperLink behind our gate."""
    options = {
        "--host": settings.host,
        "--port": str(settings.port),
        "--ssl-ca-certfile": str(home.authority),
        "--ssl-certfile": str(home.certificate),
        "--ssl-keyfile": str(home.server_key),
        "--database": str(home.database),
        "--log-file": str(home.log),
    }
    flags = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
    module = [sys.executable, "-m", "server.coordinator.superlink", str(home.folder)]
    return [*module, *(part for option in options.items() for part in option), *flags]


def check_keys(home: Home) -> None:
    """Refuse to start with keys that others can read, or a certificate that sites would refuse.

    Raises:
        TrustError: One or the other.
        FederationError: The server has no keys.
    """
    for key in (home.authority_key, home.server_key, home.signing_key):
        if not key.exists():
            raise FederationError(f"{key}: missing; metarec server init makes it")
        if key.stat().st_mode & 0o077:
            raise TrustError(f"{key}: others may read it; chmod 600 {key}")
    until = valid_until(home.certificate)
    if until <= datetime.now(UTC):
        raise TrustError(f"{home.certificate}: expired on {until:%Y-%m-%d}; metarec server renew {home.folder}")
