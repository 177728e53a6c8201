"""Read a history causally with GPT-2: the output at an item depends on it and on what came before it, in time.

Items need not lie in time order in a batch: attention goes by their ranks in time. The result is ``GPT2Model``'s own
on items in time order, to rounding; it is computed from the layers because single layers must be watched (ghost norms)
and vectorized over users with parameters of their own.

References:
    Radford et al. (2019), Language models are unsupervised multitask learners. Kang and McAuley (2018), Self-attentive
    sequential recommendation (SASRec), section III: causal attention, the last output predicts the next item.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from metarec_shared.settings import ModelSettings
from metarec_shared.user_encoder import HIDDEN, times_there

POSITIONS = 64
"""Positions that GPT-2 tells apart, the state token's first; what comes later shares the last."""

_STATE, _FIRST_LEVEL = 0, 1  # words of GPT-2's vocabulary: the state token, then the feedback levels from none on
_BEFORE_ALL = -(2**40)


def build_causal_encoder(model: ModelSettings, feedback_levels: int) -> GPT2Model:
    """Return a GPT-2 whose words are the state token, "no feedback" and the feedback levels."""
    config = GPT2Config(
        vocab_size=_FIRST_LEVEL + 1 + feedback_levels,
        n_positions=POSITIONS,
        n_embd=model.width,
        n_layer=model.layers,
        n_head=model.heads,
        n_inner=model.intermediate,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=_STATE,
        eos_token_id=_STATE,
        attn_implementation="eager",  # type: ignore[call-arg]
    )
    return GPT2Model(config)


def read_causally(
    encoder: GPT2Model,
    inputs: Float[Tensor, "users items width"],
    feedback: Int[Tensor, "users items"],
    visible: Bool[Tensor, "users items"],
    recency: Int[Tensor, "users items"] | None = None,
    weights: Float[Tensor, "users items"] | None = None,
) -> Float[Tensor, "users tokens width"]:
    """Return GPT-2's output at every token, the state token first, then the items as they stand in ``inputs``.

    Args:
        encoder: As ``build_causal_encoder`` makes it.
        inputs: Vectors of the items.
        feedback: Their feedback levels.
        visible: Which of them may be read; the output at another one means nothing.
        recency: Their ranks in time, 1 for the newest; None: they stand in time order.
        weights: How often each of them is read by the others; None: once.
    """
    time = _time(visible, recency)
    shown = torch.cat([visible.new_ones(len(visible), 1), visible], dim=1)
    seen = (time[:, None, :] <= time[:, :, None]) & shown[:, None, :]
    mask = torch.where(seen, 0.0, HIDDEN).to(inputs.dtype)[:, None]
    if weights is not None:
        mask = mask + times_there(weights, mask.shape[-1])[:, None, None, :]
    positions = (seen.sum(dim=2) - 1).clamp(max=POSITIONS - 1)
    state = feedback.new_full((len(feedback), 1), _STATE)
    types = torch.cat([torch.zeros_like(state), feedback], dim=1) + _FIRST_LEVEL
    words = encoder.wte(torch.cat([state, types], dim=1))  # one use of the embedding, whose norm is then one use's
    hidden: Tensor = torch.cat([words[:, :1], inputs], dim=1) + words[:, 1:] + encoder.wpe(positions)
    for block in encoder.h:
        assert isinstance(block, GPT2Block)
        attention, normed = block.attn, block.ln_1(hidden)
        query, key, value = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for part in attention.c_attn(normed).chunk(3, dim=-1)
        )
        weights = F.softmax(query @ key.transpose(2, 3) * attention.head_dim**-0.5 + mask, dim=-1)
        hidden = hidden + attention.c_proj((weights @ value).transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.ln_2(hidden))
    return encoder.ln_f(hidden)  # type: ignore[no-any-return]


def last_output(
    outputs: Float[Tensor, "users tokens width"],
    visible: Bool[Tensor, "users items"],
    recency: Int[Tensor, "users items"] | None = None,
) -> Float[Tensor, "users width"]:
    """Return the output at the newest visible item, at the state token where there is none."""
    time = _time(visible, recency)
    shown = torch.cat([visible.new_ones(len(visible), 1), visible], dim=1)
    newest = time.masked_fill(~shown, _BEFORE_ALL - 1).argmax(dim=1)
    return outputs.gather(1, newest[:, None, None].expand(-1, 1, outputs.shape[2]))[:, 0]


def _time(visible: Tensor, recency: Tensor | None) -> Tensor:
    """Return numbers that grow with time, [users, tokens]; of items of the same rank the later one counts as newer."""
    items = visible.shape[1]
    place = torch.arange(items, device=visible.device).expand(visible.shape)
    time = place if recency is None else place - recency * items
    return torch.cat([time.new_full((len(time), 1), _BEFORE_ALL), time], dim=1)
