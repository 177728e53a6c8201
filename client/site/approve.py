"""Approve a newer invitation: show what differs from what was approved, then take it over."""

import shutil
import tempfile
from pathlib import Path

from client.site.approval import Approval, read_approval, write_approval
from client.site.folder import SETTINGS_FILE, Site
from client.site.setup import take_public_files
from metarec_shared.bundle import check_bundle
from metarec_shared.catalogue import Catalogue
from metarec_shared.errors import DataError, TrustError
from metarec_shared.files import write_bytes, write_text
from metarec_shared.invitation import AUTHORITY, CATALOGUE, Invitation, issue_time, open_invitation
from metarec_shared.readers import read_catalogue
from metarec_shared.settings import DataSettings
from metarec_shared.toml_text import toml_value


def open_newer(site: Site, invitation_folder: Path) -> tuple[Invitation, list[str]]:
    """Check an invitation by the signing key that the site trusts, and say what differs from what was approved.

    Returns:
        The terms, and a line for each difference; no line: nothing differs.

    Raises:
        TrustError: It was changed, or another key signed it, or it is older than what was approved, or its
            bundle is not the one that the installed MetaRec makes, or what was approved cannot be read.
    """
    before = read_approval(site.approved)
    invitation, _ = open_invitation(invitation_folder, before.signing_key)
    if before.issued and issue_time(invitation.issued) < issue_time(before.issued):
        raise TrustError(
            f"{invitation_folder}: issued {invitation.issued}, before the one that was approved ({before.issued}): "
            "ask the coordinator for the latest"
        )
    check_bundle(invitation.metarec, invitation.bundle)
    lines = [
        f"{what}: {old} -> {new}"
        for what, old, new in (
            ("federation", before.federation, invitation.federation),
            ("server", before.server, invitation.server),
            ("bundle", before.bundle, invitation.bundle),
            ("MetaRec", before.metarec, invitation.metarec),
            ("text encoder", before.text_encoder, invitation.text_encoder),
            ("catalogue", before.catalogue, invitation.catalogue),
        )
        if old != new
    ]
    if before.catalogue != invitation.catalogue:
        lines.append(f"items: {_changes(site.catalogue, invitation_folder / CATALOGUE)}")
    if site.authority.is_file() and site.authority.read_bytes() != (invitation_folder / AUTHORITY).read_bytes():
        lines.append("the authority of the server's certificate is another one")
    return invitation, lines


def take_over(site: Site, invitation_folder: Path, invitation: Invitation) -> list[str]:
    """Take over an invitation that was approved: catalogue, authority, then what is approved.

    A crash in between leaves a catalogue and a hash that do not fit, with which the site refuses every message;
    approving again mends it.

    Returns:
        What the operator must still do.

    Raises:
        TrustError: The invitation was changed meanwhile.
    """
    before, todo = read_approval(site.approved), []
    work = Path(tempfile.mkdtemp(dir=site.folder, prefix=".approve.", suffix=".tmp"))
    try:
        take_public_files(invitation_folder, invitation, work / "new", work / AUTHORITY)
        if site.catalogue.exists():
            site.catalogue.rename(work / "old")
        (work / "new").rename(site.catalogue)
        write_bytes(site.authority, (work / AUTHORITY).read_bytes(), mode=0o600)
        write_approval(site.approved, Approval.of(invitation, before.signing_key))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if invitation.server != site.settings.server and not _move_server(site, before, invitation):
        todo.append(f"set server = {toml_value(invitation.server)} in {site.folder / SETTINGS_FILE}")
    return todo


def _move_server(site: Site, before: Approval, invitation: Invitation) -> bool:
    """Put the new address into ``site.toml`` where it has the old one; say whether that was done."""
    path = site.folder / SETTINGS_FILE
    old, new = (f"server = {toml_value(address)}" for address in (before.server, invitation.server))
    text = path.read_text(encoding="utf-8")
    if text.count(f"\n{old}") != 1:
        return False
    write_text(path, text.replace(f"\n{old}", f"\n{new}"), mode=0o600)
    return True


def _changes(before: Path, after: Path) -> str:
    try:
        old, new = (_texts(read_catalogue(folder, DataSettings())) for folder in (before, after))
    except DataError as error:
        return f"cannot be compared: {error}"
    kept = old.keys() & new.keys()
    changed = sum(old[item] != new[item] for item in kept)
    return (
        f"{len(new):,} after {len(old):,}; {len(new) - len(kept):,} added, {len(old) - len(kept):,} removed, "
        f"{changed:,} with another text"
    )


def _texts(catalogue: Catalogue) -> dict[str, str]:
    return dict(zip(catalogue.item_ids, catalogue.texts, strict=True))
