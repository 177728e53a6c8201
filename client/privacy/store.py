"""Where a ledger's rows are kept: a SQLite file and its witness, always read together, checked and under one lock.

What a charge does, in this order, 1 to 4 under SQLite's exclusive lock, 5 after taking it again:

1. read the whole ledger and the witness, and check both;
2. check that the release is new, and the budget;
3. write the witness: the last row as before, and the new row as pending;
4. commit the new row;
5. read and check all again, and write the witness: the new row as the last, none pending.

A crash before the end of 3 leaves all as it was. Between 3 and 4, the ledger ends at the witness's last row; the charge
never returned, so nothing left, and the pending row is forgotten. Between 4 and 5, it ends at the pending row, which
becomes the last: a charge for something that never left. Another process that comes in between does the same. Any other
ledger was tampered with. At rest none is pending, so a ledger that is put back by a single row is noticed too.

Locks need a local disk: do not put the ledger on a network share.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.privacy.rows import encode, link, read_row, root
from client.privacy.witness import Tail, Witness, read_witness, sync_folder, write_witness
from metarec_shared.errors import LedgerError

_PATIENCE_SECONDS = 5.0
"""How long to wait for another process that charges."""

_ACCESS = "rw"

_SCHEMA = (
    "CREATE TABLE population (identifier TEXT NOT NULL)",
    "CREATE TABLE ledger (number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TRIGGER no_update BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'rows are only added'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, 'rows are only added'); END",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a ledger holds; its rows have been checked.

    Attributes:
        population: Identifier of the population.
        rows: What the rows say, the first one first.
        tail: The last row.
    """

    population: str
    rows: Sequence[Mapping[str, Any]]
    tail: Tail


class Store:
    """The two files of a ledger."""

    def __init__(self, path: Path, witness: Path) -> None:
        self._path, self._witness = path, witness

    def create(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make both files, for a new population, with the first rows.

        Raises:
            LedgerError: One of the files is there, or cannot be written.
        """
        if self._path.resolve() == self._witness.resolve():
            raise LedgerError(f"{self._path}: the ledger and its witness are two files")
        for file in (self._path, self._witness):
            if file.exists() or file.is_symlink():
                raise LedgerError(f"{file}: is there already, and what was charged is not forgotten")
        try:
            for file in (self._path, self._witness):
                file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            self._fill(secrets.token_hex(16), rows)
            sync_folder(self._path.parent)
        except OSError as error:
            raise LedgerError(f"{error.filename or self._path}: cannot make the ledger: {error.strerror}") from error
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: cannot make the ledger: {error}") from error

    def read(self) -> Content:
        """Return what the ledger holds.

        Raises:
            LedgerError: It cannot be trusted.
        """
        with self.transaction() as (_, content):
            return content

    @contextmanager
    def transaction(self) -> Iterator[tuple[sqlite3.Connection, Content]]:
        """Take the lock, check everything, and settle what a crash left pending.

        Raises:
            LedgerError: The ledger cannot be trusted, locked or written.
        """
        if not self._path.is_file():
            raise LedgerError(f"{self._path}: no ledger; `metarec privacy init` makes one")
        try:
            with closing(self._connect()) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                connection.execute("DELETE FROM ledger WHERE 0")  # fails now, not at a charge, if the file is read-only
                content = self._checked(connection)
                _step("checked")
                yield connection, content
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: cannot use the ledger: {error}") from error
        except OSError as error:
            raise LedgerError(f"{self._witness}: cannot write the ledger's witness: {error.strerror}") from error

    def append(self, connection: sqlite3.Connection, content: Content, row: Mapping[str, Any]) -> Tail:
        """Add a row and commit; it counts once it is settled.

        Args:
            connection: The transaction, which is ended.
            content: What it found.
            row: The new row.
        """
        body = encode(content.tail.number + 1, row)
        tail = link(content.tail, body)
        write_witness(self._witness, Witness(population=content.population, last=content.tail, pending=tail))
        _step("pending")
        connection.execute("INSERT INTO ledger VALUES (?, ?, ?)", (tail.number, body, tail.hash))
        _step("inserted")
        connection.execute("COMMIT")
        _step("committed")
        return tail

    def settle(self, tail: Tail) -> None:
        """Let a row that was committed become the witness's last, unless another process has done so already.

        Raises:
            LedgerError: The ledger cannot be trusted, or the row is gone.
        """
        if self.read().tail.number < tail.number:
            raise LedgerError(f"{self._path}: row {tail.number} is gone")
        _step("settled")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={_ACCESS}",
            uri=True,
            isolation_level=None,
            timeout=_PATIENCE_SECONDS,
        )
        try:
            connection.execute("PRAGMA synchronous = EXTRA")
            (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode != "delete":
                raise LedgerError(f"{self._path}: the ledger's journal mode must be delete, got {mode}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _checked(self, connection: sqlite3.Connection) -> Content:
        content = _verified(connection, self._path)
        witness = read_witness(self._witness)
        if witness.population != content.population:
            raise LedgerError(f"{self._witness}: the witness of another ledger than {self._path}")
        if content.tail not in (witness.last, witness.pending):
            raise LedgerError(
                f"{self._path}: ends at row {content.tail.number}, but {self._witness} knows of row "
                f"{witness.last.number}: one of them was put back, cut short or edited"
            )
        if witness.pending is not None:
            write_witness(self._witness, Witness(population=content.population, last=content.tail))
        return content

    def _fill(self, population: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the first rows of a new ledger, then its witness."""
        tail = root(population)
        with closing(self._connect()) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO population VALUES (?)", (population,))
            for row in rows:
                body = encode(tail.number + 1, row)
                tail = link(tail, body)
                connection.execute("INSERT INTO ledger VALUES (?, ?, ?)", (tail.number, body, tail.hash))
            connection.execute("COMMIT")
        write_witness(self._witness, Witness(population=population, last=tail))


def _verified(connection: sqlite3.Connection, path: Path) -> Content:
    """Read a ledger and follow its chain from the population's identifier to the last row."""
    populations = [str(value) for (value,) in connection.execute("SELECT identifier FROM population")]
    if len(populations) != 1:
        raise LedgerError(f"{path}: wanted one population, got {len(populations)}")
    population = populations[0]
    tail, rows = root(population), []
    for number, body, digest in connection.execute("SELECT number, body, hash FROM ledger ORDER BY number"):
        following = link(tail, body)
        if following != Tail(number=number, hash=digest):
            raise LedgerError(f"{path}: row {number} does not follow from the ones before: it was edited or damaged")
        tail = following
        rows.append(read_row(body))
    return Content(population=population, rows=rows, tail=tail)


def _step(name: str) -> None:
    """Mark a step; tests end the process at one."""
