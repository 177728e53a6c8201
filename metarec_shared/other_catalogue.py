"""A trained model over another catalogue than the one it was trained with: a newer one, or another data set's."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from metarec_shared.catalogue import Catalogue
from metarec_shared.checkpoint import Checkpoint
from metarec_shared.errors import MetaRecError
from metarec_shared.model import BertRecommender
from metarec_shared.settings import Settings
from metarec_shared.sources import catalogue_features

SAME_VECTOR = 1e-2
"""How far the text vector of a shared item may be from the run's before the encoders are called different."""


def model_over(
    checkpoint: Checkpoint, catalogue: Catalogue, settings: Settings, *, progress: bool = False
) -> BertRecommender:
    """Return the recommender over ``catalogue``: items with the same text are the same, others come by their text.

    Args:
        checkpoint: The trained model.
        catalogue: Which items are ranked.
        settings: The run's, but for where data is.
        progress: Whether to show a progress bar while text is encoded.

    Raises:
        MetaRecError: The run's text encoder is not here, or gives other vectors than it did.
    """
    here, there = catalogue.shared_with(checkpoint.items.known)
    if checkpoint.text_encoder.partition("+")[0] == "builtin":
        settings = replace(settings, text=replace(settings.text, encoder="builtin"))
    features = catalogue_features(catalogue, settings, corpus=checkpoint.items.catalogue, progress=progress)
    _check_encoder(checkpoint, features.encoder, features.vectors, here, there)
    return checkpoint.transferred(features.vectors, here, there)


def _check_encoder(
    checkpoint: Checkpoint, encoder: str, vectors: torch.Tensor, here: NDArray[np.int64], there: NDArray[np.int64]
) -> None:
    """Refuse text vectors of another encoder than the run's: nothing else would notice them.

    Raises:
        MetaRecError: Name, width or the vectors of shared items differ.
    """
    trained = checkpoint.text[torch.from_numpy(checkpoint.items.positions)]
    same = encoder == checkpoint.text_encoder and vectors.shape[1] == trained.shape[1]
    if same and len(here):
        same = bool((vectors[here] - trained[there]).abs().max() < SAME_VECTOR)
    if not same:
        raise MetaRecError(f"the run's text encoder was {checkpoint.text_encoder}; here {encoder} gives other vectors")
