"""The Python API on a model that a federation trained."""

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.history import read_history
from client.history_lines import lines_of
from client.interaction import Interaction, profile_of
from client.recommend import recommend
from client.recommender import Explanation, Influence, Item, Recommender
from metarec_shared.errors import CheckpointError, DataError, MetaRecError
from simulations.benchmarks import cold_start
from tests.integration.test_in_process_federation import run
from tests.small import small_settings

HISTORY = [("b0003", 5.0), "b0007", ("Northern Map", 2.0)]
TIMED = [("b0003", 5.0, 30.0), ("b0007", 2.0, 10.0), ("b0011", None, 20.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    run(small_settings(run__out=str(out), federation__rounds=10, generator__users=120, evaluation__support=8))
    return out


@pytest.fixture
def rec(folder: Path) -> Recommender:
    return Recommender.load(folder)


def listed(items: list[Any]) -> list[tuple[str, float]]:
    return [(item.item_id, pytest.approx(item.score, abs=1e-5)) for item in items]


@pytest.mark.parametrize(
    ("history", "lines"),
    [
        (HISTORY, ["b0003\t5", "b0007", "Northern Map\t2"]),
        (TIMED, ["b0003\t5\t30", "b0007\t2\t10", "b0011\t\t20"]),
        ([Interaction(item="b0003", rating=1.5)], ["b0003\t1.5"]),
        ([], []),
    ],
)
def test_an_app_gets_what_the_command_recommends(rec: Recommender, history: Any, lines: list[str]) -> None:
    profile = read_history(lines_of(lines, "history.txt"), rec.catalogue, rec.rating_scale)
    found = rec.adapt(history).recommend(7)
    expected = recommend(rec.state.model, profile, 7)
    assert [item.item_id for item in found] == [rec.catalogue.item_ids[position] for position, _ in expected]
    assert [item.score for item in found] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert found[0].title == rec.catalogue.titles[expected[0][0]]


def test_many_users_at_once_are_as_one_by_one(rec: Recommender) -> None:
    histories: list[Any] = [HISTORY, [], TIMED, ["b0001"], [f"b{n:04}" for n in range(2, 20)]] * 20
    for history, user in zip(histories, rec.adapt_all(histories), strict=True):
        assert listed(user.recommend(5)) == listed(rec.adapt(history).recommend(5))
    assert rec.adapt_all([]) == []


@pytest.mark.parametrize("history", [TIMED, HISTORY])
def test_an_update_is_adaptation_to_the_union(rec: Recommender, history: Any) -> None:
    more: list[Any] = [("b0021", 4.0, 5.0)] if history is TIMED else [("b0021", 4.0)]
    user = rec.adapt(history)
    before = user.recommend(10)
    assert user.update(more) is user
    assert listed(user.recommend(10)) == listed(rec.adapt([*history, *more]).recommend(10))
    assert listed(user.recommend(10)) != listed(before)
    assert len(user.history) == 4


def test_an_item_that_is_named_again_counts_once_with_its_last_rating(rec: Recommender) -> None:
    again = rec.adapt([("b0003", 1.0), "b0007", ("b0003", 5.0)])
    assert listed(again.recommend(5)) == listed(rec.adapt(["b0007", ("b0003", 5.0)]).recommend(5))


def test_what_makes_no_sense_is_said_and_changes_nothing(rec: Recommender) -> None:
    user = rec.adapt(TIMED)
    before = listed(user.recommend(5))
    wrong: list[tuple[Any, str]] = [
        (["b0001"], "interaction 4: either every interaction has a time or none has"),
        ([("b0001", 9.0, 1.0)], "item 'b0001': rating must be between 1 and 5, got 9"),
        ([("b0001", float("nan"), 1.0)], "interaction 1: rating must be a finite number, got nan"),
        ([("b0001", None, "now")], "interaction 1: time must be a finite number, got 'now'"),
        ([17], "must be an item, or an item, a rating and a time, got 17"),
        ([("b0001", 1.0, 2.0, 3.0)], "must be an item"),
    ]
    for told, said in wrong:
        with pytest.raises(DataError, match=said):
            user.update(told)
    assert listed(user.recommend(5)) == before
    with pytest.raises(DataError, match="the model reads no attributes"):
        rec.adapt([], attributes={"gender": "F"})


def test_what_the_catalogue_lacks_is_skipped_and_said(rec: Recommender) -> None:
    user = rec.adapt(["nowhere", *HISTORY])
    assert user.skipped == ["nowhere"]
    assert listed(user.recommend(3)) == listed(rec.adapt(HISTORY).recommend(3))


def test_lists_hold_what_may_be_in_them(rec: Recommender) -> None:
    user = rec.adapt(HISTORY)
    every = [item.item_id for item in user.recommend(1000)]
    assert len(every) == len(rec.catalogue) - 3
    assert not {"b0003", "b0007", "b0002"} & set(every)
    assert len(user.recommend(1000, include_known=True)) == len(rec.catalogue)
    best = every[:4]
    assert [item.item_id for item in user.recommend(2, exclude=[best[0], "nowhere"])] == best[1:3]
    assert [item.item_id for item in user.recommend(5, candidates=[best[3], best[1], "b0003"])] == [best[1], best[3]]

    def odd(item: Item) -> bool:
        return int(item.item_id[1:]) % 2 == 1

    assert [item.item_id for item in user.recommend(6, filter=odd)] == [i for i in every if int(i[1:]) % 2][:6]
    assert user.recommend(5, candidates=[]) == []
    with pytest.raises(DataError, match="k must be a whole number of at least 1, got 0"):
        user.recommend(0)


def test_popularity_counts_as_much_as_wanted(rec: Recommender) -> None:
    user, bias = rec.adapt(HISTORY), rec.state.model.item_bias.tolist()
    whole = {item.item_id: item.score for item in user.recommend(50)}
    without = {item.item_id: item.score for item in user.recommend(50, popularity=0.0)}
    for item, score in whole.items():
        assert without[item] == pytest.approx(score - bias[rec.catalogue.index[item]], abs=1e-5)


def test_a_saved_user_comes_back(rec: Recommender, tmp_path: Path) -> None:
    user, file = rec.adapt([*TIMED, ("nowhere", 3.0, 1.0)]), tmp_path / "user.json"
    user.save(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    back = rec.user(file)
    assert listed(back.recommend(5)) == listed(user.recommend(5))
    assert back.skipped == ["nowhere"], "a later catalogue may hold it"
    assert back.history == user.history


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.write_text(file.read_text()[:-20]), "cannot read a user"),
        (lambda file: file.write_text(json.dumps({"format": 9})), "format 9 is not the format 1"),
        (lambda file: file.write_text(json.dumps({"format": 1, "interactions": [{"what": 1}]})), "cannot read a user"),
        (lambda file: file.chmod(0o644), "others may read it; chmod 600"),
        (lambda file: file.unlink(), "cannot read a user"),
    ],
)
def test_a_user_file_that_is_none_is_refused(
    rec: Recommender, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    rec.adapt(HISTORY).save(tmp_path / "user.json")
    change(tmp_path / "user.json")
    with pytest.raises(DataError, match=said):
        rec.user(tmp_path / "user.json")


def test_similar_items_are_those_of_like_text(rec: Recommender) -> None:
    found = rec.similar_items("b0005", 6)
    text = torch.nn.functional.normalize(rec.state.model.text, dim=1)
    cosines = text @ text[rec.catalogue.index["b0005"]]
    best = [p for p in cosines.argsort(descending=True).tolist() if p != rec.catalogue.index["b0005"]][:6]
    assert [item.item_id for item in found] == [rec.catalogue.item_ids[p] for p in best]
    assert [item.score for item in found] == pytest.approx(cosines[best].tolist(), abs=1e-6)
    with pytest.raises(DataError, match="no item 'nowhere' in a catalogue of 40"):
        rec.similar_items("nowhere")


def test_an_added_item_is_there_at_once_by_its_text(rec: Recommender) -> None:
    user = rec.adapt(["b0005", "b0009", "new"])
    assert user.skipped == ["new"]
    twin = rec.catalogue.texts[rec.catalogue.index["b0005"]]
    rec.add_items({"new": twin + " again", "other": "Nothing like it"}, titles={"other": "Other"})
    assert rec.catalogue.titles[-2:] == (twin + " again", "Other")
    assert user.skipped == []
    assert "new" in [item.item_id for item in user.recommend(100, include_known=True)]
    assert rec.similar_items("new", 3)[0].score > 0.5
    rec.add_items({"third": twin})
    assert rec.similar_items("third", 1)[0].item_id == "b0005"
    everything = user.recommend(100, candidates=["third"])
    assert [item.item_id for item in everything] == ["third"]
    wrong: list[tuple[Any, Any, str]] = [
        ({"new": "x"}, None, "has items of these ids: new"),
        ({"b0001": "x"}, None, "has items of these ids: b0001"),
        ({"empty": " "}, None, "got none for 'empty'"),
        ({"a": "x"}, {"b": "X"}, "titles of items that are not added: b"),
    ]
    for texts, titles, said in wrong:
        with pytest.raises(DataError, match=said):
            rec.add_items(texts, titles=titles)
    assert len(rec.catalogue) == 43


def test_items_are_not_added_by_another_encoder(rec: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarec_shared.other_catalogue.SAME_VECTOR", -1.0)
    with pytest.raises(MetaRecError, match="here builtin gives other vectors"):
        rec.add_items({"new": "text"})
    assert len(rec.catalogue) == 40


def test_diverse_and_fresh_lists(rec: Recommender) -> None:
    user = rec.adapt(HISTORY)
    plain = user.recommend(5)
    assert listed(user.recommend(5, diversity=0.0, fresh={"b0001": 1.0}, freshness=0.0)) == listed(plain)
    assert user.recommend(5, diversity=0.3)[0].item_id == plain[0].item_id

    def alike(items: list[Any]) -> float:
        unit = torch.nn.functional.normalize(rec.state.vectors[[rec.catalogue.index[i.item_id] for i in items]], dim=1)
        return float((unit @ unit.T).mean())

    assert alike(user.recommend(5, diversity=0.9)) < alike(plain)
    last = user.recommend(30)[-1].item_id
    assert user.recommend(5, fresh={last: 1.0}, freshness=1.0)[0].item_id == last
    with pytest.raises(DataError, match=r"diversity must be from 0 to 1, got 1\.5"):
        user.recommend(5, diversity=1.5)


def test_explanations_are_in_words_and_name_the_history(rec: Recommender) -> None:
    user = rec.adapt(HISTORY)
    explanation = user.explain(user.recommend(1)[0].item_id)
    assert {one.item_id for one in explanation.influences} == {"b0003", "b0007", "b0002"}
    values = [one.influence for one in explanation.influences]
    assert values == sorted(values, reverse=True)
    first = explanation.influences[0]
    expected = f"because of {first.title}" if first.influence > 0 else "nothing in your history speaks for it"
    assert expected in str(explanation)
    assert rec.adapt([]).explain("b0001").influences == []
    with pytest.raises(DataError, match="no item 'nowhere'"):
        user.explain("nowhere")


def test_threads_share_a_model_and_a_user(rec: Recommender, folder: Path, tmp_path: Path) -> None:
    """Each answer is that of the catalogue before an item is added or after it, and of a whole history."""
    added, more = {"new-20": "a text"}, ("b0021", 4.0)
    larger = Recommender.load(folder)
    larger.add_items(added)
    user, growing, file = rec.adapt(HISTORY), rec.adapt(HISTORY), tmp_path / "user.json"
    growing.save(file)
    lists = [listed(one.adapt(HISTORY).recommend(5)) for one in (rec, larger)]
    sentences = [str(one.adapt(TIMED).explain("b0001")) for one in (rec, larger)]
    lengths = []

    def use(number: int) -> None:
        if number == 20:
            rec.add_items(added)
        elif number == 30:
            growing.update([more])
        elif number % 4 == 0:
            assert str(rec.adapt(TIMED).explain("b0001")) in sentences
        elif number % 4 == 1:
            with pytest.raises(DataError, match="rating must be between"):
                growing.update([("b0009", 99.0)])
        elif number % 4 == 2:
            growing.save(file)
            lengths.append(len(rec.user(file).history))
        else:
            assert listed(user.recommend(5)) in lists

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(120)))
    assert set(lengths) <= {3, 4}
    assert len(growing.history) == 4


def test_a_refused_update_is_never_seen(rec: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    user, seen = rec.adapt(HISTORY), []

    def spied(*given: Any) -> Any:
        seen.append(len(user.history))
        return profile_of(*given)

    monkeypatch.setattr("client.recommender.profile_of", spied)
    with pytest.raises(DataError, match="rating must be between 1 and 5, got 99"):
        user.update([("b0009", 99.0)])
    assert seen == [3]


def test_items_of_a_history_stay_what_they_were_when_others_bear_their_title(rec: Recommender, tmp_path: Path) -> None:
    """Whoever adds items may give them any titles, and ids that are titles of others."""
    title = rec.catalogue.titles[5]
    user = rec.adapt([title, "b0007", "new"])
    before = user.profile_in(rec.state)
    rec.add_items(
        {"new-1": "a text", title: "another text", "new-2": "a text", "new-3": "a text"},
        titles={"new-1": title, "new-2": "new", "new-3": "new"},
    )
    assert user.profile_in(rec.state) == before
    assert len(user.recommend(100)) == len(rec.catalogue) - 2
    assert user.skipped == ["new"], "which of the two is not known"
    assert [one.item for one in user.history] == [title, "b0007", "new"], "as it was told"
    for tell in (rec.adapt, user.update):
        with pytest.raises(DataError, match="2 items bear the title 'new'; give one of their ids: new-2, new-3"):
            tell(["new"])
    user.save(tmp_path / "user.json")
    assert rec.user(tmp_path / "user.json").skipped == ["new"]


def test_attributes_may_be_numbers(rec: Recommender) -> None:
    with pytest.raises(DataError, match="attribute age: the model reads no attributes of users"):
        rec.adapt(HISTORY, attributes={"age": 25})  # type: ignore[dict-item]


def test_numbers_of_numpy_are_numbers(rec: Recommender, tmp_path: Path) -> None:
    user = rec.adapt([("b0003", np.float32(5), np.int64(30)), ("b0007", np.float64(2), np.int32(10))])
    user.save(tmp_path / "user.json")
    assert rec.user(tmp_path / "user.json").history == user.history
    assert user.history[0] == Interaction(item="b0003", rating=5.0, time=30.0)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"popularity": float("nan")}, "popularity must be a finite number, got nan"),
        ({"popularity": 10**400}, "popularity must be a finite number, got 1000"),
        ({"popularity": None}, "popularity must be a finite number, got None"),
        ({"diversity": "a"}, "diversity must be a finite number, got 'a'"),
        ({"fresh": {"b0001": None}}, r"fresh\['b0001'\] must be a finite number, got None"),
        ({"fresh": {"b0001": 50.0}, "freshness": 0.1}, r"fresh\['b0001'\] must be from 0 to 1, got 50"),
        ({"fresh": {"b0001": float("nan")}}, r"fresh\['b0001'\] must be a finite number, got nan"),
        ({"k": 2.5}, "k must be a whole number of at least 1, got 2.5"),
        ({"exclude": "b0001"}, "exclude must be a list of items, got the text 'b0001'"),
        ({"candidates": "b0001"}, "candidates must be a list of items, got the text 'b0001'"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(rec: Recommender, wish: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        rec.adapt(HISTORY).recommend(**wish)


def test_users_of_a_batch_hold_their_own_scores_alone(rec: Recommender) -> None:
    users = rec.adapt_all([HISTORY, TIMED])
    for user in users:
        assert user._known is not None
        assert user._known[2].untyped_storage().nbytes() == 4 * len(rec.catalogue)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "T: nothing is known of you yet that speaks for it or against it"),
        ([3.0, 2.0, 1.0, 0.5, -1.0], "T: because of t0, t1, t2"),
        ([3.0, -1.0], "T: because of t0"),
        ([-1.0, -2.0, -3.0, -4.0], "T: nothing in your history speaks for it; most against it t3, t2, t1"),
    ],
)
def test_an_explanation_names_what_moved_the_score_most(values: list[float], said: str) -> None:
    rows = [Influence(item_id=str(n), title=f"t{n}", influence=value) for n, value in enumerate(values)]
    assert str(Explanation(item_id="i", title="T", influences=rows)) == said


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file; wanted the folder of a run"):
        Recommender.load(tmp_path)


def test_the_example_in_the_readme_runs(
    rec: Recommender, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    example = readme.split("### In an app")[1].split("```python\n")[1].split("```")[0]
    names = {"runs/ml-1m": str(folder)}
    titles = ("Toy Story (1995)", "Heat (1995)", "Casino (1995)")
    names |= {title: rec.catalogue.titles[place] for place, title in enumerate(titles)}
    names |= {f'"{number}"': f'"{rec.catalogue.item_ids[place + 5]}"' for place, number in enumerate((1, 2, 3, 50))}
    for written, here in names.items():
        assert written in example
        example = example.replace(written, here)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert len(found["users"]) == 3
    assert len(found["user"].history) == 3
    assert "new-1" in found["rec"].catalogue.index


def test_quality_by_the_number_of_interactions_is_that_of_the_methods(folder: Path, tmp_path: Path) -> None:
    """The unadapted model and the ensemble are one where nothing is known, and popularity knows the same all along."""
    cold_start.main(f"{folder},{folder}", counts="0,1,5", validation=True, out=tmp_path)
    found = json.loads((tmp_path / "cold-start.json").read_text())
    assert set(found) == {"random", "time"}
    for rows in found.values():
        assert list(rows) == ["0", "1", "5"]
        assert rows["0"]["ensemble"] == rows["0"]["adapted"] == rows["0"]["unadapted"]
        assert rows["5"]["ensemble"] != rows["5"]["unadapted"]
        assert all(len(set(values)) == 1 for row in rows.values() for values in row.values()), "the run twice"
    assert (tmp_path / "cold-start.svg").read_text().startswith("<?xml")


def test_the_margin_is_in_standard_errors_of_the_difference() -> None:
    row = {name: [0.0, 0.0, 0.0] for name in cold_start.METHODS} | {
        "ensemble": [3.0, 5.0, 4.0],
        "ease": [1.0, 2.0, 3.0],
    }
    assert cold_start.margin(row) == pytest.approx(2.0 / (np.std([2.0, 3.0, 1.0], ddof=1) / 3**0.5))
    assert cold_start.margin(row | {"ensemble": row["ease"]}) == 0.0
