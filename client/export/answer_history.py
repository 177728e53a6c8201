"""What ``metarec recommend`` does with an exported model: the same as with a run's folder, through ONNX Runtime."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from client.answer import Answer, answer_of, read_profile
from client.export.runtime import EdgeRecommender
from client.history import attribute_pairs, hash_attributes


def answer_with_exported(path: Path, history: str, top_k: int | None, attributes: Sequence[str] = ()) -> Answer:
    """Adapt the exported model to a history file (``-``: standard input) and recommend ``top_k`` items.

    No ratings are predicted: the graph ranks.

    Args:
        path: The exported folder, or the .onnx file in it.
        history: The history file.
        top_k: Items to recommend; None: as many as were chosen at export.
        attributes: What the user tells of himself, each ``column=value``.

    Raises:
        CheckpointError: There is no exported model, or its files are damaged.
        DataError: The history or an attribute cannot be read.
        MetaRecError: ONNX Runtime is not installed.
    """
    recommender = EdgeRecommender(path)
    exported = recommender.exported
    profile = read_profile(history, exported.catalogue, exported.rating_scale)
    profile = replace(profile, attributes=hash_attributes(attribute_pairs(attributes), exported.attributes))
    began = time.perf_counter()
    ranked = recommender.recommend(profile, top_k)
    milliseconds = 1000 * (time.perf_counter() - began)
    return answer_of(ranked, [None] * len(ranked), exported.catalogue, profile, milliseconds)
