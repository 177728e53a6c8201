"""The whole way from a history to recommendations as one graph of ordinary operators, with no gradient left to compute.

    item indices, feedback, mask, order  ->  BERT  ->  inner loop, unrolled  ->  scores  ->  additions  ->  top k

The user encoder and the inner loop are the model's own modules, which the exporter traces: the gradient of the support
loss has a closed form (``inner_loop``), so that a step of the inner loop is two matrix products and a softmax. What the
model computes of the catalogue alone, the item vectors, is a constant. A history is the whole one, oldest first where
it is in time, as ``client.recommend`` reads it.
"""

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from client.export.additions import KernelPart, RegressionPart, StartPart
from client.export.tables import quantized, table
from metarec_shared.adaptation import ClosedForm
from metarec_shared.errors import CheckpointError
from metarec_shared.inner_loop import NEVER, Items, scores
from metarec_shared.model import BertRecommender
from metarec_shared.settings import Settings
from metarec_shared.tasks import TaskBatch


class EdgeGraph(nn.Module):
    """Adapts to histories and ranks the catalogue for each.

    Args:
        model: The recommender over the whole catalogue.
        neighbours: Weights of task regressions kept of each item, the largest; None: all.
        int8: Whether weights, item vectors and the additions' matrices are quantized.
    """

    bias: Tensor

    def __init__(self, model: BertRecommender, *, neighbours: int | None = None, int8: bool = False) -> None:
        super().__init__()
        with torch.no_grad():
            self.vectors = table(model.item_vectors(), int8=int8)
        self.register_buffer("bias", model.item_bias.detach())
        self.body = _without_catalogue(model)
        if int8:
            self.body = quantized(self.body)
        self.additions = nn.ModuleList(
            RegressionPart(regression, order, neighbours=neighbours, int8=int8)
            for order, found in model.regressions.items()
            for regression in found
        )
        if model.start_prior is not None:
            self.additions.append(StartPart(model.start_prior, int8=int8))
        if model.text_kernel is not None:
            self.additions.append(KernelPart(model.text_kernel, int8=int8))

    def forward(
        self,
        items: Int[Tensor, "users history"],
        feedback: Int[Tensor, "users history"],
        mask: Bool[Tensor, "users history"],
        in_time: Bool[Tensor, " users"],
        k: int,
        attributes: Int[Tensor, "users columns"] | None = None,
    ) -> tuple[Int[Tensor, "users k"], Float[Tensor, "users k"]]:
        """Return the positions and scores of the best items of each user, best first, none of them from the history.

        A user without history gets the unadapted model's.

        Args:
            items: Catalogue positions of the history, padding may be any.
            feedback: Levels of their ratings, 0 where there is none.
            mask: Which of them are real.
            in_time: Whose history is in the order of time, oldest first.
            k: Items wanted; where a catalogue has fewer without the history, the rest are the history's, far below.
            attributes: Hashes of what users tell of themselves, 0 where they tell nothing.
        """
        rank = mask.sum(dim=1, keepdim=True) - mask.to(torch.int64).cumsum(dim=1) + 1
        tasks = TaskBatch(
            support=items,
            support_mask=mask,
            feedback=feedback,
            query=items[:, :0],
            query_mask=mask[:, :0],
            known=items,
            in_time=in_time,
            from_start=in_time,
            recency=rank,
            attributes=attributes,
        )
        scored = self._adapted(tasks)
        for addition in self.additions:
            scored = addition(scored, tasks)
        scored = scored.scatter_add(1, items, torch.where(mask, NEVER, 0.0))
        best = scored.topk(k)
        return best.indices, best.values

    def _adapted(self, tasks: TaskBatch) -> Float[Tensor, "users items"]:
        """Return the scores after the inner loop, before anything is added."""
        body = self.body
        assert isinstance(body, BertRecommender)
        adaptation = body.adaptation
        assert isinstance(adaptation, ClosedForm)
        rows, catalogue = self.vectors.rows(tasks.support), Items(self.vectors.whole(), self.bias)
        encoded = body.read(tasks, rows)
        rates = adaptation.user_rates(encoded, tasks)
        h = adaptation.start(body.head(encoded), rows, tasks)
        support = adaptation.support(h, rates, catalogue, tasks)
        return scores(adaptation.learner.adapt(h, rates, catalogue, support), catalogue)


def check_exportable(settings: Settings) -> None:
    """Refuse a model whose adaptation has no closed form, or whose user encoder the graph does not hold.

    Raises:
        CheckpointError: The settings of its run name one.
    """
    adaptation, model = settings.adaptation, settings.model
    reasons = (
        (model.target != "ranking", "model.target", model.target, "ranking: a graph ranks the catalogue"),
        (model.encoder != "bert", "model.encoder", model.encoder, "bert: the graph holds no other user encoder"),
        (
            adaptation.parameters not in ("user-vector", "head"),
            "adaptation.parameters",
            adaptation.parameters,
            "user-vector or head: the gradient in parameters of the body has no closed form",
        ),
        (
            adaptation.pseudo_labels > 0,
            "adaptation.pseudo-labels",
            adaptation.pseudo_labels,
            "0: the graph has no self-training",
        ),
    )
    for refused, name, got, wanted in reasons:
        if refused:
            raise CheckpointError(f"cannot export a model of a run with {name} = {got}; wanted {wanted}")


def _without_catalogue(model: BertRecommender) -> nn.Module:
    """Return a copy of a recommender without what it knows of items: text, ID vectors, score bias, additions."""
    body = copy.copy(model)
    body._modules, body._parameters, body._buffers = dict(body._modules), {}, {}
    for name in ("projection", "item_norm", "rating_head"):
        body._modules[name] = None
    return body
