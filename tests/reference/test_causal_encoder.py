"""The causal user encoder against transformers' own GPT-2, and what a support set's order in time means to either."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metarec_shared.causal_encoder import last_output, read_causally
from metarec_shared.errors import SettingsError
from metarec_shared.meta_gradient import cohort_meta_gradient, per_user_meta_gradients
from metarec_shared.model import BertRecommender
from metarec_shared.settings import AdaptationSettings, ModelSettings, Settings
from metarec_shared.tasks import TaskBatch
from tests.small import ITEMS, SMALL_MODEL, TEXT, small_tasks


def _model(model: ModelSettings, adaptation: AdaptationSettings | None = None) -> BertRecommender:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = BertRecommender(torch.randn(ITEMS, TEXT), model, adaptation or AdaptationSettings())
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made.double()


GPT2 = replace(SMALL_MODEL, encoder="gpt2", layers=2)
RECENCY = replace(SMALL_MODEL, recency=True)


def _in_time_order(tasks: TaskBatch, user: int) -> Tensor:
    """Places of the visible support items of one user, oldest first."""
    assert tasks.recency is not None
    places = [p for p in range(tasks.support.shape[1]) if tasks.support_mask[user, p]]
    return torch.tensor(sorted(places, key=lambda place: -int(tasks.recency[user, place])), dtype=torch.long)  # type: ignore[index]


def test_every_user_vector_is_that_of_transformers_own_gpt2_on_items_in_time_order() -> None:
    model, tasks = _model(GPT2), small_tasks(8, dtype=torch.float64)
    E = model.item_vectors()
    encoded = model.encode(replace(tasks, dropout=None), E)
    for user in range(len(tasks)):
        order = _in_time_order(tasks, user)
        state = model.encoder.wte.weight[0]
        inputs = torch.cat([state[None], E[tasks.support[user, order]]])
        types = torch.cat([torch.tensor([0]), tasks.feedback[user, order]]) + 1
        out = model.encoder(inputs_embeds=inputs[None], token_type_ids=types[None]).last_hidden_state
        torch.testing.assert_close(encoded[user], out[0, -1])


def test_a_later_item_changes_no_earlier_state() -> None:
    model = _model(GPT2)
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 6, SMALL_MODEL.width, dtype=torch.float64, generator=draw)
    feedback, visible = torch.zeros(3, 6, dtype=torch.long), torch.ones(3, 6, dtype=torch.bool)
    for recency in (None, torch.tensor([[3, 1, 6, 2, 5, 4]]).expand(3, -1)):
        ranks = torch.arange(6, 0, -1).expand(3, -1) if recency is None else recency
        before = read_causally(model.encoder, inputs, feedback, visible, recency)  # type: ignore[arg-type]
        for place in range(6):
            other = inputs.clone()
            other[:, place] += torch.randn(SMALL_MODEL.width, dtype=torch.float64, generator=draw)
            after = read_causally(model.encoder, other, feedback, visible, recency)  # type: ignore[arg-type]
            changed = (after - before).abs().amax(dim=2) > 1e-9
            assert not changed[:, 0].any()
            assert torch.equal(changed[:, 1:], ranks <= ranks[:, place : place + 1])


def test_hidden_items_and_no_items_at_all() -> None:
    model = _model(GPT2)
    inputs = torch.randn(2, 4, SMALL_MODEL.width, dtype=torch.float64)
    feedback, visible = torch.zeros(2, 4, dtype=torch.long), torch.tensor([[True, False, True, False], [False] * 4])
    found = last_output(read_causally(model.encoder, inputs, feedback, visible), visible)  # type: ignore[arg-type]
    shown = inputs[:1, [0, 2]]
    alone = read_causally(model.encoder, shown, feedback[:1, :2], visible[:1, [0, 2]])  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], alone[0, -1])
    nobody = read_causally(model.encoder, inputs[:1, :0], feedback[:1, :0], visible[:1, :0])  # type: ignore[arg-type]
    torch.testing.assert_close(found[1], nobody[0, 0])
    torch.testing.assert_close(last_output(nobody, visible[:1, :0])[0], nobody[0, 0])


@pytest.mark.parametrize("settings", [GPT2, RECENCY], ids=["gpt2", "bert with ranks"])
def test_clipped_meta_gradients_are_the_sum_of_clipped_ones(settings: ModelSettings) -> None:
    model, tasks = _model(settings), small_tasks(6, dtype=torch.float64)
    each = per_user_meta_gradients(model, tasks)
    norms = torch.stack([value.flatten(1).square().sum(1) for value in each.gradients.values()]).sum(0).sqrt()
    clip = float(norms.median())
    found = cohort_meta_gradient(model, [(tasks, torch.ones(6, dtype=torch.float64))], clip_norm=clip)
    torch.testing.assert_close(found.norms, norms)
    for name, value in each.gradients.items():
        wanted = torch.tensordot((clip / norms).clamp(max=1.0), value, dims=1)
        torch.testing.assert_close(found.gradients[name], wanted, msg=name)
    whole = cohort_meta_gradient(model, [(tasks, torch.ones(6, dtype=torch.float64))])
    for name, value in each.gradients.items():
        torch.testing.assert_close(whole.gradients[name], value.sum(0), msg=name)


@pytest.mark.parametrize("settings", [GPT2, RECENCY], ids=["gpt2", "bert with ranks"])
def test_order_in_time_counts_and_order_in_the_batch_does_not(settings: ModelSettings) -> None:
    model, tasks = _model(settings), replace(small_tasks(4, dtype=torch.float64), dropout=None)
    assert tasks.recency is not None
    turned = replace(
        tasks,
        support=tasks.support.flip(1),
        support_mask=tasks.support_mask.flip(1),
        feedback=tasks.feedback.flip(1),
        recency=tasks.recency.flip(1),
    )
    torch.testing.assert_close(model(turned), model(tasks))
    other = replace(tasks, recency=torch.where(tasks.recency > 0, 6 - tasks.recency, 0))
    assert not torch.allclose(model(other), model(tasks), rtol=1e-3)


def test_a_model_without_ranks_reads_a_set() -> None:
    model, tasks = _model(SMALL_MODEL), small_tasks(4, dtype=torch.float64)
    torch.testing.assert_close(model(replace(tasks, recency=None)), model(tasks), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.encoder": "gpt2", "model.recency": True}, "model.recency is for model.encoder = bert"),
        ({"model.encoder": "gpt2", "adaptation.parameters": "lora"}, "lora needs model.encoder = bert, got gpt2"),
        (
            {"pretraining.objective": "autoregressive", "pretraining.rounds": 1},
            "autoregressive needs model.encoder = gpt2, got bert",
        ),
        (
            {"pretraining.objective": "masked-item", "pretraining.rounds": 1, "model.encoder": "gpt2"},
            "masked-item needs model.encoder = bert, got gpt2",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings().with_values(values, "test")
