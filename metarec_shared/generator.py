"""A generated data set: users with a few tastes each, and books whose public text tells what they are about.

Items and users are mixtures over the same latent topics; a user picks books by popularity, by shared topics and by a
drifting choice among his tastes. Nothing is stored: the same settings give the same data everywhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import Dataset, RatingScale
from metarec_shared.generated_text import TOPICS, describe_items
from metarec_shared.interactions import Interactions, starts
from metarec_shared.randomness import generator
from metarec_shared.settings import GeneratorSettings

SHORTEST_HISTORY = 8
_SECOND_TOPIC = 0.35  # mean weight of an item's second topic
_TASTES = 3  # topics a user likes, the first the most
_ZIPF = 0.6  # popularity falls with the power of the rank
_TASTE_STRENGTH = 4.0  # what full affinity adds to an item's log weight
_DRIFT = 0.5  # how far interest moves from a user's first taste to the others over a history
_CHUNK = 512  # users drawn at once


@dataclass(frozen=True, slots=True, kw_only=True)
class _Items:
    topics: NDArray[np.int64]  # [items, 2]: main and second topic
    weights: NDArray[np.float32]  # [items, topics], rows of length 1
    popularity: NDArray[np.float32]  # log weight of each item


def generate_dataset(settings: GeneratorSettings) -> Dataset:
    """Generate the catalogue and the users of ``settings``; ratings run from 1 to 5, histories are in time order."""
    items = _draw_items(settings)
    catalogue = _describe(settings, items)
    return Dataset(
        name="generated",
        layout="generated",
        catalogue=catalogue,
        interactions=_draw_interactions(settings, items),
        rating_scale=RatingScale(low=1.0, high=5.0),
    )


def generate_catalogue(settings: GeneratorSettings) -> Catalogue:
    """Generate only the catalogue, equal to that of :func:`generate_dataset`."""
    return _describe(settings, _draw_items(settings))


def _describe(settings: GeneratorSettings, items: _Items) -> Catalogue:
    titles, texts = describe_items(items.topics, generator(settings.seed, "generator", "texts"))
    digits = max(4, len(str(settings.items)))
    item_ids = tuple(f"b{number:0{digits}d}" for number in range(1, settings.items + 1))
    return Catalogue(item_ids=item_ids, titles=titles, texts=texts)


def _draw_items(settings: GeneratorSettings) -> _Items:
    random = generator(settings.seed, "generator", "items")
    count, topics = settings.items, len(TOPICS)
    main = random.permutation(np.arange(count) % topics)
    second = (main + random.integers(1, topics, size=count)) % topics
    share = random.beta(2, 2 / _SECOND_TOPIC - 2, size=count)
    weights = np.zeros((count, topics), dtype=np.float32)
    weights[np.arange(count), main] = 1 - share
    weights[np.arange(count), second] = share
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    ranks = random.permutation(count) + 1
    popularity = -_ZIPF * np.log(ranks).astype(np.float32)
    return _Items(topics=np.stack([main, second], axis=1), weights=weights, popularity=popularity)


def _draw_interactions(settings: GeneratorSettings, items: _Items) -> Interactions:
    lengths = _draw_lengths(settings)
    offsets = starts(lengths)
    digits = max(5, len(str(settings.users)))
    user_ids = np.empty(settings.users, dtype=f"U{1 + digits}")
    chosen = np.empty(offsets[-1], dtype=np.int32)
    ratings = np.empty(offsets[-1], dtype=np.float32)
    for start in range(0, settings.users, _CHUNK):
        stop = min(start + _CHUNK, settings.users)
        random = generator(settings.seed, "generator", "users", start // _CHUNK)
        order, affinity = _draw_histories(items, lengths[start:stop], random)
        within = np.arange(order.shape[1]) < lengths[start:stop, None]
        user_ids[start:stop] = [f"u{number:0{digits}d}" for number in range(start + 1, stop + 1)]
        chosen[offsets[start] : offsets[stop]] = order[within]
        ratings[offsets[start] : offsets[stop]] = _rate(affinity, random)[within]
    return Interactions(user_ids=user_ids, offsets=offsets, items=chosen, ratings=ratings, has_time=True)


def _draw_lengths(settings: GeneratorSettings) -> NDArray[np.int64]:
    """Draw log-normal history lengths around the mean that the settings give, int64 [users]."""
    random = generator(settings.seed, "generator", "lengths")
    spread = 0.6
    mean_log = np.log(settings.interactions) - spread**2 / 2
    lengths = np.rint(random.lognormal(mean_log, spread, size=settings.users)).astype(np.int64)
    longest = max(1, settings.items // 2)
    return np.clip(lengths, min(SHORTEST_HISTORY, settings.interactions, longest), longest)


def _draw_histories(
    items: _Items, lengths: NDArray[np.int64], random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw each user's items without repetition, then put them in time order.

    Adding Gumbel noise to log weights and taking the largest draws without replacement (Efraimidis and Spirakis).

    Returns:
        Items [users, longest history] and the users' affinity to them, 0..1; what lies past a history is padding.
    """
    users, longest = len(lengths), int(lengths.max())
    tastes = np.argsort(random.random((users, len(TOPICS)), dtype=np.float32), axis=1)[:, :_TASTES]
    shares = -np.sort(-random.dirichlet(np.full(_TASTES, 2.0), size=users), axis=1)
    profile = np.zeros((users, len(TOPICS)), dtype=np.float32)
    np.put_along_axis(profile, tastes, shares.astype(np.float32), axis=1)
    profile /= np.linalg.norm(profile, axis=1, keepdims=True)
    affinity = profile @ items.weights.T
    keys = items.popularity + _TASTE_STRENGTH * affinity + random.gumbel(size=affinity.shape).astype(np.float32)
    order = np.argpartition(-keys, longest - 1, axis=1)[:, :longest]
    order = np.take_along_axis(order, np.argsort(-np.take_along_axis(keys, order, axis=1), axis=1), axis=1)
    order = _in_time_order(order, lengths, items.weights[:, tastes[:, 0]].T, random)
    return order, np.take_along_axis(affinity, order, axis=1)


def _in_time_order(
    order: NDArray[np.int64],
    lengths: NDArray[np.int64],
    first_taste: NDArray[np.float32],
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """Order each history so that items of the user's first taste come, mildly, before the others."""
    moment = random.random(order.shape) - _DRIFT * np.take_along_axis(first_taste, order, axis=1)
    moment[np.arange(order.shape[1]) >= lengths[:, None]] = np.inf
    return np.take_along_axis(order, np.argsort(moment, axis=1, kind="stable"), axis=1)


def _rate(affinity: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Rate 1 to 5: higher with affinity, shifted by how generous the user is."""
    generosity = random.normal(0, 0.4, size=(len(affinity), 1))
    noise = random.normal(0, 0.8, size=affinity.shape)
    ratings: NDArray[np.float64] = np.rint(2.6 + 1.8 * affinity + generosity + noise)
    return np.clip(ratings, 1, 5).astype(np.float32)
