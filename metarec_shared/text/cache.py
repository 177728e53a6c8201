"""Text vectors on disk, by the hash of what they were computed from; a cache, so it may be deleted at any time.

Folder: the environment variable METAREC_CACHE, else the user's cache folder.
"""

import hashlib
import logging
import os
from pathlib import Path

import torch
from jaxtyping import Float
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metarec_shared.files import write_atomically

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of everything that MetaRec can compute again."""
    return Path(os.environ.get("METAREC_CACHE") or user_cache_dir("metarec"))


def read_vectors(fingerprint: str, items: int) -> Float[Tensor, "items width"] | None:
    """Return the stored vectors; None where there are none, or where the file is damaged, which is logged."""
    path = _path(fingerprint)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            vectors: Tensor = stored.get_tensor("vectors").clone()
            digest = (stored.metadata() or {}).get("digest")
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be read (%s); computing the text vectors again", path, error)
        return None
    if len(vectors) != items or digest != _digest(vectors):
        logger.warning("%s is damaged; computing the text vectors again", path)
        return None
    return vectors


def write_vectors(fingerprint: str, vectors: Float[Tensor, "items width"], *, encoder: str) -> None:
    """Store vectors. Where the folder cannot be written that is logged, and the next run computes them again."""
    metadata = {"encoder": encoder, "digest": _digest(vectors)}
    try:
        write_atomically(
            _path(fingerprint), lambda temporary: save_file({"vectors": vectors}, temporary, metadata=metadata)
        )
    except (OSError, SafetensorError) as error:
        logger.warning("cannot store the text vectors in %s: %s; set METAREC_CACHE", cache_folder(), error)


def _path(fingerprint: str) -> Path:
    return cache_folder() / "text" / f"{fingerprint}.safetensors"


def _digest(vectors: Float[Tensor, "items width"]) -> str:
    contents = vectors.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(contents, digest_size=16).hexdigest()
