"""Going on with a pre-trained text encoder by masked language modelling."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
)

from metarec_shared.catalogue import Catalogue
from metarec_shared.errors import SettingsError
from metarec_shared.settings import TextSettings
from metarec_shared.text import text_features
from metarec_shared.text.masked_language import masked_loss, trained_on
from metarec_shared.text.sources import choose_source
from tests.small_bert import small_tokenizer, write_small_bert

WORDS = ("red", "blue", "green", "war", "love", "space", "night", "city")
TEXTS = tuple(f"{a} {b} of the {c}" for a in WORDS[:4] for b in WORDS[3:7] for c in WORDS[4:])
CATALOGUE = Catalogue(item_ids=tuple(map(str, range(len(TEXTS)))), titles=TEXTS, texts=TEXTS)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with a head for masked tokens, in a folder as transformers writes it."""
    return write_small_bert(tmp_path_factory.mktemp("bert"), TEXTS)


def test_the_loss_is_cross_entropy_of_the_masked_tokens_alone(encoder: Path) -> None:
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        batch = collator([{"input_ids": ids} for ids in tokenizer(list(TEXTS[:9]))["input_ids"]])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    places = [(row, place) for row, place in (batch["labels"] != -100).nonzero().tolist()]
    assert 5 < len(places) < 40
    each = [F.cross_entropy(logits[place][None], batch["labels"][place][None]) for place in places]
    found = masked_loss(model, batch)
    assert found is not None
    torch.testing.assert_close(found, torch.stack(each).mean())
    batch["labels"][:] = -100
    assert masked_loss(model, batch) is None


def test_steps_lower_the_loss_and_leave_the_folder_as_it_was(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarec_shared.text.masked_language.LEARNING_RATE", 5e-3)
    tokenizer, source = AutoTokenizer.from_pretrained(encoder), choose_source(TextSettings(encoder=str(encoder)))
    tokens = tokenizer(list(TEXTS))["input_ids"]
    before = AutoModelForMaskedLM.from_pretrained(encoder)
    after = AutoModelForMaskedLM.from_pretrained(encoder)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    body = trained_on(tokens, tokenizer, source, 60)
    assert torch.equal(torch.get_rng_state(), state)
    after.bert.load_state_dict(body.state_dict())
    assert not body.training
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    torch.manual_seed(2)
    batch = collator([{"input_ids": ids} for ids in tokens])
    losses = [float(masked_loss(model.eval(), batch).detach()) for model in (before, after)]  # type: ignore[union-attr]
    assert losses[1] < losses[0] - 0.3
    again = trained_on(tokens, tokenizer, source, 60)
    for name, value in again.state_dict().items():
        assert torch.equal(value, body.state_dict()[name]), name


def test_the_vectors_and_their_fingerprint_say_what_was_read(encoder: Path) -> None:
    plain = text_features(CATALOGUE, TextSettings(encoder=str(encoder)))
    adapted = text_features(CATALOGUE, TextSettings(encoder=str(encoder), adapt_steps=3))
    longer = text_features(CATALOGUE, TextSettings(encoder=str(encoder), adapt_steps=4))
    assert len({plain.fingerprint, adapted.fingerprint, longer.fingerprint}) == 3
    assert not torch.allclose(adapted.vectors, plain.vectors)
    assert adapted.encoder == f"{plain.encoder}+mlm:3:{CATALOGUE.fingerprint[:12]}"
    other_seed = text_features(CATALOGUE, TextSettings(encoder=str(encoder), adapt_steps=3), seed=5)
    assert other_seed.fingerprint == adapted.fingerprint
    some = text_features(CATALOGUE.take([3, 1]), TextSettings(encoder=str(encoder), adapt_steps=3), corpus=CATALOGUE)
    assert some.encoder == adapted.encoder
    torch.testing.assert_close(some.vectors, adapted.vectors[[3, 1]], atol=1e-5, rtol=1e-5)


def test_an_encoder_without_a_mask_token_is_refused(encoder: Path) -> None:
    source = choose_source(TextSettings(encoder=str(encoder)))
    with pytest.raises(SettingsError, match="has no mask token"):
        trained_on([[1, 2]], small_tokenizer(TEXTS, None), source, 1)
