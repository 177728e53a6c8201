"""What an audit compares: a claimed pair of distributions, and what was observed of replies.

The claim of T noised sums over Poisson samples is that no event tells neighbouring data sets apart better than it tells

    Q = N(0, s^2)^T        from        P = ((1 - q) N(0, s^2) + q N(1, s^2))^T

where s is the noise multiplier and q the sampling rate, in units of the clip norm along the canary's gradient. The
likelihood ratio of this pair is the best statistic against a mechanism that is what it claims to be.

References:
    Abadi et al. (2016), Deep learning with differential privacy, lemma 3. Dong, Roth and Su (2022), Gaussian
    differential privacy, section 2.1 (likelihood-ratio tests).
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.guard import SiteGuard
from client.privacy.ledger import Ledger
from metarec_shared.privacy.accounting import Mechanism, delta_of
from metarec_shared.privacy.terms import META_UPDATE, Terms

CLIP_NORM = 0.01
DECLARED_USERS, WEIGHT = 100, 30.0
"""Public constants of the audited site; so that no factor is 1, its replies weigh less than the users it expects."""

_REACH, _MESH = 64.0, 1 << 17
"""Sums of log-likelihood ratios are tabulated from -64 to 64, in steps of a thousandth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """So many noised sums over Poisson samples, and what is claimed of them.

    Attributes:
        releases: Rounds, T.
        sampling_rate: Chance of each user to be in a round, q.
        noise_multiplier: Standard deviation of the noise over the clip norm, s.
    """

    releases: int
    sampling_rate: float
    noise_multiplier: float

    @property
    def share(self) -> float:
        """The factor of a user's clipped gradient in a reply: the site's weight over the users it expects."""
        return WEIGHT / (DECLARED_USERS * self.sampling_rate)

    def terms(self, *, clip_norm: float = CLIP_NORM, noise_multiplier: float | None = None) -> Terms:
        """Return the terms of privacy under which a site does what is claimed, or something else."""
        return Terms(
            mode="site",
            clip_norm=clip_norm,
            noise_multiplier=self.noise_multiplier if noise_multiplier is None else noise_multiplier,
            sampling_rate=self.sampling_rate,
            delta=1e-5,
            popularity_noise=0.0,
            popularity_norm=1.0,
            randomness="secure",
        )

    def delta(self, epsilon: float) -> float:
        """Return the delta that a node's accounting claims."""
        one = Mechanism(
            name=META_UPDATE,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            releases=self.releases,
        )
        return delta_of([one], epsilon)

    def log_ratios(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return log(P(x) / Q(x)) of one round each."""
        gain = (2.0 * x - 1.0) / (2.0 * self.noise_multiplier**2)
        if self.sampling_rate >= 1.0:
            return gain
        return np.logaddexp(math.log1p(-self.sampling_rate), math.log(self.sampling_rate) + gain)

    def tails(self, epsilons: Sequence[float], *, added: bool) -> NDArray[np.float64]:
        """Return the chances, under the claim, that the likelihood ratio of all rounds exceeds ``epsilons``.

        Args:
            epsilons: Of the log of the likelihood ratio.
            added: P[log(P/Q) > epsilon] and Q[...], or Q[log(Q/P) > epsilon] and P[...].

        Returns:
            The chance on the data set that the event speaks for, and on the other, float64 [epsilons, 2].
        """
        step = 2.0 * _REACH / _MESH
        places = (np.arange(_MESH) - _MESH // 2) * step
        x = torch.from_numpy(self._projections(np.append(places - step / 2, np.inf)))
        without, kept = (torch.special.ndtr((x - mean) / self.noise_multiplier).numpy() for mean in (0.0, 1.0))
        drawn = (1.0 - self.sampling_rate) * without + self.sampling_rate * kept
        sums = [_convolved(np.diff(one), self.releases) for one in (drawn, without)]
        signed = places if added else -places
        first, second = sums if added else sums[::-1]
        return np.array([[one[signed > epsilon].sum() for one in (first, second)] for epsilon in epsilons])

    def _projections(self, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where ``log_ratios`` takes these values; minus infinity below all of them."""
        q = self.sampling_rate
        with np.errstate(divide="ignore"):
            gain = np.log(np.maximum(np.expm1(ratios) + q, 0.0) / q)
        return gain * self.noise_multiplier**2 + 0.5


class AuditGuard(SiteGuard):
    """A deployed node's guard, coins and noise as they are, that charges nobody: audited users are made up."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms, cast("Ledger", None), run="audit", users=DECLARED_USERS, weight=WEIGHT)

    def charge(self, mechanism: Mechanism, round_number: int) -> None:
        """Charge nothing."""


class Observed(NamedTuple):
    """One round's replies, of many runs.

    Attributes:
        x: Projection on the canary's direction, less what is known, in units of the clip norm, float64 [runs].
        public: The different values of all else that there is in replies.
        codes: Which of them each reply has, int64 [runs].
    """

    x: NDArray[np.float64]
    public: Sequence[Hashable]
    codes: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicPart:
    """How much likelier with the canary each value of a reply's public part is, from draws that are used for this only.

    A mechanism that does what it should has one value and a log-ratio of 0. Whatever else a reply tells, such as how
    many users were drawn, or that noise is missing, has values that are likelier with or without the canary. Values
    that were not seen here count as 0.
    """

    seen: tuple[Counter[Hashable], Counter[Hashable]] = field(default_factory=lambda: (Counter(), Counter()))

    def add(self, rounds: Iterable[Observed], *, canary: bool) -> None:
        """Count the values of rounds with or without the canary."""
        for observed in rounds:
            counts = np.bincount(observed.codes, minlength=len(observed.public))
            for value, count in zip(observed.public, counts.tolist(), strict=True):
                self.seen[canary][value] += count

    def log_ratios(self, public: Iterable[Hashable]) -> NDArray[np.float64]:
        """Return the log of how much likelier each value is with the canary, half a sighting added on both sides."""
        without, with_canary = self.seen
        return np.array([math.log((with_canary[value] + 0.5) / (without[value] + 0.5)) for value in public])


def statistic(claim: Claim, public: PublicPart, rounds: Iterable[Observed]) -> NDArray[np.float64]:
    """Return each run's log-likelihood ratio of the claimed pair, plus that of its replies' public parts."""
    return sum(
        (claim.log_ratios(observed.x) + public.log_ratios(observed.public)[observed.codes] for observed in rounds),
        start=np.zeros(1),
    )


def _convolved(chances: NDArray[np.float64], times: int) -> NDArray[np.float64]:
    """Return the distribution of a sum of ``times`` draws; the middle of the mesh is 0."""
    spectrum = np.fft.rfft(np.fft.ifftshift(chances))
    return np.fft.fftshift(np.fft.irfft(spectrum**times, len(chances))).clip(0.0)
