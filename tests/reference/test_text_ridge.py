"""Ridge regression on text against scikit-learn, and its leave-one-out error against leaving items out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from metarec_shared.text_ridge import PENALTIES, fit_text_ridge


def problem(items: int = 40, noise: float = 1.0, text: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    T = torch.randn(items, text, generator=random) + 3.0
    Y = T @ torch.randn(text, 5, generator=random) + noise * torch.randn(items, 5, generator=random) - 7.0
    return T, Y


def unit(T: torch.Tensor) -> float:
    """Return the mean eigenvalue of T'T, T centred."""
    return float(np.linalg.eigvalsh(np.cov(T.numpy(), rowvar=False) * (len(T) - 1)).mean())


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("items", "text"), [(40, 6), (8, 20)])
def test_predictions_are_those_of_scikit_learn(penalty: float, items: int, text: int) -> None:
    T, Y = problem(items, text=text)
    found = fit_text_ridge(T, Y, [penalty])
    expected = Ridge(alpha=penalty * unit(T)).fit(T.numpy(), Y.numpy())
    fresh = torch.randn(9, text, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(found.predictions(fresh), expected.predict(fresh.numpy()), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("noise", [0.3, 3.0, 10.0])
def test_the_penalty_errs_least_on_items_that_are_left_out(noise: float) -> None:
    T, Y = problem(noise=noise)
    errors = []
    for penalty in PENALTIES:
        left_out = cross_val_predict(Ridge(alpha=penalty * unit(T)), T.numpy(), Y.numpy(), cv=LeaveOneOut())
        errors.append(float(((left_out - Y.numpy()) ** 2).sum()))
    assert fit_text_ridge(T, Y).penalty == PENALTIES[int(np.argmin(errors))]
    assert 0 < int(np.argmin(errors)) < len(PENALTIES) - 1


def test_text_that_says_nothing_predicts_the_mean() -> None:
    random = torch.Generator().manual_seed(0)
    T, Y = torch.randn(200, 20, generator=random), torch.randn(200, 3, generator=random)
    found = fit_text_ridge(T, Y)
    predicted = found.predictions(torch.randn(1000, 20, generator=random))
    torch.testing.assert_close(predicted.mean(dim=0), Y.mean(dim=0), atol=0.02, rtol=0)
    assert float(predicted.std(dim=0).max()) < 0.03 * float(Y.std())


@pytest.mark.parametrize("items", [1, 5])
def test_items_of_the_same_text_are_all_the_mean(items: int) -> None:
    Y = torch.arange(5.0)[:items, None]
    predicted = fit_text_ridge(torch.ones(items, 3), Y).predictions(torch.ones(2, 3))
    torch.testing.assert_close(predicted, Y.mean().expand(2, 1))


def test_a_penalty_must_be_above_0() -> None:
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        fit_text_ridge(*problem(), [1.0, 0.0])
