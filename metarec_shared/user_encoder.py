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
) -> Float[Tensor, "users width"]:
    """Return BERT's output at the state token, which stands before the support items.

    Args:
        encoder: A BERT whose only word is the state token, and whose token types are feedback levels.
        inputs: Vectors of the support items.
        feedback: Their feedback levels.
        visible: Which of them may be read.
    """
    zeros = feedback.new_zeros(len(inputs), 1)
    state = encoder.embeddings.word_embeddings(zeros)
    hidden = encoder.embeddings(
        inputs_embeds=torch.cat([state, inputs], dim=1),
        token_type_ids=torch.cat([zeros, feedback], dim=1),
        position_ids=zeros.expand(-1, 1 + inputs.shape[1]),
    )
    shown = torch.cat([torch.ones_like(zeros, dtype=torch.bool), visible], dim=1)
    mask = torch.where(shown, 0.0, HIDDEN).to(hidden.dtype)[:, None, None, :]
    *layers, last = encoder.encoder.layer
    for layer in layers:
        hidden = layer(hidden, mask)
    return _state_of_last_layer(last, hidden, mask)


def _state_of_last_layer(layer: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
    assert isinstance(layer, BertLayer)
    attention, state = layer.attention.self, hidden[:, :1]
    query, key, value = (
        projection(tokens).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for projection, tokens in ((attention.query, state), (attention.key, hidden), (attention.value, hidden))
    )
    weights = F.softmax(query @ key.transpose(2, 3) * attention.scaling + mask, dim=-1)
    context = (weights @ value).transpose(1, 2).flatten(2)
    read: Tensor = layer.feed_forward_chunk(layer.attention.output(context, state))  # type: ignore[no-untyped-call]
    return read[:, 0]
