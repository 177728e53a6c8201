"""What ``metarec recommend`` does with a run's folder: load the model, read a history, recommend."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from client.answer import Answer, answer_of, read_profile
from client.history import attribute_pairs, read_attributes
from client.recommend import predicted_ratings, recommend
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.device import one_thread
from metarec_shared.other_catalogue import model_over
from metarec_shared.readers import read_catalogue


def answer_history(
    folder: Path, history: str, top_k: int, newer: Path | None = None, attributes: Sequence[str] = ()
) -> Answer:
    """Adapt the model in ``folder`` to a history file (``-``: standard input) and recommend ``top_k`` items.

    Args:
        folder: Of the run.
        history: The history file.
        top_k: Items to recommend.
        newer: Folder with the catalogue of today; None: the one the model was trained with.
        attributes: What the user tells of himself, each ``column=value``.

    Raises:
        CheckpointError: The folder holds no usable model.
        DataError: The history, the catalogue or an attribute cannot be read.
        MetaRecError: The run's text encoder, which new items need, is not here.
    """
    checkpoint = load_checkpoint(folder)
    settings, scale = checkpoint.settings, checkpoint.rating_scale
    catalogue = checkpoint.items.catalogue if newer is None else read_catalogue(newer, settings.data)
    profile = read_profile(history, catalogue, scale)
    profile = replace(profile, attributes=read_attributes(attribute_pairs(attributes), settings))
    model = checkpoint.full_model() if newer is None else model_over(checkpoint, catalogue, settings)
    with one_thread():
        began = time.perf_counter()
        ranked = recommend(model, profile, top_k)
        places = torch.tensor([position for position, _ in ranked], dtype=torch.int64)
        ratings = predicted_ratings(model, model.item_vectors(), [profile], [places], scale)[0]
    milliseconds = 1000 * (time.perf_counter() - began)
    return answer_of(ranked, ratings, catalogue, profile, milliseconds)
