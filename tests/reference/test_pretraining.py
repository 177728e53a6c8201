"""Losses of pre-training against derivations of their own, and their gradients against users computed one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.dataset import RatingScale
from metarec_shared.interactions import Interactions
from metarec_shared.model import BertRecommender
from metarec_shared.pretraining import HistoryBatch, build_objective, cohort_gradient, draw_histories
from metarec_shared.pretraining.contrastive import Contrastive, nt_xent
from metarec_shared.pretraining.gradient import separately_clipped_gradient
from metarec_shared.pretraining.masked_item import MaskedItem
from metarec_shared.randomness import user_keys
from metarec_shared.settings import AdaptationSettings, ModelSettings, PretrainingSettings
from tests.small import ITEMS, SMALL_MODEL, TEXT, WIDTH

MODELS = {
    "masked-item": replace(SMALL_MODEL, layers=2, recency=True),
    "autoregressive": replace(SMALL_MODEL, layers=2, encoder="gpt2"),
    "contrastive": replace(SMALL_MODEL, recency=True),
}


def _settings(objective: str, **values: object) -> PretrainingSettings:
    return PretrainingSettings(objective=objective, rounds=5, length=8, negatives=7, **values)  # type: ignore[arg-type]


def _model(model: ModelSettings) -> BertRecommender:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = BertRecommender(torch.randn(ITEMS, TEXT), model, AdaptationSettings())
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made.double()


def _interactions(count: int) -> Interactions:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 14, count)
    return Interactions(
        user_ids=np.array([f"user {user}" for user in range(count)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int32),
        ratings=rng.integers(1, 6, lengths.sum()).astype(np.float32),
        has_time=True,
    )


def _histories(settings: PretrainingSettings, users: int = 9, dropout: float = 0.0) -> HistoryBatch:
    data = _interactions(users)
    keys, scale = user_keys(0, data.user_ids), RatingScale(low=1.0, high=5.0)
    batch = draw_histories(data, np.arange(users), keys, scale, settings, (dropout, WIDTH), (0, 1))
    return replace(batch, dropout=batch.dropout.double(), draws=batch.draws.double())


@pytest.mark.parametrize("ranks", [True, False])
def test_the_masked_item_loss_is_cross_entropy_on_transformers_own_bert(ranks: bool) -> None:
    model, settings = _model(replace(MODELS["masked-item"], recency=ranks)), _settings("masked-item", masked=0.4)
    batch, objective = _histories(settings), MaskedItem(settings)
    E = model.item_vectors()
    found = objective.losses(model, batch, E, torch.zeros(0))
    places, counted = objective.masked(batch)
    state = model.encoder.embeddings.word_embeddings.weight[0]
    for user in range(len(batch)):
        n = int(batch.lengths[user])
        masked = sorted(int(p) for p, real in zip(places[user], counted[user], strict=True) if real)
        assert len(set(masked)) == len(masked) == min(max(1, round(0.4 * n)), n - 1)
        inputs = torch.stack([state, *(state if p in masked else E[batch.items[user, p]] for p in range(n))])
        types = [0, *(0 if p in masked else int(batch.feedback[user, p]) for p in range(n))]
        positions = [0, *range(n, 0, -1)] if ranks else [0] * (n + 1)
        out = model.encoder(
            inputs_embeds=inputs[None], token_type_ids=torch.tensor([types]), position_ids=torch.tensor([positions])
        ).last_hidden_state[0, 1:]
        logits = model.head(out[masked]) @ E.T + model.item_bias
        torch.testing.assert_close(found[user], F.cross_entropy(logits, batch.items[user, masked]))


def test_the_autoregressive_loss_is_cross_entropy_of_every_next_item_on_transformers_own_gpt2() -> None:
    model, settings = _model(MODELS["autoregressive"]), _settings("autoregressive")
    batch, E = _histories(settings), model.item_vectors()
    found = build_objective(settings).losses(model, batch, E, torch.zeros(0))
    for user in range(len(batch)):
        losses = []
        for t in range(int(batch.lengths[user])):
            before = batch.items[user, :t]
            inputs = torch.cat([model.encoder.wte.weight[:1], E[before]])
            types = torch.cat([torch.tensor([0]), batch.feedback[user, :t]]) + 1
            out = model.encoder(inputs_embeds=inputs[None], token_type_ids=types[None]).last_hidden_state[0, -1]
            losses.append(F.cross_entropy(E @ model.head(out) + model.item_bias, batch.items[user, t]))
        torch.testing.assert_close(found[user], torch.stack(losses).mean())


def test_nt_xent_is_what_its_definition_says_in_numpy() -> None:
    rng = np.random.default_rng(0)
    first, second, negatives = (rng.normal(size=(n, 5)) for n in (4, 4, 6))
    found = nt_xent(*(torch.from_numpy(v) for v in (first, second, negatives)), temperature=0.3)

    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))

    for user in range(4):
        total = 0.0
        for anchor, other in ((first[user], second[user]), (second[user], first[user])):
            alike = np.exp(similarity(anchor, other) / 0.3)
            total -= np.log(alike / (alike + sum(np.exp(similarity(anchor, n) / 0.3) for n in negatives))) / 2
        assert float(found[user]) == pytest.approx(total, rel=1e-10)


def test_the_contrastive_loss_reads_two_crops_as_meta_learning_reads_support_sets() -> None:
    settings = _settings("contrastive", crop=0.5)
    model, batch, objective = _model(MODELS["contrastive"]), _histories(settings), Contrastive(settings)
    E, public = model.item_vectors(), objective.public(model, 0, 1)
    found = objective.losses(model, batch, E, public)
    vectors = []
    for crop in objective.crops(batch):
        of_users = []
        for user in range(len(batch)):
            kept = crop[user].nonzero()[:, 0]
            assert len(kept) == max(1, int(batch.lengths[user]) // 2)
            assert kept.tolist() == list(range(int(kept[0]), int(kept[0]) + len(kept)))
            of_users.append(_user_vector(model, E, batch.items[user, kept], batch.feedback[user, kept]))
        vectors.append(torch.stack(of_users))
    none = torch.zeros(public.shape[1], dtype=torch.long)
    negatives = torch.stack([_user_vector(model, E, items, none) for items in public])
    torch.testing.assert_close(found, nt_xent(vectors[0], vectors[1], negatives, settings.temperature))


def _user_vector(model: BertRecommender, E: Tensor, items: Tensor, feedback: Tensor) -> Tensor:
    state = model.encoder.embeddings.word_embeddings.weight[:1]
    out = model.encoder(
        inputs_embeds=torch.cat([state, E[items]])[None],
        token_type_ids=torch.cat([torch.tensor([0]), feedback])[None],
        position_ids=torch.tensor([[0, *range(len(items), 0, -1)]]),
    ).last_hidden_state[0, 0]
    return model.head(out)  # type: ignore[no-any-return]


def test_negatives_follow_popularity_and_text() -> None:
    model = _model(MODELS["contrastive"])
    with torch.no_grad():
        model.item_bias.copy_(torch.linspace(-2, 2, ITEMS))
    popular = Contrastive(_settings("contrastive", coherence=0.0)).public(model, 0, 1).numpy()
    assert all(len(set(row)) == len(row) for row in popular.tolist())
    many = Contrastive(replace(_settings("contrastive", coherence=0.0), negatives=2000, length=2)).public(model, 0, 1)
    share = np.bincount(many.flatten().numpy(), minlength=ITEMS) / len(many)
    wanted = torch.softmax(model.item_bias.detach(), 0).numpy()  # one item a crop: the first draw alone
    assert np.abs(share - wanted).max() < 5 * np.sqrt(wanted.max() / 2000)
    text = F.normalize(model.text.float(), dim=1)

    def similarity(coherence: float) -> float:
        items = Contrastive(_settings("contrastive", coherence=coherence)).public(model, 0, 1)
        vectors = text[items]
        return float((vectors @ vectors.transpose(1, 2)).mean())

    assert similarity(5.0) > similarity(0.0) + 0.1
    again = Contrastive(_settings("contrastive", coherence=0.0)).public(model, 0, 1).numpy()
    other = Contrastive(_settings("contrastive", coherence=0.0)).public(model, 0, 2).numpy()
    assert (again == popular).all()
    assert (other != popular).any()


@pytest.mark.parametrize("name", MODELS)
def test_a_cohorts_gradient_is_the_sum_of_its_users_clipped_or_not(name: str) -> None:
    settings = _settings(name)
    model, batch, objective = _model(MODELS[name]), _histories(settings, dropout=0.2), build_objective(settings)
    public, id_mask = objective.public(model, 0, 1), torch.arange(ITEMS) % 4 > 0
    weights = torch.linspace(0.5, 1.5, len(batch), dtype=torch.float64)
    each, parameters = [], dict(model.named_parameters())
    for user in range(len(batch)):
        alone = batch.rows(user, user + 1)
        loss = objective.losses(model, alone, model.item_vectors(id_mask), public)[0]
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        each.append(
            [torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), gradients, strict=True)]
        )
    norms = torch.stack([torch.stack([g.square().sum() for g in gradients]).sum().sqrt() for gradients in each])
    assert (norms > 1e-3).all()
    clip = float(norms.median())
    parts = [(batch.rows(0, 4), weights[:4]), (batch.rows(4, len(batch)), weights[4:])]
    for clip_norm, factors in ((0.0, weights), (clip, weights * (clip / norms).clamp(max=1.0))):
        found = cohort_gradient(model, objective, parts, id_mask, public=public, clip_norm=clip_norm)
        if clip_norm:
            torch.testing.assert_close(found.norms, norms)
        for place, (key, value) in enumerate(found.gradients.items()):
            wanted = sum(float(f) * gradients[place] for f, gradients in zip(factors, each, strict=True))
            torch.testing.assert_close(value, wanted, msg=key)
    users = [lambda user=user: (batch.rows(user, user + 1), weights[user : user + 1]) for user in range(len(batch))]
    apart = separately_clipped_gradient(model, objective, users, id_mask, public=public, clip_norm=clip)
    for key, value in apart.gradients.items():
        torch.testing.assert_close(value, found.gradients[key], msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_finite_differences_and_only_released_ones_are_there(name: str) -> None:
    settings = _settings(name)
    model, batch, objective = _model(MODELS[name]), _histories(settings, 3), build_objective(settings)
    public = objective.public(model, 0, 1)
    ones = torch.ones(3, dtype=torch.float64)
    found = cohort_gradient(
        model, objective, [(batch, ones)], public=public, released=["head.weight", "projection.bias"]
    )
    assert set(found.gradients) == {"head.weight", "projection.bias"}
    for key, gradient in found.gradients.items():
        parameter = model.get_parameter(key)
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        slopes = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                parameter.add_(direction, alpha=step)
                slopes.append(objective.losses(model, batch, model.item_vectors(), public).sum())
            parameter.add_(direction, alpha=1e-5)
        torch.testing.assert_close((gradient * direction).sum(), (slopes[0] - slopes[1]) / 2e-5, atol=1e-6, rtol=1e-5)


def test_a_history_is_a_stretch_in_time_whoever_else_is_drawn() -> None:
    settings, data = _settings("masked-item"), _interactions(20)
    keys, scale = user_keys(0, data.user_ids), RatingScale(low=1.0, high=5.0)

    def draw(users: list[int], round_number: int = 1) -> HistoryBatch:
        chosen = np.array(users)
        return draw_histories(data, chosen, keys[chosen], scale, settings, (0.2, WIDTH), (0, round_number))

    batch, starts = draw(list(range(20))), set()
    for user in range(20):
        history = data.history(user).tolist()
        n = int(batch.lengths[user])
        assert n == min(len(history), settings.length)
        items = batch.items[user, :n].tolist()
        start = history.index(items[0])
        assert items == history[start : start + n]
        assert batch.recency[user, :n].tolist() == list(range(n, 0, -1))
        starts.add(start)
    assert len(starts) > 3
    few = draw([13, 4])
    for name, value in few.tensors().items():
        whole = batch.tensors()[name][[13, 4]]
        if name != "draws":
            width = value.shape[1]
            assert torch.equal(value, whole[:, :width]), name
    n = few.items.shape[1]
    assert torch.equal(few.draws[:, :n], batch.draws[[13, 4], :n])
    assert torch.equal(few.shared_draws, batch.shared_draws[[13, 4]])
    assert not torch.equal(draw([13, 4], 2).draws, few.draws)
