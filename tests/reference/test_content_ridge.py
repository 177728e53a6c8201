"""Cold items' columns and TF-IDF vectors against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from simulations.baselines.content_ridge import content_ridges, tfidf

ITEMS, FEATURES = 14, 6
TEXTS = [
    "Toy Story (1995). Animation",
    "Story of a Toy. Drama",
    "An animation, a drama: 1995",
    "a b c",
    "ÉTÉ drama été",
]


@pytest.fixture
def weights():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(ITEMS, ITEMS)).astype(np.float32))


@pytest.fixture
def features():
    return torch.from_numpy(np.random.default_rng(1).normal(size=(ITEMS, FEATURES)).astype(np.float32))


@pytest.mark.parametrize("regularization", [0.3, 5.0])
def test_cold_columns_are_scikit_learns_ridge_regression_of_warm_columns(weights, features, regularization):
    cold = torch.zeros(ITEMS, dtype=torch.bool)
    cold[[2, 9, 13]] = True
    plain, other = content_ridges(weights, features, cold, [regularization, 2.0])
    ridge = Ridge(alpha=regularization).fit(features[~cold], weights[:, ~cold].T)
    np.testing.assert_allclose(plain.weights[:, cold].T, ridge.predict(features[cold]), atol=1e-4)
    torch.testing.assert_close(plain.weights[:, ~cold], weights[:, ~cold])
    assert (plain.regularization, other.regularization) == (regularization, 2.0)
    support = torch.tensor([[3, 2, 0]])
    scores = plain.scores(support, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(scores[0], plain.weights[3] + plain.weights[2])


def test_a_ridge_regression_without_regularization_is_refused(weights, features):
    with pytest.raises(ValueError, match=r"must be above 0, got 0\.0"):
        next(content_ridges(weights, features, torch.arange(ITEMS) < 2, [1.0, 0.0]))


def test_tfidf_is_scikit_learns():
    expected = TfidfVectorizer(min_df=2).fit_transform(TEXTS).toarray()
    found = tfidf(TEXTS)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[3] == 0).all()
