"""Make a site's folder from a coordinator's invitation."""

import shutil
import tempfile
from pathlib import Path

from client.site.approval import Approval, write_approval
from client.site.folder import EXCLUDED_FILE, SETTINGS_FILE, STATE_FOLDER, SiteSettings, check_name, check_server
from client.site.keys import make_keys
from client.site.templates import privacy_text, settings_text
from metarec_shared.bundle import check_bundle
from metarec_shared.errors import SettingsError, TrustError
from metarec_shared.invitation import AUTHORITY, CATALOGUE, Invitation, content_hash, file_hash, open_invitation
from metarec_shared.settings import Mode
from metarec_shared.template_files import rendered

DEPLOYMENT = ("deploy/Dockerfile", "deploy/compose.yaml", "deploy/metarec-site.service")
"""Files that run the site in a container or under systemd."""


def init_site(
    folder: Path, invitation_folder: Path, name: str, *, fingerprint: str = "", mode: Mode = "site"
) -> tuple[Invitation, str]:
    """Make a site's folder, complete or not at all, for its owner alone.

    Args:
        folder: The folder; there is none yet, or an empty one.
        invitation_folder: What the coordinator gave.
        name: What the site is called.
        fingerprint: Of the coordinator's signing key, where it is known.
        mode: Which privacy file to begin with.

    Returns:
        The terms, and the fingerprint of the key that signed them.

    Raises:
        SettingsError: The folder holds something, or the name cannot be.
        TrustError: The invitation was changed, or another key signed it, or its bundle is not the one that the
            installed MetaRec makes.
    """
    check_name(name, "--name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder}: not empty; a site needs a folder of its own")
    invitation, found = open_invitation(invitation_folder, fingerprint)
    check_bundle(invitation.metarec, invitation.bundle)
    check_server(invitation.server, str(invitation_folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        take_public_files(invitation_folder, invitation, made / CATALOGUE, made / AUTHORITY)
        (made / SETTINGS_FILE).write_text(
            settings_text(SiteSettings(name=name, server=invitation.server)), encoding="utf-8"
        )
        (made / "privacy.toml").write_text(privacy_text(mode), encoding="utf-8")
        (made / EXCLUDED_FILE).touch()
        for file in DEPLOYMENT:
            (made / file).parent.mkdir(exist_ok=True)
            text = rendered("client.site", file, name=name, folder=str(folder.absolute()))
            (made / file).write_text(text, encoding="utf-8")
        make_keys(made / "site.key", name)
        write_approval(made / "approved.json", Approval.of(invitation, found))
        for part in ("data", STATE_FOLDER):
            (made / part).mkdir()
        make_private(made)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return invitation, found


def take_public_files(invitation_folder: Path, invitation: Invitation, catalogue: Path, authority: Path) -> None:
    """Copy catalogue and authority of an invitation, and check the copies.

    Raises:
        TrustError: A file was changed while it was copied.
    """
    shutil.copytree(invitation_folder / CATALOGUE, catalogue, ignore=shutil.ignore_patterns(".*"))
    shutil.copyfile(invitation_folder / AUTHORITY, authority)
    if content_hash(catalogue) != invitation.catalogue or file_hash(authority) != invitation.authority:
        raise TrustError(f"{invitation_folder}: was changed while it was copied")
    make_private(catalogue)
    make_private(authority)


def make_private(path: Path) -> None:
    """Give a file, or a folder and all in it, to the owner alone (modes 0600 and 0700)."""
    if path.is_dir():
        path.chmod(0o700)
        for part in path.iterdir():
            make_private(part)
    else:
        path.chmod(0o600)
