"""A whole run on users who tell something of themselves: it is learned, recommended by, and never written down."""

import json
from pathlib import Path

import numpy as np
import pytest

from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.cli import run
from tests.small import SMALL_RUN

GROUPS = ("walrus", "ocelot")
"""Users of the first group only touch items 0..19, the others items 20..39."""

BUCKETS = 64


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on data in which a user's group says what he may like."""
    folder, rng = tmp_path_factory.mktemp("groups"), np.random.default_rng(0)
    rows = [f"{user},{20 * (user % 2) + item}" for user in range(80) for item in rng.permutation(20)[:10]]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{item},Title {item}\n" for item in range(40)))
    users = [f"{user},{GROUPS[user % 2]}" for user in range(80)]
    (folder / "users.csv").write_text("\n".join(["user_id,animal", *users]) + "\n")
    changes = {
        "data.user-attributes": "animal",
        "model.attribute-buckets": BUCKETS,
        "tasks.support": 1,
        "tasks.support-dropout": 0.8,
        "evaluation.support": 1,
        "federation.rounds": 60,
        "federation.evaluate-every": 60,
        "federation.clip-norm": 5.0,
        "outer.learning-rate": 0.01,
        "outer.averaging": 0.0,
        "regression.enabled": "false",
    }
    options = [option for key, value in {**SMALL_RUN, **changes}.items() for option in ("--set", f"{key}={value}")]
    arguments = ["simulate", "--data", str(folder), "--out", str(folder / "run"), "--no-baselines", *options]
    assert run(arguments) == 0
    return folder / "run"


def margin(finished: Path, capsys: pytest.CaptureFixture[str], *told: str) -> float:
    """Return how much higher items of the first group score than those of the second, for an empty history."""
    empty = finished.parent / "history.txt"
    empty.write_text("")
    arguments = ["recommend", "--model", str(finished), "--history", str(empty), "--format", "json", "--top-k", "40"]
    assert run([*arguments, *(part for one in told for part in ("--attribute", one))]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    scores = np.array([item["score"] for item in sorted(items, key=lambda item: int(item["item_id"]))])
    return float(scores[:20].mean() - scores[20:].mean())


def test_whom_nothing_else_is_known_of_is_recommended_what_his_group_likes(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (margin(finished, capsys, f"animal={group.upper()}") for group in GROUPS)
    assert first > 2
    assert second < -2
    assert second < margin(finished, capsys) < first


def test_a_column_that_the_model_was_not_trained_on_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recommend", "--model", str(finished), "--history", "/dev/null", "--attribute", "plant=oak"]) == 2
    assert "attribute plant: the model was trained on animal" in capsys.readouterr().err


def test_no_value_of_an_attribute_is_in_any_file_of_the_run(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert finished / "model.safetensors" in files
    content = b"".join(path.read_bytes() for path in files)
    assert b"animal" in content  # the setting
    assert not any(value.encode() in content for value in GROUPS)
    table = load_checkpoint(finished).parameters["encoder.embeddings.word_embeddings.weight"]
    assert len(table) == 3 + BUCKETS


def test_a_run_is_evaluated_on_users_who_tell_other_things_or_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for name in ("interactions.csv", "items.csv"):
        (others / name).write_text((finished.parent / name).read_text())
    arguments = ["evaluate", "--model", str(finished), "--support", "1", "--order", "random", "--json"]
    assert run([*arguments, str(tmp_path / "told.json")]) == 0
    assert run([*arguments, str(tmp_path / "quiet.json"), "--user-attributes", ""]) == 0
    told, quiet = (json.loads((tmp_path / f"{name}.json").read_text())["cells"] for name in ("told", "quiet"))
    assert told != quiet
    assert run([*arguments, str(tmp_path / "others.json"), "--data", str(others)]) == 2
    assert "no file of users for data.user-attributes = animal" in capsys.readouterr().err
    assert run([*arguments, str(tmp_path / "others.json"), "--data", str(others), "--user-attributes", ""]) == 0
    assert json.loads((tmp_path / "others.json").read_text())["cells"] == quiet
