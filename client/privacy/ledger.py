"""A site's privacy ledger: what was released about its users, and whether anything more may be.

The ledger is a SQLite file. Its rows are only ever added, each chained by a hash to the ones before and the first to a
random identifier of the population, which is made once: data that comes, goes or is encoded anew is still about the
same users and shares their budget. A release is charged before it leaves: ``charge`` returns when the row is on the
disk (a rollback journal, synchronous = EXTRA), and charges of several processes wait for each other. What was charged
once, a mechanism in a round of a run, is not charged again: a question that comes twice would be answered with fresh
noise, which is another release. A run that is resumed has another identifier, so it is charged.

The number and hash of the last row also stand in a second file, the witness, best on another disk or under another
account. A ledger that was edited, cut short, or put back from a backup does not fit its witness and is refused, and so
is the ledger of a witness that was put back. Whoever puts back both together is not noticed, nor is a person who is
counted under two ledgers.

The order in which all that is written, and what a crash leaves: ``client.privacy.store``.
Which accountant decides, and why: ``client.privacy.account``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.privacy.account import Account, Accountant, Budget, Limit, checked_plan
from client.privacy.rows import Release, account_of, budget_row, plan_row, release_row, releases_of
from client.privacy.store import Store
from metarec_shared.errors import AlreadyAnswered, BudgetSpent, PrivacyError
from metarec_shared.privacy import accounting
from metarec_shared.privacy.accounting import Mechanism

__all__ = ["Ledger", "Release"]


class Ledger:
    """A ledger and its witness; ``create`` and ``open`` make one."""

    def __init__(self, path: Path, witness: Path) -> None:
        self._store = Store(path, witness)
        self._limits: dict[tuple[object, ...], Limit] = {}

    @classmethod
    def create(cls, path: Path, witness: Path, *, epsilon: float, delta: float, plan: Sequence[Mechanism]) -> "Ledger":
        """Make a ledger for a population that has none.

        Args:
            path: The ledger's file; there is none yet.
            witness: The witness's file; there is none yet.
            epsilon: What may be spent.
            delta: Chance that epsilon does not hold.
            plan: Mechanisms whose parameters are fixed now. The first may be released as often as the budget allows,
                every other one up to its own number of releases, for which budget is reserved.

        Raises:
            SettingsError: The budget or the plan is out of range.
            LedgerError: One of the files is there, or cannot be written.
        """
        first = [plan_row(checked_plan(plan)), budget_row(_budget(epsilon, delta))]
        ledger = cls(path, witness)
        ledger._store.create(first)
        return ledger

    @classmethod
    def open(cls, path: Path, witness: Path) -> "Ledger":
        """Open a ledger and check all of it.

        Raises:
            LedgerError: It or its witness is missing, damaged, rolled back, read-only or locked.
        """
        ledger = cls(path, witness)
        ledger._store.read()
        return ledger

    def charge(self, *, run: str, round_number: int, mechanism: Mechanism) -> Release:
        """Charge one release; it is on the disk when this returns, and only then may anything leave.

        Args:
            run: The run that asks for it.
            round_number: The round of that run.
            mechanism: What is released, once.

        Raises:
            AlreadyAnswered: The mechanism was charged in this round of this run; nothing was written.
            BudgetSpent: The budget does not do for it; nothing was written.
            LedgerError: The ledger cannot be trusted or written.
        """
        if mechanism.releases != 1:
            raise PrivacyError(f"releases are charged one by one, got {mechanism.releases} of {mechanism.name}")
        rows = self._store.read().rows
        _check_new(rows, run, round_number, mechanism.name)
        self._check(account_of(rows), mechanism)  # the accountant may take seconds, so not first under the lock
        with self._store.transaction() as (connection, content):
            _check_new(content.rows, run, round_number, mechanism.name)
            self._check(account_of(content.rows), mechanism)
            release = Release(
                number=content.tail.number + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                run=run,
                round_number=round_number,
                mechanism=mechanism,
            )
            tail = self._store.append(connection, content, release_row(release))
        self._store.settle(tail)
        return release

    def set_budget(self, *, epsilon: float, delta: float) -> None:
        """Record a budget for everything that was and will be released; what was spent stays spent.

        Raises:
            SettingsError: It is out of range.
            LedgerError: The ledger cannot be trusted or written.
        """
        row = budget_row(_budget(epsilon, delta))
        with self._store.transaction() as (connection, content):
            tail = self._store.append(connection, content, row)
        self._store.settle(tail)

    def set_plan(self, plan: Sequence[Mechanism]) -> None:
        """Record a plan for what will be released; if it differs from the last, a Renyi filter accounts from now on.

        Raises:
            SettingsError: It is out of range.
            LedgerError: The ledger cannot be trusted or written.
        """
        checked = checked_plan(plan)
        with self._store.transaction() as (connection, content):
            if checked == account_of(content.rows).plan:
                return
            tail = self._store.append(connection, content, plan_row(checked))
        self._store.settle(tail)

    def spent(self) -> float:
        """Return the epsilon of all releases so far at the budget's delta, by the accountant in force."""
        return self._account().spent()

    def affordable(self, mechanism: Mechanism) -> int:
        """Return how many more releases of a mechanism fit into the budget, if nothing else is released."""
        account, one = self._account(), replace(mechanism, releases=1)
        return self._limit(account, one).most(account, one) - account.count(one)

    def releases(self) -> list[Release]:
        """Return all releases, the first one first."""
        return releases_of(self._store.read().rows)

    @property
    def population_id(self) -> str:
        """The identifier of the population, made with the ledger."""
        return self._store.read().population

    @property
    def budget(self) -> tuple[float, float]:
        """The epsilon and the delta of the budget in force."""
        budget = self._account().budget
        return budget.epsilon, budget.delta

    @property
    def plan(self) -> tuple[Mechanism, ...]:
        """The plan in force."""
        return self._account().plan

    @property
    def accountant(self) -> Accountant:
        """The accountant in force."""
        return self._account().accountant()

    def _limit(self, account: Account, mechanism: Mechanism) -> Limit:
        return self._limits.setdefault(account.key(mechanism), Limit(account.count(mechanism)))

    def _check(self, account: Account, mechanism: Mechanism) -> None:
        if not self._limit(account, mechanism).allows(account, mechanism, account.count(mechanism) + 1):
            raise BudgetSpent(
                f"the privacy budget of epsilon {account.budget.epsilon:g} at delta {account.budget.delta:g} does not "
                f"do for another {mechanism.name} after {len(account.charged)} releases"
            )

    def _account(self) -> Account:
        return account_of(self._store.read().rows)


def _check_new(rows: Sequence[Mapping[str, Any]], run: str, round_number: int, mechanism: str) -> None:
    """Refuse a release that was charged already, with whatever parameters."""
    wanted = ("release", run, round_number, mechanism)
    if any((row["kind"], row.get("run"), row.get("round"), row.get("mechanism")) == wanted for row in rows):
        what = f"round {round_number}" if round_number else f"{mechanism}, before the first round,"
        raise AlreadyAnswered(f"{what} of run {run} was answered already; asking again would be a new release")


def _budget(epsilon: float, delta: float) -> Budget:
    order = accounting.renyi_order_for(epsilon, delta)
    return Budget(epsilon=float(epsilon), delta=float(delta), order=order)
