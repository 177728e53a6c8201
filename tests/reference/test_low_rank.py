"""Low-rank fine-tuning against peft's own forward pass and merge, and as a federation runs it."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import SettingsError
from metarec_shared.initialization import initial_model, released_names
from metarec_shared.meta_gradient import cohort_meta_gradient, per_user_meta_gradients
from metarec_shared.model import BertRecommender
from metarec_shared.settings import AdaptationSettings, Settings
from metarec_shared.sources import load_item_features
from server.run_folder import read_metrics
from tests.integration.test_in_process_federation import parameters_of, run
from tests.small import ITEMS, SMALL_MODEL, TEXT, small_settings, small_tasks

peft = pytest.importorskip("peft", reason="no peft: pip install 'metarec[peft]'")
from metarec_shared.low_rank import adapted, add_adapters, is_frozen, merged  # noqa: E402

ENCODERS = ["bert", "gpt2"]


def _model(encoder: str) -> BertRecommender:
    """Return a model whose adapters are away from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = replace(SMALL_MODEL, encoder=encoder, layers=2)  # type: ignore[arg-type]
        model = BertRecommender(torch.randn(ITEMS, TEXT), settings, AdaptationSettings())
        add_adapters(model, 3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double()


def _plain(encoder: str) -> BertRecommender:
    settings = replace(SMALL_MODEL, encoder=encoder, layers=2)  # type: ignore[arg-type]
    return BertRecommender(torch.randn(ITEMS, TEXT), settings, AdaptationSettings()).double()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_merged_weights_are_those_of_pefts_own_merge(encoder: str) -> None:
    model = _model(encoder)
    found = merged(dict(model.named_parameters()))
    other = copy.deepcopy(model)
    layers = {name: layer for name, layer in other.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)}
    assert len(layers) == (8 if encoder == "bert" else 4)
    for name, layer in layers.items():
        layer.merge()
        torch.testing.assert_close(found[f"{name}.weight"], layer.get_base_layer().weight)
    assert set(found) == {name for name, _ in _plain(encoder).named_parameters()}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_model_of_merged_weights_scores_as_the_one_with_adapters(encoder: str) -> None:
    model, tasks = _model(encoder), small_tasks(dtype=torch.float64)
    plain = _plain(encoder)
    plain.text = model.text
    plain.load_state_dict(merged(dict(model.named_parameters())))
    torch.testing.assert_close(plain(tasks), model(tasks))
    with torch.no_grad():  # where a plain BERT joins its projections
        torch.testing.assert_close(plain(tasks), model(tasks))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_of_adapters_clipped_and_not_are_those_of_users_one_by_one(encoder: str) -> None:
    model, tasks = _model(encoder), small_tasks(6, dtype=torch.float64)
    released = [name for name, _ in model.named_parameters() if not is_frozen(name)]
    assert sum(".lora_" in name for name in released) == (16 if encoder == "bert" else 8)
    each = per_user_meta_gradients(model, tasks)
    own = {name: each.gradients[name] for name in released}
    norms = torch.stack([value.flatten(1).square().sum(1) for value in own.values()]).sum(0).sqrt()
    ones, clip = torch.ones(6, dtype=torch.float64), float(norms.median())
    for clip_norm, factors in ((0.0, ones), (clip, (clip / norms).clamp(max=1.0))):
        found = cohort_meta_gradient(model, [(tasks, ones)], clip_norm=clip_norm, released=released)
        assert list(found.gradients) == released
        for name, value in own.items():
            torch.testing.assert_close(found.gradients[name], torch.tensordot(factors, value, dims=1), msg=name)


def test_a_federation_fine_tunes_by_adapters_and_leaves_plain_weights(tmp_path: Path) -> None:
    run(small_settings(run__out=str(tmp_path / "first")))
    values = {"run__init": str(tmp_path / "first"), "federation__lora_rank": 2}
    settings = small_settings(run__out=str(tmp_path / "second"), federation__released="encoder,head", **values)
    run(settings)
    before, after = parameters_of(tmp_path / "first"), parameters_of(tmp_path / "second")
    assert before.keys() == after.keys()
    for name, value in after.items():
        changed = not torch.equal(value, before[name])
        projection = ".attention." in name and name.endswith("weight") and "LayerNorm" not in name
        assert changed == (projection or name.startswith("head.") or (name == "item_bias" and changed)), name
        if projection:
            assert torch.linalg.matrix_rank(value - before[name], rtol=1e-3) <= 2
    names = [name for name, _ in initial_model(settings, load_item_features(settings).text).named_parameters()]
    sizes = {
        name: value.numel()
        for name, value in initial_model(settings, load_item_features(settings).text).named_parameters()
    }
    last = read_metrics(tmp_path / "second" / "metrics.jsonl")[-1]
    assert last["bytes_up"] == last["nodes"] * 4 * sum(sizes[name] for name in released_names(settings, names))
    assert load_checkpoint(tmp_path / "second").model() is not None


def test_fine_tuning_starts_at_the_warm_start(tmp_path: Path) -> None:
    run(small_settings(run__out=str(tmp_path)))
    plain = parameters_of(tmp_path)
    settings = small_settings(run__init=str(tmp_path), federation__lora_rank=2)
    model = initial_model(settings, load_item_features(settings).text)
    start = adapted(plain, model)
    assert start.keys() == {name for name, _ in model.named_parameters()}
    for name, value in merged(start).items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"federation.lora-rank": 4}, "federation.lora-rank needs run.init"),
        (
            {"federation.lora-rank": 4, "run.init": "run", "adaptation.parameters": "all"},
            "needs adaptation.parameters = user-vector or head, got all",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings().with_values(values, "test")
