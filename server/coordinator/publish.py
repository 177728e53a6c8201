"""Publish the catalogue and the apps: make the signed folder that sites are given."""

import csv
import hashlib
import io
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from metarec_shared.bundle import build_bundle, metarec_version, write_app
from metarec_shared.errors import DataError
from metarec_shared.files import write_bytes, write_text
from metarec_shared.invitation import AUTHORITY, BUNDLE, CATALOGUE, Invitation, content_hash, file_hash, seal
from metarec_shared.readers import read_catalogue, source
from metarec_shared.readers.assemble import build_catalogue
from metarec_shared.readers.reading import layout_of
from metarec_shared.settings import DataSettings
from server.coordinator.certificates import load_signing_key
from server.coordinator.home import Home


def take_catalogue(home: Home, data: Path, item_vectors: Path | None = None) -> int:
    """Copy the items of a data folder, and nothing else of it, to where they are published; return how many there are.

    Args:
        home: The coordinator's folder.
        data: A folder in any layout; interactions in it stay there. Items that its ``source.toml`` finds elsewhere are
            written out, so that sites get the items and no pointer to them.
        item_vectors: File of further item vectors, published beside the items.

    Raises:
        DataError: The items cannot be read, or not be written out unchanged.
    """
    layout = layout_of(data, items_only=True)
    items = layout.find_items(data)
    if items is None or not items.is_relative_to(data):
        raise DataError(f"{data}: the items must lie in this folder to be published")
    with tempfile.TemporaryDirectory(dir=home.folder, prefix=".catalogue-") as made:
        folder = Path(made) / CATALOGUE
        folder.mkdir()
        if layout is source.LAYOUT:
            _write_items(items, folder)
        else:
            shutil.copyfile(items, folder / items.name)
        if item_vectors is not None:
            shutil.copyfile(item_vectors, folder / item_vectors.name)
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
        issued=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with tempfile.TemporaryDirectory(dir=home.folder, prefix=".invitation-") as made:
        folder = Path(made) / "invitation"
        shutil.copytree(home.catalogue, folder / CATALOGUE)
        shutil.copyfile(home.authority, folder / AUTHORITY)
        write_bytes(folder / BUNDLE, bundle)
        seal(folder, invitation, key)
        _swap(folder, home.invitation)
    return invitation


def _write_items(pointer: Path, folder: Path) -> None:
    """Write the items that a ``source.toml`` finds elsewhere as ``items.csv``, which gives the same catalogue.

    Raises:
        DataError: They cannot be read, or the catalogue would be another one.
    """
    settings, text = DataSettings(), io.StringIO()
    table = source.LAYOUT.read_items(pointer, settings)
    rows = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    rows.writerow(table.columns)
    rows.writerows(zip(*(table.text(name).to_pylist() for name in table.columns), strict=True))
    write_text(folder / "items.csv", text.getvalue())
    if read_catalogue(folder, settings) != build_catalogue(table, settings)[0]:
        raise DataError(
            f"{pointer}: the items cannot be written as items.csv unchanged; publish a folder with items.csv"
        )


def _swap(made: Path, place: Path) -> None:
    """Put a finished folder in the place of another, which goes last."""
    old = made.with_name(f"{made.name}.old")
    if place.exists():
        place.rename(old)
    made.rename(place)
    shutil.rmtree(old, ignore_errors=True)
