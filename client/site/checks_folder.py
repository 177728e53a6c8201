"""Checks of the site's own files: who may read them, the key, room on the disk."""

import os
import shutil
import stat

from client.site.approval import Approval
from client.site.folder import SETTINGS_FILE, Site
from client.site.keys import public_file, read_key
from metarec_shared.bundle import check_bundle
from metarec_shared.errors import TrustError

ROOM = 1 << 30
"""Bytes that must be free where the site's state lies: a bundle, a message, the ledger, the log."""


def approval(site: Site, approved: Approval) -> str:
    """Say what was approved; raise where its bundle is not the one that the installed MetaRec makes."""
    check_bundle(approved.metarec, approved.bundle)
    return f"federation {approved.federation}, signed by {approved.signing_key}, approved {approved.time}"


def modes(site: Site) -> str:
    """Check that nobody but the owner reads the folder and what is secret in it."""
    secret = (site.folder / SETTINGS_FILE, site.key, site.privacy_file, site.approved, site.excluded)
    open_ones = [path for path in (site.folder, *secret) if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_ones:
        repairs = "; ".join(f"chmod {'700' if path.is_dir() else '600'} {path}" for path in open_ones)
        raise TrustError(f"others may read them: {repairs}")
    foreign = [str(path) for path in (site.folder, *secret) if path.exists() and path.stat().st_uid != os.geteuid()]
    if foreign:
        raise TrustError(f"another account owns {', '.join(foreign)}: chown them, or run as that account")
    return f"only {site.folder.owner()} may read {site.folder}"


def key(site: Site, approved: Approval) -> str:
    """Check that the key can be read."""
    read_key(site.key)
    return f"{public_file(site.key)} is for the coordinator"


def disk(site: Site, approved: Approval) -> str:
    """Check that there is room for the site's state."""
    free = shutil.disk_usage(site.folder).free
    if free < ROOM:
        raise TrustError(f"{free / 1e9:.1f} GB free at {site.folder}, wanted {ROOM / 1e9:.1f}: make room")
    return f"{free / 1e9:.0f} GB free"
