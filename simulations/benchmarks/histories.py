"""Histories of which a share is withheld by coins: what a membership test must tell apart.

A user's items are popular ones of his tastes, so whoever knows popularity and taste ranks them high without a release.
Items that a coin withheld from the same user's history are as popular and as much to his taste; who tells kept from
withheld items does it by the release alone, and a test that learns nothing has an AUC of 0.5.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from client.data_source import load_population
from metarec_shared.interactions import Interactions, starts
from metarec_shared.population import Population
from metarec_shared.randomness import generator
from metarec_shared.settings import Settings
from metarec_shared.split import Role

WITHHELD = 0.2
"""Chance of an interaction to be withheld."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histories:
    """A population with what was withheld from it.

    Attributes:
        population: The users with the histories that take part.
        withheld: The rest, by the same users.
        members: Users in the meta-training role, shuffled.
        others: All other users, shuffled; nothing that leaves a node depends on them.
        items: Size of the catalogue.
    """

    population: Population
    withheld: Interactions
    members: NDArray[np.int64]
    others: NDArray[np.int64]
    items: int

    def kept(self, user: int) -> NDArray[np.int64]:
        """Return the items of a user's history that take part."""
        return self.population.interactions.history(user)


def load_histories(settings: Settings, items: int) -> Histories:
    """Toss a coin for each interaction of the run's data."""
    population, seed = load_population(settings), settings.run.seed
    everything = population.interactions
    held = generator(seed, "withheld").random(len(everything.items)) < WITHHELD
    kept, withheld = (_part(everything, rows) for rows in (~held, held))
    population = replace(population, interactions=kept)
    training = population.users(Role.TRAINING)
    others = np.setdiff1d(population.users(None), training)
    shuffle = generator(seed, "targets")
    return Histories(
        population=population,
        withheld=withheld,
        members=shuffle.permutation(training),
        others=shuffle.permutation(others),
        items=items,
    )


def _part(interactions: Interactions, rows: NDArray[np.bool_]) -> Interactions:
    offsets = starts(rows)[interactions.offsets]
    return replace(interactions, offsets=offsets, items=interactions.items[rows], ratings=interactions.ratings[rows])
