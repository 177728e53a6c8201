"""What an item's text says in so many words."""

import numpy as np
import torch

from metarec_shared.catalogue import Catalogue
from metarec_shared.item_content import item_words, item_years, with_content


def catalogue(further: list[str], *, dated: bool = True) -> Catalogue:
    titles = tuple(f"Film {n}" + (f" ({1960 + n})" if dated else "") for n in range(len(further)))
    texts = tuple(f"{title}. {text}" if text else title for title, text in zip(titles, further, strict=True))
    return Catalogue(item_ids=tuple(map(str, range(len(further)))), titles=titles, texts=texts)


GENRES = ["Drama"] * 15 + ["Drama Sci-Fi"] * 10 + ["Western"] * 5


def test_words_are_those_after_the_title_that_describe_ten_items() -> None:
    found = item_words(catalogue(GENRES))
    assert found.shape == (30, 2)  # drama, sci-fi; five westerns are too few
    assert found.sum(axis=0).tolist() == [25, 10]
    assert item_words(catalogue([""] * 12)).shape == (12, 1)  # only titles: "film"
    assert item_words(catalogue(["x"] * 3)).shape == (3, 0)


def test_years_end_titles() -> None:
    assert item_years(catalogue(GENRES)).tolist() == list(range(1960, 1990))
    assert not item_years(catalogue(GENRES, dated=False)).any()


def test_content_is_standardized_and_near_years_are_near() -> None:
    text = torch.randn(30, 4)
    found = with_content(text, catalogue(GENRES))
    torch.testing.assert_close(found[:, :4], text)
    content = found[:, 4:].double().numpy()
    np.testing.assert_allclose(content.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.square(content).sum(axis=1).mean(), 1, rtol=1e-5)
    years = content[:, 2:]
    apart = [np.linalg.norm(years[10] - years[10 + gap]) for gap in (1, 4, 12)]
    assert apart == sorted(apart)
    torch.testing.assert_close(with_content(text[:3], catalogue(["x"] * 3, dated=False)), text[:3])


def test_an_item_without_a_year_is_of_no_time_in_particular() -> None:
    undated = catalogue(GENRES)
    undated = Catalogue(
        item_ids=undated.item_ids, titles=("Film", *undated.titles[1:]), texts=("Film. Drama", *undated.texts[1:])
    )
    found = with_content(torch.zeros(30, 1), undated)[:, 3:]
    torch.testing.assert_close(found[0], torch.zeros_like(found[0]), atol=1e-6, rtol=0)
