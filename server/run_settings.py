"""The settings of a run, from a file, assignments and options."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from metarec_shared.settings import PRIVATE_DEFAULTS, RATING_DEFAULTS, Settings, load_toml, parse_assignments

OWN_DEFAULTS = {"model.item-ids": False}
"""What federation.catalogues = own changes of the defaults: ID vectors have a row an item."""


def run_settings(config: Path | None, assignments: list[str], options: dict[str, Any]) -> Settings:
    """Return the settings that a file, assignments and options make, each stronger than the one before.

    Raises:
        SettingsError: One of them is unknown or out of range.
    """
    given = {} if config is None else load_toml(config)
    sources = [
        (given, str(config)),
        (parse_assignments(assignments), "--set"),
        ({key: value for key, value in options.items() if value is not None}, "options"),
    ]
    values = {key: value for part, _ in sources for key, value in part.items()}
    settings = Settings()
    if values.get("privacy.mode", "none") != "none":
        settings = settings.with_values(PRIVATE_DEFAULTS, "defaults")
        if not values.get("run.init"):  # ID vectors are not released: without a warm start they would stay noise
            settings = settings.with_values({"model.item-ids": bool(values.get("privacy.item-ids"))}, "defaults")
    if values.get("federation.catalogues") == "own":
        settings = settings.with_values(OWN_DEFAULTS, "defaults")
    if values.get("model.target") == "rating":
        settings = settings.with_values(RATING_DEFAULTS, "defaults")
    for part, source in sources:
        settings = settings.with_values(part, source)
    if not settings.run.out:
        settings = replace(settings, run=replace(settings.run, out=default_out()))
    return settings


def default_out() -> str:
    """Return the folder of a run that was given none."""
    return str(Path("metarec-runs") / time.strftime("%Y%m%d-%H%M%S"))
