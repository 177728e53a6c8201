"""Items of two catalogues that are the same by their text."""

import pandas as pd

from metarec_shared.catalogue import Catalogue


def catalogue(*texts: str) -> Catalogue:
    return Catalogue(item_ids=tuple(map(str, range(len(texts)))), titles=texts, texts=texts)


def test_items_with_the_same_text_are_shared() -> None:
    here, there = catalogue("heat", "jaws", "alien", "big"), catalogue("big", "antz", "heat")
    expected = pd.merge(
        pd.DataFrame({"text": here.texts, "here": range(4)}), pd.DataFrame({"text": there.texts, "there": range(3)})
    )
    found = here.shared_with(there)
    assert found[0].tolist() == expected["here"].tolist() == [0, 3]
    assert found[1].tolist() == expected["there"].tolist() == [2, 0]


def test_a_text_that_two_items_bear_is_shared_by_both_and_counts_once_over_there() -> None:
    here, there = catalogue("heat", "heat"), catalogue("heat", "heat")
    assert [side.tolist() for side in here.shared_with(there)] == [[0, 1], [1, 1]]


def test_nothing_shared_is_empty() -> None:
    here, there = catalogue("heat").shared_with(catalogue("jaws"))
    assert here.shape == there.shape == (0,)
    assert here.dtype == there.dtype == "int64"
