"""Text features: which encoder is taken, what the cache does, and what the built-in encoder promises."""

import json
import time
from pathlib import Path

import pytest
import torch

from metarec_shared.catalogue import Catalogue
from metarec_shared.errors import SettingsError
from metarec_shared.settings import TextSettings
from metarec_shared.text import builtin, pretrained, sources, text_features

SMALL = TextSettings(encoder="builtin", builtin_width=16, builtin_layers=1, builtin_vocabulary=200, builtin_steps=5)


def catalogue(*texts: str) -> Catalogue:
    ids = tuple(str(number) for number in range(len(texts)))
    return Catalogue(item_ids=ids, titles=texts, texts=texts)


BOOKS = catalogue("A red fox in the snow", "The red house", "A house of snow and ice", "Cooking with ice", "Fox tales")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test an empty cache and no hub."""
    monkeypatch.setenv("METAREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    sources.hub_commit.cache_clear()
    return tmp_path / "cache" / "text"


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(builtin, "encode", refuse)
    monkeypatch.setattr(pretrained, "encode", refuse)


def test_vectors_have_length_one_and_a_row_an_item() -> None:
    vectors = text_features(BOOKS, SMALL).vectors
    assert vectors.dtype == torch.float32
    assert len(vectors) == len(BOOKS)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(BOOKS)))


def test_a_second_call_reads_the_cache_and_runs_no_encoder(request: pytest.FixtureRequest) -> None:
    first = text_features(BOOKS, SMALL)
    request.getfixturevalue("no_training")
    second = text_features(BOOKS, SMALL)
    assert torch.equal(first.vectors, second.vectors)
    assert (first.encoder, first.fingerprint) == (second.encoder, second.fingerprint)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None], ids=["empty", "no safetensors", "a flipped byte"])
def test_a_damaged_cache_file_is_computed_again(
    cache: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    first = text_features(BOOKS, SMALL)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    second = text_features(BOOKS, SMALL)
    assert "computing the text vectors again" in caplog.text
    assert torch.equal(first.vectors, second.vectors)
    caplog.clear()
    text_features(BOOKS, SMALL)
    assert not caplog.records


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METAREC_CACHE", str(tmp_path / "file"))
    assert len(text_features(BOOKS, SMALL).vectors) == len(BOOKS)
    assert "set METAREC_CACHE" in caplog.text


def test_what_changes_the_vectors_changes_the_fingerprint() -> None:
    changed = TextSettings(
        encoder="builtin", builtin_width=16, builtin_layers=1, builtin_vocabulary=200, builtin_steps=6
    )
    prints = {
        text_features(BOOKS, SMALL).fingerprint,
        text_features(BOOKS, SMALL, seed=1).fingerprint,
        text_features(BOOKS, changed).fingerprint,
        text_features(BOOKS.take([0, 1]), SMALL).fingerprint,
    }
    assert len(prints) == 4


def test_the_same_seed_gives_the_same_vectors_and_another_seed_others() -> None:
    first = builtin.encode(BOOKS.texts, SMALL, seed=3)
    assert torch.equal(first, builtin.encode(BOOKS.texts, SMALL, seed=3))
    assert not torch.allclose(first, builtin.encode(BOOKS.texts, SMALL, seed=4))


def test_the_global_generator_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    builtin.encode(BOOKS.texts, SMALL)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "texts",
    [("x",), ("same", "same"), ("!", "?"), ("日本の映画", "фильм о войне", "فيلم"), ("\u200b", "word"), ("a" * 500,)],
)
def test_tiny_catalogues_in_any_language_are_encoded(texts: tuple[str, ...]) -> None:
    vectors = text_features(catalogue(*texts), SMALL).vectors
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(texts)))


def test_masking_follows_bert() -> None:
    torch.manual_seed(0)
    ids = torch.full((400, 500), 7)
    ids[:, 0] = 2  # [CLS]
    shown, chosen = builtin.mask_tokens(ids, vocabulary=1000)
    words = chosen[:, 1:].float().mean().item()
    assert not chosen[:, 0].any()
    assert words == pytest.approx(0.15, abs=0.005)
    assert (shown[chosen] == 4).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (shown[chosen] == 7).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(shown[~chosen], ids[~chosen])


def test_auto_without_hub_is_the_builtin_encoder_within_seconds() -> None:
    settings = TextSettings(builtin_width=16, builtin_layers=1, builtin_vocabulary=200, builtin_steps=5)
    started = time.monotonic()
    features = text_features(BOOKS, settings)
    assert time.monotonic() - started < 10
    assert features.encoder == "builtin"
    assert features.fingerprint == text_features(BOOKS, SMALL).fingerprint


def test_a_hub_that_hangs_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: time.sleep(30))
    monkeypatch.setattr(sources, "HUB_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(SettingsError, match=r"'some/model' is no folder.*did not answer within 0.2 s.*wanted auto"):
        text_features(BOOKS, TextSettings(encoder="some/model"))
    assert time.monotonic() - started < 5


def test_a_hub_model_that_cannot_be_fetched_says_why() -> None:
    with pytest.raises(SettingsError, match=r"text.encoder: 'some/model' .* \(HF_HUB_OFFLINE is set\)"):
        text_features(BOOKS, TextSettings(encoder="some/model"))
    with pytest.raises(SettingsError, match=r"text.encoder: some/model@a{40} was never downloaded"):
        text_features(BOOKS, TextSettings(encoder="some/model", revision="a" * 40))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "", "a--b"])
def test_a_folder_that_is_missing_is_a_settings_error(name: str) -> None:
    with pytest.raises(SettingsError, match=r"text\.encoder: .* is no folder.*wanted auto, builtin, random, a folder"):
        text_features(BOOKS, TextSettings(encoder=name))


@pytest.mark.parametrize("files", [{}, {"config.json": "{}"}, {"config.json": json.dumps({"model_type": "bert"})}])
def test_a_folder_without_a_bert_is_a_settings_error(tmp_path: Path, files: dict[str, str]) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(SettingsError, match=r"empty holds no BERT that transformers can load"):
        text_features(BOOKS, TextSettings(encoder=str(folder)))


def test_the_builtin_encoder_reads_other_texts_as_it_reads_its_corpus() -> None:
    whole = text_features(BOOKS, SMALL)
    some = text_features(BOOKS.take([3, 1]), SMALL, corpus=BOOKS)
    torch.testing.assert_close(some.vectors, whole.vectors[[3, 1]], atol=1e-5, rtol=0.0)
    assert some.fingerprint != whole.fingerprint


def test_random_vectors_tell_items_apart_and_know_nothing_of_their_text() -> None:
    catalogue = Catalogue(item_ids=("1", "2", "3"), titles=("A", "A", "B"), texts=("A film", "A film", "Another film"))
    settings = TextSettings(encoder="random", builtin_width=256)
    found = text_features(catalogue, settings)
    assert found.encoder == "random"
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(3))
    assert (found.vectors @ found.vectors.T - torch.eye(3)).abs().max() < 0.25
    alone = text_features(catalogue.take([2, 0]), settings)
    torch.testing.assert_close(alone.vectors, found.vectors[[2, 0]])
    assert text_features(catalogue, TextSettings(encoder="random", builtin_width=32)).vectors.shape == (3, 32)
