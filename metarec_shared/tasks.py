"""Tasks: one user's episode, a support set to adapt on and a query set to be judged by.

A batch of tasks is padded to common lengths and carries masks; what is padded never changes a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.augmentation import coins, reordered, substitutes, time_ranks
from metarec_shared.batch import Batch
from metarec_shared.dataset import RatingScale
from metarec_shared.feedback import feedback_levels
from metarec_shared.interactions import Interactions
from metarec_shared.randomness import coin_table, uniform_table
from metarec_shared.settings import TaskSettings

Order = Literal["random", "time"]
"""How a history is read."""

ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBatch(Batch):
    """Padded tasks of many users.

    Attributes:
        support: Catalogue positions the user is adapted on; oldest first where they are in time; padding is 0.
        support_mask: Which of them are real.
        feedback: Level of each support item's rating, 1..FEEDBACK_LEVELS, 0 where there is none.
        query: Catalogue positions the adapted model is judged by; padding is 0.
        query_mask: Which of them are real.
        known: Items that are never ranked or scored as query items for this user: every item that was drawn
            into the support set, also where support dropout hid it. Padding is -1.
        dropout: Factors for the inputs of the user encoder (positions 0..support-1) and for its output (the last
            position), None outside meta-training. They are drawn with the task, so that the model itself is a
            deterministic function and a user's meta-gradient does not depend on who else is in the batch.
        in_time: Whose support and query sets are in a row in time; None: nobody's.
        from_start: Whose of these begin where the history does; None: nobody's.
        recency: Rank of each support item in time, 1 for the newest, 0 where it is not known; None: of no item.
        query_feedback: Level of each query item's rating, as ``feedback``; None outside meta-training.
        attributes: Hash of each attribute of the user, 0 where it is hidden or not told; None: nobody tells any.
        perturbation: What is added to the support items' vectors as the user encoder reads them; None: nothing.
        weights: How often each support item counts, in everything that is made of the support set: 0 as if it were not
            there, 1 once, anything between; None: once. Scores are differentiated in it to explain them.
        sizes: How many interactions a user is taken to have where blends by size are looked up, which
            weights do not change; None: as many as are real.
    """

    support: Int[Tensor, "users support"]
    support_mask: Bool[Tensor, "users support"]
    feedback: Int[Tensor, "users support"]
    query: Int[Tensor, "users query"]
    query_mask: Bool[Tensor, "users query"]
    known: Int[Tensor, "users support"]
    dropout: Float[Tensor, "users positions width"] | None = None
    in_time: Bool[Tensor, " users"] | None = None
    from_start: Bool[Tensor, " users"] | None = None
    recency: Int[Tensor, "users support"] | None = None
    query_feedback: Int[Tensor, "users query"] | None = None
    attributes: Int[Tensor, "users columns"] | None = None
    perturbation: Float[Tensor, "users support width"] | None = None
    weights: Float[Tensor, "users support"] | None = None
    sizes: Int[Tensor, " users"] | None = None

    def __len__(self) -> int:
        return len(self.support)

    def counted(self, dtype: torch.dtype) -> Float[Tensor, "users support"]:
        """Return how often each support item counts; padding does not."""
        mask = self.support_mask.to(dtype)
        return mask if self.weights is None else mask * self.weights.to(dtype)

    def support_sizes(self) -> Int[Tensor, " users"]:
        """Return the number of each user's interactions, by which what is added to a model's scores is blended."""
        return self.support_mask.sum(dim=1) if self.sizes is None else self.sizes

    def in_order(self, order: Order) -> Bool[Tensor, " users"]:
        """Mark the users whose history is read in an order."""
        place = self.support.device
        in_time = torch.zeros(len(self), dtype=torch.bool) if self.in_time is None else self.in_time
        return (in_time if order == "time" else ~in_time).to(place)

    def known_mask(self, items: int) -> Bool[Tensor, "users items"]:
        """Mark each user's known items in a catalogue of ``items``."""
        column = torch.where(self.known < 0, items, self.known)
        marks = torch.zeros(len(self.known), items + 1, dtype=torch.bool, device=column.device)
        return marks.scatter(1, column, True)[:, :items]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One user's episode before padding: arrays of catalogue positions, feedback levels, ranks in time, attributes."""

    support: NDArray[np.int64]
    support_mask: NDArray[np.bool_]
    feedback: NDArray[np.int64]
    query: NDArray[np.int64]
    dropout: NDArray[np.float32] | None = None
    in_time: bool = False
    from_start: bool = False
    recency: NDArray[np.int64] | None = None
    attributes: NDArray[np.int64] | None = None


def draw_training_tasks(
    interactions: Interactions,
    users: NDArray[np.int64],
    keys: NDArray[np.uint64],
    scale: RatingScale | None,
    settings: TaskSettings,
    width: int,
    address: tuple[int, int],
) -> TaskBatch:
    """Draw one meta-training task of each user, all at once; each has a history of at least two items.

    A history is shuffled; its first items are the support set (at most ``settings.support`` and never the whole
    history), the next at most ``settings.query`` the query set. Where the data has time, a share of the tasks is
    interactions in a row instead, beginning anywhere or where the history does, and at most ``settings.time_query``
    that follow. Only the rows that are drawn are read, so histories may lie on disk, and a user's task depends on
    nobody else's.

    Args:
        interactions: Whose histories.
        users: Positions in them, [users].
        keys: The users' random keys, [users].
        scale: Scale on which ratings are read as feedback.
        settings: Sizes and dropout rates.
        width: Width of the model, for the dropout factors.
        address: The run's seed, and the round.
    """
    seed, round_number = address
    limit, lengths = settings.support, interactions.offsets[users + 1] - interactions.offsets[users]
    draws = uniform_table(keys, 2 + 2 * limit + settings.query, seed, "task", round_number)
    sizes = np.minimum(limit, lengths - 1)
    if settings.vary_support:
        varied = 1 + (draws[:, 1] * sizes).astype(np.int64)
        sizes = np.where(draws[:, 0] < settings.vary_support, varied, sizes)
    query_sizes = np.minimum(settings.query, lengths - sizes)
    order = shuffled(lengths, draws[:, 2 : 2 + limit + settings.query])
    in_time, from_start = np.zeros((2, len(users)), dtype=np.bool_)
    if interactions.has_time and settings.time_share:
        draw = uniform_table(keys, 3, seed, "time order", round_number)
        in_time = draw[:, 0] < settings.time_share
        query_sizes = np.where(in_time, np.minimum(query_sizes, settings.time_query), query_sizes)
        from_start = in_time & (draw[:, 2] < settings.start_share)
        begin = (draw[:, 1] * (lengths - sizes - query_sizes + 1)).astype(np.int64)
        begin = np.where(from_start, 0, begin)
        in_a_row = np.minimum(begin[:, None] + np.arange(order.shape[1]), lengths[:, None] - 1)
        order = np.where(in_time[:, None], in_a_row, order)
    rows = interactions.offsets[users][:, None] + order
    real, asked = (np.arange(n.max()) < n[:, None] for n in (sizes, query_sizes))
    support_rows = np.where(real, rows[:, : real.shape[1]], rows[:, :1])
    places = np.minimum(sizes[:, None] + np.arange(asked.shape[1]), order.shape[1] - 1)
    query_rows = np.where(asked, np.take_along_axis(rows, places, axis=1), rows[:, :1])
    support = interactions.items[support_rows].astype(np.int64)
    levels = feedback_levels(interactions.ratings[support_rows], scale)
    heard = draws[:, 2 + limit + settings.query :][:, : real.shape[1]] >= settings.support_dropout
    recency = time_ranks(support_rows, real) if interactions.has_time else None
    if recency is not None and settings.reorder:
        recency = reordered(recency, sizes, coins(keys, settings.reorder, "reorder", address, limit))
    return TaskBatch(
        support=torch.from_numpy(np.where(real, support, 0)),
        support_mask=torch.from_numpy(real & heard),
        feedback=torch.from_numpy(np.where(real, levels, 0)),
        query=torch.from_numpy(np.where(asked, interactions.items[query_rows], 0).astype(np.int64)),
        query_mask=torch.from_numpy(asked),
        known=torch.from_numpy(np.where(real, support, -1)),
        dropout=_dropout_factors(keys, real, settings, width, address),
        in_time=torch.from_numpy(in_time),
        from_start=torch.from_numpy(from_start),
        recency=None if recency is None else torch.from_numpy(recency),
        query_feedback=torch.from_numpy(np.where(asked, feedback_levels(interactions.ratings[query_rows], scale), 0)),
        attributes=_told(interactions.attributes, users, keys, settings.attribute_dropout, address),
    )


def with_substitutes(
    tasks: TaskBatch,
    neighbours: Int[Tensor, "items count"],
    keys: NDArray[np.uint64],
    chance: float,
    address: tuple[int, int],
) -> TaskBatch:
    """Return tasks in whose support sets some items are replaced by ones of similar text; what is known stays known.

    Args:
        tasks: Of meta-training.
        neighbours: As ``augmentation.text_neighbours`` returns them.
        keys: The users' random keys, [users].
        chance: Of an item to be replaced.
        address: The run's seed, and the round.
    """
    seed, round_number = address
    draws = torch.from_numpy(uniform_table(keys, 2 * tasks.support.shape[1], seed, "substitute", round_number))
    taken = torch.cat([tasks.known, tasks.query.masked_fill(~tasks.query_mask, -1)], dim=1)
    return replace(tasks, support=substitutes(tasks.support, taken, neighbours, draws.to(neighbours.device), chance))


def _told(
    attributes: NDArray[np.int64] | None,
    users: NDArray[np.int64],
    keys: NDArray[np.uint64],
    dropout: float,
    address: tuple[int, int],
) -> Tensor | None:
    """Return the attributes of ``users``, each hidden with chance ``dropout``, so that their absence is learned too."""
    if attributes is None:
        return None
    seed, round_number = address
    hidden = coin_table(keys, attributes.shape[1], dropout, seed, "attribute dropout", round_number)
    return torch.from_numpy(np.where(hidden, 0, attributes[users]))


def shuffled(lengths: NDArray[np.int64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the first positions of a random order of each history, int64 [users, draws]; past its end, any position.

    The steps of a Fisher-Yates shuffle are taken for all users together, on histories laid end to end.
    """
    starts = np.cumsum(lengths) - lengths
    deck = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    order = np.empty(draws.shape, dtype=np.int64)
    last = starts + lengths - 1
    for step in range(draws.shape[1]):
        here = np.minimum(starts + step, last)
        there = here + (draws[:, step] * np.maximum(lengths - step, 1)).astype(np.int64)
        order[:, step] = deck[there]
        deck[there] = deck[here]
    return order


def _dropout_factors(
    keys: NDArray[np.uint64], real: NDArray[np.bool_], settings: TaskSettings, width: int, address: tuple[int, int]
) -> Tensor | None:
    """Return factors [users, support + 1, width] of the encoder's inputs and, last, its output; 1 for padding."""
    rate = settings.feature_dropout
    if not rate:
        return None
    seed, round_number = address
    positions = settings.support + 1
    dropped = coin_table(keys, positions * width, rate, seed, "dropout", round_number).reshape(-1, positions, width)
    used = np.concatenate([dropped[:, : real.shape[1]], dropped[:, -1:]], axis=1)
    factors = np.where(used, np.float32(0), np.float32(1 / (1 - rate)))
    factors[:, :-1][~real] = 1.0
    return torch.from_numpy(factors)


def pad(tasks: Sequence[Task]) -> TaskBatch:
    """Stack tasks into one padded batch.

    Raises:
        ValueError: There is no task.
    """
    if not tasks:
        raise ValueError("cannot pad a batch of no tasks")
    support_lengths = [len(task.support) for task in tasks]
    query_lengths = [len(task.query) for task in tasks]
    support = _stack([task.support for task in tasks], support_lengths, 0)
    return TaskBatch(
        support=support,
        support_mask=_stack([task.support_mask for task in tasks], support_lengths, False),
        feedback=_stack([task.feedback for task in tasks], support_lengths, 0),
        query=_stack([task.query for task in tasks], query_lengths, 0),
        query_mask=_stack([np.ones(n, dtype=bool) for n in query_lengths], query_lengths, False),
        known=_stack([task.support for task in tasks], support_lengths, -1),
        dropout=_stack_dropout(tasks, max(support_lengths)),
        in_time=torch.tensor([task.in_time for task in tasks]),
        from_start=torch.tensor([task.from_start for task in tasks]),
        recency=_stack_recency(tasks, support_lengths),
        attributes=_stack_attributes(tasks),
    )


def _stack(rows: Sequence[NDArray[np.generic]], lengths: Sequence[int], padding: int | bool) -> Tensor:
    padded = np.full((len(rows), max(lengths)), padding, dtype=rows[0].dtype)
    for position, row in enumerate(rows):
        padded[position, : len(row)] = row
    return torch.from_numpy(padded)


def _stack_recency(tasks: Sequence[Task], lengths: Sequence[int]) -> Tensor | None:
    """Stack ranks in time; a task without them has 0, for not known."""
    if all(task.recency is None for task in tasks):
        return None
    rows = [
        np.zeros(n, np.int64) if task.recency is None else task.recency for task, n in zip(tasks, lengths, strict=True)
    ]
    return _stack(rows, lengths, 0)


def _stack_attributes(tasks: Sequence[Task]) -> Tensor | None:
    """Stack attributes; a task without them, or with fewer, has 0, for not told."""
    rows = [np.zeros(0, np.int64) if task.attributes is None else task.attributes for task in tasks]
    lengths = [len(row) for row in rows]
    return _stack(rows, lengths, 0) if any(lengths) else None


def _stack_dropout(tasks: Sequence[Task], longest: int) -> Tensor | None:
    """Stack dropout factors; the output's factor moves to the last position of the padded batch."""
    if any(task.dropout is None for task in tasks):
        return None
    factors = [task.dropout for task in tasks if task.dropout is not None]
    padded = np.ones((len(tasks), longest + 1, factors[0].shape[1]), dtype=np.float32)
    for position, factor in enumerate(factors):
        padded[position, : len(factor) - 1] = factor[:-1]
        padded[position, -1] = factor[-1]
    return torch.from_numpy(padded)
