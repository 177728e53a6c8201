"""FedAvg: every client trains the whole model on its own data for some steps, the server averages what they come to.

The model is ours, read in context and without an inner loop; nothing in training prepares for adaptation. With local
fine-tuning a client goes on alone in the same way: the averaged model takes the same steps on his support set.

References:
    McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
    algorithm 1.
    Reddi et al., "Adaptive federated optimization", ICLR 2021, algorithm 2 (the mean change of the clients is the
    gradient that a server optimizer steps along).
    Yu et al., "Salvaging federated learning by local adaptation", 2020, arXiv 2002.04758 (fine-tuning).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, vmap

from metarec_shared.dataset import RatingScale
from metarec_shared.exchange import Parameters
from metarec_shared.feedback import FEEDBACK_LEVELS
from metarec_shared.inner_loop import query_loss
from metarec_shared.interactions import Interactions, starts
from metarec_shared.model import BertRecommender
from metarec_shared.population import SHORTEST_HISTORY
from metarec_shared.randomness import generator, user_keys
from metarec_shared.settings import OuterSettings, TaskSettings
from metarec_shared.tasks import TaskBatch, draw_training_tasks
from server.outer_optimizer import OuterOptimizer

CLIENTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgSettings:
    """Constants of the training.

    Attributes:
        rounds: Rounds of the federation.
        clients: Users a round.
        steps: Local steps of a client, each on a new draw of support and query set from his data.
        learning_rate: Of the local steps, plain gradient descent.
        outer: The server's optimizer.
        tasks: Sizes of support and query sets, and dropout.
    """

    rounds: int
    clients: int
    steps: int
    learning_rate: float
    outer: OuterSettings
    tasks: TaskSettings


def fit_fedavg(
    model: BertRecommender,
    train: Interactions,
    scale: RatingScale | None,
    settings: FedAvgSettings,
    *,
    every: int,
    seed: int,
) -> Iterator[Parameters]:
    """Train, and yield the averaged parameters after every ``every`` rounds, for validation users to choose from.

    Args:
        model: The model at its first parameters; it has no inner loop.
        train: Histories of the meta-training users.
        scale: On which ratings are read.
        settings: Constants.
        every: Rounds between yields.
        seed: Of every draw.
    """
    users = np.flatnonzero(train.lengths >= SHORTEST_HISTORY)
    keys = user_keys(seed, train.user_ids)
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = OuterOptimizer(settings.outer, first, settings.rounds)
    for number in range(1, settings.rounds + 1):
        size = min(settings.clients, len(users))
        cohort = np.sort(generator(seed, "fedavg", number).choice(users, size, replace=False))
        change = {name: torch.zeros_like(value) for name, value in first.items()}
        for start in range(0, size, CLIENTS_AT_ONCE):
            chosen = cohort[start : start + CLIENTS_AT_ONCE]
            local = _copies(optimizer.parameters, len(chosen))
            for step in range(settings.steps):
                address = (seed, number * settings.steps + step)
                tasks = draw_training_tasks(
                    train, chosen, keys[chosen], scale, settings.tasks, model.head.in_features, address
                )
                local = local_step(model, local, tasks, settings.learning_rate)
            for name, value in change.items():
                value += (optimizer.parameters[name] - local[name]).sum(dim=0) / size
        moved = settings.learning_rate * settings.steps  # in units of a gradient, whatever the local steps are
        optimizer.step({name: value / moved for name, value in change.items()}, number)
        if number % every == 0 or number == settings.rounds:
            yield {name: value.clone() for name, value in optimizer.average.items()}


def local_step(
    model: BertRecommender, local: Parameters, tasks: TaskBatch, learning_rate: float
) -> dict[str, Float[Tensor, "users ..."]]:
    """Take one gradient step of each client on parameters of his own.

    Args:
        model: What the parameters belong to.
        local: Each client's parameters, [users, *shape].
        tasks: One of each client.
        learning_rate: Of the step.
    """

    def loss_of_one(parameters: dict[str, Tensor], task: dict[str, Tensor]) -> Tensor:
        one = TaskBatch(**{name: value[None] for name, value in task.items()})
        return query_loss(functional_call(model, parameters, (one,), {"adapt": False}), one)[0]

    gradients = vmap(grad(loss_of_one))(dict(local), tasks.to(model.text.device).tensors())
    return {name: value - learning_rate * gradients[name] for name, value in local.items()}


def fine_tuned_scores(
    model: BertRecommender, parameters: Parameters, batch: TaskBatch, steps: int, learning_rate: float, seed: int
) -> Float[Tensor, "users items"]:
    """Let every user take local steps on splits of his own support set, then score by the whole of it.

    A user with fewer than two support items has nothing to train on and keeps the averaged model.

    Args:
        model: What the parameters belong to.
        parameters: The averaged model.
        batch: Support sets.
        steps: Local steps.
        learning_rate: Of a step.
        seed: Of the splits.
    """
    if not steps:
        with torch.no_grad():
            own = batch.to(model.text.device)
            scored: Tensor = functional_call(model, dict(parameters), (own,), {"adapt": False})
        return scored
    parts = []
    for start in range(0, len(batch), CLIENTS_AT_ONCE):
        few = batch.rows(start, start + CLIENTS_AT_ONCE)
        local = _copies(parameters, len(few))
        trainable = few.support_mask.sum(dim=1) >= SHORTEST_HISTORY
        here = trainable.to(model.text.device)
        for step in range(steps * bool(trainable.any())):
            tasks = _splits(few.take(trainable.nonzero()[:, 0]), seed, step)
            moved = local_step(model, {n: value[here] for n, value in local.items()}, tasks, learning_rate)
            for name, value in moved.items():
                local[name][here] = value
        parts.append(_scores(model, local, few))
    return torch.cat(parts)


def _scores(model: BertRecommender, local: Parameters, batch: TaskBatch) -> Float[Tensor, "users items"]:
    def of_one(parameters: dict[str, Tensor], task: dict[str, Tensor]) -> Tensor:
        one = TaskBatch(**{name: value[None] for name, value in task.items()})
        scored: Tensor = functional_call(model, parameters, (one,), {"adapt": False})[0]
        return scored

    with torch.enable_grad():  # without, the model takes a fused attention that vmap does not know
        found: Tensor = vmap(of_one)(dict(local), replace(batch, dropout=None).to(model.text.device).tensors())
    return found.detach()


def _splits(batch: TaskBatch, seed: int, step: int) -> TaskBatch:
    """Draw a support and a query set from each user's support set, in a random order.

    At most half of the longest support set is support, so a shorter one keeps one item as its query.
    """
    real, lengths = batch.support_mask, batch.support_mask.sum(dim=1)
    levels = batch.feedback[real].float()
    histories = Interactions(
        user_ids=np.array([str(user) for user in range(len(batch))]),
        offsets=starts(lengths.numpy()),
        items=batch.support[real].numpy(),
        ratings=levels.masked_fill(levels == 0, torch.nan).numpy(),
        has_time=False,
        attributes=None if batch.attributes is None else batch.attributes.numpy(),
    )
    longest = int(lengths.max())
    sizes = TaskSettings(
        support=max(longest // 2, 1), query=longest, support_dropout=0.0, feature_dropout=0.0, attribute_dropout=0.0
    )
    scale = RatingScale(low=1.0, high=float(FEEDBACK_LEVELS))  # ratings are feedback levels already
    keys = user_keys(seed, histories.user_ids)
    return draw_training_tasks(histories, np.arange(len(batch)), keys, scale, sizes, 1, (seed, step))


def _copies(parameters: Parameters, users: int) -> dict[str, Tensor]:
    return {name: value.detach().expand(users, *value.shape).clone() for name, value in parameters.items()}
