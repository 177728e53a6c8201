"""What the server knows and says of its nodes' privacy, and the noise that it adds where the nodes trust it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec_shared.errors import PrivacyError
from metarec_shared.exchange import Enrollment, Parameters
from metarec_shared.privacy.accounting import epsilon_of
from metarec_shared.privacy.gaussian import Noise, noised_counts, noised_sum
from metarec_shared.privacy.terms import META_UPDATE, POPULARITY, STATEMENTS, UNIT, Terms, strictest
from metarec_shared.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationPrivacy:
    """The terms that a federation's nodes declared.

    Attributes:
        declared: The distinct terms, and how many nodes declared each.
        raw: Nodes that declared none.
        terms: The strictest of them: what the server asks for, and in the mode central does itself.
        settings: The run's settings.
    """

    declared: dict[Terms, int]
    raw: int
    terms: Terms
    settings: Settings

    def sum_noised(self, sums: Parameters, round_number: int) -> Parameters:
        """Add the noise of a round where the server is the one who does; the nodes clipped at most at ``clip_norm``."""
        if self.terms.mode != "central":
            return sums
        return noised_sum(
            sums,
            noise_multiplier=self.terms.noise_multiplier,
            sensitivity=max(terms.sensitivity for terms in self.declared),
            sources=[(self._source(META_UPDATE, round_number), 1.0)],
        )

    def counts_noised(self, counts: NDArray[np.float64], users: int) -> NDArray[np.float64]:
        """Add the noise of the item counts where the server is the one who does."""
        if self.terms.mode != "central" or not self.terms.releases_popularity:
            return counts
        return noised_counts(
            counts,
            noise_multiplier=self.terms.popularity_noise,
            norm=max(terms.popularity_norm for terms in self.declared),
            most=float(users),
            sources=[self._source(POPULARITY, 0)],
        )

    def smoothing(self, nodes: int) -> float:
        """Return what is added to item counts before their logarithm: one, or the deviation of their noise."""
        terms = self.terms
        noises = nodes if terms.mode == "site" else 1
        return max(1.0, terms.popularity_noise * terms.popularity_norm * math.sqrt(noises))

    def report(self, releases: int, *, popularity: bool) -> dict[str, Any]:
        """Return what result.json says: the guarantee of the node that is worst off.

        Args:
            releases: Meta-updates that a node was asked for at most.
            popularity: Whether item counts were asked for.
        """
        worst = max((self._guarantee(terms, releases, popularity=popularity) for terms in self.declared), key=_worst)
        words = STATEMENTS[self.terms.mode]
        return {
            "mode": self.terms.mode,
            "unit": UNIT,
            **worst,
            "accountant": "prv",
            "neighbours": words.neighbours,
            "trusted": words.trust,
            "sampling": words.sampling,
            "not_protected": words.not_protected,
            "noise": "simulated noise" if self.terms.randomness == "simulated" else "secure",
            "nodes": sum(self.declared.values()),
            "raw_nodes": self.raw,
        }

    def _guarantee(self, terms: Terms, releases: int, *, popularity: bool) -> dict[str, Any]:
        mechanisms = [terms.meta_update(releases)]
        if popularity and terms.releases_popularity:
            mechanisms.append(terms.popularity())
        epsilon = math.inf if self.raw else epsilon_of(mechanisms, terms.delta)
        return {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": terms.delta,
            "clip_norm": terms.clip_norm,
            "mechanisms": [asdict(one) for one in mechanisms],
        }

    def _source(self, mechanism: str, round_number: int) -> Noise:
        if self.terms.randomness == "simulated":
            return Noise.simulated(self.settings.run.seed, "server", mechanism, round_number)
        return Noise.from_system()


def _worst(guarantee: dict[str, Any]) -> float:
    return math.inf if guarantee["epsilon"] is None else float(guarantee["epsilon"])


def federation_privacy(enrollments: Sequence[Enrollment], settings: Settings) -> FederationPrivacy | None:
    """Return what a federation's nodes declared; None where none of them guards its users.

    Raises:
        PrivacyError: Nodes declared different modes, or some noise and others do not and nobody allowed that.
    """
    declared: Counter[Terms] = Counter()
    raw = 0
    for answer in enrollments:
        if answer.terms is None:
            raw += len(answer.node_ids)
        else:
            declared[answer.terms] += len(answer.node_ids)
    if not declared:
        if settings.privacy.mode != "none":
            raise PrivacyError(f"privacy.mode is {settings.privacy.mode}, but no node guards its users")
        return None
    if raw and not settings.privacy.allow_mixed:
        raise PrivacyError(
            f"{raw} of {raw + sum(declared.values())} nodes send raw updates and the others noised ones; "
            "privacy.allow-mixed takes both"
        )
    return FederationPrivacy(declared=dict(declared), raw=raw, terms=strictest(list(declared)), settings=settings)
