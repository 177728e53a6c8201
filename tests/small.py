"""Small models and tasks that many tests build on."""

from dataclasses import replace

import numpy as np
import torch

from metarec_shared.dataset import RatingScale
from metarec_shared.interactions import Interactions
from metarec_shared.model import BertRecommender
from metarec_shared.randomness import user_keys
from metarec_shared.settings import AdaptationSettings, ModelSettings, Settings, TaskSettings
from metarec_shared.tasks import TaskBatch, draw_training_tasks

ITEMS, WIDTH, TEXT = 30, 8, 6

SMALL_MODEL = ModelSettings(width=WIDTH, heads=2, layers=1, intermediate=16, feedback=True)


def small_model(
    adaptation: AdaptationSettings | None = None,
    *,
    sizes: ModelSettings = SMALL_MODEL,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> BertRecommender:
    """Build a small recommender whose parameters are all away from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertRecommender(torch.randn(ITEMS, TEXT), sizes, adaptation or AdaptationSettings())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype)


def small_tasks(
    count: int = 5, *, seed: int = 0, settings: TaskSettings | None = None, dtype: torch.dtype = torch.float32
) -> TaskBatch:
    """Draw tasks of users with histories of 3 to 13 items."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 14, count)
    histories = Interactions(
        user_ids=np.array([f"user {user}" for user in range(count)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int32),
        ratings=rng.integers(1, 6, lengths.sum()).astype(np.float32),
        has_time=True,
    )
    sizes = settings or TaskSettings(support=5, query=4)
    keys = user_keys(seed, histories.user_ids)
    scale = RatingScale(low=1.0, high=5.0)
    batch = draw_training_tasks(histories, np.arange(count), keys, scale, sizes, WIDTH, (seed, 1))
    dropout = None if batch.dropout is None else batch.dropout.to(dtype)
    return replace(batch, dropout=dropout)


SMALL_RUN = {
    "generator.users": 60,
    "generator.items": 40,
    "generator.interactions": 14,
    "text.encoder": "builtin",
    "text.builtin-steps": 2,
    "text.builtin-width": 16,
    "text.builtin-layers": 1,
    "model.width": 16,
    "model.layers": 1,
    "model.intermediate": 32,
    "tasks.support": 5,
    "tasks.query": 5,
    "evaluation.support": 4,
    "federation.rounds": 4,
    "federation.cohort": 16,
    "federation.evaluate-every": 2,
    "federation.checkpoint-every": 1,
    "federation.round-timeout": 30.0,
    "outer.warmup-rounds": 2,
}


def small_settings(**values: object) -> Settings:
    """Return the settings of a federation that takes seconds; keys of ``values`` use __ for the dot, _ for -."""
    changes = {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
    return Settings().with_values({**SMALL_RUN, **changes}, "test")
