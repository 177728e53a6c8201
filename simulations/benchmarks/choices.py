"""Settings changed one at a time, and what each change does to a figure, paired over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metarec_shared.errors import SettingsError

ORDERS = ("random", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Settings changed of a base.

    Attributes:
        lever: What kind of choice it is.
        values: The settings.
    """

    lever: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def slug(self, name: str) -> str:
        """Return a folder's name for the choice of that name."""
        return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in name)


def wanted_choices(choices: Mapping[str, Choice], only: str) -> list[str]:
    """Return the names in ``only``, separated by semicolons; all where it is empty.

    Raises:
        SettingsError: There is no choice of a name.
    """
    names = [name.strip() for name in only.split(";") if name.strip()] or list(choices)
    if unknown := sorted(set(names) - set(choices)):
        raise SettingsError(f"--only: no choice {unknown}; there are {'; '.join(choices)}")
    return names


def paired_percent(found: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Return by how many percent ``found`` is above ``base``, mean over seeds and its standard error."""
    percents = [100.0 * (one / other - 1.0) for one, other in zip(found, base, strict=True)]
    error = statistics.stdev(percents) / math.sqrt(len(percents)) if len(percents) > 1 else math.nan
    return statistics.mean(percents), error


def compared(found: Mapping[str, list[float]], base: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return means, and the paired differences to ``base``, by column, each with its standard error."""
    figures: dict[str, Any] = {}
    for column, values in found.items():
        figures[column] = statistics.mean(values)
        figures[f"{column}_percent"], figures[f"{column}_percent_se"] = paired_percent(values, base[column])
    return figures
