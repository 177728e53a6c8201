"""The address of a site's database, which bears credentials: found where ``source.toml`` points, never quoted."""

import os
import stat
from collections.abc import Mapping

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from metarec_shared.errors import DataError
from metarec_shared.readers.source_file import Origin

_SECONDS_TO_CONNECT = 30


def database_address(origin: Origin) -> URL:
    """Return the address of a database; of SQLite, one that opens an existing file only, and only for reading.

    Raises:
        DataError: The environment variable is not set, the file cannot be read, others may read it, or what it holds
            is no address.
    """
    text = _from_file(origin) if origin.url_file else os.environ.get(origin.url_env, "")
    if not text.strip():
        holder = f"file {origin.url_file} is empty" if origin.url_file else f"variable {origin.url_env} is not set"
        raise DataError(f"{origin}: the {holder}, wanted a database's address there")
    try:
        address = make_url(text.strip())
    except (ArgumentError, ValueError):  # its port may be a part of a password
        wish = "wanted one such as postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE"
        raise DataError(f"{origin}: {holder_of(origin)} holds no database's address, {wish}") from None
    if address.get_backend_name() != "sqlite":
        return address
    if "uri" not in address.query:
        address = address.set(database=(origin.folder / (address.database or "")).resolve().as_uri())
    return address.update_query_dict({"mode": "ro", "uri": "true"})


def holder_of(origin: Origin) -> str:
    """Return the name of what holds the address."""
    return f"the file {origin.url_file}" if origin.url_file else f"the variable {origin.url_env}"


def connect_options(address: URL) -> Mapping[str, int]:
    """Return what the driver is told beside the address: not to wait for long, unless the address says how long."""
    waits = address.get_driver_name() in ("psycopg", "psycopg2") and "connect_timeout" not in address.query
    return {"connect_timeout": _SECONDS_TO_CONNECT} if waits else {}


def _from_file(origin: Origin) -> str:
    path = origin.folder / origin.url_file
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise DataError(f"{path}: others may use it, its mode must be 0600 or stricter, got {mode:04o}")
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: holds bytes that are no UTF-8 text") from None
