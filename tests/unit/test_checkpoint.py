"""A checkpoint survives the trip to disk, and a damaged one is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarec_shared.catalogue import Catalogue, TrainingItems
from metarec_shared.checkpoint import (
    MODEL_FILE,
    Checkpoint,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import CheckpointError
from metarec_shared.files import write_atomically
from metarec_shared.model import BertRecommender
from metarec_shared.settings import AdaptationSettings, ModelSettings, Settings
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskRegression, TextWeights
from metarec_shared.tasks import TaskBatch
from tests.small import ITEMS, SMALL_MODEL, TEXT, small_model, small_tasks

CATALOGUE = Catalogue(
    item_ids=tuple(f"id {i}" for i in range(ITEMS + 2)),
    titles=tuple(f"Tïtle {i}" for i in range(ITEMS + 2)),
    texts=tuple(f"text {i}" for i in range(ITEMS + 2)),
)


UNWEIGHED = AdaptationSettings(evidence=False)


def a_checkpoint() -> Checkpoint:
    model = small_model(dtype=torch.float32)
    text = torch.cat([model.text, torch.randn(2, TEXT, generator=torch.Generator().manual_seed(1))])
    return Checkpoint(
        parameters={name: value.detach() for name, value in model.named_parameters()},
        settings=Settings(model=SMALL_MODEL),
        items=TrainingItems(catalogue=CATALOGUE, positions=np.arange(ITEMS)),
        text=text,
        text_encoder="builtin",
        rating_scale=RatingScale(low=1.0, high=5.0),
        round_number=7,
        validation=0.25,
    )


def a_checkpoint_of(sizes: ModelSettings, adaptation: AdaptationSettings) -> Checkpoint:
    with torch.random.fork_rng():
        model = BertRecommender(torch.randn(ITEMS, TEXT), sizes, adaptation)
    return replace(
        a_checkpoint(),
        parameters={name: value.detach() for name, value in model.named_parameters()},
        settings=replace(a_checkpoint().settings, model=sizes, adaptation=adaptation),
    )


def tasks() -> TaskBatch:
    batch = small_tasks(4)
    return TaskBatch(**{name: value for name, value in batch.tensors().items() if name != "dropout"})


def test_a_checkpoint_survives_the_trip_to_disk(tmp_path: Path) -> None:
    checkpoint = a_checkpoint()
    save_checkpoint(checkpoint, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.settings == checkpoint.settings
    assert loaded.items.catalogue == CATALOGUE
    assert (loaded.rating_scale, loaded.round_number, loaded.validation) == (RatingScale(low=1.0, high=5.0), 7, 0.25)
    with torch.no_grad():
        assert torch.equal(loaded.model()(tasks()), checkpoint.model()(tasks()))
    assert json.loads((tmp_path / "model.json").read_text())["round"] == 7
    assert "Not evaluated yet" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("size", [0, 7, 8, 300, -1])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    save_checkpoint(a_checkpoint(), tmp_path)
    path = tmp_path / MODEL_FILE
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(CheckpointError, match="damaged, cut short, or not written by MetaRec"):
        load_checkpoint(tmp_path)


def test_a_missing_checkpoint_and_a_foreign_catalogue_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file; wanted the folder of a run"):
        load_checkpoint(tmp_path)
    save_checkpoint(a_checkpoint(), tmp_path)
    columns = json.loads((tmp_path / "catalogue.json").read_text())
    columns["texts"][0] = "another text"
    (tmp_path / "catalogue.json").write_text(json.dumps(columns))
    with pytest.raises(CheckpointError, match=r"is not the catalogue that model\.safetensors was trained on"):
        load_checkpoint(tmp_path)
    (tmp_path / "catalogue.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the catalogue"):
        load_checkpoint(tmp_path)


def test_known_items_score_the_same_in_the_full_catalogue_before_adaptation() -> None:
    checkpoint = a_checkpoint()
    with torch.no_grad():
        known, full = checkpoint.model()(tasks(), adapt=False), checkpoint.full_model()(tasks(), adapt=False)
    torch.testing.assert_close(full[:, :ITEMS], known)
    assert full.shape[1] == ITEMS + 2


def test_a_model_moves_to_another_catalogue_item_by_item() -> None:
    checkpoint = a_checkpoint()
    order = np.array([4, 2, 9])
    text = torch.cat([torch.zeros(1, TEXT), checkpoint.text[torch.from_numpy(order)]])
    moved = checkpoint.transferred(text, np.array([1, 2, 3]), order)
    torch.testing.assert_close(moved.item_vectors()[1:], checkpoint.model().item_vectors()[torch.from_numpy(order)])
    torch.testing.assert_close(moved.item_bias[1:], checkpoint.parameters["item_bias"][torch.from_numpy(order)])


def test_an_item_that_training_did_not_know_has_no_id_vector_and_the_bias_of_its_text() -> None:
    checkpoint = a_checkpoint()
    known, slopes = checkpoint.text[:ITEMS], torch.linspace(-1, 1, TEXT)
    linear = replace(checkpoint, parameters={**checkpoint.parameters, "item_bias": known @ slopes + 3.0})
    full = linear.full_model()
    torch.testing.assert_close(full.item_bias, checkpoint.text @ slopes + 3.0, atol=0.05, rtol=0)
    assert full.item_bias[ITEMS:].std() > 0.1
    torch.testing.assert_close(full.item_bias[:ITEMS], linear.parameters["item_bias"])
    assert full.item_ids is not None
    assert (full.item_ids[ITEMS:] == 0).all()


def test_regressions_keep_what_they_say_of_text_and_earlier_ones_said_nothing(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    plain = TaskRegression(neighbours=torch.arange(ITEMS)[:, None], weights=torch.ones(ITEMS, 1), blends={1: 2.0})
    by_text = TextWeights(
        coefficients=torch.randn(ITEMS, TEXT, generator=random),
        intercept=torch.randn(ITEMS, generator=random),
        positions=torch.zeros(0, dtype=torch.int64),
        text=torch.zeros(0, TEXT),
    )
    checkpoint = replace(
        a_checkpoint(), regressions={"random": [plain], "time": [plain, replace(plain, by_text=by_text)]}
    )
    save_checkpoint(checkpoint, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert [one.by_text for found in loaded.regressions.values() for one in found][:2] == [None, None]
    support, mask = torch.tensor([[3, 8, 0]]), torch.tensor([[True, True, False]])
    unknown = checkpoint.text[ITEMS:]
    expected = by_text.intercept[[3, 8]].sum() + unknown @ (by_text.coefficients[3] + by_text.coefficients[8])
    full = loaded.full_model().regressions
    found = full["time"][1].predictions(support, mask)[0]
    torch.testing.assert_close(found[ITEMS:], expected)
    assert found[:ITEMS].nonzero()[:, 0].tolist() == [3, 8]
    for silent in (full["random"][0], full["time"][0]):
        assert not silent.predictions(support, mask)[0, ITEMS:].any()


def test_what_is_added_beside_regressions_is_kept(tmp_path: Path) -> None:
    prior = StartPrior(sizes=(1, 4), logs=torch.randn(2, ITEMS), blends=(0.5, 0.0))
    now = replace(a_checkpoint(), start_prior=prior, text_blends={"time": {1: 2.0, 4: 0.0}})
    save_checkpoint(now, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.start_prior is not None
    assert torch.equal(loaded.start_prior.logs, prior.logs)
    assert (loaded.start_prior.sizes, loaded.start_prior.blends) == (prior.sizes, prior.blends)
    assert loaded.text_blends == now.text_blends
    assert loaded.has_additions
    assert not a_checkpoint().has_additions


@pytest.mark.parametrize(("written", "blends"), [(4, {"1": 2.0, "5": 4.0}), (2, 2.0)])
def test_the_one_regression_of_an_earlier_checkpoint_is_read(tmp_path: Path, written: int, blends: Any) -> None:
    now = TaskRegression(neighbours=torch.arange(ITEMS)[:, None], weights=torch.ones(ITEMS, 1), blends={1: 2.0, 5: 4.0})
    save_checkpoint(replace(a_checkpoint(), regressions={"time": [now]}), tmp_path)
    tensors, description = load_tensors(tmp_path / MODEL_FILE)
    description["format"], description["regressions"] = written, {"time": blends}
    del description["settings"]["regression"]["text-blend"], description["settings"]["regression"]["decay"]
    del description["text_blends"]
    save_tensors(tmp_path / MODEL_FILE, tensors, description)
    loaded = load_checkpoint(tmp_path)
    ((found,),) = loaded.regressions.values()
    assert not loaded.settings.regression.text_blend
    assert torch.equal(found.weights, now.weights)
    assert found.decay == 1.0
    assert found.blends == (now.blends if written == 4 else {1: 2.0})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_of_format_1_is_read_as_what_it_was(tmp_path: Path) -> None:
    plain = replace(SMALL_MODEL, order_aware=False)
    now = a_checkpoint_of(plain, UNWEIGHED)
    save_checkpoint(now, tmp_path)
    tensors, description = load_tensors(tmp_path / MODEL_FILE)
    description["format"] = 1
    del description["regressions"], description["settings"]["model"]["order-aware"]
    del description["settings"]["tasks"]["time-share"], description["settings"]["regression"]
    del description["settings"]["adaptation"]["evidence"]
    save_tensors(tmp_path / MODEL_FILE, tensors, description)
    before = load_checkpoint(tmp_path)
    assert not before.settings.model.order_aware
    assert before.settings.tasks.time_share == 0.0
    torch.testing.assert_close(before.model()(tasks()), now.model()(tasks()))


@pytest.mark.parametrize(
    ("order", "learned", "method"),
    [("second", True, "meta-sgd"), ("first", True, "meta-sgd"), ("second", False, "maml"), ("first", False, "fomaml")],
)
def test_a_checkpoint_whose_meta_learner_was_two_settings_is_read(
    order: str, learned: bool, method: str, tmp_path: Path
) -> None:
    inner = AdaptationSettings(method=method, steps=3, evidence=False)  # type: ignore[arg-type]
    now = a_checkpoint_of(SMALL_MODEL, inner)
    save_checkpoint(now, tmp_path)
    tensors, description = load_tensors(tmp_path / MODEL_FILE)
    description["format"] = 2
    description["settings"]["adaptation"] = {
        "parameters": "user-vector",
        "steps": 3,
        "order": order,
        "learned": learned,
    }
    save_tensors(tmp_path / MODEL_FILE, tensors, description)
    before = load_checkpoint(tmp_path)
    assert before.settings.adaptation.method == method
    torch.testing.assert_close(before.model()(tasks()), now.model()(tasks()))


def test_a_model_of_two_state_tokens_reads_a_history_from_its_start_as_any_in_time_order(tmp_path: Path) -> None:
    save_checkpoint(a_checkpoint(), tmp_path)
    tensors, description = load_tensors(tmp_path / MODEL_FILE)
    description["format"] = 2
    name = "parameters/encoder.embeddings.word_embeddings.weight"
    tensors[name] = tensors[name][:2]
    save_tensors(tmp_path / MODEL_FILE, tensors, description)
    model, batch = load_checkpoint(tmp_path).model(), tasks()
    everybody = torch.ones(len(batch), dtype=torch.bool)
    in_a_row = replace(batch, in_time=everybody, from_start=~everybody)
    torch.testing.assert_close(model(replace(in_a_row, from_start=everybody)), model(in_a_row))
    now = a_checkpoint().model()
    torch.testing.assert_close(model(in_a_row), now(in_a_row))
    assert not torch.equal(now(in_a_row), now(replace(in_a_row, from_start=everybody)))
