"""Write files so that a reader sees the old content or the new, never half of it."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], None], *, mode: int = 0o644) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, then rename it over ``path``.

    The temporary file is for its owner alone, and gets ``mode`` last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_private_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder beside ``folder``, flush its files to disk, then rename it to ``folder``.

    The folder is for its owner alone (mode 0700, its files 0600) from the start, and must not exist yet.
    """
    with _temporary_folder(folder) as temporary:
        write(temporary)
        _settle(temporary, 0o600)
        temporary.rename(folder)


def write_public_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Do the same for a folder that everybody may read; one that exists is replaced.

    An older folder is moved aside before the new one takes its name, and removed after it.
    """
    with _temporary_folder(folder) as temporary:
        write(temporary)
        _settle(temporary, 0o644)
        temporary.chmod(0o755)
        if not folder.exists():
            temporary.rename(folder)
            return
        with _temporary_folder(folder) as aside:
            folder.rename(aside)
            try:
                temporary.rename(folder)
            except OSError:
                aside.rename(folder)
                raise


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` that is its owner's alone, and remove what is left under its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(folder: Path, mode: int) -> None:
    for path in folder.iterdir():
        path.chmod(mode)
        with path.open("rb") as written:
            os.fsync(written.fileno())


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write ``content`` to ``path`` atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write, mode=mode)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically, as indented JSON without NaN or infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
