"""Leave users out, from the next message on."""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from client.consent import excluded_users
from client.site.approval import read_approval
from client.site.folder import Site
from metarec_shared.errors import DataError
from metarec_shared.files import write_text
from metarec_shared.sources import load_dataset


def exclude(site: Site, users: Sequence[str]) -> int:
    """Add users to the site's file of excluded ones, each once; return how many are new.

    Raises:
        DataError: An id is empty, or holds a line break.
        Refusal: The file is missing, or cannot be read.
    """
    asked = [user.strip() for user in users]
    if wrong := [number for number, user in enumerate(asked, start=1) if not user or "\n" in user]:
        raise DataError(f"a user id must be one line of text, which number {wrong[0]} of those given is not")
    with _alone(site.folder):
        before = excluded_users(site.excluded)  # a missing file stays missing: nobody knows who was in it
        after = before | set(asked)
        write_text(site.excluded, "".join(f"{user}\n" for user in sorted(after)), mode=0o600)
    return len(after) - len(before)


def unknown_places(site: Site, users: Iterable[str]) -> list[int]:
    """Return which of ``users`` are not in the site's data, counted from 1.

    Raises:
        MetaRecError: The data cannot be read.
    """
    dataset = load_dataset(site.data_settings(read_approval(site.approved)))
    known = set(dataset.interactions.user_ids.tolist())
    return [number for number, user in enumerate(users, start=1) if user.strip() not in known]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other process do the same meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
