"""What a ledger's rows add up to: the accountant in force, what is spent, and what still fits into the budget.

While one plan was ever recorded and every release keeps to it, releases count as the plan's and PRV composes them: the
plan is fixed before the first release, and mechanisms that are chosen on the way, each dominated by a fixed one,
compose like the fixed ones. More noise or fewer users than planned is dominated: the first is the planned release with
noise added to it, the second a mixture of the planned release and one that sees nobody. How many releases of each
mechanism there are at most has to be fixed as well, not only what they cost together, or a server could choose by what
it has seen which of them to spend the rest on: the plan reserves a number for every mechanism but the first, and the
first may be repeated as often as the budget allows beside all that is reserved. In which order the server asks for them
does not matter (concurrent composition).

As soon as a second plan was recorded or a release is not within the plan, a Renyi filter takes over: it adds up the
Renyi divergences of all releases, with the parameters that they really had, at one order. That order is a function of
the budget alone (``renyi_order_for``). The best order afterwards would be a function of the releases, whose parameters
may have been chosen by what was released before; the filter's proof allows that at an order that is fixed.

Which of the two stops a ledger, and at which budget, is decided by people. Had they let earlier releases decide it, the
deltas of both would add up, so a plan and a budget are to be changed for reasons that were there before.

References:
    Zhu, Dong and Wang 2022, "Optimal Accounting of Differential Privacy via Characteristic Function", Theorem 10:
    dominating pairs compose adaptively.
    Vadhan and Zhang 2023, "Concurrent Composition Theorems for Differential Privacy", Theorem 1.5.
    Feldman and Zrnic 2021, "Individual Privacy Accounting via a Renyi Filter", Theorem 4.3 with the same filter for
    everybody.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from metarec_shared.errors import SettingsError
from metarec_shared.privacy import accounting
from metarec_shared.privacy.accounting import Mechanism

Accountant = Literal["prv", "renyi-filter"]

_MOST_RELEASES = 10**9
"""Nobody counts further than that how many releases fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent: the guarantee that the ledger keeps.

    Attributes:
        epsilon: Above 0.
        delta: Chance that epsilon does not hold.
        order: Renyi order of the filter, fixed together with the budget.
    """

    epsilon: float
    delta: float
    order: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a ledger's rows add up to.

    Attributes:
        budget: The budget in force.
        plan: Mechanisms of the plan in force; how many releases of each but the first are reserved.
        plans: How many plans were ever recorded.
        charged: Mechanisms of all releases, one release each.
    """

    budget: Budget
    plan: tuple[Mechanism, ...]
    plans: int
    charged: tuple[Mechanism, ...]

    def accountant(self, *more: Mechanism) -> Accountant:
        """Return the accountant in force, or the one after ``more`` releases."""
        if self.plans > 1 or not all(self._is_planned(one) for one in (*set(self.charged), *more)):
            return "renyi-filter"
        return "prv"

    def spent(self, extra: Mechanism | None = None) -> float:
        """Return the epsilon at the budget's delta of all releases, and of ``extra`` ones on top.

        Args:
            extra: A mechanism and how many releases of it.
        """
        mechanisms = self._composed(extra)
        if self.accountant(*mechanisms) == "prv":
            mechanisms = self._as_planned(mechanisms)
            return accounting.epsilon_of(mechanisms, self.budget.delta)
        return accounting.renyi_epsilon_at(mechanisms, self.budget.delta, self.budget.order)

    def claimed(self, extra: Mechanism | None = None) -> float:
        """Return what counts against the budget: what is spent, and what the plan reserves.

        Infinity where more releases of a mechanism would be taken than the plan reserves.
        """
        mechanisms = self._composed(extra)
        if self.accountant(*mechanisms) != "prv":
            return self.spent(extra)
        first, *others = self._as_planned(mechanisms)
        if any(one.releases > reserved.releases for one, reserved in zip(others, self.plan[1:], strict=True)):
            return math.inf
        return accounting.epsilon_of([first, *self.plan[1:]], self.budget.delta)

    def key(self, mechanism: Mechanism) -> tuple[object, ...]:
        """Return what decides how many releases of a mechanism fit in all: equal keys, equal limits."""
        if self.accountant(mechanism) == "prv":
            others = frozenset(Counter(one.name for one in self.charged if one.name != mechanism.name).items())
            return (self.budget, self.plan, others, mechanism.name)
        return (self.budget, frozenset(Counter(one for one in self.charged if one != mechanism).items()), mechanism)

    def count(self, mechanism: Mechanism) -> int:
        """Return how many releases there are that count like ``mechanism``."""
        if self.accountant(mechanism) == "prv":
            return sum(one.name == mechanism.name for one in self.charged)
        return sum(one == mechanism for one in self.charged)

    def _composed(self, extra: Mechanism | None) -> list[Mechanism]:
        mechanisms = [replace(one, releases=count) for one, count in Counter(self.charged).items()]
        return mechanisms if extra is None or not extra.releases else [*mechanisms, extra]

    def _is_planned(self, mechanism: Mechanism) -> bool:
        return any(
            mechanism.name == planned.name
            and mechanism.noise_multiplier >= planned.noise_multiplier
            and mechanism.sampling_rate <= planned.sampling_rate
            for planned in self.plan
        )

    def _as_planned(self, mechanisms: Iterable[Mechanism]) -> list[Mechanism]:
        counts: Counter[str] = Counter()
        for one in mechanisms:
            counts[one.name] += one.releases
        return [replace(planned, releases=counts[planned.name]) for planned in self.plan]


class Limit:
    """How many releases of one mechanism fit into a budget, found by as few questions to the accountant as needed.

    A process that charges once asks once; one that goes on charging asks ahead and then finds answers known.
    """

    def __init__(self, known: int) -> None:
        self._fits, self._too_many, self._ahead = known, _MOST_RELEASES, 0

    def allows(self, account: Account, mechanism: Mechanism, count: int) -> bool:
        """Return whether ``count`` releases in all fit."""
        while self._fits < count < self._too_many:
            asked = min(count + self._ahead, self._too_many - 1)
            self._ahead = 2 * self._ahead + 1 if self._ask(account, mechanism, asked) else self._ahead // 2
        return count <= self._fits

    def most(self, account: Account, mechanism: Mechanism) -> int:
        """Return how many releases in all fit."""
        self._fits = max(self._fits, account.count(mechanism))
        step = 1
        while self._fits + 1 < self._too_many:
            gap = self._too_many - self._fits
            asked = self._fits + min(step, gap // 2)
            step = 2 * step if self._ask(account, mechanism, asked) else gap
        return self._fits

    def _ask(self, account: Account, mechanism: Mechanism, count: int) -> bool:
        extra = replace(mechanism, releases=count - account.count(mechanism))
        fits = account.claimed(extra) <= account.budget.epsilon
        if fits:
            self._fits = count
        else:
            self._too_many = count
        return fits


def checked_plan(plan: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """Return a plan; its first mechanism has no number of releases, so it gets 1.

    Raises:
        SettingsError: It is empty, names a mechanism twice, or one has no noise, samples nobody or is never released.
    """
    names = [one.name for one in plan]
    if not plan or len(set(names)) != len(names):
        raise SettingsError(f"a plan names each mechanism once, got {', '.join(names) or 'none'}")
    for one in plan:
        if not (one.noise_multiplier and one.sampling_rate and one.releases):
            raise SettingsError(
                f"a plan needs noise, a sampling rate and releases above 0, got {one.noise_multiplier:g}, "
                f"{one.sampling_rate:g} and {one.releases} for {one.name}"
            )
    return (replace(plan[0], releases=1), *plan[1:])
