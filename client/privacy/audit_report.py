"""What an audit reports: the privacy profile claimed and measured, and how far the one is above the other."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from client.privacy.audit_claim import Claim

EPSILONS = (0.0, 0.5, 1.0, 2.0, 3.0)

MOST_Z = 4.0
"""Standard errors that an audit takes for chance; 30 of them are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """The privacy profile at one epsilon, claimed and measured."""

    releases: int
    sampling_rate: float
    noise_multiplier: float
    epsilon: float
    claimed_delta: float
    empirical_delta: float
    z: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found."""

    rows: tuple[AuditRow, ...]

    @property
    def passed(self) -> bool:
        """Whether no measured delta exceeds its claim by more than chance does."""
        return all(row.z < MOST_Z for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"passed": self.passed, "rows": [asdict(row) for row in self.rows]}


def rows_of(
    claim: Claim, deltas: Sequence[float], without: NDArray[np.float64], with_canary: NDArray[np.float64]
) -> Iterator[AuditRow]:
    """Yield the worse direction's excess over the claim at each epsilon.

    Args:
        claim: What is audited.
        deltas: What is claimed at each of ``EPSILONS``.
        without: The statistic of runs without the canary, its log-likelihood ratio.
        with_canary: The same of runs with it.
    """
    chances = [claim.tails(EPSILONS, added=added) for added in (True, False)]
    for place, (epsilon, claimed) in enumerate(zip(EPSILONS, deltas, strict=True)):
        found = []
        for first, second, expected in (
            (with_canary, without, chances[0][place]),
            (-without, -with_canary, chances[1][place]),
        ):
            empirical = float((first > epsilon).mean() - math.exp(epsilon) * (second > epsilon).mean())
            variances = expected * (1.0 - expected) / (len(first), len(second))
            error = math.sqrt(max(variances[0] + math.exp(2 * epsilon) * variances[1], len(first) ** -2))
            found.append(((empirical - claimed) / error, empirical))
        z, empirical = max(found)
        yield AuditRow(
            releases=claim.releases,
            sampling_rate=claim.sampling_rate,
            noise_multiplier=claim.noise_multiplier,
            epsilon=epsilon,
            claimed_delta=claimed,
            empirical_delta=empirical,
            z=z,
        )


def print_report(report: AuditReport) -> None:
    """Print a table, and the verdict."""
    console = Console(highlight=False)
    table = Table("releases", "sampling rate", "noise", "epsilon", "claimed delta", "empirical delta", "z")
    for row in report.rows:
        numbers = (row.sampling_rate, row.noise_multiplier, row.epsilon)
        deltas = (f"{row.claimed_delta:.5f}", f"{row.empirical_delta:.5f}", f"{row.z:.2f}")
        table.add_row(str(row.releases), *(f"{number:g}" for number in numbers), *deltas)
    console.print(table)
    verdict = "passed: no delta exceeds its claim" if report.passed else "FAILED: replies tell more than is claimed"
    console.print(f"{verdict} by {MOST_Z:g} standard errors")
