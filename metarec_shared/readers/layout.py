"""A layout: which files it consists of and, for most, how each becomes a table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError
from metarec_shared.readers.table import Table
from metarec_shared.settings import DataSettings

Reader = Callable[[Path, DataSettings], Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way in which data sets are laid out in files.

    Attributes:
        name: What the layout is called, for messages.
        interaction_files: Glob patterns, one of which one file must match.
        item_files: Likewise, for items.
        user_files: Likewise, for attributes of users; empty: the layout has no such file.
    """

    name: str
    interaction_files: tuple[str, ...]
    item_files: tuple[str, ...]
    user_files: tuple[str, ...] = ()

    def find_interactions(self, directory: Path) -> Path | None:
        """Return the file of interactions, None where there is none."""
        return self._find(directory, self.interaction_files)

    def find_items(self, directory: Path) -> Path | None:
        """Return the file of items, None where there is none."""
        return self._find(directory, self.item_files)

    def find_users(self, directory: Path) -> Path | None:
        """Return the file of users, None where there is none."""
        return self._find(directory, self.user_files)

    def __str__(self) -> str:
        items = f" with {'|'.join(self.item_files)}" if self.item_files != self.interaction_files else ""
        return f"{self.name} ({'|'.join(self.interaction_files)}{items})"

    def _find(self, directory: Path, patterns: tuple[str, ...]) -> Path | None:
        matches = sorted(
            path
            for pattern in patterns
            for path in directory.glob(pattern)
            if path.is_file() and not path.name.startswith(".")
        )
        if len(matches) > 1:
            names = " and ".join(path.name for path in matches)
            raise DataError(f"{directory}: layout {self.name} wants one of {', '.join(patterns)}, got {names}")
        return matches[0] if matches else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLayout(Layout):
    """A layout of two files, each of which becomes a table.

    Attributes:
        read_interactions: Reads the file of interactions into columns ``user_id``, ``item_id`` and, where the data has
            them, ``rating`` and ``timestamp``.
        read_items: Reads the file of items into columns ``item_id``, ``title`` and any further ones of text.
        read_users: Reads the file of users into ``user_id`` and columns of attributes; None: the layout has none.
        scale: The ratings' scale where the layout fixes it; None: it fixes none.
    """

    read_interactions: Reader
    read_items: Reader
    read_users: Reader | None = None
    scale: RatingScale | None = None
