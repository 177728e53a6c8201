"""The generated data set: the same everywhere, well formed, and with something to learn in it."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from metarec_shared.dataset import Dataset
from metarec_shared.generator import generate_catalogue, generate_dataset
from metarec_shared.settings import GeneratorSettings

SETTINGS = GeneratorSettings()


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate_dataset(SETTINGS)


def test_the_same_settings_give_the_same_data_and_another_seed_other_data(dataset: Dataset) -> None:
    again, other = generate_dataset(SETTINGS), generate_dataset(GeneratorSettings(seed=1))
    assert again.catalogue == dataset.catalogue
    assert np.array_equal(again.interactions.items, dataset.interactions.items)
    assert np.array_equal(again.interactions.ratings, dataset.interactions.ratings)
    assert other.catalogue.fingerprint != dataset.catalogue.fingerprint


def test_the_catalogue_alone_is_the_same_and_does_not_depend_on_users(dataset: Dataset) -> None:
    assert generate_catalogue(SETTINGS) == dataset.catalogue
    assert generate_catalogue(GeneratorSettings(users=10)) == dataset.catalogue


def test_titles_and_ids_are_unique_even_in_a_large_catalogue() -> None:
    catalogue = generate_catalogue(GeneratorSettings(items=20_000))
    assert len(set(catalogue.titles)) == len(set(catalogue.item_ids)) == 20_000


def test_histories_are_well_formed(dataset: Dataset) -> None:
    interactions = dataset.interactions
    assert len(interactions) == SETTINGS.users
    assert len(dataset.catalogue) == SETTINGS.items
    assert list(interactions.user_ids) == sorted(interactions.user_ids)
    assert interactions.lengths.mean() == pytest.approx(SETTINGS.interactions, rel=0.1)
    assert interactions.lengths.min() >= 8
    assert interactions.has_time
    assert all(len(set(interactions.history(user))) == interactions.lengths[user] for user in range(len(interactions)))
    assert set(np.unique(interactions.ratings)) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("items", "interactions"), [(20, 4), (20, 500), (21, 10)])
def test_the_smallest_data_sets_are_well_formed(items: int, interactions: int) -> None:
    small = generate_dataset(GeneratorSettings(users=10, items=items, interactions=interactions)).interactions
    assert small.offsets[-1] == len(small.items) == len(small.ratings)
    assert all(0 < small.lengths[user] == len(set(small.history(user))) <= items for user in range(10))


def test_tastes_can_be_learned_and_text_tells_about_them(dataset: Dataset) -> None:
    """Hit rates of held-out users: random < text, popularity < neighbours."""
    interactions, count = dataset.interactions, len(dataset.catalogue)
    users = np.repeat(np.arange(len(interactions)), interactions.lengths)
    seen = np.zeros((len(interactions), count))
    seen[users, interactions.items] = 1
    train = seen[: SETTINGS.users * 4 // 5]
    popularity = train.sum(axis=0)
    neighbours = train.T @ train / np.sqrt(np.outer(popularity, popularity) + 1)
    text = TfidfVectorizer().fit_transform(dataset.catalogue.texts).toarray()
    random = np.random.default_rng(0)

    def hits(scores: NDArray[np.float64]) -> float:
        """Share of a user's next ten items among the ten best, support excluded."""
        found = []
        for user in range(len(train), len(interactions)):
            history = random.permutation(interactions.history(user))
            ranked = scores[history[:10]].sum(axis=0)
            ranked[history[:10]] = -np.inf
            found.append(np.isin(np.argsort(-ranked)[:10], history[10:20]).mean())
        return float(np.mean(found))

    chance = hits(random.random((count, count)))
    popular = hits(np.tile(popularity, (count, 1)))
    assert hits(text @ text.T) > 2 * chance
    assert hits(neighbours - np.diag(np.diag(neighbours))) > 1.3 * popular > 1.3 * 2 * chance
