"""A small BERT trained on the catalogue's own text, for machines that have no pre-trained one.

A WordPiece tokenizer is trained on the item texts, then a BERT by masked language modelling on them, then each text
is the mean of its tokens, in the first layer and in the last. Such means all point one way, so they are centred and
half whitened.

References:
    Devlin et al., "BERT", NAACL 2019, arXiv 1810.04805, section 3.1 and appendix A.1 (masking: 15%, of which 80%
    become [MASK], 10% another piece, 10% stay).
    Su et al., "Whitening sentence representations", 2021, arXiv 2103.15316 (also averages first and last layer).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import track
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

from metarec_shared.device import one_thread
from metarec_shared.randomness import generator
from metarec_shared.settings import TextSettings
from metarec_shared.text.pooling import mean_pooled, padded, pool_texts

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PAD, _UNK, _CLS, _SEP, _MASK = range(len(_SPECIAL))
_BATCH = 16
_BUCKETS = 4
_LEARNING_RATE = 1e-3
_MASKED = 0.15


def encode(
    texts: Sequence[str],
    settings: TextSettings,
    *,
    corpus: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Float[Tensor, "texts width"]:
    """Train the built-in BERT on ``corpus`` and return the vectors of ``texts``, scaled to length 1.

    The same corpus, settings and seed give the same encoder; torch's global generator is left as it was.

    Args:
        texts: What to encode.
        settings: Sizes.
        corpus: What to train on, and whose vectors are centred and half whitened; None: ``texts``.
        seed: Seed of the training.
        progress: Whether to show progress bars.
    """
    corpus = texts if corpus is None else corpus
    tokenizer = train_tokenizer(corpus, settings)
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(list(corpus))]
    with torch.random.fork_rng(devices=[]), one_thread():  # sums have the same order on any number of cores
        torch.default_generator.manual_seed(int(generator(seed, "built-in text encoder").integers(2**63)))
        model = _build_model(tokenizer.get_vocab_size(), settings)
        _pretrain(model, tokens, settings.builtin_steps, progress=progress)
    model.eval()  # type: ignore[no-untyped-call]

    def pool(ids: Int[Tensor, "texts tokens"], mask: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts width"]:
        states = model.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.cat([mean_pooled(states[layer], mask.float()) for layer in (0, -1)], dim=-1)

    def pooled(tokens: Sequence[Sequence[int]]) -> Float[Tensor, "texts width"]:
        return pool_texts(tokens, pool, pad=_PAD, batch=settings.batch, label="encoding item texts", progress=progress)

    known = pooled(tokens)
    wanted = known if texts is corpus else pooled([encoding.ids for encoding in tokenizer.encode_batch(list(texts))])
    halves = zip(wanted.chunk(2, dim=-1), known.chunk(2, dim=-1), strict=True)
    return torch.cat([_spread(half, reference) for half, reference in halves], dim=-1) / 2**0.5


def train_tokenizer(texts: Sequence[str], settings: TextSettings) -> Tokenizer:
    """Return a lower-casing WordPiece tokenizer whose pieces were learned from ``texts``."""
    tokenizer = _wordpiece(None)
    trainer = WordPieceTrainer(
        vocab_size=settings.builtin_vocabulary,
        special_tokens=[*_SPECIAL, *_continuations(tokenizer, texts)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = _wordpiece(tokenizer.get_vocab())
    trained.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", _CLS), ("[SEP]", _SEP)]
    )
    trained.enable_truncation(settings.max_tokens)
    return trained


def _wordpiece(vocabulary: dict[str, int] | None) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text, not a password
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def _continuations(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Return the characters that stand inside words, as pieces.

    The trainer numbers these pieces in the order of a randomly seeded hash map and breaks ties by number, so its
    vocabulary differs from run to run unless they are numbered beforehand.
    """
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    return [f"##{character}" for character in sorted({character for word in words for character in word[1:]})]


def mask_tokens(
    ids: Int[Tensor, "texts tokens"], vocabulary: int
) -> tuple[Int[Tensor, "texts tokens"], Bool[Tensor, "texts tokens"]]:
    """Return the ids that the model reads and where it must tell the original ones; draws from torch's generator."""
    draw = torch.rand(ids.shape)
    chosen = (ids > _MASK) & (draw < _MASKED)
    shown = ids.masked_fill(chosen & (draw < 0.8 * _MASKED), _MASK)
    other = torch.randint(len(_SPECIAL), max(vocabulary, len(_SPECIAL) + 1), ids.shape)
    replaced = chosen & (draw >= 0.8 * _MASKED) & (draw < 0.9 * _MASKED)
    return torch.where(replaced, other.clamp(max=vocabulary - 1), shown), chosen


def _build_model(vocabulary: int, settings: TextSettings) -> BertForMaskedLM:
    width = settings.builtin_width
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=settings.builtin_layers,
        num_attention_heads=next(heads for heads in (max(1, width // 64), 1) if width % heads == 0),
        intermediate_size=4 * width,
        max_position_embeddings=settings.max_tokens,
        pad_token_id=_PAD,
    )
    return BertForMaskedLM(config)


def _pretrain(model: BertForMaskedLM, tokens: Sequence[Sequence[int]], steps: int, *, progress: bool) -> None:
    """Train by masked language modelling, in batches of texts of like length; the rate rises, then falls linearly."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    lengths = torch.tensor([len(ids) for ids in tokens])
    model.train()
    for step in track(range(steps), "training the built-in text encoder", transient=True, disable=not progress):
        ids, mask = padded([tokens[text] for text in _draw_batch(lengths).tolist()], _PAD)
        shown, chosen = mask_tokens(ids, model.config.vocab_size)
        if not chosen.any():
            continue
        hidden = model.bert(shown, attention_mask=mask).last_hidden_state
        loss = functional.cross_entropy(model.cls(hidden[chosen]), ids[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * min(10 * (step + 1), steps - step) / steps
        optimizer.step()


def _draw_batch(lengths: Int[Tensor, " texts"]) -> Int[Tensor, " batch"]:
    """Draw a batch from a larger draw sorted by length, so that little of it is padding."""
    drawn = torch.randint(len(lengths), (_BATCH * _BUCKETS,))
    drawn = drawn[lengths[drawn].argsort(stable=True)]
    return drawn.view(_BUCKETS, _BATCH)[int(torch.randint(_BUCKETS, ()))]


def _spread(
    vectors: Float[Tensor, "texts width"], reference: Float[Tensor, "corpus width"]
) -> Float[Tensor, "texts width"]:
    """Take the mean out, scale each principal direction by the root of its spread, and scale rows to length 1.

    Mean and directions are those of ``reference``.

    That is half of a whitening: directions that all texts vary in, such as their length, no longer hide the others. A
    text that is the mean itself keeps its direction.
    """
    mean = reference.mean(dim=0)
    around = (reference - mean).double()
    centred = (vectors - mean).double()
    spread, directions = torch.linalg.eigh(around.T @ around)
    scale = spread.clamp(min=1e-12 * float(spread[-1]) + 1e-30) ** -0.25
    scaled = (centred @ (directions * scale) @ directions.T).float()
    away = centred.norm(dim=-1, keepdim=True) > 1e-4 * vectors.norm(dim=-1, keepdim=True)
    return functional.normalize(torch.where(away, scaled, vectors), dim=-1)
