"""A data set: a public catalogue, private interactions with it, and what was found while reading them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from metarec_shared.catalogue import Catalogue
from metarec_shared.interactions import Interactions

MOST_PLACES = 20
_FEW_PLACES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingScale:
    """Lowest and highest rating that the data's own scale allows."""

    low: float
    high: float

    @staticmethod
    def widest(scales: Iterable["RatingScale | None"]) -> "RatingScale | None":
        """Return the narrowest scale that holds all ``scales``; None where there is none."""
        given = [scale for scale in scales if scale is not None]
        if not given:
            return None
        return RatingScale(low=min(s.low for s in given), high=max(s.high for s in given))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with the data that reading went past: counted, never silent.

    Attributes:
        kind: Short name, for example ``"duplicate interactions"``.
        count: How many rows, users or items it concerns.
        handling: What was done, for example ``"the first is kept"``.
        places: Where the first ``MOST_PLACES`` rows that were rejected stand, for example ``"line 17"``.
    """

    kind: str
    count: int
    handling: str
    places: tuple[str, ...] = ()

    def sentence(self, places: int = MOST_PLACES) -> str:
        """Return the problem in words that name at most so many places."""
        if not self.places:
            return f"{self.count:,} {self.kind}: {self.handling}"
        named = self.places[:places]
        shown = ", ".join(named) + (", …" if self.count > len(named) else "")
        return f"{self.count:,} {self.kind}: {self.handling} ({shown})"

    def __str__(self) -> str:
        return self.sentence(_FEW_PLACES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a reader returns.

    Attributes:
        name: Name of the folder, or of the generator.
        layout: Which layout the folder was found to be in; of a packed folder, the layout it was packed from.
        catalogue: Public items.
        interactions: Private histories, users sorted by id.
        rating_scale: The ratings' scale where layout or settings fix it, which makes it public; else None.
        problems: What was skipped or mended.
    """

    name: str
    layout: str
    catalogue: Catalogue
    interactions: Interactions
    rating_scale: RatingScale | None
    problems: tuple[Problem, ...] = field(default=())
