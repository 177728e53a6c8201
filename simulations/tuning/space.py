"""What is searched: settings with a range or a list of choices, read from TOML and checked against the settings."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from metarec_shared.errors import SettingsError
from metarec_shared.settings import Scalar, Settings, parse_table, read_toml

BUILT_IN = Path(__file__).parent / "space.toml"

MEASURING = ("run", "data", "generator", "evaluation", "privacy", "federation.evaluate-every")
"""Tables and settings that decide what a trial's figure means, so that trials could not be compared."""

_RANGE = {"low", "high", "log", "step"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """A setting that takes one of a few values.

    Attributes:
        key: ``table.key`` of the setting.
        choices: Its values, each once.
    """

    key: str
    choices: tuple[Scalar, ...]

    @property
    def distribution(self) -> BaseDistribution:
        """The same as Optuna has it."""
        return CategoricalDistribution(self.choices)

    def grid(self) -> tuple[Scalar, ...]:
        """Return every value."""
        return self.choices

    def holds(self, value: Scalar) -> bool:
        """Say whether the value is one of the choices."""
        return value in self.choices

    def __str__(self) -> str:
        return ", ".join(map(shown, self.choices))


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number between two others, both included.

    Attributes:
        key: ``table.key`` of the setting.
        low: Its least value.
        high: Its greatest value.
        log: Whether it is searched on a logarithmic scale.
        step: Between neighbouring values; None: every number, or every whole number, will do.
        whole: Whether the setting is a whole number.
    """

    key: str
    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    @property
    def distribution(self) -> BaseDistribution:
        """The same as Optuna has it."""
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def grid(self) -> tuple[Scalar, ...]:
        """Return every value.

        Raises:
            SettingsError: There are too many to count, or they are no grid.
        """
        step = self.step or (1 if self.whole else None)
        if step is None or self.log:
            raise SettingsError(f"{self.key}: a grid needs choices, or a range with a step and without log")
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        values = [min(self.low + place * step, self.high) for place in range(count)]
        return tuple(int(value) if self.whole else value for value in values)

    def holds(self, value: Scalar) -> bool:
        """Say whether a value lies within the range and, if there is one, on the grid of its steps."""
        if isinstance(value, bool | str) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-8

    def __str__(self) -> str:
        notes = [f"step {shown(self.step)}"] if self.step is not None else []
        notes += ["log scale"] if self.log else []
        return ", ".join([f"{shown(self.low)} to {shown(self.high)}", *notes])


@dataclass(frozen=True)
class Space:
    """The settings that are searched.

    Attributes:
        parameters: One a setting.
    """

    parameters: tuple[Choices | Range, ...]

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """By setting, what a study draws from."""
        return {parameter.key: parameter.distribution for parameter in self.parameters}

    def grid(self) -> Iterator[dict[str, Scalar]]:
        """Yield every combination of values.

        Raises:
            SettingsError: A setting's values are no grid.
        """
        keys = [parameter.key for parameter in self.parameters]
        values = [parameter.grid() for parameter in self.parameters]
        return (dict(zip(keys, combination, strict=True)) for combination in itertools.product(*values))

    def values_of(self, settings: Settings) -> dict[str, Scalar] | None:
        """Return the values that ``settings`` has; None where one of them is not in the space."""
        flat = settings.flat()
        if not all(parameter.holds(flat[parameter.key]) for parameter in self.parameters):
            return None
        return {parameter.key: flat[parameter.key] for parameter in self.parameters}

    def longest_run(self, settings: Settings) -> int:
        """Return the most rounds that a trial may have."""
        for parameter in self.parameters:
            if parameter.key == "federation.rounds":
                most = max(parameter.choices) if isinstance(parameter, Choices) else parameter.high
                return int(most)
        return settings.federation.rounds

    def described(self) -> dict[str, str]:
        """Return, by setting, what it may be, for people."""
        return {parameter.key: str(parameter) for parameter in self.parameters}


def shown(value: Scalar | None) -> str:
    """Return a value as a person would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def listed(values: Mapping[str, Scalar]) -> str:
    """Return settings and their values in a line."""
    return ", ".join(f"{key} {shown(value)}" for key, value in values.items())


def load_space(path: Path, settings: Settings) -> Space:
    """Read a search space.

    Args:
        path: TOML file; each entry is ``"table.key" = {low, high, log, step}`` or ``"table.key" = {choices = [...]}``.
        settings: What the others are.

    Raises:
        SettingsError: The file cannot be read, a name is no setting or may not be searched, or a value is not allowed.
    """
    found = [_parameter(key, entry, settings, str(path)) for key, entry in _entries(read_toml(path, "search space"))]
    if not found:
        raise SettingsError(f"{path}: the search space is empty")
    if twice := {p.key for p in found if sum(p.key == other.key for other in found) > 1}:
        raise SettingsError(f"{path}: {', '.join(sorted(twice))} stands there twice")
    return Space(tuple(found))


def _entries(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield entries by ``table.key``: written so in quotes, or below the heading of their table."""
    for key, value in document.items():
        if not prefix and "." not in key and isinstance(value, Mapping) and not value.keys() & (_RANGE | {"choices"}):
            yield from _entries(value, f"{key}.")
        else:
            yield prefix + key, value


def _parameter(key: str, entry: Any, settings: Settings, source: str) -> Choices | Range:
    where = f"{source}: {key}"
    table = key.partition(".")[0]
    if table in MEASURING or key in MEASURING:
        raise SettingsError(f"{where} decides what is measured and cannot be searched")
    if not isinstance(entry, Mapping) or not ("choices" in entry or {"low", "high"} <= entry.keys()):
        raise SettingsError(f"{where} must be {{low = ..., high = ...}} or {{choices = [...]}}, got {entry!r}")
    if unknown := sorted(entry.keys() - ({"choices"} if "choices" in entry else _RANGE)):
        raise SettingsError(f"{where} has unknown or superfluous entries: {', '.join(unknown)}")
    if "choices" in entry:
        return _choices(key, entry["choices"], settings, source)
    return _range(key, entry, settings, source)


def _choices(key: str, values: Any, settings: Settings, source: str) -> Choices:
    where = f"{source}: {key}"
    if not isinstance(values, list) or not values:
        raise SettingsError(f"{where}: choices must be a list of values, got {values!r}")
    choices = tuple(_checked(key, value, settings, source) for value in values)
    if len(set(choices)) < len(choices):
        raise SettingsError(f"{where}: a choice appears twice in {json.dumps(values)}")
    return Choices(key=key, choices=choices)


def _range(key: str, entry: Mapping[str, Any], settings: Settings, source: str) -> Range:
    where = f"{source}: {key}"
    low, high = (_checked(key, entry[end], settings, source) for end in ("low", "high"))
    if isinstance(low, bool | str) or isinstance(high, bool | str):
        raise SettingsError(f"{where} is no number, so it needs choices = [...]")
    step, log, whole = entry.get("step"), entry.get("log", False), isinstance(low, int)
    if not low < high:
        raise SettingsError(f"{where}: low must be below high, got {low} and {high}")
    if type(log) is not bool:
        raise SettingsError(f"{where}: log must be true or false, got {log!r}")
    if log and (low <= 0 or step is not None):
        raise SettingsError(f"{where}: log = true needs low above 0 and no step, got low = {low}, step = {step}")
    if step is not None and (
        isinstance(step, bool) or not isinstance(step, int if whole else int | float) or not 0 < step <= high - low
    ):
        kind = "whole number" if whole else "number"
        raise SettingsError(f"{where}: step must be a {kind} above 0, at most {high - low:g}, got {step!r}")
    found = Range(key=key, low=low, high=high, log=log, step=step, whole=whole)
    if step is not None and not found.holds(high):
        raise SettingsError(f"{where}: steps of {step:g} from {low:g} do not lead to high = {high:g}")
    return found


def _checked(key: str, value: Any, settings: Settings, source: str) -> Scalar:
    """Return the value as the setting has it.

    Raises:
        SettingsError: There is no such setting, or it cannot have the value.
    """
    table, _, name = key.partition(".")
    current = getattr(settings, table, None) if table in {key.partition(".")[0] for key in settings.flat()} else None
    if current is None:
        raise SettingsError(f"{source}: {key}: there is no table of settings {table!r}")
    changed = parse_table(current, table, {name: value}, source)
    return getattr(changed, name.replace("-", "_"))  # type: ignore[no-any-return]
