"""Leave-one-out: how histories are split, what is ranked, and that negatives leak nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError
from metarec_shared.evaluation import model_scorer
from metarec_shared.interactions import Interactions, starts
from metarec_shared.metrics import ranking_metrics
from metarec_shared.randomness import user_keys
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset
from metarec_shared.split import Role, roles
from server.regression import BLENDS
from simulations.evaluation.derived import ids_with_roles
from simulations.evaluation.leave_one_out import (
    PENALTIES,
    LeaveOneOut,
    LeaveOneOutTrial,
    Split,
    best_blends,
    latest,
    split_last,
)
from simulations.evaluation.ncf_files import read_test_files
from simulations.evaluation.negatives import never_touched, rarely_drawn, training_negatives
from tests.small import small_settings, small_tasks

PROBE_ROUNDS = 30


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def settings() -> Settings:
    return small_settings(generator__users=400, generator__items=150, generator__interactions=20)


@pytest.fixture(scope="module")
def dataset(settings: Settings) -> Dataset:
    return load_dataset(settings)


@pytest.fixture(scope="module")
def trial(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> LeaveOneOutTrial:
    return LeaveOneOut().open(settings, tmp_path_factory.mktemp("trial"), quiet)


def all_draws(train: Interactions, dataset: Dataset) -> torch.Tensor:
    users, keys = np.arange(len(train)), user_keys(0, train.user_ids)
    return rarely_drawn(train, users, keys, len(dataset.catalogue), PROBE_ROUNDS, seed=0)


def probed(scores: torch.Tensor, split: Split, dataset: Dataset) -> torch.Tensor:
    """Return whether each user's test item is among the ten best of the items he never touched, and itself."""
    items = len(dataset.catalogue)
    touched = torch.zeros(len(split.users), items, dtype=torch.bool)
    for row, user in enumerate(split.users):
        touched[row, dataset.interactions.history(int(user))] = True
    test = torch.from_numpy(split.test)[:, None]
    touched.scatter_(1, test, False)
    own = scores[torch.from_numpy(split.users)]
    return ranking_metrics(own, touched, test, torch.ones_like(test, dtype=torch.bool))["hr@10"]


def test_the_leak_probe_is_at_chance(dataset: Dataset) -> None:
    split = split_last(dataset.interactions)
    drawn = all_draws(split.train, dataset)
    found, chance = (probed(scores, split, dataset) for scores in (drawn, torch.zeros_like(drawn)))
    error = float(found.std()) / len(found) ** 0.5
    assert 0 < error < 0.03
    assert abs(float(found.mean()) - float(chance.mean())) < 3.5 * error
    assert float(found.mean()) < 0.2


def test_the_leak_probe_finds_negatives_that_avoid_the_test_item(dataset: Dataset) -> None:
    """What published code does: whoever counts draws finds nearly every test item."""
    split = split_last(dataset.interactions)
    leaking = all_draws(dataset.interactions, dataset)
    assert float(probed(leaking, split, dataset).mean()) > 0.95


def test_the_row_of_the_leak_probe_is_at_chance(trial: LeaveOneOutTrial) -> None:
    found, chance = trial.figures("leak-probe"), trial.figures("chance")
    for cell in ("sampled", "full"):
        users = found[cell]["users"]
        hit_rate = chance[cell]["hr@10"]
        assert abs(found[cell]["hr@10"] - hit_rate) < 4 * (hit_rate * (1 - hit_rate) / users) ** 0.5


def test_training_negatives_are_uniform_over_all_items_but_the_training_items() -> None:
    train = histories([[1, 4, 2], [0], [5, 3, 1, 0]], items_order=False)
    users, keys = np.array([2, 0]), np.array([77, 5], dtype=np.uint64)
    drawn = training_negatives(train, users, keys, 6, 30_000, (0, 1))
    assert set(drawn[0].tolist()) == {2, 4}
    assert set(drawn[1].tolist()) == {0, 3, 5}
    for row in drawn:
        _, counts = np.unique(row, return_counts=True)
        expected = 30_000 / len(counts)
        assert (np.abs(counts - expected) < 5 * expected**0.5).all()
    alone = training_negatives(train, users[1:], keys[1:], 6, 30_000, (0, 1))
    np.testing.assert_array_equal(drawn[1:], alone)
    assert (drawn != training_negatives(train, users, keys, 6, 30_000, (0, 2))).any()
    with pytest.raises(ValueError, match="every item of the catalogue"):
        training_negatives(train, np.array([1]), keys[:1], 1, 5, (0, 0))


def test_test_negatives_are_distinct_items_that_the_user_never_touched() -> None:
    history = np.array([7, 3, 0, 12])
    found = never_touched(history, 20, 10, seed=0, key=5, use="test")
    assert len(set(found.tolist())) == 10
    assert not set(found.tolist()) & set(history.tolist())
    everything = never_touched(history, 20, 99, seed=0, key=5, use="test")
    assert sorted(everything.tolist()) == sorted(set(range(20)) - set(history.tolist()))
    assert found.tolist() != never_touched(history, 20, 10, seed=0, key=6, use="test").tolist()


def test_the_last_item_is_the_test_and_the_one_before_validates() -> None:
    split = split_last(histories([[4, 2, 9, 1], [3, 5], [8, 0, 6]]))
    assert split.users.tolist() == [0, 2]
    assert split.test.tolist() == [1, 6]
    assert split.validation.tolist() == [9, 0]
    assert [split.train.history(user).tolist() for user in range(3)] == [[4, 2], [3, 5], [8]]
    assert split.train.ratings.tolist() == [4, 2, 3, 5, 8]


def test_a_given_test_item_need_not_be_the_last() -> None:
    split = split_last(histories([[4, 2, 9, 1], [3, 5], [8, 0, 6]]), np.array([2, 5, 6]))
    assert split.test.tolist() == [2, 6]
    assert split.validation.tolist() == [1, 0]
    assert [split.train.history(user).tolist() for user in range(3)] == [[4, 9], [3, 5], [8]]


def test_there_is_no_leave_one_out_without_time_or_without_long_histories() -> None:
    with pytest.raises(DataError, match="no timestamps"):
        split_last(replace(histories([[1, 2, 3]]), has_time=False))
    with pytest.raises(DataError, match="3 interactions or more, and there is none"):
        split_last(histories([[1, 2]]))


def test_what_is_ranked(trial: LeaveOneOutTrial, dataset: Dataset) -> None:
    """Test: no touched item but the test item, for both cells. Validation: nothing tells of the test item."""
    items = len(dataset.catalogue)
    sampled, full = trial.problem.cells
    split = split_last(dataset.interactions)
    parts = [tuple(split.train.history(int(user)).tolist()) for user in split.users]
    rows = {(int(test), *part): row for row, (test, part) in enumerate(zip(split.test, parts, strict=True))}
    for place, batch in enumerate(sampled.test.batches):
        few, all_of_them = sampled.test.excluded(place, items), full.test.excluded(place, items)
        for user in range(len(batch)):
            support = batch.support[user][batch.support_mask[user]].tolist()
            row = rows[(int(batch.query[user, 0]), *support)]
            whole = set(dataset.interactions.history(int(split.users[row])).tolist())
            ranked = set((~all_of_them[user]).nonzero()[:, 0].tolist())
            assert ranked == (set(range(items)) - whole) | {int(split.test[row])}
            assert int((~few[user]).sum()) == min(100, items - len(whole) + 1)
            assert not (~few[user] & all_of_them[user]).any()
            assert int(split.validation[row]) not in support
    for place, batch in enumerate(full.validation.batches):
        excluded = full.validation.excluded(place, items)
        assert (excluded.sum(dim=1) == batch.support_mask.sum(dim=1)).all()


def test_the_validation_item_is_hidden_unless_an_option_says_otherwise(settings: Settings, tmp_path: Path) -> None:
    seen = replace(settings, evaluation=replace(settings.evaluation, hold_out_validation=False))
    hidden, shown = (LeaveOneOut().open(s, tmp_path / str(n), quiet) for n, s in enumerate((settings, seen)))
    for one, other in zip(hidden.problem.cells[0].test.batches, shown.problem.cells[0].test.batches, strict=True):
        torch.testing.assert_close(one.support, other.support)
        assert (other.support_mask.sum(dim=1) == one.support_mask.sum(dim=1) + 1).all()
        torch.testing.assert_close(one.known, other.known)
    np.testing.assert_array_equal(hidden.problem.train.items, shown.problem.train.items)


def test_our_model_trains_on_training_parts_alone(trial: LeaveOneOutTrial, dataset: Dataset) -> None:
    training = load_dataset(trial.problem.settings)
    split = split_last(dataset.interactions)
    np.testing.assert_array_equal(training.interactions.items, split.train.items)
    np.testing.assert_array_equal(training.interactions.offsets, split.train.offsets)
    assert training.catalogue.fingerprint == dataset.catalogue.fingerprint
    found = roles(user_keys(trial.problem.settings.run.seed, training.interactions.user_ids))
    assert 0 < int((found == Role.VALIDATION).sum()) < 0.12 * len(found)
    assert not (found == Role.TEST).any()


def test_blends_are_chosen_in_turn_until_none_is_better() -> None:
    wanted = {0: 8.0, 2: 2.0}
    ways = [[[0.0], [2.0], [8.0]], [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 4.0]]]
    found = best_blends(lambda blends: -sum(abs(blends[place] - best) for place, best in wanted.items()), ways)
    assert found == [8.0, 0.0, 2.0]
    assert best_blends(lambda blends: -sum(blends), ways) == [0.0, 0.0, 0.0]


def test_our_own_regressions_are_blended_as_each_cell_validates_best(trial: LeaveOneOutTrial) -> None:
    scorers = trial._ours(trial)
    checkpoint = trial.trained("metarec", trial.problem.settings)
    assert not checkpoint.regressions
    alone, fits = model_scorer(trial.model(checkpoint), adapt=True), trial.regressions()
    assert {order: len(found) for order, found in fits.items()} == {
        order: len(penalties) for order, penalties in PENALTIES.items()
    }
    for cell in trial.problem.cells:
        chosen = trial.value(scorers[cell.name], [cell.validation])[0]
        assert chosen >= trial.value(lambda batch: alone(trial.read(batch)), [cell.validation])[0]
        for first, penalty in zip(fits["random"], PENALTIES["random"], strict=True):
            for blend in BLENDS:  # of these one is chosen first, with no other
                value = trial.value(
                    lambda batch, blend=blend * penalty, first=first: (  # type: ignore[misc]
                        alone(trial.read(batch)) + blend * first.predictions(batch.support, batch.support_mask)
                    ),
                    [cell.validation],
                )[0]
                assert chosen >= value
    figures = trial.figures("metarec")
    assert set(figures) == {"sampled", "full"}
    assert figures["sampled"]["hr@10"] > figures["full"]["hr@10"] > 0


def test_names_are_made_that_hash_to_the_wanted_roles() -> None:
    wanted = np.array([Role.TEST, Role.TRAINING, Role.VALIDATION, Role.TRAINING] * 5, dtype=np.int8)
    ids = ids_with_roles([f"u{number}" for number in range(20)], wanted, seed=4)
    np.testing.assert_array_equal(roles(user_keys(4, ids)), wanted)
    assert [name.partition("~")[0] for name in ids] == [f"u{number}" for number in range(20)]
    np.testing.assert_array_equal(ids_with_roles(["u7"], wanted[7:8], seed=4), ids[7:8])


def test_the_latest_support_items_are_left() -> None:
    batch = small_tasks(6)
    assert not batch.support_mask.all()
    sorted_last = replace(batch, support_mask=batch.support_mask.sort(dim=1, descending=True).values, dropout=None)
    found = latest(sorted_last, 3)
    for user in range(6):
        length = int(sorted_last.support_mask[user].sum())
        expected = sorted_last.support[user, max(length - 3, 0) : length].tolist()
        assert found.support[user][found.support_mask[user]].tolist() == expected
        levels = sorted_last.feedback[user, max(length - 3, 0) : length].tolist()
        assert found.feedback[user][found.support_mask[user]].tolist() == levels
    assert found.support.shape[1] <= 3


@pytest.mark.parametrize("seen", [False, True])
def test_histories_are_read_in_time_also_when_only_the_latest_items_are_left(
    settings: Settings, tmp_path: Path, seen: bool
) -> None:
    shown = replace(settings, evaluation=replace(settings.evaluation, hold_out_validation=not seen))
    trial = LeaveOneOut().open(shown, tmp_path, quiet)
    for judged in (trial.problem.cells[0].validation, trial.problem.cells[0].test):
        for batch in judged.batches:
            for found in (batch, latest(batch, 5)):
                assert found.in_time is not None
                assert found.in_time.all()
                assert found.from_start is not None
                whole = found.support_mask.sum(dim=1) == batch.support_mask.sum(dim=1)
                assert torch.equal(found.from_start, whole)
                assert found.recency is not None
                assert found.recency.shape == found.support.shape
                for ranks, mask in zip(found.recency, found.support_mask, strict=True):
                    assert ranks[mask].tolist() == list(range(int(mask.sum()), 0, -1))
                    assert (ranks[~mask] == 0).all()


def test_the_latest_items_of_no_known_order_keep_no_order() -> None:
    batch = replace(small_tasks(6), dropout=None, recency=None, in_time=None, from_start=None)
    found = latest(replace(batch, support_mask=batch.support_mask.sort(dim=1, descending=True).values), 3)
    assert found.recency is None
    assert found.in_time is None
    assert found.from_start is None


def write_files(folder: Path, *, negative: str = "(0,2)\t0\t2\n(1,0)\t3\t2\n") -> None:
    (folder / "movies.dat").write_text("".join(f"{n}::Film {n} (1990)::Drama\n" for n in (1, 2, 3, 4)), "latin-1")
    rows = ["1::4::5::10", "1::3::4::11", "1::1::4::12", "2::1::5::1", "2::2::3::3", "2::4::3::2"]
    rows = [rows[0], rows[2], rows[1], *rows[3:]]
    (folder / "ratings.dat").write_text("".join(f"{row}\n" for row in rows))
    (folder / "some.test.rating").write_text("0\t2\t4\t11\n1\t0\t3\t2\n")  # items 4, 1, 3, 2 are numbers 0, 1, 2, 3
    (folder / "some.test.negative").write_text(negative)


def file_settings(folder: Path) -> Settings:
    return small_settings(data__path=str(folder), evaluation__negatives="files")


def test_test_items_and_negatives_are_read_from_files(tmp_path: Path) -> None:
    write_files(tmp_path, negative="(0,2)\t3\t2\n(1,0)\t2\t2\n")
    dataset = load_dataset(file_settings(tmp_path))
    found = read_test_files(tmp_path, dataset)
    position = dataset.catalogue.index
    assert found.items.tolist() == [position["3"], position["4"]]
    assert found.negatives.tolist() == [[position["2"], -1], [position["3"], position["3"]]]


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        ("(0,2)\t0\t2\n(1,0)\t2\t2\n", r"some\.test\.negative line 1: the user touched a negative"),
        ("(0,1)\t3\t3\n(1,0)\t2\t2\n", "names other test items than"),
        ("(0,2)\t3\t9\n(1,0)\t2\t2\n", "line 1: items must be numbers below 4"),
        ("(0,2)\tx\t3\n(1,0)\t2\t2\n", "line 1: wanted whole numbers"),
        ("(1,2)\t3\t3\n(0,0)\t2\t2\n", "line 1: wanted user 0, got 1"),
        ("(0,2)\t3\t3\n", "for each of 2 users, got 1 lines"),
        ("0\t3\t3\n", r"wanted \(user,item\), got '0'"),
    ],
)
def test_files_that_do_not_belong_to_the_data_are_refused(tmp_path: Path, negative: str, message: str) -> None:
    write_files(tmp_path, negative=negative)
    with pytest.raises(DataError, match=message):
        read_test_files(tmp_path, load_dataset(file_settings(tmp_path)))


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "some.test.negative").unlink()
    with pytest.raises(DataError, match=r"wants one file \*\.test\.negative, got 0"):
        LeaveOneOut().open(file_settings(tmp_path), tmp_path / "out", quiet)


def histories(rows: list[list[int]], *, items_order: bool = True) -> Interactions:
    items = np.concatenate([np.array(row) for row in rows])
    return Interactions(
        user_ids=np.array([f"user {user}" for user in range(len(rows))]),
        offsets=starts(np.array([len(row) for row in rows])),
        items=items.astype(np.int32),
        ratings=items.astype(np.float32),
        has_time=items_order,
    )
