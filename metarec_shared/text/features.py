"""A vector for each item of a catalogue, computed once and then read from a cache."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from metarec_shared.catalogue import Catalogue
from metarec_shared.errors import SettingsError
from metarec_shared.randomness import generator
from metarec_shared.settings import TextSettings
from metarec_shared.text import builtin, cache, pretrained
from metarec_shared.text.sources import BUILTIN, Source, choose_source

# Part of every fingerprint: raise it whenever the same text and the same encoder give other vectors than before.
VERSION = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeatures:
    """Text vectors of a catalogue.

    Attributes:
        vectors: One vector an item, of length 1, float32.
        encoder: Which encoder made them: ``"name@revision"`` of a hub model, ``"directory:name"`` or ``"builtin"``;
            behind it what it was trained on further, and the file whose vectors stand beside the text's.
        fingerprint: Hash of what went in: the catalogue, the encoder and the settings that matter. Equal fingerprints
            mean equal vectors up to rounding, which differs between processors.
        encoder_fingerprint: The same of the encoder alone; empty where it is trained on the catalogue.
    """

    vectors: Float[Tensor, "items width"]
    encoder: str
    fingerprint: str
    encoder_fingerprint: str = ""


def text_features(
    catalogue: Catalogue,
    settings: TextSettings,
    *,
    corpus: Catalogue | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TextFeatures:
    """Encode the text of every item, or read the vectors from the cache where they were computed before.

    Args:
        catalogue: The public catalogue.
        settings: Which encoder, and how it reads.
        corpus: What the built-in encoder is trained on, where a model that was trained with another catalogue shall
            read this one; None: ``catalogue``.
        seed: Seed of the built-in encoder's training; pre-trained encoders draw nothing.
        progress: Whether to show a progress bar where it takes long.

    Raises:
        SettingsError: The encoder that the settings name cannot be loaded.
    """
    source = choose_source(settings)
    try:
        return _features(catalogue, settings, source, corpus or catalogue, seed, progress)
    except SettingsError as error:
        if settings.encoder != "auto":
            raise
        logger.info("the built-in text encoder takes the place of %s: %s", source.label, error)
        return _features(catalogue, settings, BUILTIN, corpus or catalogue, seed, progress)


def _features(
    catalogue: Catalogue, settings: TextSettings, source: Source, corpus: Catalogue, seed: int, progress: bool
) -> TextFeatures:
    fingerprint = _fingerprint(catalogue, settings, source, corpus, seed)
    vectors = cache.read_vectors(fingerprint, len(catalogue))
    if vectors is None:
        if source.kind == "builtin":
            vectors = builtin.encode(catalogue.texts, settings, corpus=corpus.texts, seed=seed, progress=progress)
        elif source.kind == "random":
            vectors = random_vectors(catalogue, settings.builtin_width)
        else:
            vectors = pretrained.encode(catalogue.texts, source, settings, corpus=corpus.texts, progress=progress)
        cache.write_vectors(fingerprint, vectors, encoder=source.label)
    label = source.label
    if source.kind != "builtin" and settings.adapt_steps:
        label += f"+mlm:{settings.adapt_steps}:{corpus.fingerprint[:12]}"
    alone = source.kind not in ("builtin", "random") and not settings.adapt_steps
    parts = [VERSION, source.kind, source.identity, settings.max_tokens]
    return TextFeatures(
        vectors=vectors,
        encoder=label,
        fingerprint=fingerprint,
        encoder_fingerprint=_hashed(parts) if alone else "",
    )


def random_vectors(catalogue: Catalogue, width: int) -> Float[Tensor, "items width"]:
    """Return a random direction for each item, drawn by its id and text: vectors that tell items apart and no more.

    An ablation: what a model loses with them, their text had told it.
    """
    drawn = [generator(0, "random item vector", *item).normal(size=width) for item in _items(catalogue)]
    return functional.normalize(torch.from_numpy(np.stack(drawn)).float(), dim=-1)


def _items(catalogue: Catalogue) -> Iterable[tuple[str, str]]:
    return zip(catalogue.item_ids, catalogue.texts, strict=True)


def _fingerprint(catalogue: Catalogue, settings: TextSettings, source: Source, corpus: Catalogue, seed: int) -> str:
    parts = [VERSION, catalogue.fingerprint, source.kind, source.identity, settings.max_tokens]
    if source.kind == "builtin":
        parts += [seed, corpus.fingerprint, settings.builtin_width, settings.builtin_layers]
        parts += [settings.builtin_vocabulary, settings.builtin_steps]
    if source.kind == "random":
        parts += [settings.builtin_width]
    elif settings.adapt_steps:
        parts += ["adapted", settings.adapt_steps, corpus.fingerprint]
    return _hashed(parts)


def _hashed(parts: Iterable[object]) -> str:
    label = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(label.encode(), digest_size=16).hexdigest()
