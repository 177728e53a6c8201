"""The recommender: a small transformer reads a support set and writes a user vector; items are vectors of their text.

    item vector   e_j = LayerNorm(W t_j + v_j)       t_j frozen text vector, v_j learned ID vector (optional)
    user vector   h   = V BERT([state], e_s + feedback_s for s in the support set)
    score         s_j = h . e_j + b_j                b_j starts at log popularity

Feedback enters as BERT's token type. The state token is the only word of BERT's vocabulary, or one of three: what
follows interactions in a row, from a history's start or not, is not what a random half of a history says of the other,
so each has its own. Attributes of the user (``model.attribute-buckets``) are further words, with a token type of their
own: one token an attribute, beside the support items. There are no positions, a support set is a set, unless
``model.recency`` makes them ranks in time. With ``model.encoder = gpt2`` a GPT-2 reads the items in time order instead,
each seeing only what came before it, and the user vector is made of its last output (``causal_encoder``). The model is
deterministic; dropout factors come with the task.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Model

from metarec_shared.adaptation import Adaptation, ClosedForm, build_adaptation
from metarec_shared.causal_encoder import build_causal_encoder, last_output, read_causally
from metarec_shared.feedback import FEEDBACK_LEVELS
from metarec_shared.inner_loop import Items, scores
from metarec_shared.rating_head import RatingHead
from metarec_shared.settings import AdaptationSettings, ModelSettings
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskRegression
from metarec_shared.tasks import Order, TaskBatch
from metarec_shared.text_kernel import TextKernel
from metarec_shared.user_encoder import RECENCY_LEVELS, Attributes, read_support


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
        self.order_aware = model.order_aware
        self.register_buffer("text", text, persistent=False)
        self._text_products: Tensor | None = None
        self.projection = nn.Linear(text.shape[1], width)
        self.item_ids = nn.Parameter(torch.randn(items, width) * 0.02) if model.item_ids else None
        self.item_norm = nn.LayerNorm(width)
        self.item_bias = nn.Parameter(torch.zeros(items))
        self.uses_recency = model.recency
        self.attribute_buckets = model.attribute_buckets
        self.has_adapters = False
        levels = FEEDBACK_LEVELS if model.feedback else 0
        self.encoder: BertModel | GPT2Model
        if model.encoder == "gpt2":
            self.encoder = build_causal_encoder(model, levels)
        else:
            self.encoder = _build_bert(model, levels)
        self.head = nn.Linear(width, width)
        self.rating_weight = model.rating_weight
        self.rating_head = RatingHead(width) if model.rating_weight else None
        self.adaptation: Adaptation = build_adaptation(adaptation, width)
        self.regressions: Mapping[Order, Sequence[TaskRegression]] = {}
        self.start_prior: StartPrior | None = None
        self.text_kernel: TextKernel | None = None

    def item_vectors(self, id_mask: Bool[Tensor, " items"] | None = None) -> Float[Tensor, "items width"]:
        """Return the vector of every item; ``id_mask`` switches ID vectors off where it is false."""
        return self.item_norm(self.before_norm(id_mask))  # type: ignore[no-any-return]

    def before_norm(self, id_mask: Bool[Tensor, " items"] | None = None) -> Float[Tensor, "items width"]:
        """Return the items' projected text plus ID vectors, which layer normalization turns into item vectors."""
        projected: Tensor = self.projection(self.text)
        if self.item_ids is None:
            return projected
        return projected + (self.item_ids if id_mask is None else self.item_ids * id_mask[:, None])

    def text_products(self) -> Float[Tensor, "items items"]:
        """Return the inner products of all text vectors, computed once."""
        if self._text_products is None or self._text_products.device != self.text.device:
            self._text_products = self.text @ self.text.T
        return self._text_products

    def encode(self, tasks: TaskBatch, E: Float[Tensor, "items width"]) -> Float[Tensor, "users width"]:
        """Read the support sets; return BERT's output at the state token."""
        joined = isinstance(self.adaptation, ClosedForm) and not torch.is_grad_enabled()
        return self.read(tasks, E[tasks.support], joined=joined)

    def read(
        self, tasks: TaskBatch, rows: Float[Tensor, "users support width"], *, joined: bool = False
    ) -> Float[Tensor, "users width"]:
        """Read support sets whose item vectors have been looked up; ``joined`` as in ``read_support``."""
        seen = rows if tasks.perturbation is None else rows + tasks.perturbation
        inputs = seen if tasks.dropout is None else seen * tasks.dropout[:, :-1]
        feedback = self.levels(tasks.feedback)
        if isinstance(self.encoder, GPT2Model):
            outputs = read_causally(self.encoder, inputs, feedback, tasks.support_mask, tasks.recency, tasks.weights)
            encoded = last_output(outputs, tasks.support_mask, tasks.recency)
        else:
            recency = self.ranks(tasks.recency, tasks.support)
            encoded = read_support(
                self.encoder,
                inputs,
                feedback,
                tasks.support_mask,
                recency,
                state=self.states(tasks) if self.order_aware else None,
                attributes=self.attributes(tasks.attributes),
                joined=joined and not self.has_adapters,
                weights=tasks.weights,
            )
        return encoded if tasks.dropout is None else encoded * tasks.dropout[:, -1]

    def states(self, tasks: TaskBatch) -> Int[Tensor, " users"] | None:
        """Return which state token reads each task: 0 in random order, 1 in a row, 2 in a row from the start."""
        if tasks.in_time is None:
            return None
        return tasks.in_time.long() if tasks.from_start is None else tasks.in_time.long() + tasks.from_start.long()

    def levels(self, feedback: Int[Tensor, "users support"]) -> Int[Tensor, "users support"]:
        """Return feedback levels as the encoder reads them: all 0 where it reads none."""
        return feedback if self.uses_feedback else torch.zeros_like(feedback)

    def ranks(
        self, recency: Int[Tensor, "users support"] | None, like: Int[Tensor, "users support"]
    ) -> Int[Tensor, "users support"] | None:
        """Return ranks in time as BERT reads them: None where it reads none, zeros where none are known."""
        if not self.uses_recency:
            return None
        return torch.zeros_like(like) if recency is None else recency

    def attributes(self, hashes: Int[Tensor, "users columns"] | None) -> Attributes | None:
        """Return attributes as BERT reads them, words behind the state tokens; None where it reads or gets none."""
        if hashes is None or not self.attribute_buckets:
            return None
        return Attributes(words=_state_tokens(self.order_aware) + hashes % self.attribute_buckets, told=hashes != 0)

    def ratings(
        self, tasks: TaskBatch, vectors: Float[Tensor, "users items width"], E: Float[Tensor, "items width"]
    ) -> Float[Tensor, "users items"] | None:
        """Return the ratings, from 0 to 1, that users would give items; None where the model predicts none."""
        return None if self.rating_head is None else self.rating_head(self.head(self.encode(tasks, E)), vectors)

    def items(self, E: Float[Tensor, "items width"]) -> Items:
        """Return what scores need of the catalogue."""
        return Items(E, self.item_bias)

    def regressed(self, scored: Float[Tensor, "users items"], tasks: TaskBatch) -> Float[Tensor, "users items"]:
        """Add what is predicted of each user's support set beside the model, by whatever the model has for it."""
        sizes = tasks.support_sizes()
        for order, regressions in self.regressions.items():
            counted = tasks.counted(scored.dtype) * tasks.in_order(order)[:, None]
            for regression in regressions:
                scored = scored + regression.blended(tasks.support, counted, sizes)
        if self.start_prior is not None:
            scored = scored + self.start_prior.blended(tasks)
        if self.text_kernel is not None:
            scored = scored + self.text_kernel.blended(tasks)
        return scored

    def forward(
        self,
        tasks: TaskBatch,
        id_mask: Bool[Tensor, " items"] | None = None,
        *,
        adapt: bool = True,
        E: Float[Tensor, "items width"] | None = None,
    ) -> Float[Tensor, "users items"]:
        """Adapt to each user's support set (inner loop), then score the catalogue for each.

        Args:
            tasks: Support sets.
            id_mask: Items whose ID vector is on; None: all.
            adapt: Whether to run the inner loop; without it the meta-initialization only reads the support set.
            E: Item vectors where somebody has computed them already.
        """
        if E is None:
            E = self.item_vectors(id_mask)
        if adapt:
            return self.regressed(self.adaptation(self, tasks, E, id_mask), tasks)
        return scores(self.head(self.encode(tasks, E)), self.items(E))


def _state_tokens(order_aware: bool) -> int:
    return 3 if order_aware else 1


def _build_bert(model: ModelSettings, feedback_levels: int) -> BertModel:
    """Return a BERT with state tokens and attributes as words, feedback levels as types, ranks in time as positions.

    Type 0 is that of no feedback, the last one, where there are attributes, is theirs.
    """
    config = BertConfig(
        vocab_size=_state_tokens(model.order_aware) + model.attribute_buckets,
        pad_token_id=None,
        type_vocab_size=1 + feedback_levels + (model.attribute_buckets > 0),
        max_position_embeddings=1 + RECENCY_LEVELS if model.recency else 1,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.intermediate,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",  # type: ignore[call-arg]
    )
    return BertModel(config, add_pooling_layer=False)
