"""Text vectors of any BERT that transformers can load.

References:
    Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, arXiv 1908.10084 (mean pooling over tokens).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from metarec_shared.errors import SettingsError
from metarec_shared.settings import TextSettings
from metarec_shared.text.pooling import mean_pooled, pool_texts
from metarec_shared.text.sources import Source, hub_commit


def encode(
    texts: Sequence[str],
    source: Source,
    settings: TextSettings,
    *,
    corpus: Sequence[str] | None = None,
    progress: bool = False,
) -> Float[Tensor, "texts width"]:
    """Return the mean of the last layer over each text's tokens, scaled to length 1.

    Args:
        texts: What to encode.
        source: The encoder.
        settings: How it reads, and whether it goes on training first (``masked_language``).
        corpus: What it goes on training on; None: ``texts``.
        progress: Whether to show progress bars.

    Raises:
        SettingsError: The encoder cannot be loaded.
    """
    tokenizer, model = load(source)
    limit = min(settings.max_tokens, tokenizer.model_max_length, _positions(model))
    tokens = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    if settings.adapt_steps:
        from metarec_shared.text.masked_language import trained_on

        read = tokens if corpus is None else tokenizer(list(corpus), truncation=True, max_length=limit)["input_ids"]
        model = trained_on(read, tokenizer, source, settings.adapt_steps, progress=progress)

    def pool(ids: Int[Tensor, "texts tokens"], mask: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts width"]:
        return mean_pooled(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask.float())

    vectors = pool_texts(
        tokens, pool, pad=tokenizer.pad_token_id, batch=settings.batch, label="encoding item texts", progress=progress
    )
    return functional.normalize(vectors, dim=-1)


def load(source: Source) -> tuple[Any, Any]:
    """Return the tokenizer and the model of a folder or of the hub; what was downloaded before is not fetched again.

    Raises:
        SettingsError: It is not there, or is not a text encoder.
    """
    try:
        if source.kind == "directory":
            return _load(source.location, source, None, local=True)
        with contextlib.suppress(OSError, ValueError):
            return _load(source.location, source, source.revision, local=True)
        _, reason = hub_commit(source.location, source.revision)
        if reason:
            raise SettingsError(f"text.encoder: {source.label} was never downloaded and cannot be fetched ({reason})")
        return _load(source.location, source, source.revision, local=False)
    except SettingsError:
        raise
    except Exception as error:  # transformers raises many kinds for a folder that holds something else
        cause = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"text.encoder: {source.location} holds no BERT that transformers can load "
            f"({type(error).__name__}: {cause}); wanted config.json, the weights and the tokenizer's files"
        ) from error


def _load(location: str, source: Source, revision: str | None, *, local: bool) -> tuple[Any, Any]:
    options = {"revision": revision, "local_files_only": local, "trust_remote_code": False}
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(location, **options)  # nosec B615
        model, report = AutoModel.from_pretrained(location, **options, dtype=torch.float32, output_loading_info=True)  # nosec B615
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        lacking = f"{len(missing)} of the model's tensors, such as {missing[0]}"
        raise SettingsError(f"text.encoder: the weights of {source.label} lack {lacking}")
    if tokenizer.pad_token_id is None or len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise SettingsError(f"text.encoder: the tokenizer of {source.label} does not fit its model")
    return tokenizer, model.eval()


def _positions(model: Any) -> int:
    """Return how many tokens the model can read at once."""
    return int(getattr(model.config, "max_position_embeddings", 512))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and listing heads that encoding does not need."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
