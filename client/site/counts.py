"""How much data a site has, as its last check counted; kept at the site, for its operator."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from metarec_shared.files import write_text

COUNTS_FILE = "data.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What was read.

    Attributes:
        users: Users.
        interactions: Interactions.
        skipped: Rows that could not be read.
    """

    users: int
    interactions: int
    skipped: int


def write_counts(state: Path, counts: Counts) -> None:
    """Keep what was counted, for the owner alone."""
    write_text(state / COUNTS_FILE, json.dumps(asdict(counts)) + "\n", mode=0o600)


def read_counts(state: Path) -> Counts | None:
    """Return what was counted last; None where nothing was."""
    try:
        return Counts(**json.loads((state / COUNTS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
