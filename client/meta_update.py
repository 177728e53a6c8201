"""A meta-update: the sum of users' meta-gradients, of one node or of many in one vectorized computation.

The ClientApp is the case of one node. The in-process grid of ``simulations`` passes all nodes of a round at once: the
computation is the same, since a user's draws depend neither on the user's node nor on the others in the batch.

References:
    Chen et al. (2018), Federated meta-learning with fast convergence and efficient communication, algorithm 1.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from client.learner import USERS_AT_ONCE, Learner
from client.node import Node
from metarec_shared.errors import NodeError
from metarec_shared.evaluation import cold_user_tasks, evaluate, model_scorer
from metarec_shared.exchange import EvaluateRequest, Evaluation, MetaUpdate, Parameters, TrainRequest
from metarec_shared.meta_gradient import summed_meta_gradient
from metarec_shared.split import Role
from metarec_shared.tasks import Task, pad


def meta_update(learner: Learner, parameters: Parameters, nodes: Sequence[Node], request: TrainRequest) -> MetaUpdate:
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
        NodeError: A meta-gradient is not finite.
    """
    learner.check_catalogue(request.catalogue)
    learner.load(parameters)
    tasks, weights = _draw_tasks(learner, nodes, request)
    gradients = {name: torch.zeros_like(value) for name, value in learner.model.named_parameters()}
    loss, id_mask = torch.zeros((), dtype=torch.float64), learner.id_mask(request.round_number)
    for start in range(0, len(tasks), USERS_AT_ONCE):
        batch = pad(tasks[start : start + USERS_AT_ONCE]).to(learner.device)
        batch_weights = weights[start : start + USERS_AT_ONCE].to(learner.device)
        part = summed_meta_gradient(learner.model, batch, batch_weights, id_mask)
        loss += part.losses.double().sum().cpu()
        for name, gradient in part.gradients.items():
            gradients[name] += gradient
    if not all(bool(value.isfinite().all()) for value in (loss, *gradients.values())):
        raise NodeError("the meta-update is not finite")
    weight = sum(_weight(node, learner, request) for node in nodes)
    return MetaUpdate(gradients=gradients, weight=weight, loss=float(loss), users=len(tasks), nodes=len(nodes))


def evaluate_nodes(
    learner: Learner, parameters: Parameters, nodes: Sequence[Node], request: EvaluateRequest
) -> Evaluation:
    """Rank the catalogue for the users of ``nodes`` in a role and sum their metrics.

    Raises:
        WireError: The parameters or the catalogue are not this learner's.
    """
    learner.check_catalogue(request.catalogue)
    learner.load(parameters)
    tasks = list(_evaluation_tasks(learner, nodes, request))
    if not tasks:
        return Evaluation(sums={}, users=0, nodes=len(nodes))
    metrics = evaluate(model_scorer(learner.model, adapt=request.adapt), tasks, learner.settings.evaluation.k)
    return Evaluation(
        sums={name: float(values.sum()) for name, values in metrics.items() if name != "auc"},
        users=len(tasks),
        nodes=len(nodes),
    )


def _draw_tasks(learner: Learner, nodes: Sequence[Node], request: TrainRequest) -> tuple[list[Task], Tensor]:
    settings, tasks, weights = learner.settings, [], []
    for node in nodes:
        users, scale = node.draw(request), request.rating_scale
        share = 1.0 if settings.federation.weighting == "users" else 1.0 / max(_expected_users(node, request), 1e-9)
        tasks += [
            node.population.training_task(int(u), request.round_number, settings.tasks, settings.model.width, scale)
            for u in users
        ]
        weights += [share] * len(users)
    return tasks, torch.tensor(weights)


def _weight(node: Node, learner: Learner, request: TrainRequest) -> float:
    """Return the node's weight: its expected users, or one. It is public, unlike the number of users drawn."""
    expected = _expected_users(node, request)
    return expected if learner.settings.federation.weighting == "users" else float(expected > 0)


def _expected_users(node: Node, request: TrainRequest) -> float:
    return len(node.users_in(Role.TRAINING)) * min(request.sampling_rate, 1.0)


def _evaluation_tasks(learner: Learner, nodes: Sequence[Node], request: EvaluateRequest) -> Iterator[Task]:
    sizes = learner.settings.evaluation
    for node in nodes:
        users = node.users_in(request.role)
        for draw in range(request.draws):
            yield from cold_user_tasks(
                node.population, users, request.order, sizes.support, sizes.query, request.rating_scale, draw
            )
