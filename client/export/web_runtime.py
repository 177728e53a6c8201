"""ONNX Runtime Web, got by npm at export time: of its package the two files that run a graph on one thread.

The version is pinned, and its package's hash with it: npm says where packages come from, and not what is in them. No
script of a package is run, and nothing that it depends on is fetched: what it needs is bundled in its files.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from metarec_shared.errors import MetaRecError, TrustError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package, in base 64, as npm's lock files have it."""

RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The WebAssembly backend with what loads it. It has threads, and uses one where it is told to."""

_SECONDS = 300
"""How long npm may take."""


def fetch_runtime(folder: Path) -> None:
    """Put the files of the runtime into a folder.

    Raises:
        MetaRecError: There is no npm, it cannot get the package, or the package lacks a file.
        TrustError: The package is not the one whose hash is pinned.
    """
    with tempfile.TemporaryDirectory(prefix="metarec-npm-") as temporary:
        archive = pack(PACKAGE, VERSION, Path(temporary))
        with archive.open("rb") as file:
            found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
        if found != SHA512:
            raise TrustError(f"{PACKAGE} {VERSION} from npm: its SHA-512 is {found}, wanted {SHA512}")
        take_files(archive, {f"package/dist/{name}": folder / name for name in RUNTIME_FILES})


def pack(package: str, version: str, folder: Path) -> Path:
    """Let npm download the archive of a package into an empty folder; return its path.

    Raises:
        MetaRecError: There is no npm, or it cannot get the package.
    """
    npm, wanted = shutil.which("npm"), f"{package}@{version}"
    if npm is None:
        raise MetaRecError(f"an export of a web page needs npm to get {wanted}, and finds none: install Node.js")
    command = [npm, "pack", wanted, "--ignore-scripts", "--loglevel=error", f"--pack-destination={folder}"]
    try:
        finished = subprocess.run(  # noqa: S603 - the user's own npm, arguments are a list
            command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MetaRecError(f"npm did not get {wanted} within {_SECONDS} seconds; is there a network?") from error
    archives = list(folder.glob("*.tgz"))
    if finished.returncode or len(archives) != 1:
        said = " ".join(finished.stderr.split())[-500:] or f"exit code {finished.returncode}, {len(archives)} archives"
        raise MetaRecError(f"npm cannot get {wanted}: {said}")
    return archives[0]


def take_files(archive: Path, wanted: dict[str, Path]) -> None:
    """Copy files out of a package's archive.

    Args:
        archive: The archive.
        wanted: Where each file goes, by its name in the archive.

    Raises:
        MetaRecError: It lacks one.
    """
    with tarfile.open(archive) as package:
        for name, to in wanted.items():
            try:
                member = package.extractfile(name)
            except KeyError:
                member = None
            if member is None:
                raise MetaRecError(f"{archive.name}: has no file {name}")
            with member, to.open("wb") as copy:
                shutil.copyfileobj(member, copy)
