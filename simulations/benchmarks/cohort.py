"""A cohort to measure on: made up at the sizes of MovieLens 1M, since speed does not depend on what the items are."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metarec_shared.dataset import RatingScale
from metarec_shared.initialization import initial_model
from metarec_shared.interactions import Interactions
from metarec_shared.model import BertRecommender
from metarec_shared.randomness import user_keys
from metarec_shared.settings import Settings
from metarec_shared.tasks import TaskBatch, draw_training_tasks

ITEMS = 3883
TEXT_WIDTH = 384
HISTORY = 165
_SCALE = RatingScale(low=1.0, high=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """What a meta-gradient is computed from."""

    model: BertRecommender
    tasks: TaskBatch
    weights: Tensor
    id_mask: Tensor


def make_cohort(
    settings: Settings,
    users: int,
    *,
    items: int = ITEMS,
    text_width: int = TEXT_WIDTH,
    history: int = HISTORY,
    device: torch.device | None = None,
) -> Cohort:
    """Draw a model, a catalogue and the tasks of ``users`` with histories of up to twice ``history`` items."""
    device = device or torch.device("cpu")
    rng = np.random.default_rng(settings.run.seed)
    text = torch.from_numpy(rng.standard_normal((items, text_width), dtype=np.float32))
    model = initial_model(settings, torch.nn.functional.normalize(text, dim=1)).to(device)
    histories = draw_histories(rng, users, items, history)
    keys = user_keys(settings.run.seed, histories.user_ids)
    tasks = draw_training_tasks(
        histories, np.arange(users), keys, _SCALE, settings.tasks, settings.model.width, (settings.run.seed, 1)
    )
    mask = torch.from_numpy(rng.random(items) >= settings.tasks.id_dropout)
    return Cohort(
        model=model, tasks=tasks.to(device), weights=torch.ones(users, device=device), id_mask=mask.to(device)
    )


def draw_histories(rng: np.random.Generator, users: int, items: int, history: int) -> Interactions:
    """Draw histories of 2 to ``2 * history - 2`` distinct items: every so many-th item from a random one on."""
    lengths = np.minimum(rng.integers(2, max(3, 2 * history - 1), users), items)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    stride = items // lengths
    first = rng.integers(0, items, users)
    return Interactions(
        user_ids=np.array([f"u{user}" for user in range(users)]),
        offsets=offsets,
        items=((np.repeat(first, lengths) + within * np.repeat(stride, lengths)) % items).astype(np.int32),
        ratings=rng.integers(1, 6, offsets[-1]).astype(np.float32),
        has_time=True,
    )


def with_adaptation(settings: Settings, **changes: object) -> Settings:
    """Return ``settings`` with another inner loop."""
    return replace(settings, adaptation=replace(settings.adaptation, **changes))  # type: ignore[arg-type]
