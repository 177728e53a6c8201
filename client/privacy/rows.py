"""Rows of a ledger: what they say, how each is chained to all before, and what they add up to."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.privacy.account import Account, Budget
from client.privacy.witness import Tail
from metarec_shared.errors import LedgerError, SettingsError
from metarec_shared.privacy.accounting import Mechanism


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release that was charged.

    Attributes:
        number: Its row.
        time: When it was charged, ISO 8601 in UTC.
        run: The run that asked for it.
        round_number: The round of that run.
        mechanism: What was released, with the noise and the sampling rate that it had.
    """

    number: int
    time: str
    run: str
    round_number: int
    mechanism: Mechanism


def plan_row(plan: Sequence[Mechanism]) -> dict[str, Any]:
    """Return the content of a row that records a plan."""
    return {"kind": "plan", "mechanisms": [_mechanism_row(one) | {"releases": one.releases} for one in plan]}


def budget_row(budget: Budget) -> dict[str, Any]:
    """Return the content of a row that records a budget."""
    return {"kind": "budget", "epsilon": budget.epsilon, "delta": budget.delta, "renyi_order": budget.order}


def release_row(release: Release) -> dict[str, Any]:
    """Return the content of a row that records a release; its number is added where it is written."""
    content = {"kind": "release", "time": release.time, "run": release.run, "round": release.round_number}
    return content | _mechanism_row(release.mechanism)


def encode(number: int, content: Mapping[str, Any]) -> str:
    """Return the canonical JSON of a row."""
    row = {"number": number, **content}
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def root(population: str) -> Tail:
    """Return what the first row is chained to."""
    return Tail(number=0, hash=hashlib.sha256(f"metarec ledger 1\n{population}".encode()).hexdigest())


def link(tail: Tail, body: str) -> Tail:
    """Return the tail after a row."""
    return Tail(number=tail.number + 1, hash=hashlib.sha256(f"{tail.hash}\n{body}".encode()).hexdigest())


def read_row(body: str) -> dict[str, Any]:
    """Return what a row says.

    Raises:
        LedgerError: It is no row.
    """
    try:
        row = json.loads(body)
    except ValueError as error:
        raise LedgerError("a row of the ledger is not JSON") from error
    if not isinstance(row, dict) or row.get("kind") not in ("plan", "budget", "release"):
        raise LedgerError("a row of the ledger is neither a plan nor a budget nor a release")
    return row


def account_of(rows: Sequence[Mapping[str, Any]]) -> Account:
    """Return what rows add up to.

    Raises:
        LedgerError: There is no plan or no budget, or a row cannot be understood.
    """
    try:
        plans = [row["mechanisms"] for row in rows if row["kind"] == "plan"]
        budgets = [row for row in rows if row["kind"] == "budget"]
        budget, plan = budgets[-1], plans[-1]
        return Account(
            budget=Budget(epsilon=budget["epsilon"], delta=budget["delta"], order=budget["renyi_order"]),
            plan=tuple(_mechanism(one, one["releases"]) for one in plan),
            plans=len(plans),
            charged=tuple(release.mechanism for release in releases_of(rows)),
        )
    except (KeyError, TypeError, IndexError, SettingsError) as error:
        raise LedgerError("the ledger's rows make no sense together") from error


def releases_of(rows: Sequence[Mapping[str, Any]]) -> list[Release]:
    """Return the releases among rows, of which the first has number 1."""
    return [
        Release(
            number=number, time=row["time"], run=row["run"], round_number=row["round"], mechanism=_mechanism(row, 1)
        )
        for number, row in enumerate(rows, start=1)
        if row["kind"] == "release"
    ]


def _mechanism_row(mechanism: Mechanism) -> dict[str, Any]:
    return {
        "mechanism": mechanism.name,
        "noise_multiplier": float(mechanism.noise_multiplier),
        "sampling_rate": float(mechanism.sampling_rate),
    }


def _mechanism(row: Mapping[str, Any], releases: int) -> Mechanism:
    return Mechanism(
        name=row["mechanism"],
        noise_multiplier=row["noise_multiplier"],
        sampling_rate=row["sampling_rate"],
        releases=releases,
    )
