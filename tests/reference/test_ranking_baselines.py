"""iALS against the library implicit and dense solves, federated reconstruction and FedAvg against autograd by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from metarec_shared.inner_loop import Items, query_loss
from metarec_shared.interactions import Interactions, starts
from metarec_shared.settings import AdaptationSettings, OuterSettings, TaskSettings
from simulations.baselines.fedavg import FedAvgSettings, fine_tuned_scores, fit_fedavg, local_step
from simulations.baselines.ials import Ials, fit_ials, tune_ials
from simulations.baselines.reconstruction import (
    Reconstruction,
    ReconstructionSettings,
    fit_reconstruction,
    sampled_loss,
)
from simulations.evaluation.negatives import training_negatives
from tests.small import ITEMS, small_model, small_tasks

USERS, FACTORS = 40, 5
SUPPORT = torch.tensor([[3, 1, 7], [0, 5, -1], [-1, -1, -1]])


@pytest.fixture
def matrix():
    """Users x items, 0 or 1; the last item nobody has, user 0 has nothing."""
    drawn = np.random.default_rng(0).random((USERS, ITEMS)) < np.linspace(0.6, 0.1, ITEMS)
    drawn[:, -1] = drawn[0] = False
    return drawn.astype(np.float32)


def histories(matrix):
    rows = [np.flatnonzero(row) for row in matrix]
    return Interactions(
        user_ids=np.array([f"user {user}" for user in range(len(rows))]),
        offsets=starts(np.array([len(row) for row in rows])),
        items=np.concatenate(rows).astype(np.int32),
        ratings=np.full(int(matrix.sum()), np.nan, dtype=np.float32),
        has_time=False,
    )


def start(seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(ITEMS, FACTORS)).astype(np.float32) * 0.1)


def dense_solve(factors, row, regularization, confidence):
    """Equation 4 of Hu et al. as it stands there: with the diagonal matrix of all confidences."""
    weights = np.diag(1 + (confidence - 1) * row)
    return np.linalg.solve(
        factors.T @ weights @ factors + regularization * np.eye(factors.shape[1]), factors.T @ weights @ row
    )


def test_ials_alternates_between_dense_solves(matrix):
    model = fit_ials(
        histories(matrix), ITEMS, factors=FACTORS, regularization=0.7, confidence=4.0, iterations=3, start=start()
    )
    items = start().double().numpy()
    for _ in range(3):
        users = np.array([dense_solve(items, row, 0.7, 4.0) for row in matrix])
        items = np.array([dense_solve(users, column, 0.7, 4.0) for column in matrix.T])
    np.testing.assert_allclose(model.item_factors, items, atol=2e-5)


def test_ials_folds_users_in_by_a_dense_solve(matrix):
    model = Ials(item_factors=start(), regularization=0.7, confidence=4.0)
    scores = model.scores(SUPPORT, SUPPORT >= 0)
    items = start().double().numpy()
    for user, support in enumerate(SUPPORT.tolist()):
        row = np.isin(np.arange(ITEMS), [item for item in support if item >= 0]).astype(float)
        np.testing.assert_allclose(scores[user], items @ dense_solve(items, row, 0.7, 4.0), atol=1e-5)
    assert (scores[2] == 0).all()


def test_ials_is_the_library_implicits(matrix):
    als = pytest.importorskip("implicit.cpu.als", reason="pip install implicit")
    limits = threadpool_limits(1, "blas")  # implicit has threads of its own
    theirs = als.AlternatingLeastSquares(
        factors=FACTORS, regularization=0.7, alpha=4.0, iterations=4, use_cg=False, num_threads=1, dtype=np.float64
    )
    theirs.user_factors = np.zeros((USERS, FACTORS))
    theirs.item_factors = start().double().numpy().copy()
    rows = csr_matrix(matrix)
    theirs.fit(rows, show_progress=False)
    ours = fit_ials(
        histories(matrix), ITEMS, factors=FACTORS, regularization=0.7, confidence=4.0, iterations=4, start=start()
    )
    np.testing.assert_allclose(ours.item_factors, theirs.item_factors, atol=2e-5)
    cold = csr_matrix(np.isin(np.arange(ITEMS), [3, 1, 7])[None].astype(np.float32))
    np.testing.assert_allclose(
        ours.user_factors(SUPPORT[:1], SUPPORT[:1] >= 0),
        theirs.recalculate_user(0, cold)[None].reshape(1, -1),
        atol=2e-5,
    )
    limits.restore_original_limits()


def test_ials_lowers_its_objective_with_every_iteration(matrix):
    def objective(iterations):
        model = fit_ials(
            histories(matrix), ITEMS, factors=FACTORS, regularization=0.7, confidence=4.0, iterations=iterations
        )
        items = model.item_factors.double().numpy()
        users = np.array([dense_solve(items, row, 0.7, 4.0) for row in matrix])
        errors = (1 + 3.0 * matrix) * (matrix - users @ items.T) ** 2
        return errors.sum() + 0.7 * ((users**2).sum() + (items**2).sum())

    values = [objective(iterations) for iterations in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_ials_is_tuned_by_validation_and_refuses_what_has_no_solution(matrix):
    train = histories(matrix)
    (found,) = tune_ials(train, ITEMS, FACTORS, [0.5, 2.0], [3.0, 9.0], [lambda m: m.regularization - m.confidence], 0)
    assert (found.regularization, found.confidence) == (2.0, 3.0)
    with pytest.raises(ValueError, match=r"above 0 and a confidence above 1, got 0\.0 and 2\.0"):
        fit_ials(train, ITEMS, factors=FACTORS, regularization=0.0, confidence=2.0)


def reconstructed(items, support, rate, steps):
    """Gradient descent from zero on the cross-entropy of the support items, by autograd."""
    h = torch.zeros(items.vectors.shape[1], dtype=torch.float64)
    for _ in range(steps):
        h = h.detach().requires_grad_()
        log_p = torch.log_softmax(items.vectors @ h + items.bias, dim=0)
        (slope,) = torch.autograd.grad(-log_p[support].mean(), h)
        h = h.detach() - rate * slope
    return h


def test_a_user_is_reconstructed_by_gradient_descent_on_his_support_loss():
    items = Items(start().double(), torch.linspace(0, 1, ITEMS, dtype=torch.float64))
    model = Reconstruction(items=items, rate=1.5, steps=4)
    scores = model.scores(SUPPORT, SUPPORT >= 0)
    for user, support in enumerate(([3, 1, 7], [0, 5])):
        h = reconstructed(items, support, 1.5, 4)
        torch.testing.assert_close(scores[user], items.vectors @ h + items.bias)
    torch.testing.assert_close(scores[2], items.bias)


def test_the_sampled_loss_is_the_cross_entropy_of_the_item_among_itself_and_the_negatives():
    tasks = small_tasks(3)
    items = Items(start().double(), torch.linspace(0, 1, ITEMS, dtype=torch.float64))
    h = torch.randn(3, FACTORS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    negatives = torch.tensor([[0, 1, 2], [5, 6, 6], [9, 8, 7]])
    found = sampled_loss(h, items, tasks, negatives)
    for user in range(3):
        scores = items.vectors @ h[user] + items.bias
        losses = [
            torch.nn.functional.cross_entropy(scores[[int(query), *negatives[user].tolist()]][None], torch.tensor([0]))
            for query in tasks.query[user][tasks.query_mask[user]]
        ]
        torch.testing.assert_close(found[user], torch.stack(losses).mean())


def test_reconstruction_learns_what_goes_together_and_yields_models_on_the_way():
    rng = np.random.default_rng(0)
    halves = np.repeat([[1.0, 0.1], [0.1, 1.0]], USERS // 2, axis=0).repeat(ITEMS // 2, axis=1)
    train = histories((rng.random((USERS, ITEMS)) < 0.5 * halves).astype(np.float32))
    settings = ReconstructionSettings(
        factors=8,
        rounds=60,
        cohort=16,
        negatives=10,
        learning_rate=0.05,
        tasks=TaskSettings(support=4, query=6, support_dropout=0.0, feature_dropout=0.0),
    )
    models = list(fit_reconstruction(train, ITEMS, settings, training_negatives, every=25, seed=0))
    assert len(models) == 3
    support = torch.tensor([[0, 2, 4], [16, 18, 20]])
    scores = models[-1].scores(support, support >= 0)
    own = torch.stack([scores[0, :15].mean() - scores[0, 15:].mean(), scores[1, 15:].mean() - scores[1, :15].mean()])
    assert (own > 1.0).all()


def averaged(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_a_local_step_is_each_clients_own_gradient_descent():
    model = small_model(AdaptationSettings(steps=0))
    tasks = small_tasks(3, dtype=torch.float64)
    local = {name: torch.stack([value + 0.01 * user for user in range(3)]) for name, value in averaged(model).items()}
    found = local_step(model, local, tasks, 0.2)
    for user in range(3):
        alone = small_model(AdaptationSettings(steps=0))
        with torch.no_grad():
            for name, value in alone.named_parameters():
                value.copy_(local[name][user])
        optimizer = torch.optim.SGD(alone.parameters(), lr=0.2)
        query_loss(alone(tasks.rows(user, user + 1), adapt=False), tasks.rows(user, user + 1)).sum().backward()
        optimizer.step()
        for name, value in alone.named_parameters():
            torch.testing.assert_close(found[name][user], value, rtol=1e-6, atol=1e-9)


def test_fedavg_of_all_clients_and_one_step_is_gradient_descent_on_the_mean_loss():
    rng = np.random.default_rng(0)
    train = histories((rng.random((12, ITEMS)) < 0.4).astype(np.float32))
    tasks = TaskSettings(support=4, query=4, support_dropout=0.0, feature_dropout=0.0)
    outer = OuterSettings(
        optimizer="sgd", learning_rate=0.5, warmup_rounds=0, momentum=0.0, weight_decay=0.0, averaging=0.0
    )
    model = small_model(AdaptationSettings(steps=0))
    settings = FedAvgSettings(rounds=1, clients=99, steps=1, learning_rate=0.5, outer=outer, tasks=tasks)
    (found,) = fit_fedavg(model, train, None, settings, every=1, seed=3)

    from metarec_shared.randomness import user_keys
    from metarec_shared.tasks import draw_training_tasks

    everyone = np.arange(12)
    batch = draw_training_tasks(train, everyone, user_keys(3, train.user_ids), None, tasks, 8, (3, 1))
    query_loss(model(batch, adapt=False), batch).mean().backward()
    for name, value in model.named_parameters():
        expected = value if value.grad is None else value - 0.5 * value.grad
        torch.testing.assert_close(found[name], expected.detach(), rtol=1e-5, atol=1e-8)


def test_fine_tuning_without_steps_is_the_averaged_model_and_with_steps_lowers_the_loss_of_the_support():
    model = small_model(AdaptationSettings(steps=0), dtype=torch.float32)
    batch = replace(small_tasks(20), dropout=None)
    with torch.no_grad():
        plain = model(batch, adapt=False)
    torch.testing.assert_close(fine_tuned_scores(model, averaged(model), batch, 0, 0.1, 0), plain, rtol=1e-4, atol=1e-5)
    tuned = fine_tuned_scores(model, averaged(model), batch, 30, 0.05, 0)
    own = replace(batch, query=batch.support, query_mask=batch.support_mask, known=torch.full_like(batch.known, -1))
    enough = batch.support_mask.sum(dim=1) >= 2
    assert (query_loss(tuned, own) < query_loss(plain, own))[enough].float().mean() > 0.9
    torch.testing.assert_close(tuned[~enough], plain[~enough], rtol=1e-4, atol=1e-5)
    assert 0 < int(enough.sum()) < len(batch) or enough.all()


def test_a_users_fine_tuning_does_not_depend_on_padding():
    model = small_model(AdaptationSettings(steps=0), dtype=torch.float32)
    batch = replace(small_tasks(6), dropout=None)
    wide = replace(
        batch,
        support=torch.nn.functional.pad(batch.support, (0, 2), value=7),
        support_mask=torch.nn.functional.pad(batch.support_mask, (0, 2)),
        feedback=torch.nn.functional.pad(batch.feedback, (0, 2)),
        known=torch.nn.functional.pad(batch.known, (0, 2), value=-1),
    )
    one, other = (fine_tuned_scores(model, averaged(model), b, 2, 0.1, 0) for b in (batch, wide))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
