"""Read a support set with BERT, computing only what the state token's output depends on.

Nobody looks at what the last layer writes at the support items, so there only the state token asks: keys and values
come from all tokens, the rest of the layer runs on one. The result is ``BertModel``'s own to rounding.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

HIDDEN = -1e4
"""Additive attention mask of padding: its softmax weight is exactly 0 in float32."""


def read_support(
    encoder: BertModel,
    inputs: Float[Tensor, "users support width"],
    feedback: Int[Tensor, "users support"],
    visible: Bool[Tensor, "users support"],
    state: Bool[Tensor, " users"] | None = None,
    *,
    joined: bool = False,
) -> Float[Tensor, "users width"]:
    """Return BERT's output at the state token, which stands before the support items.

    Args:
        encoder: A BERT whose words are state tokens, and whose token types are feedback levels.
        inputs: Vectors of the support items.
        feedback: Their feedback levels.
        visible: Which of them may be read.
        state: Who has the second state token; None: nobody.
        joined: Whether a layer's projections may be joined in one product and its attention be one kernel: faster, and
            the same to rounding, but single layers cannot be watched and it can be differentiated only once.
    """
    zeros = feedback.new_zeros(len(inputs), 1)
    words = zeros if state is None else state.long()[:, None]
    hidden = encoder.embeddings(
        inputs_embeds=torch.cat([encoder.embeddings.word_embeddings(words), inputs], dim=1),
        token_type_ids=torch.cat([zeros, feedback], dim=1),
        position_ids=zeros,
    )
    shown = torch.cat([torch.ones_like(zeros, dtype=torch.bool), visible], dim=1)
    mask = torch.where(shown, 0.0, HIDDEN).to(hidden.dtype)[:, None, None, :]
    attend = _attend_joined if joined else _attend
    *layers, last = encoder.encoder.layer
    for layer in layers:
        hidden = _after_attention(layer, attend(layer, hidden, hidden, mask), hidden)
    asking = hidden[:, :1]
    return _after_attention(last, attend(last, asking, hidden, mask), asking)[:, 0]


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
