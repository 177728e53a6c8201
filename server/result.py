"""What a federation came to, in the one form that simulations and deployments share."""

import json
from pathlib import Path
from typing import Any

from metarec_shared.device import resolve_device
from metarec_shared.settings import Settings

RESULT_FILE = "result.json"
TRAINING_FILE = "training.json"


def describe(settings: Settings, engine: str, dataset: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the facts of a finished run.

    Args:
        settings: The run's settings.
        engine: What ran the nodes.
        dataset: Its name, sizes and fingerprint, as far as the server may know them.
        folder: The run's folder.
    """
    training = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    return {
        "dataset": dataset,
        "seed": settings.run.seed,
        "engine": engine,
        "device": str(resolve_device(settings.run.device)),
        **training,
    }


def unjudged(settings: Settings) -> dict[str, Any]:
    """Return the evaluation of a run whose test users nobody but their own nodes may look at."""
    ratings = {"ratings": None} if settings.model.target == "rating" else {}
    return {"cold_user": {"random": None, "time": None}, "cold_item": None, **ratings}
