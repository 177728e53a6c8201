"""A run that is made once: what is finished is read, what was interrupted goes on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from metarec_shared.errors import CheckpointError
from metarec_shared.files import write_text
from metarec_shared.settings import Settings
from server.result import RESULT_FILE
from server.run_folder import RESUME_FILE
from simulations.protocols import Say
from simulations.simulate import simulate

_STAMP = "asked-settings.json"


def run_once(settings: Settings, folder: Path, say: Say) -> dict[str, Any]:
    """Return the result of a run in ``folder``, without baselines; run or finish it if need be.

    Raises:
        CheckpointError: The folder holds a run of other settings.
        MetaRecError: The run fails.
    """
    wanted = replace(settings, run=replace(settings.run, out=str(folder), resume=False))
    stamp, described = folder / _STAMP, wanted.to_json()
    if stamp.exists() and stamp.read_text(encoding="utf-8") != described:
        raise CheckpointError(f"{folder}: made with other settings; give another folder")
    if not (folder / RESULT_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(stamp, described)
        resume = (folder / RESUME_FILE).exists()
        simulate(replace(wanted, run=replace(wanted.run, resume=resume)), "in-process", say, baselines=False)
    result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    return result
