"""A meta-update: the sum of users' meta-gradients, of one node or of many in one vectorized computation.

The ClientApp is the case of one node. The in-process grid of ``simulations`` passes all nodes of a round at once: the
computation is the same, since a user's draws depend neither on the user's node nor on the others in the batch.

References:
    Chen et al. (2018), Federated meta-learning with fast convergence and efficient communication, algorithm 1.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from client.learner import Learner
from client.node import Drawn, Nodes
from client.privacy.guard import Guard, protected, reply_scales
from client.rating_learner import RatingLearner
from metarec_shared.device import tiny_numbers_flushed
from metarec_shared.errors import NodeError, Refusal
from metarec_shared.evaluation import (
    USERS_AT_ONCE,
    Scorer,
    batched,
    cold_user_tasks,
    evaluate,
    evaluate_blends,
    model_scorer,
)
from metarec_shared.exchange import (
    Additions,
    Cell,
    EvaluateRequest,
    Evaluation,
    Judged,
    MetaUpdate,
    Parameters,
    TrainRequest,
    all_finite,
)
from metarec_shared.meta_gradient import Batch, MetaGradient
from metarec_shared.pretraining import draw_histories
from metarec_shared.pretraining.gradient import Batch as HistoriesAndWeights
from metarec_shared.task_regression import TaskRegression
from metarec_shared.tasks import TaskBatch, with_substitutes
from metarec_shared.text_kernel import TextKernel


def meta_update(
    learner: Learner | RatingLearner, parameters: Parameters, nodes: Nodes, request: TrainRequest
) -> MetaUpdate:
    """Adapt to every drawn user of ``nodes`` and sum the weighted meta-gradients.

    Args:
        learner: Model and settings.
        parameters: The meta-initialization.
        nodes: Whose users to draw from.
        request: The round.

    Returns:
        The sum over the nodes, all zero where no user was drawn.

    Raises:
        WireError: The parameters or the catalogue are not this learner's.
        NodeError: A meta-gradient is not finite, or memory does not do for one user.
        Refusal: The terms of privacy or the budget do not allow it.
    """
    learner.check_catalogue(request.catalogue)
    learner.load(parameters)
    drawn, guard = nodes.draw(request), nodes.guard
    if guard is not None:
        guard.charge(guard.terms.meta_update(), request.round_number)
    weights = _weights(learner, drawn, guard)
    shares = reply_scales(weights, drawn.expected)

    weight_of = shares[drawn.nodes].astype(np.float32)

    separately = guard is not None and guard.trusts_no_server
    if isinstance(learner, RatingLearner):
        found = learner.meta_gradient(nodes, request, drawn, weight_of, separately=separately)
    elif learner.settings.pretraining.trains(request.round_number):
        found = _pretraining_gradient(learner, nodes, request, drawn, weight_of, separately=separately)
    else:
        found = _meta_gradient(learner, nodes, request, drawn, weight_of, separately=separately)
    if guard is not None:
        gradients = protected(guard, found.gradients, shares, iter(nodes.names), request.round_number)
        return MetaUpdate(gradients=gradients, weight=float(weights.sum()), loss=None, users=None, nodes=len(nodes))
    loss = found.losses.double().sum().cpu()
    if not (loss.isfinite() and all_finite(found.gradients.values())):
        raise NodeError("the meta-update is not finite")
    return MetaUpdate(
        gradients=found.gradients,
        weight=float(weights.sum()),
        loss=float(loss),
        users=len(drawn.users),
        nodes=len(nodes),
    )


def _meta_gradient(
    learner: Learner,
    nodes: Nodes,
    request: TrainRequest,
    drawn: Drawn,
    weights: NDArray[np.float32],
    *,
    separately: bool,
) -> MetaGradient:
    """Return the weighted sum of the drawn users' meta-gradients."""
    draw = partial(_draw, learner, nodes, request, drawn, weights)
    if separately:
        alone = (partial(draw, slice(user, user + 1)) for user in range(len(weights)))
        return learner.separate_meta_gradient(alone, request.round_number)

    def batches_of(size: int) -> Iterator[Batch]:
        return _batches(draw, len(drawn.users), size)

    return learner.meta_gradient(batches_of, len(drawn.users), request.round_number)


def _pretraining_gradient(
    learner: Learner,
    nodes: Nodes,
    request: TrainRequest,
    drawn: Drawn,
    weights: NDArray[np.float32],
    *,
    separately: bool,
) -> MetaGradient:
    """Return the weighted sum of the drawn users' gradients of the loss of pre-training."""
    draw = partial(_draw_histories, learner, nodes, request, drawn, weights)
    if separately:
        alone = (partial(draw, slice(user, user + 1)) for user in range(len(weights)))
        return learner.separate_pretraining_gradient(alone, request.round_number)
    return learner.pretraining_gradient(
        lambda size: (draw(slice(start, start + size)) for start in range(0, len(drawn.users), size)),
        request.round_number,
    )


def _weights(learner: Learner | RatingLearner, drawn: Drawn, guard: Guard | None) -> NDArray[np.float64]:
    """Return the public weight of each node, float64 [nodes]."""
    if learner.settings.federation.weighting == "nodes":
        return (drawn.expected > 0).astype(np.float64)
    return drawn.expected if guard is None else guard.weights(drawn.expected)


def evaluate_nodes(
    learner: Learner | RatingLearner,
    parameters: Parameters,
    nodes: Nodes,
    request: EvaluateRequest,
    additions: Additions | None = None,
) -> Evaluation:
    """Rank the catalogue for the users of ``nodes`` in a role, or predict their ratings, and sum their metrics.

    Args:
        learner: Model and settings.
        parameters: The meta-initialization.
        nodes: Whose users are judged.
        request: How.
        additions: What is added to the model's scores, in how many ways; None: nothing. With some, a node without
            timestamps judges nobody in time order.

    Raises:
        WireError: The parameters or the catalogue are not this learner's.
        Refusal: The users' privacy is guarded, and metrics are not noised.
    """
    if nodes.guard is not None:
        raise Refusal("metrics of users are not noised, so they are not released")
    learner.check_catalogue(request.catalogue)
    learner.load(parameters)
    if isinstance(learner, RatingLearner):
        errors = [learner.errors(nodes, request, cell.support) for cell in request.cells]
        return Evaluation(cells=errors, nodes=len(nodes))
    scorer, k = model_scorer(learner.model, adapt=request.adapt), learner.settings.evaluation.k

    def judged(cell: Cell) -> Judged:
        untimed = cell.order == "time" and not nodes.population.interactions.has_time
        batches = [] if untimed and additions is not None else _evaluation_batches(learner, nodes, request, cell)
        if not batches:
            return Judged(users=0, sums={})
        if additions is None:
            metrics = evaluate(scorer, batches, k)
            sums = {name: [float(values.sum())] for name, values in metrics.items() if name != "auc"}
        else:
            found = evaluate_blends(scorer, added, additions.blends[cell], batches, k)
            sums = {f"ndcg@{k}": [float(values.sum()) for values in found]}
        return Judged(users=sum(len(batch) for batch in batches), sums=sums)

    with tiny_numbers_flushed():
        added = [] if additions is None else _added(additions, learner)
        cells = [judged(cell) for cell in request.cells]
    return Evaluation(cells=cells, nodes=len(nodes))


def _added(additions: Additions, learner: Learner) -> list[Scorer]:
    """Return a scorer for each column of the blends."""
    place = learner.device

    def predictions(part: TaskRegression | TextKernel) -> Scorer:
        return lambda batch: part.predictions(batch.support.to(place), batch.support_mask.to(place))

    scorers = [predictions(regression.to(place)) for regression in additions.regressions]
    if additions.sharpness is not None:
        scorers.append(predictions(TextKernel.over(learner.model.text, additions.sharpness)))
    if additions.start_prior is not None:
        prior = additions.start_prior.to(place)
        scorers.append(lambda batch: prior.predictions(batch.to(place)))
    return scorers


def _batches(draw_rows: Callable[[slice], Batch], users: int, size: int) -> Iterator[Batch]:
    """Draw the users' tasks in batches; while one is computed, the next is drawn beside it."""

    def draw(start: int) -> Batch:
        return draw_rows(slice(start, start + size))

    starts = range(0, users, size)
    if len(starts) <= 1:
        yield from map(draw, starts)
        return
    with ThreadPoolExecutor(1, "metarec-tasks") as pool:
        coming: Future[Batch] = pool.submit(draw, 0)
        for start in starts:
            batch, following = coming.result(), start + size
            if following < users:
                coming = pool.submit(draw, following)
            yield batch


def _draw(
    learner: Learner, nodes: Nodes, request: TrainRequest, drawn: Drawn, weights: NDArray[np.float32], rows: slice
) -> Batch:
    """Draw the tasks of some of the drawn users."""
    settings = learner.settings
    population, users = nodes.population, drawn.users[rows]
    tasks = population.training_tasks(
        users, request.round_number, settings.tasks, settings.model.width, request.rating_scale
    ).to(learner.device)
    if settings.tasks.substitute:
        address = (population.seed, request.round_number)
        tasks = with_substitutes(tasks, learner.neighbours, population.keys[users], settings.tasks.substitute, address)
    return tasks, torch.from_numpy(weights[rows]).to(learner.device)


def _draw_histories(
    learner: Learner, nodes: Nodes, request: TrainRequest, drawn: Drawn, weights: NDArray[np.float32], rows: slice
) -> HistoriesAndWeights:
    """Draw the histories of some of the drawn users."""
    settings, population, users = learner.settings, nodes.population, drawn.users[rows]
    histories = draw_histories(
        population.interactions,
        users,
        population.keys[users],
        request.rating_scale,
        settings.pretraining,
        (settings.tasks.feature_dropout, settings.model.width),
        (population.seed, request.round_number),
    )
    return histories.to(learner.device), torch.from_numpy(weights[rows]).to(learner.device)


def _evaluation_batches(learner: Learner, nodes: Nodes, request: EvaluateRequest, cell: Cell) -> list[TaskBatch]:
    """Return the tasks of the users judged in a cell, drawn once for as long as the same nodes are asked the same."""
    query, scale = learner.settings.evaluation.query, request.rating_scale
    users, draws = nodes.judged(request.role, request.sampling_rate), request.draws if cell.order == "random" else 1
    key = (id(nodes.population), users.tobytes(), cell, draws, scale)
    if learner.drawn_for_evaluation is None or learner.drawn_for_evaluation[0] != key:
        tasks = [
            task
            for draw in range(draws)
            for task in cold_user_tasks(nodes.population, users, cell.order, cell.support, query, scale, draw)
        ]
        learner.drawn_for_evaluation = (key, batched(tasks, min(USERS_AT_ONCE, learner.users_at_once)))
    return learner.drawn_for_evaluation[1]
