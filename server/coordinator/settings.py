"""The settings of a run on partner sites."""

from dataclasses import replace
from pathlib import Path

from metarec_shared.errors import SettingsError
from metarec_shared.settings import Settings
from server.coordinator.home import Home
from server.run_settings import run_settings


def deployed_settings(
    home: Home, config: Path | None, assignments: list[str], *, rounds: int | None, resume: bool
) -> Settings:
    """Return a run's settings: those of a simulation, over the published catalogue, with secure randomness.

    Args:
        home: The coordinator's folder.
        config: TOML file of settings.
        assignments: ``table.key=value``, stronger than the file.
        rounds: Rounds of meta-training, stronger than both; None: as they say.
        resume: Whether the run goes on from its last checkpoint.

    Raises:
        SettingsError: One is unknown or out of range, or there is no catalogue.
    """
    if not home.catalogue.is_dir():
        raise SettingsError(f"{home.catalogue}: nothing published yet; metarec server publish")
    options = {
        "data.path": str(home.catalogue.absolute()),
        "text.encoder": home.settings().text_encoder,
        "federation.rounds": rounds,
        "run.resume": resume or None,
    }
    settings = run_settings(config, assignments, options)
    if settings.data.item_vectors and not Path(settings.data.item_vectors).is_absolute():
        vectors = home.catalogue.absolute() / settings.data.item_vectors
        settings = replace(settings, data=replace(settings.data, item_vectors=str(vectors)))
    return replace(settings, privacy=replace(settings.privacy, randomness="secure"))
