"""Publish the catalogue and the apps: make the signed folder that sites are given."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from metarec_shared.bundle import build_bundle, metarec_version, write_app
from metarec_shared.errors import DataError
from metarec_shared.files import write_bytes
from metarec_shared.invitation import AUTHORITY, BUNDLE, CATALOGUE, Invitation, content_hash, file_hash, seal
from metarec_shared.readers import read_catalogue
from metarec_shared.readers.reading import layout_of
from metarec_shared.settings import DataSettings
from server.coordinator.certificates import load_signing_key
from server.coordinator.home import Home


def take_catalogue(home: Home, source: Path, item_vectors: Path | None = None) -> int:
    """Copy the items of a data folder, and nothing else of it, to where they are published; return how many there are.

    Args:
        home: The coordinator's folder.
        source: A folder in any layout; interactions in it stay there.
        item_vectors: File of further item vectors, published beside the items.

    Raises:
        DataError: The items cannot be read.
    """
    items = layout_of(source, items_only=True).find_items(source)
    if items is None or not items.is_relative_to(source):
        raise DataError(f"{source}: the items must lie in this folder to be published")
    with tempfile.TemporaryDirectory(dir=home.folder, prefix=".catalogue-") as made:
        folder = Path(made) / CATALOGUE
        folder.mkdir()
        for file in (items, item_vectors):
            if file is not None:
                shutil.copyfile(file, folder / file.name)
        count = len(read_catalogue(folder, DataSettings()))
        _swap(folder, home.catalogue)
    return count


def publish(home: Home) -> Invitation:
    """Make the invitation anew from the catalogue, the apps of the installed MetaRec and the server's address.

    Raises:
        DataError: There is no catalogue yet.
        TrustError: The signing key cannot be read.
    """
    settings, key = home.settings(), load_signing_key(home)
    if not home.catalogue.is_dir():
        raise DataError(f"{home.catalogue}: no catalogue yet; metarec server publish --catalogue FOLDER")
    write_app(home.app)
    bundle = build_bundle(home.app)
    invitation = Invitation(
        federation=settings.federation,
        server=settings.public_address,
        metarec=metarec_version(),
        text_encoder=settings.text_encoder,
        authority=file_hash(home.authority),
        bundle=hashlib.sha256(bundle).hexdigest(),
        catalogue=content_hash(home.catalogue),
    )
    with tempfile.TemporaryDirectory(dir=home.folder, prefix=".invitation-") as made:
        folder = Path(made) / "invitation"
        shutil.copytree(home.catalogue, folder / CATALOGUE)
        shutil.copyfile(home.authority, folder / AUTHORITY)
        write_bytes(folder / BUNDLE, bundle)
        seal(folder, invitation, key)
        _swap(folder, home.invitation)
    return invitation


def _swap(made: Path, place: Path) -> None:
    """Put a finished folder in the place of another, which goes last."""
    old = made.with_name(f"{made.name}.old")
    if place.exists():
        place.rename(old)
    made.rename(place)
    shutil.rmtree(old, ignore_errors=True)
