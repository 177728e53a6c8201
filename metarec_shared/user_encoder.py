"""Read a support set with BERT, computing only what the state token's output depends on.

Nobody looks at what the last layer writes at the support items, so there only the state token asks: keys and values
come from all tokens, the rest of the layer runs on one. The result is ``BertModel``'s own to rounding.

``read_tokens`` returns what BERT writes at every token, for pre-training, where other tokens than the state token ask.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

HIDDEN = -1e4
"""Additive attention mask of padding: its softmax weight is exactly 0 in float32."""


RECENCY_LEVELS = 20
"""Ranks in time that are told apart; older items share the last. Level 0 means that the rank is not known."""


class Attributes(NamedTuple):
    """Users' attributes as BERT reads them.

    Attributes:
        words: Which word of BERT's vocabulary each attribute is, [users, columns].
        told: Which of them may be read; what a user does not tell is padding.
    """

    words: Int[Tensor, "users columns"]
    told: Bool[Tensor, "users columns"]


def read_support(
    encoder: BertModel,
    inputs: Float[Tensor, "users support width"],
    feedback: Int[Tensor, "users support"],
    visible: Bool[Tensor, "users support"],
    recency: Int[Tensor, "users support"] | None = None,
    *,
    state: Int[Tensor, " users"] | None = None,
    attributes: Attributes | None = None,
    joined: bool = False,
    weights: Float[Tensor, "users support"] | None = None,
) -> Float[Tensor, "users width"]:
    """Return BERT's output at the state token, which stands before the user's attributes and the support items.

    Args:
        encoder: A BERT whose words are state tokens, and whose token types are feedback levels.
        inputs: Vectors of the support items.
        feedback: Their feedback levels.
        visible: Which of them may be read.
        recency: Their ranks in time, BERT's positions, for an encoder that has them; None: the support set is a set.
        state: Which state token each user has; None: the first.
        attributes: What the users tell of themselves, one token an attribute, for an encoder that has words for them.
        joined: Whether a layer's projections may be joined in one product and its attention be one kernel: faster, and
            the same to rounding, but single layers cannot be watched and it can be differentiated only once.
        weights: How often each support item is there, which is what softmax makes of it; None: once.
    """
    hidden = _embedded(encoder, inputs, feedback, recency, state, attributes)
    mask = _mask(visible if attributes is None else torch.cat([attributes.told, visible], dim=1), hidden.dtype)
    if weights is not None:
        mask = mask + times_there(weights, mask.shape[-1])[:, None, None, :]
    attend = _attend_joined if joined else _attend
    *layers, last = encoder.encoder.layer
    for layer in layers:
        hidden = _after_attention(layer, attend(layer, hidden, hidden, mask), hidden)
    asking = hidden[:, :1]
    return _after_attention(last, attend(last, asking, hidden, mask), asking)[:, 0]


def read_tokens(
    encoder: BertModel,
    inputs: Float[Tensor, "users items width"],
    feedback: Int[Tensor, "users items"],
    visible: Bool[Tensor, "users items"],
    masked: Bool[Tensor, "users items"],
    recency: Int[Tensor, "users items"] | None = None,
) -> Float[Tensor, "users tokens width"]:
    """Return BERT's output at every token, the state token first, where some items are masked.

    A masked item's vector is the state token's, which is BERT4Rec's [mask]: both ask what belongs there. Its
    feedback is hidden, its rank in time is not.

    Args:
        encoder: As in ``read_support``.
        inputs: Vectors of the items.
        feedback: Their feedback levels.
        visible: Which are no padding.
        masked: Which are masked.
        recency: As in ``read_support``.
    """
    state = encoder.embeddings.word_embeddings.weight[0]
    hidden = _embedded(
        encoder, torch.where(masked[:, :, None], state, inputs), feedback.masked_fill(masked, 0), recency
    )
    mask = _mask(visible, hidden.dtype)
    for layer in encoder.encoder.layer:
        hidden = _after_attention(layer, _attend(layer, hidden, hidden, mask), hidden)
    return hidden


def _embedded(
    encoder: BertModel,
    inputs: Tensor,
    feedback: Tensor,
    recency: Tensor | None,
    state: Tensor | None = None,
    attributes: Attributes | None = None,
) -> Tensor:
    """Return the tokens as the first layer reads them: the state token, attributes, items.

    Words are looked up once, so that the norm of their table's gradient is one use's.
    """
    zeros = feedback.new_zeros(inputs.shape[0], 1)
    words = zeros if state is None else state[:, None]
    types, before = zeros, zeros
    if attributes is not None:
        words = torch.cat([words, attributes.words], dim=1)
        own_type = torch.full_like(attributes.words, encoder.config.type_vocab_size - 1)
        types, before = torch.cat([zeros, own_type], dim=1), torch.zeros_like(words)
    levels = None if recency is None else recency.clamp(max=RECENCY_LEVELS)
    hidden: Tensor = encoder.embeddings(
        inputs_embeds=torch.cat([encoder.embeddings.word_embeddings(words), inputs], dim=1),
        token_type_ids=torch.cat([types, feedback], dim=1),
        position_ids=zeros if levels is None else torch.cat([before, levels], dim=1),
    )
    return hidden


def _mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask of the tokens that may be read, of which the state token is one."""
    shown = torch.cat([visible.new_ones(visible.shape[0], 1), visible], dim=1)
    return torch.where(shown, 0.0, HIDDEN).to(dtype)[:, None, None, :]


def times_there(weights: Float[Tensor, "users support"], tokens: int) -> Float[Tensor, "users tokens"]:
    """Return what attention to tokens, of which the support items are the last, is added where each is there so often.

    A token that is there w times has w times its softmax weight: log w is added, as good as -inf for none.
    """
    return F.pad(weights.clamp(min=torch.finfo(weights.dtype).tiny).log(), (tokens - weights.shape[1], 0))


def _attend(layer: nn.Module, asking: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the attention's context of the ``asking`` tokens, [users, heads, tokens, head width]."""
    assert isinstance(layer, BertLayer)
    attention = layer.attention.self
    query, key, value = (
        _heads(projection(tokens), attention.attention_head_size)
        for projection, tokens in ((attention.query, asking), (attention.key, hidden), (attention.value, hidden))
    )
    weights: Tensor = F.softmax(query @ key.transpose(2, 3) * attention.scaling + mask, dim=-1) @ value
    return weights


def _attend_joined(layer: nn.Module, asking: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the same by few large kernels."""
    assert isinstance(layer, BertLayer)
    attention = layer.attention.self
    joined = [attention.query, attention.key, attention.value][asking is not hidden :]
    weight, bias = (torch.cat([getattr(part, name) for part in joined]) for name in ("weight", "bias"))
    parts = list(F.linear(hidden, weight, bias).chunk(len(joined), dim=-1))
    if asking is not hidden:
        parts.insert(0, attention.query(asking))
    query, key, value = (_heads(part, attention.attention_head_size) for part in parts)
    return F.scaled_dot_product_attention(query, key, value, mask.expand(-1, -1, asking.shape[1], -1))


def _after_attention(layer: nn.Module, context: Tensor, asking: Tensor) -> Tensor:
    assert isinstance(layer, BertLayer)
    attended = layer.attention.output(context.transpose(1, 2).flatten(2), asking)
    written: Tensor = layer.feed_forward_chunk(attended)  # type: ignore[no-untyped-call]
    return written


def _heads(tokens: Tensor, width: int) -> Tensor:
    return tokens.unflatten(-1, (-1, width)).transpose(1, 2)  # type: ignore[no-any-return, no-untyped-call]
