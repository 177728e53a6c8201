"""What the server knows and says of its nodes' privacy, and the noise that it adds where the nodes trust it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec_shared.errors import MetaRecError, PrivacyError, WireError
from metarec_shared.exchange import Enrollment, Parameters
from metarec_shared.privacy.accounting import epsilon_of
from metarec_shared.privacy.gaussian import Noise, noised_counts, noised_sum
from metarec_shared.privacy.terms import (
    META_UPDATE,
    POPULARITY,
    STATEMENTS,
    UNIT,
    Terms,
    popularity_noise_of,
    run_terms,
    strictest,
)
from metarec_shared.settings import Settings

_ABOUT = 1.01
"""Noise is solved to a tenth of a percent, by whatever version of the accountant a node has."""


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


def check_terms(enrollment: Enrollment, settings: Settings) -> None:
    """Refuse terms that the run does not ask for: what a node's updates may be follows from them.

    A node's terms are those of the run or it refuses the run (``client.privacy.policy``), but for its own sampling
    rate, from which the noise is solved where the run gives neither.

    Args:
        enrollment: Of one node.
        settings: The run's settings.

    Raises:
        WireError: The node declares a mode, a clip norm, a sampling rate, noise, a source of it, a delta or terms of
            item counts that it cannot have.
    """
    terms, clip_norm = enrollment.terms, settings.federation.clip_norm
    if terms is None:
        return
    if terms.mode != settings.privacy.mode:
        raise WireError(f"terms of privacy: the run's mode is {settings.privacy.mode}, got {terms.mode}")
    if terms.randomness != settings.privacy.randomness:
        raise WireError(f"terms of privacy: the run's noise is {settings.privacy.randomness}, got {terms.randomness}")
    if terms.clip_norm > clip_norm * _ABOUT:
        raise WireError(f"terms of privacy: the run's clip norm is {clip_norm:g}, got {terms.clip_norm:g}")
    if terms.delta != settings.privacy.delta:
        raise WireError(f"terms of privacy: the run's delta is {settings.privacy.delta:g}, got {terms.delta:g}")
    if terms.popularity_norm != settings.privacy.popularity_norm:
        raise WireError(
            f"terms of privacy: the run's norm of item counts is {settings.privacy.popularity_norm:g}, got "
            f"{terms.popularity_norm:g}"
        )
    noise = settings.privacy.noise_multiplier
    if terms.popularity_noise:  # 0: item counts never leave the node
        try:
            counts_noise = popularity_noise_of(settings)
        except MetaRecError as error:
            raise WireError(f"terms of privacy: {error}") from error
        if not counts_noise / _ABOUT <= terms.popularity_noise <= counts_noise * _ABOUT:
            raise WireError(
                f"terms of privacy: the run's noise of item counts is {counts_noise:g}, got {terms.popularity_noise:g}"
            )
    if not noise and terms.randomness == "simulated":
        return  # solved for all users of the simulation, which one node does not know
    try:
        asked = run_terms(settings, int(enrollment.training_users.sum()), sampling_rate=terms.sampling_rate)
    except MetaRecError as error:
        raise WireError(f"terms of privacy: {error}") from error
    assert asked is not None
    if not (0.0 < terms.sampling_rate <= 1.0 and math.isclose(terms.sampling_rate, asked.sampling_rate)):
        raise WireError(
            f"terms of privacy: the run's sampling rate is {asked.sampling_rate:g}, got {terms.sampling_rate:g}"
        )
    if terms.noise_multiplier > asked.noise_multiplier * _ABOUT:
        raise WireError(
            f"terms of privacy: the run's noise multiplier is {asked.noise_multiplier:g}, got "
            f"{terms.noise_multiplier:g}"
        )


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
