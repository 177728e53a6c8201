"""A trained model over another catalogue than the one it was trained with: a newer one, or another data set's."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.catalogue import Catalogue, joined
from metarec_shared.checkpoint import Checkpoint
from metarec_shared.errors import MetaRecError
from metarec_shared.model import BertRecommender
from metarec_shared.settings import Settings
from metarec_shared.sources import catalogue_features

PROBES = 4
"""Items of the run whose texts are encoded again, when others are added, to see that the encoder is the run's."""

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
    settings = _with_encoder(checkpoint, settings)
    features = catalogue_features(catalogue, settings, corpus=checkpoint.items.catalogue, progress=progress)
    _check_encoder(checkpoint, features.encoder, features.vectors, here, there)
    return checkpoint.transferred(features.vectors, here, there)


def model_with(
    checkpoint: Checkpoint, text: Float[Tensor, "items text"], catalogue: Catalogue, added: Catalogue
) -> tuple[BertRecommender, Catalogue]:
    """Return the recommender over a catalogue that begins with the run's, with further items behind it.

    Only the new texts are encoded, and some that the run knows, to see that the encoder is the run's.

    Args:
        checkpoint: The trained model.
        text: Text vectors of ``catalogue``.
        catalogue: The run's, and items that were added before.
        added: Items to be added; none of their ids is taken.

    Raises:
        MetaRecError: The run's text encoder is not here, or gives other vectors than it did.
    """
    probes = np.arange(min(PROBES, len(catalogue)))
    asked = joined(added, catalogue.take(probes))
    settings = _with_encoder(checkpoint, checkpoint.settings)
    features = catalogue_features(asked, settings, corpus=checkpoint.items.catalogue)
    new, again = features.vectors[: len(added)], features.vectors[len(added) :]
    _check_vectors(checkpoint, features.encoder, again, text[: len(probes)])
    positions = checkpoint.items.positions
    return checkpoint.transferred(torch.cat([text, new]), positions, np.arange(len(positions))), joined(
        catalogue, added
    )


def _with_encoder(checkpoint: Checkpoint, settings: Settings) -> Settings:
    """Return settings that name the encoder which was taken in place of a model that was not there."""
    if checkpoint.text_encoder.partition("+")[0] != "builtin":
        return settings
    return replace(settings, text=replace(settings.text, encoder="builtin"))


def _check_encoder(
    checkpoint: Checkpoint, encoder: str, vectors: torch.Tensor, here: NDArray[np.int64], there: NDArray[np.int64]
) -> None:
    """Refuse text vectors of another encoder than the run's: nothing else would notice them.

    Raises:
        MetaRecError: Name, width or the vectors of shared items differ.
    """
    trained = checkpoint.text[torch.from_numpy(checkpoint.items.positions)]
    _check_vectors(checkpoint, encoder, vectors[here], trained[there])


def _check_vectors(checkpoint: Checkpoint, encoder: str, here: torch.Tensor, there: torch.Tensor) -> None:
    same = encoder == checkpoint.text_encoder and here.shape == there.shape
    if same and len(here):
        same = bool((here - there).abs().max() < SAME_VECTOR)
    if not same:
        raise MetaRecError(f"the run's text encoder was {checkpoint.text_encoder}; here {encoder} gives other vectors")
