"""Flower's SuperNode, but only the bundle that the site approved is stored or run.

Flower lets a SuperNode trust the signer of a bundle; here its content decides. The place is the same one: a bundle is
judged after it came and before it is kept, a run of another one gets Flower's error reply, and the node lives on.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as flower

from client.site.process import die_with
from client.site.resending import repeat_sends

logger = logging.getLogger("flwr")  # the SuperNode's own, which it shows

GetFab = Callable[[str, int], Fab]


def check_bundles(approved: str) -> None:
    """Make this process refuse every bundle but one.

    Args:
        approved: SHA-256 of the one bundle, hex.
    """
    pull = flower._pull_and_store_message

    def pull_checked(*, get_fab: GetFab, trusted_entities: dict[str, str] | None, **others: Any) -> int | None:
        # Some trusted entity, whoever it is, makes Flower call _verify_fab.
        return pull(get_fab=_as_asked(get_fab), trusted_entities={"approved": approved}, **others)

    def verify(fab: Fab, trusted_entities: dict[str, str]) -> bool:
        return is_approved(fab, approved)

    flower._pull_and_store_message = pull_checked  # type: ignore[assignment]
    flower._verify_fab = verify


def is_approved(fab: Fab, approved: str) -> bool:
    """Say whether a bundle is the approved one, by its content and by the hash that its run names."""
    found = hashlib.sha256(fab.content).hexdigest()
    if found == approved == fab.hash_str:
        return True
    named = "" if fab.hash_str == found else f", its run names {fab.hash_str}"
    logger.error("bundle %s is refused: this site approved %s%s", found, approved, named)
    return False


def _as_asked(get_fab: GetFab) -> GetFab:
    """Return bundles under the hash that was asked for, with the mark without which Flower does not judge them."""

    def get(fab_hash: str, run_id: int) -> Fab:
        return replace(get_fab(fab_hash, run_id), hash_str=fab_hash, verifications={"valid_license": "by content"})

    return get


def main(arguments: Sequence[str]) -> None:
    """Run a SuperNode; what follows ``--`` is for Flower's own command."""
    parser = argparse.ArgumentParser(prog="client.site.supernode")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--parent", required=True, type=int)
    parser.add_argument("flower", nargs="*")
    options = parser.parse_args(arguments)
    die_with(options.parent)
    check_bundles(options.bundle)
    repeat_sends()
    from flwr.supernode.cli.flower_supernode import flower_supernode

    sys.argv = ["flower-supernode", *options.flower]
    flower_supernode()


if __name__ == "__main__":
    main(sys.argv[1:])
