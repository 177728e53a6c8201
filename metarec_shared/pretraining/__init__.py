"""Pre-training: losses of a user's whole history on the model that meta-learning starts from, one file a loss."""

from metarec_shared.pretraining.gradient import cohort_gradient, separately_clipped_gradient
from metarec_shared.pretraining.histories import HistoryBatch, draw_histories
from metarec_shared.pretraining.objective import Objective, build_objective

__all__ = [
    "HistoryBatch",
    "Objective",
    "build_objective",
    "cohort_gradient",
    "draw_histories",
    "separately_clipped_gradient",
]
