"""A PostgreSQL server of a test's own, on loopback, and roles on it that may only read."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

_OWNER = "owner"
_ACCOUNTS = ("postgres", "nobody")
"""Who runs the server where root runs the tests: PostgreSQL refuses root."""


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a server; skip the test where PostgreSQL is not installed, or root finds no account to run it.

    Args:
        folder: Where the server's log is written.

    Yields:
        SQLAlchemy's address of its first database, as superuser. The server ends when the context does.
    """
    programs = _programs()
    account = _account()
    home = Path(tempfile.mkdtemp(prefix="metarec-postgres-"))  # pytest's own folders are closed to other accounts
    try:
        password = secrets.token_hex(8)
        (home / "password").write_text(password)
        if account is not None:
            for path in (home, home / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        with (folder / "postgres.log").open("wb") as log:
            options = [f"--username={_OWNER}", "--auth=scram-sha-256", f"--pwfile={home / 'password'}", "--no-sync"]
            encoding = ["--encoding=UTF8", "--no-locale"]
            with _started([programs / "initdb", "-D", home / "data", *options, *encoding], account, log) as made:
                assert made.wait(120) == 0, (folder / "postgres.log").read_text()
            port = _free_port()
            listen = ["-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
            with _started([programs / "postgres", "-D", home / "data", *listen], account, log) as server:
                url = f"postgresql+psycopg://{_OWNER}:{password}@127.0.0.1:{port}/postgres"
                try:
                    _wait(url, server, folder / "postgres.log")
                    yield url
                finally:
                    server.send_signal(signal.SIGQUIT)  # to the postmaster, which ends its children at once
                    server.wait(60)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def new_database(url: str, name: str) -> str:
    """Create a database on the server and return its address."""
    with _superuser(url).execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def read_only_role(url: str, name: str, *tables: str) -> str:
    """Create a role that may read the tables of a database and nothing else, and return the address it has there."""
    password = secrets.token_hex(8)
    with _superuser(url).begin() as connection:
        connection.execute(text(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'"))
        for table in tables:
            connection.execute(text(f'GRANT SELECT ON "{table}" TO "{name}"'))
    address: URL = make_url(url).set(username=name, password=password)
    return address.render_as_string(hide_password=False)


def _superuser(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool)


def _programs() -> Path:
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    pytest.skip("no PostgreSQL: initdb and postgres are neither on PATH nor under /usr/lib/postgresql")


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in _ACCOUNTS:
        if name in known:
            return known[name]
    pytest.skip(f"PostgreSQL does not run as root, and there is no account {' or '.join(_ACCOUNTS)}")


def _started(command: list[str | Path], account: pwd.struct_passwd | None, log: object) -> subprocess.Popen[bytes]:
    who = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **who)  # type: ignore[call-overload,no-any-return]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with _superuser(url).connect():
                return
        except OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"the server does not answer: {log.read_text()}"
            time.sleep(0.05)
