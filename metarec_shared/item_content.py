"""What an item's text says in so many words: the words that follow its title, such as genres, and its year."""

import re
from collections import Counter

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metarec_shared.catalogue import Catalogue

_YEAR = re.compile(r"\((\d{4})\)\s*$")
_WORD = re.compile(r"[^\W_][\w'-]*")
_FEWEST_ITEMS = 10
_MOST_WORDS = 200
_EPOCHS = 11
_YEARS_APART = 4.0


def item_words(catalogue: Catalogue) -> Bool[np.ndarray, "items words"]:
    """Return which of the most frequent words describe each item.

    Words are of the text that follows the title, or of the title where nothing does; each describes at least ten items.
    """
    rest = [whole.removeprefix(title) for title, whole in zip(catalogue.titles, catalogue.texts, strict=True)]
    if not any(_WORD.search(part) for part in rest):
        rest = [_YEAR.sub("", title) for title in catalogue.titles]
    words = [set(_WORD.findall(part.lower())) for part in rest]
    counts = Counter(word for some in words for word in some)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    kept = [word for word in ordered[:_MOST_WORDS] if counts[word] >= _FEWEST_ITEMS]
    return np.array([[word in some for word in kept] for some in words], dtype=np.bool_).reshape(len(words), len(kept))


def item_years(catalogue: Catalogue) -> Int[np.ndarray, " items"]:
    """Return the year that ends each title, such as "Toy Story (1995)"; 0 where there is none."""
    found = [_YEAR.search(title) for title in catalogue.titles]
    return np.array([int(match[1]) if match else 0 for match in found], dtype=np.int64)


def with_content(text: Float[Tensor, "items text"], catalogue: Catalogue) -> Float[Tensor, "items wider"]:
    """Return text vectors and behind them what words and years say, columns standardized, of length about 1 together.

    A year is how near it is to each of some epochs, those that divide the catalogue's items evenly, so that items later
    than all that were rated are like the latest of those.
    """
    years = item_years(catalogue)
    columns = [item_words(catalogue).astype(np.float64)]
    if (years > 0).any():
        epochs = np.unique(np.quantile(years[years > 0], np.linspace(0.0, 1.0, _EPOCHS)))
        near = np.exp(-0.5 * ((years[:, None] - epochs) / _YEARS_APART) ** 2)
        columns.append(np.where(years[:, None] > 0, near, near[years > 0].mean(axis=0)))
    content = np.concatenate(columns, axis=1)
    content = content[:, content.std(axis=0) > 0]
    if not content.shape[1]:
        return text
    content = (content - content.mean(axis=0)) / content.std(axis=0) / np.sqrt(content.shape[1])
    return torch.cat([text, torch.from_numpy(content).to(text)], dim=1)
