"""What a federation came to, in the one form that simulations and deployments share."""

import json
from pathlib import Path
from typing import Any

from metarec_shared.device import resolve_device
from metarec_shared.files import write_json
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features

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


def write_result(settings: Settings, engine: str) -> None:
    """Write the result of a finished run whose users nobody but their own nodes may look at."""
    folder = Path(settings.run.out)
    items = load_item_features(settings).items
    training = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    dataset = {
        "name": Path(settings.data.path).name,
        "users": training["training_users"],
        "items": len(items.catalogue),
        "interactions": None,
        "fingerprint": items.catalogue.fingerprint,
    }
    unjudged: dict[str, Any] = {"cold_user": {"random": None, "time": None}, "cold_item": None}
    if settings.model.target == "rating":
        unjudged["ratings"] = None
    write_json(folder / RESULT_FILE, describe(settings, engine, dataset, folder) | unjudged)
