"""A small BERT with its tokenizer, in a folder as transformers writes it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from metarec_shared.settings import TextSettings
from metarec_shared.text.builtin import train_tokenizer


def write_small_bert(folder: Path, texts: Sequence[str]) -> Path:
    """Write one, with a head for masked tokens and a tokenizer trained on ``texts``."""
    small_tokenizer(texts, "[MASK]").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        BertForMaskedLM(config).save_pretrained(folder)
    return folder


def small_tokenizer(texts: Sequence[str], mask: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words in ``texts``."""
    trained = train_tokenizer(tuple(texts), TextSettings(builtin_vocabulary=200))
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=trained, pad_token="[PAD]", mask_token=mask, **special)
