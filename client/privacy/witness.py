"""The ledger's witness: a second file, best on another disk, that knows which row of the ledger is the last."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarec_shared.errors import LedgerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """A row of a ledger: its number and the hash that chains it to all rows before."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What the witness file says.

    Attributes:
        population: Identifier of the ledger's population.
        last: The last row that is known to be in the ledger.
        pending: A row that was about to be written; None where none was.
    """

    population: str
    last: Tail
    pending: Tail | None = None


def read_witness(path: Path) -> Witness:
    """Read a witness file.

    Raises:
        LedgerError: It is missing or malformed.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        pending = document["pending"]
        return Witness(
            population=str(document["population"]),
            last=_tail(document["last"]),
            pending=None if pending is None else _tail(pending),
        )
    except OSError as error:
        raise LedgerError(f"{path}: cannot read the ledger's witness: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise LedgerError(f"{path}: the ledger's witness is damaged") from error


def write_witness(path: Path, witness: Witness) -> None:
    """Write a witness file; it is on the disk, under its name, when this returns.

    Only who holds the ledger's lock may write it, so the temporary file has one name and a crash leaves at most one.

    Raises:
        OSError: It cannot be written.
    """
    document = {
        "population": witness.population,
        "last": _document(witness.last),
        "pending": None if witness.pending is None else _document(witness.pending),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that files made or renamed in it survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tail(document: dict[str, Any]) -> Tail:
    number, digest = document["number"], document["hash"]
    if not isinstance(number, int) or not isinstance(digest, str):
        raise TypeError("a row's number and hash")
    return Tail(number=number, hash=digest)


def _document(tail: Tail) -> dict[str, Any]:
    return {"number": tail.number, "hash": tail.hash}
