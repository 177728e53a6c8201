"""The recommender: a small BERT reads a support set and writes a user vector; items are vectors of their public text.

    item vector   e_j = LayerNorm(W t_j + v_j)       t_j frozen text vector, v_j learned ID vector (optional)
    user vector   h   = V BERT([state], e_s + feedback_s for s in the support set)
    score         s_j = h . e_j + b_j                b_j starts at log popularity

Feedback enters as BERT's token type, the state token is the only word of BERT's vocabulary. There are no positions:
a support set is a set. The model is deterministic; dropout factors come with the task.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from metarec_shared.adaptation import Adaptation, build_adaptation
from metarec_shared.settings import AdaptationSettings, ModelSettings
from metarec_shared.tasks import FEEDBACK_LEVELS, TaskBatch

HIDDEN = -1e4
"""Additive attention mask of padding: its softmax weight is exactly 0 in float32."""

NEVER = -1e9
"""Score of an item that must not be ranked."""


class BertRecommender(nn.Module):
    """Scores a whole catalogue for users known by a few interactions.

    Args:
        text: Frozen text vectors of the catalogue. They are public and never travel as parameters.
        model: Sizes.
        adaptation: The inner loop.
    """

    text: Tensor

    def __init__(self, text: Float[Tensor, "items text"], model: ModelSettings, adaptation: AdaptationSettings) -> None:
        super().__init__()
        items, width = len(text), model.width
        self.uses_feedback = model.feedback
        self.register_buffer("text", text, persistent=False)
        self.projection = nn.Linear(text.shape[1], width)
        self.item_ids = nn.Parameter(torch.randn(items, width) * 0.02) if model.item_ids else None
        self.item_norm = nn.LayerNorm(width)
        self.item_bias = nn.Parameter(torch.zeros(items))
        self.encoder = BertModel(
            BertConfig(
                vocab_size=1,
                pad_token_id=None,
                type_vocab_size=1 + FEEDBACK_LEVELS if model.feedback else 1,
                max_position_embeddings=1,
                hidden_size=width,
                num_hidden_layers=model.layers,
                num_attention_heads=model.heads,
                intermediate_size=model.intermediate,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                attn_implementation="eager",  # type: ignore[call-arg]
            ),
            add_pooling_layer=False,
        )
        self.head = nn.Linear(width, width)
        self.adaptation: Adaptation = build_adaptation(adaptation, width)

    def item_vectors(self, id_mask: Bool[Tensor, " items"] | None = None) -> Float[Tensor, "items width"]:
        """Return the vector of every item; ``id_mask`` switches ID vectors off where it is false."""
        vectors = self.projection(self.text)
        if self.item_ids is not None:
            ids = self.item_ids if id_mask is None else self.item_ids * id_mask[:, None]
            vectors = vectors + ids
        return self.item_norm(vectors)  # type: ignore[no-any-return]

    def encode(self, tasks: TaskBatch, E: Float[Tensor, "items width"]) -> Float[Tensor, "users width"]:
        """Read the support sets; return BERT's output at the state token."""
        users, support = tasks.support.shape
        inputs = E[tasks.support]
        if tasks.dropout is not None:
            inputs = inputs * tasks.dropout[:, :-1]
        state = self.encoder.embeddings.word_embeddings.weight.expand(users, 1, -1)
        zeros = tasks.support.new_zeros(users, 1)
        feedback = tasks.feedback if self.uses_feedback else torch.zeros_like(tasks.feedback)
        visible = torch.cat([torch.ones_like(zeros, dtype=torch.bool), tasks.support_mask], dim=1)
        encoded: Tensor = self.encoder(
            inputs_embeds=torch.cat([state, inputs], dim=1),
            token_type_ids=torch.cat([zeros, feedback], dim=1),
            position_ids=zeros.expand(users, 1 + support),
            attention_mask=torch.where(visible, 0.0, HIDDEN)[:, None, None, :],
        ).last_hidden_state[:, 0]
        return encoded * tasks.dropout[:, -1] if tasks.dropout is not None else encoded

    def scores(self, h: Float[Tensor, "users width"], E: Float[Tensor, "items width"]) -> Float[Tensor, "users items"]:
        """Score every item for every user vector."""
        return h @ E.T + self.item_bias

    def forward(
        self, tasks: TaskBatch, id_mask: Bool[Tensor, " items"] | None = None, *, adapt: bool = True
    ) -> Float[Tensor, "users items"]:
        """Adapt to each user's support set (inner loop), then score the catalogue for each.

        Args:
            tasks: Support sets.
            id_mask: Items whose ID vector is on; None: all.
            adapt: Whether to run the inner loop; without it the meta-initialization only reads the support set.
        """
        if adapt:
            return self.adaptation(self, tasks, id_mask)  # type: ignore[no-any-return]
        E = self.item_vectors(id_mask)
        return self.scores(self.head(self.encode(tasks, E)), E)
