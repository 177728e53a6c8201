"""What a site has spent of its privacy budget, for status and metrics."""

from dataclasses import dataclass
from pathlib import Path

from client.privacy.ledger import Ledger
from client.privacy.policy import load_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """A ledger in figures.

    Attributes:
        spent: Epsilon spent.
        budget: Epsilon in all.
        delta: Chance that epsilon does not hold.
        releases: Releases charged.
    """

    spent: float
    budget: float
    delta: float
    releases: int

    @property
    def left(self) -> float:
        """Epsilon left."""
        return max(self.budget - self.spent, 0.0)


def ledger_files(privacy_file: Path) -> tuple[Path, Path] | None:
    """Return ledger and witness of a privacy file; None where it protects nobody and so has none.

    Raises:
        MetaRecError: The file cannot be used.
    """
    policy = load_policy(privacy_file)
    if policy.mode == "none":
        return None
    return privacy_file.parent / policy.ledger, privacy_file.parent / policy.witness


def ledger_state(privacy_file: Path) -> LedgerState | None:
    """Return what a site has spent; None where its privacy file protects nobody.

    Raises:
        MetaRecError: The privacy file or the ledger cannot be used.
    """
    files = ledger_files(privacy_file)
    if files is None:
        return None
    ledger = Ledger.open(*files)
    epsilon, delta = ledger.budget
    return LedgerState(spent=ledger.spent(), budget=epsilon, delta=delta, releases=len(ledger.releases()))
