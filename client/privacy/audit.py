"""Measures what replies of the client really tell of one user, against what the accounting claims.

Two data sets differ in one user, the canary, whose clipped gradient is at the clip norm. Any event S bounds the
privacy profile from below:

    delta(epsilon) >= P[M(D) in S] - e^epsilon P[M(D') in S]

and for a Gaussian mechanism the event with equality is known beforehand: that the log-likelihood ratio of the claimed
pair of distributions exceeds epsilon. So the threshold is analytical, and nothing is selected on the draws that are
counted. Both directions are tried, the canary added and removed; the worse one is reported.

The statistic sees the whole reply. Its arrays are projected on the canary's direction, which is all that they tell if
the mechanism is what it claims to be. All else (weight, metrics, names, shapes and kinds of arrays, size in bytes, an
error in place of a reply, an array without noise) should be a constant. What is not one has values that are likelier
with or without the canary: how much so is tabulated on draws of their own, and the log of it added to the statistic.
Since statistic and threshold are fixed before the draws that are counted, the inequality above holds for them,
whatever the mechanism does, and a constant adds nothing.

z is the excess over the claim in standard errors; the error is that of the same event under the claim, from the
distribution of the claimed log-likelihood ratio by numerical convolution. Claims are upper bounds, up to 2% above the
exact profile, so a right mechanism has a mean z a little below 0. An audit refutes; it proves nothing.

References:
    Jagielski, Ullman and Oprea (2020), Auditing differentially private machine learning. Nasr et al. (2023), Tight
    auditing of differentially private machine learning. Doroshenko et al. (2022), Connect the dots (privacy profiles).
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from client.privacy.audit_claim import Claim, Observed, PublicPart, statistic
from client.privacy.audit_harness import composed_rounds
from client.privacy.audit_path import path_replies
from client.privacy.audit_report import EPSILONS, AuditReport, AuditRow, print_report, rows_of
from metarec_shared.files import write_json

CLAIMS = (
    Claim(releases=1, sampling_rate=1.0, noise_multiplier=0.7),
    Claim(releases=20, sampling_rate=0.25, noise_multiplier=1.0),
    Claim(releases=100, sampling_rate=0.05, noise_multiplier=0.7),
)
"""What is audited; so little noise that every event happens often enough for a standard error to mean something."""

_MOST_WORKERS = 4

_PILOT_PATH, _PILOT_COMPOSED = 200, 2_000
_RUNS_AT_ONCE = {True: 5_000, False: 25_000}
"""Runs of one task, through the whole client or composed."""


def audit(
    *,
    runs_of_path: int = 20_000,
    runs_composed: int = 100_000,
    progress: Callable[[str], None],
    claims: Sequence[Claim] = CLAIMS,
    workers: int = 1,
) -> AuditReport:
    """Measure the privacy profile of the client.

    Args:
        runs_of_path: Replies through the whole client, with the canary, and as many without it.
        runs_composed: Runs of each composed setting, likewise.
        progress: Told what has been done.
        claims: What is audited; one release goes through the whole client.
        workers: Processes; with 1 everything happens in this one.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else nullcontext(_Here())
    with pool as executor:
        begun = [
            (claim, _begin(executor, claim, runs_of_path if claim.releases == 1 else runs_composed)) for claim in claims
        ]
        rows: list[AuditRow] = []
        for claim, (deltas, parts) in begun:
            tails = [np.concatenate([part.result()[side] for part in parts]) for side in (0, 1)]
            rows += rows_of(claim, deltas.result(), *tails)
            worst = max(row.z for row in rows[-len(EPSILONS) :])
            progress(
                f"{claim.releases} releases at sampling rate {claim.sampling_rate:g}: {len(tails[0]):,} runs with the "
                f"canary and as many without it, largest z {worst:.2f}"
            )
    return AuditReport(rows=tuple(rows))


def audit_command(json_file: Path | None) -> None:
    """Audit this installation's client and print what was found.

    Args:
        json_file: Where to write the report, too.

    Raises:
        Exit: With 1, if it did not pass.
    """
    notes = Console(stderr=True, highlight=False)
    report = audit(progress=notes.print, workers=min(_MOST_WORKERS, os.cpu_count() or 1))
    print_report(report)
    if json_file is not None:
        write_json(json_file, report.to_dict())
    if not report.passed:
        raise typer.Exit(1)


class _Here(Executor):
    """Runs everything at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return a future that is done."""
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


Tails = tuple[NDArray[np.float64], NDArray[np.float64]]
"""The statistic of runs without and with the canary."""


def _begin(executor: Executor, claim: Claim, runs: int) -> tuple[Future[list[float]], list[Future[Tails]]]:
    """Begin the work of one claim: its deltas, and its runs in parts."""
    public = PublicPart()
    for canary in (False, True):
        public.add(_rounds(claim, min(runs, _pilot(claim)), canary=canary), canary=canary)
    most = _RUNS_AT_ONCE[claim.releases == 1]
    parts = [min(most, runs - start) for start in range(0, runs, most)]
    return executor.submit(_claimed, claim), [executor.submit(_run, claim, public, part) for part in parts]


def _pilot(claim: Claim) -> int:
    return _PILOT_PATH if claim.releases == 1 else _PILOT_COMPOSED


def _claimed(claim: Claim) -> list[float]:
    return [claim.delta(epsilon) for epsilon in EPSILONS]


def _run(claim: Claim, public: PublicPart, runs: int) -> Tails:
    without, with_canary = (statistic(claim, public, _rounds(claim, runs, canary=canary)) for canary in (False, True))
    return without, with_canary


def _rounds(claim: Claim, runs: int, *, canary: bool) -> Iterator[Observed]:
    if claim.releases == 1:
        yield path_replies(claim, runs, canary=canary)
    else:
        yield from composed_rounds(claim, runs, canary=canary)
