"""Fetch well-known public data sets, checked against the hash their publisher gives."""

import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from metarec_shared.errors import DataError

BASE_URL = "https://files.grouplens.org/datasets/movielens/"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDataset:
    """A data set that can be fetched.

    Attributes:
        archive: Name of the zip file, relative to the base address.
        hash: Its published hash, ``"algorithm:digits"``.
        folder: Folder inside the archive.
        members: Files in that folder that are unpacked, and must be there; others are left alone.
    """

    archive: str
    hash: str
    folder: str
    members: tuple[str, ...]


KNOWN: Mapping[str, KnownDataset] = {
    "ml-1m": KnownDataset(
        archive="ml-1m.zip",
        hash="md5:c4d9eecfca2ab87c1945afe126590906",
        folder="ml-1m",
        members=("README", "movies.dat", "ratings.dat", "users.dat"),
    ),
    "ml-100k": KnownDataset(
        archive="ml-100k.zip",
        hash="md5:0e33842e24a9c977be4e0107933c0723",
        folder="ml-100k",
        members=("README", "u.data", "u.genre", "u.item", "u.user"),
    ),
}


def download(
    name: str, out: Path, *, base_url: str = BASE_URL, known: Mapping[str, KnownDataset] = KNOWN, quiet: bool = False
) -> Path:
    """Download a data set and unpack it into the folder ``out / name``.

    The folder appears complete or not at all: everything before its final renaming happens in a temporary folder
    beside it, which is removed whatever happens.

    Args:
        name: One of the keys of ``known``.
        out: Folder in which the data set's own folder is made.
        base_url: Address that the archive's name is appended to.
        known: What can be downloaded.
        quiet: Show no progress bar.

    Returns:
        The data set's folder.

    Raises:
        DataError: The name is unknown, the folder exists, or the archive cannot be fetched, verified or unpacked.
    """
    if name not in known:
        raise DataError(f"unknown data set {name!r}; those that can be downloaded are {', '.join(known)}")
    wanted, target = known[name], out / name
    if target.exists():
        raise DataError(f"{target}: exists already; remove it, or choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as temporary:
            archive = _fetch(base_url + wanted.archive, wanted.hash, Path(temporary), quiet=quiet)
            unpacked = Path(temporary) / name
            _unpack(archive, wanted, unpacked)
            unpacked.rename(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def _fetch(url: str, known_hash: str, folder: Path, *, quiet: bool) -> Path:
    """Download one file and verify its hash."""
    pooch.get_logger().setLevel("WARNING")  # its notes would break the progress bar
    bar = None if quiet else _ProgressBar(url)
    downloader = pooch.HTTPDownloader(progressbar=bar)
    try:
        return Path(pooch.retrieve(url, known_hash, fname="archive.zip", path=folder, downloader=downloader))
    except OSError as error:  # the root of requests' exceptions, too
        raise DataError(f"{url}: cannot be downloaded: {error}") from error
    except ValueError as error:
        raise DataError(f"{url}: damaged or changed: its hash is not the published {known_hash}") from error
    finally:
        if bar:
            bar.close()


def _unpack(archive: Path, wanted: KnownDataset, folder: Path) -> None:
    """Unpack the expected members under their own plain names; no path in the archive is ever followed."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as contents:
            for member in wanted.members:
                (folder / member).write_bytes(contents.read(f"{wanted.folder}/{member}"))
    except KeyError as error:
        raise DataError(f"{wanted.archive}: {error.args[0]}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{wanted.archive}: cannot be unpacked: {error}") from error


class _ProgressBar:
    """The few methods of a tqdm bar that pooch calls, drawn by rich on standard error."""

    def __init__(self, url: str) -> None:
        self.total = 0
        self._progress = Progress(
            TextColumn(url.rpartition("/")[2]), BarColumn(), DownloadColumn(), console=Console(stderr=True)
        )
        self._task = self._progress.add_task("download", total=None)

    def update(self, amount: int) -> None:
        """Advance by ``amount`` bytes."""
        self._progress.start()
        self._progress.update(self._task, total=self.total, advance=amount)

    def reset(self) -> None:
        """Return to zero."""
        self._progress.reset(self._task)

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()
