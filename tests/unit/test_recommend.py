"""Reading a history and recommending for it."""

from pathlib import Path

import pytest
import torch

from client.history import Item, Profile, read_history
from client.history_lines import content_of, lines_in, lines_of
from client.recommend import recommend
from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError
from metarec_shared.task_regression import TaskRegression
from tests.small import ITEMS, small_model

CATALOGUE = Catalogue(item_ids=("1", "2", "3", "4"), titles=("Heat", "Twins", "Twins", "1"), texts=("a", "b", "c", "d"))
SCALE = RatingScale(low=1.0, high=5.0)


def read(*lines: str) -> Profile:
    return read_history(lines_of(lines, "history.txt"), CATALOGUE, SCALE)


def test_ids_and_exact_titles_are_found_ids_first() -> None:
    profile = read("Heat\n", "2\t\t\t\n", "", "   ")
    assert [item.position for item in profile.items] == [0, 1]
    assert profile.skipped == []


def test_ratings_follow_a_tab_and_become_feedback_levels() -> None:
    profile = read("Heat\t5", "2\t1", "3")
    assert [(item.position, item.feedback) for item in profile.items] == [(0, 10), (1, 1), (2, 0)]


def test_an_item_named_again_counts_once_where_it_was_last_with_the_last_rating_it_got() -> None:
    assert read("Heat\t4", "2", "1\t2").items == [Item(position=1), Item(position=0, feedback=3)]
    assert read("Heat\t4", "2", "1").items == [Item(position=1), Item(position=0, feedback=8)]
    assert read("Heat\t4\t30", "2\t\t20", "1\t2\t10").items == [Item(position=1), Item(position=0, feedback=8)]


def test_what_the_catalogue_lacks_is_skipped_by_name() -> None:
    profile = read("nowhere", "Heat", "999\t3")
    assert [item.position for item in profile.items] == [0]
    assert profile.skipped == ["nowhere", "999"]


def test_times_follow_a_second_tab_and_put_the_history_in_order() -> None:
    profile = read("Heat\t5\t300", "2\t\t100", "3\t1\t-2e2", "nowhere\t\t50", "1\t2\t0")
    assert profile.items == [Item(position=2, feedback=1), Item(position=1), Item(position=0, feedback=10)]
    assert profile.in_time
    assert profile.skipped == ["nowhere"]


def test_a_history_without_times_stays_as_it_is_and_is_not_known_to_be_in_time() -> None:
    profile = read("3", "Heat\t5", "2\t\t")
    assert [item.position for item in profile.items] == [2, 0, 1]
    assert not profile.in_time
    assert not read().in_time


@pytest.mark.parametrize("lines", [("Heat\t5\t300", "2"), ("2\t1", "Heat\t5\t300")])
def test_times_on_some_lines_alone_are_an_error(lines: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"history.txt line 2: either every line has a time after a second tab or none"):
        read(*lines)


def test_a_history_in_time_is_answered_by_what_was_learned_of_histories_in_time() -> None:
    model = small_model(dtype=torch.float32)
    items = [Item(position=p) for p in (3, 7, 11)]
    weights = torch.zeros(ITEMS, 1)
    weights[11] = 1e4
    for order, target in (("random", 5), ("time", 6)):
        regression = TaskRegression(neighbours=torch.full((ITEMS, 1), target), weights=weights)
        model.regressions = {**model.regressions, order: [regression]}
    assert recommend(model, Profile(items=items), 1)[0][0] == 5
    assert recommend(model, Profile(items=items, in_time=True), 1)[0][0] == 6


def test_a_history_in_time_is_read_as_one_from_the_start() -> None:
    model, read = small_model(dtype=torch.float32), []
    model.encoder.embeddings.word_embeddings.register_forward_hook(lambda *hooked: read.append(hooked[1][0].tolist()))
    for in_time in (False, True):
        recommend(model, Profile(items=[Item(position=3)], in_time=in_time), 1)
    assert read == [[[0]], [[2]]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Heat\t5\tnoon", "history.txt line 1: time must be a number, got 'noon'"),
        ("Heat\t5\tinf", "history.txt line 1: time must be finite, got 'inf'"),
        ("Twins", "history.txt line 1: 2 items bear the title 'Twins'; give one of their ids: 2, 3"),
        ("Heat\tfive", "history.txt line 1: rating must be a number, got 'five'"),
        ("Heat\t6", "history.txt line 1: rating must be between 1 and 5, got 6"),
        ("Heat\tnan", "history.txt line 1: rating must be finite, got 'nan'"),
        ("\t5", "history.txt line 1: wanted an item before the first tab, got none"),
        ("Heat\t5\t1\t2", "history.txt line 1: wanted an item, a rating and a time, got 4 parts between tabs"),
    ],
)
def test_a_history_that_cannot_be_read_is_an_error_with_its_line(line: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(line)
    assert str(error.value) == message


def test_ratings_are_ignored_by_a_model_trained_without() -> None:
    assert read_history(lines_of(["Heat\t77"], "-"), CATALOGUE, None).items == [Item(position=0)]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_history_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "history.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"history.txt: cannot read the history"):
        lines_in(*content_of(str(path)))


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    profile = read_history(lines_in(b"\xef\xbb\xbfHeat\n2\n", "-"), CATALOGUE, SCALE)
    assert [item.position for item in profile.items] == [0, 1]


def test_the_history_is_never_recommended_and_scores_fall() -> None:
    model = small_model(dtype=torch.float32)
    profile = Profile(items=[Item(position=p, feedback=5) for p in (3, 7, 11)])
    ranked = recommend(model, profile, ITEMS)
    assert len(ranked) == ITEMS - 3
    assert not {3, 7, 11} & {position for position, _ in ranked}
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True)
    assert recommend(model, profile, 5) == ranked[:5]


def test_the_order_of_a_history_does_not_matter() -> None:
    model = small_model(dtype=torch.float32)
    items = [Item(position=p, feedback=p % 11) for p in (3, 7, 11, 2)]
    forward, backward = (dict(recommend(model, Profile(items=order), ITEMS)) for order in (items, items[::-1]))
    assert forward.keys() == backward.keys()
    assert all(forward[p] == pytest.approx(backward[p], abs=1e-4) for p in forward)


def test_an_empty_history_is_answered_by_the_unadapted_initialization() -> None:
    model = small_model(dtype=torch.float32)
    ranked = recommend(model, Profile(items=[]), 10)
    E = model.item_vectors()
    state = model.encoder.embeddings.word_embeddings.weight[:1][None]
    h = model.head(
        model.encoder(inputs_embeds=state, position_ids=torch.zeros(1, 1, dtype=torch.long)).last_hidden_state[0]
    )
    expected = (h @ E.T + model.item_bias)[0].topk(10)
    assert [position for position, _ in ranked] == expected.indices.tolist()
