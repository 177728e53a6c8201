"""What stands between a node's users and its replies: coins, charges and noise."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.privacy.ledger import Ledger
from metarec_shared.errors import Refusal
from metarec_shared.exchange import Parameters
from metarec_shared.population import Population
from metarec_shared.privacy.accounting import Mechanism
from metarec_shared.privacy.gaussian import Noise, noised_sum
from metarec_shared.privacy.terms import META_UPDATE, Terms
from metarec_shared.randomness import uniforms

SAMPLING_SLACK = 1e-9
"""Relative; sampling rates are compared after they have travelled as floating-point numbers."""


class Guard(Protocol):
    """Keeps the terms of one node, or of simulated nodes that share them."""

    @property
    def terms(self) -> Terms:
        """What is done to every contribution."""

    @property
    def trusts_no_server(self) -> bool:
        """Whether parameters may have been chosen to undo clipping: then each user is computed alone."""

    def declared(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the users that each node declares, int64 [nodes], a public constant.

        Args:
            users: Users in the meta-training role on each node; only a simulation declares by them.
        """

    def weights(self, expected: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the public weight of each node's reply, from the users that it expects to draw, float64 [nodes]."""

    def coins(
        self, population: Population, users: NDArray[np.int64], chance: float, round_number: int
    ) -> NDArray[np.bool_]:
        """Toss a coin for each of ``users`` (Poisson sampling), bool [users]."""

    def charge(self, mechanism: Mechanism, round_number: int) -> None:
        """Charge one release to the budget, before anything is released.

        Raises:
            Refusal: The budget does not do for it, or it was released already: again would be another release.
        """

    def noise(self, mechanism: str, round_number: int, names: Iterator[str]) -> Iterator[Noise]:
        """Return a source of noise for each node by its name."""


class SimulatedGuard:
    """The guard of simulated nodes: everything comes from the run's seed, and nothing is charged."""

    trusts_no_server = False

    def __init__(self, terms: Terms, seed: int) -> None:
        self.terms = terms
        self._seed = seed

    def declared(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the users in the meta-training role, in place of a site's own constant."""
        return users

    def weights(self, expected: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the expected users."""
        return expected

    def coins(
        self, population: Population, users: NDArray[np.int64], chance: float, round_number: int
    ) -> NDArray[np.bool_]:
        """Toss coins that the run's seed addresses, one a user."""
        return uniforms(population.keys[users], population.seed, "sampling", round_number) < chance

    def charge(self, mechanism: Mechanism, round_number: int) -> None:
        """Charge nothing: simulated users have no budget."""

    def noise(self, mechanism: str, round_number: int, names: Iterator[str]) -> Iterator[Noise]:
        """Return sources that the run's seed addresses."""
        return (Noise.simulated(self._seed, mechanism, round_number, name) for name in names)


class SiteGuard:
    """The guard of a deployed node: secure randomness, and a ledger that is charged.

    Args:
        terms: What the run does, no laxer than the node's own file.
        ledger: The node's ledger.
        run: The run's identifier in the ledger.
        users: The users that the node declares.
        weight: The weight of its replies; 0: the users it expects to draw.
    """

    trusts_no_server = True

    def __init__(self, terms: Terms, ledger: Ledger, *, run: str, users: int, weight: float) -> None:
        self.terms = terms
        self._ledger, self._run, self._users, self._weight = ledger, run, users, weight
        self._source = Noise.from_system()

    def declared(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the constant of the node's own file, whatever its data holds."""
        return np.array([self._users])

    def weights(self, expected: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the constant of the node's own file."""
        return np.array([self._weight]) if self._weight else expected

    def coins(
        self, population: Population, users: NDArray[np.int64], chance: float, round_number: int
    ) -> NDArray[np.bool_]:
        """Toss coins that nobody can foresee, the server included."""
        return self._source.coins(len(users), chance)

    def charge(self, mechanism: Mechanism, round_number: int) -> None:
        """Charge the ledger; it is on the disk when this returns."""
        self._ledger.charge(run=self._run, round_number=round_number, mechanism=mechanism)

    def noise(self, mechanism: str, round_number: int, names: Iterator[str]) -> Iterator[Noise]:
        """Return the node's one source."""
        return iter([self._source])


def checked_rate(terms: Terms, asked: float) -> float:
    """Return the sampling rate of a round.

    Raises:
        Refusal: The server asks for a higher one than the terms allow.
    """
    if terms.mode == "local":
        return 1.0
    if not 0.0 < asked <= terms.sampling_rate * (1.0 + SAMPLING_SLACK):
        raise Refusal(f"a sampling rate of {asked:g} was asked for, at most {terms.sampling_rate:g} is allowed here")
    return min(asked, terms.sampling_rate)


def reply_scales(weights: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each node's sum is multiplied by: its weight over the users that it expects to draw."""
    return weights / np.maximum(expected, 1e-9)


def protected(
    guard: Guard, gradients: Parameters, scales: NDArray[np.float64], names: Iterator[str], round_number: int
) -> Parameters:
    """Return what may leave of clipped sums: noised in the modes site and local; as they are where the server noises.

    Args:
        guard: Keeper of the terms.
        gradients: Sum over nodes of each node's clipped sum times its scale.
        scales: The scale of each node, its weight over the users it expects to draw, float64 [nodes].
        names: Names of the nodes.
        round_number: The round.
    """
    terms = guard.terms
    if terms.mode != "central":
        sources = zip(guard.noise(META_UPDATE, round_number, names), scales.tolist(), strict=True)
        gradients = noised_sum(
            gradients, noise_multiplier=terms.noise_multiplier, sensitivity=terms.sensitivity, sources=sources
        )
    return {name: value.float() for name, value in gradients.items()}
