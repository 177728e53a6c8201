"""Go on training a pre-trained text encoder on the catalogue's texts, by masked language modelling.

The head that says which tokens were masked is the checkpoint's own where it has one, else new and tied to the token
embeddings; it is dropped afterwards. Nothing here depends on the run's seed: the same encoder on the same texts gives
the same vectors, so that a run on other data can start from a run on these.

References:
    Gururangan et al. (2020), Don't stop pretraining: adapt language models to domains and tasks, section 4 (TAPT).
    Devlin et al. (2019), BERT, section 3.1; masking is transformers' ``DataCollatorForLanguageModeling``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from rich.progress import track
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling

from metarec_shared.device import one_thread
from metarec_shared.errors import SettingsError
from metarec_shared.randomness import generator
from metarec_shared.text.pretrained import quiet
from metarec_shared.text.sources import Source

BATCH = 16
LEARNING_RATE = 5e-5
MASKED = 0.15


def trained_on(
    tokens: Sequence[Sequence[int]], tokenizer: Any, source: Source, steps: int, *, progress: bool = False
) -> Any:
    """Return the encoder of ``source`` after further steps on texts, its head left out, ready to encode.

    Args:
        tokens: Token ids of the texts.
        tokenizer: The encoder's.
        source: The encoder, a folder or a hub model that was loaded before.
        steps: Steps of AdamW, whose learning rate falls linearly.
        progress: Whether to show a progress bar.

    Raises:
        SettingsError: The encoder has no masked token, or no head for one.
    """
    if tokenizer.mask_token_id is None:
        raise SettingsError(
            f"text.adapt-steps: {source.label} has no mask token, so it cannot go on by masked language"
        )
    seed = int(generator(0, "text adaptation").integers(2**31))
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.default_generator.manual_seed(seed)
        model = _load(source)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        model.train()
        for step in track(range(steps), "training the text encoder", transient=True, disable=not progress):
            drawn = torch.randint(len(tokens), (BATCH,)).tolist()
            loss = masked_loss(model, collator([{"input_ids": list(tokens[text])} for text in drawn]))
            if loss is None:
                continue
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (steps - step) / steps
            optimizer.step()
    return model.base_model.eval()


def masked_loss(model: Any, batch: Any) -> torch.Tensor | None:
    """Return the cross-entropy of the masked tokens of a batch; None where it has none."""
    if not bool((batch["labels"] >= 0).any()):
        return None
    return model(**batch).loss  # type: ignore[no-any-return]


def _load(source: Source) -> Any:
    options = {"revision": source.revision or None, "local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            return AutoModelForMaskedLM.from_pretrained(source.location, **options, dtype=torch.float32)  # nosec B615
    except Exception as error:  # transformers raises many kinds where an architecture has no such head
        cause = " ".join(str(error).split())[:200]
        raise SettingsError(f"text.adapt-steps: {source.label} cannot go on by masked language: {cause}") from error
