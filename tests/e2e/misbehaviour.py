"""A site that answers as it is told: as sitecustomize.py on its PYTHONPATH, Python loads this in all its processes.

METAREC_TEST_LIES is a JSON object {round: lie}; METAREC_TEST_LATE, seconds that a late answer waits;
METAREC_TEST_AHEAD, seconds by which the wall clock of the site is ahead.
"""

import datetime
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

LIES = {int(number): lie for number, lie in json.loads(os.environ.get("METAREC_TEST_LIES", "{}")).items()}


AHEAD = float(os.environ.get("METAREC_TEST_AHEAD", "0"))


class After:
    """Change a module as soon as it was imported, whoever imports it."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        change = self._changes.pop(name, None)
        if change is None or (spec := importlib.util.find_spec(name)) is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def answer_falsely(app: ModuleType) -> None:
    """Let the ClientApp's answers to rounds be what the lies say."""
    honest = app.answer

    def answer(learner: Any, nodes: Any, content: Any, kind: str) -> Any:
        reply = honest(learner, nodes, content, kind)
        if kind == "train":
            lie = LIES.get(content.config_records["request"]["round_number"], "")
            return change(reply, lie)
        return reply

    app.answer = answer


def change(reply: Any, lie: str) -> Any:
    """Return what goes out in place of a reply."""
    import numpy as np
    import torch
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    from metarec_shared import wire

    arrays = {name: value.numpy() for name, value in wire.unpack_parameters(reply.array_records["arrays"]).items()}
    match lie:
        case "garbage":
            noise = Array(dtype="object", shape=(3,), stype="numpy.ndarray", data=os.urandom(1000))
            return RecordDict({"arrays": ArrayRecord({"x": noise}), "\x1b[2J": ConfigRecord({"numbers": "\x00"})})
        case "nan":
            arrays = {name: np.full_like(value, np.nan) for name, value in arrays.items()}
        case "shapes":
            arrays = {name: np.zeros((3, *value.shape), value.dtype) for name, value in arrays.items()}
        case "norm":
            arrays = {name: 1e4 * value for name, value in arrays.items()}
        case "late":
            time.sleep(float(os.environ["METAREC_TEST_LATE"]))
    reply["arrays"] = wire.pack_parameters({name: torch.from_numpy(value) for name, value in arrays.items()})
    return reply


def send_twice(supernode: ModuleType) -> None:
    """Let the SuperNode send every reply once more when it was sent."""
    push = supernode._push_messages

    def push_twice(state: Any, object_store: Any, send: Callable[..., Any], push_object: Callable[..., None]) -> None:
        sent = []

        def kept(*reply: Any) -> Any:
            sent.append(reply)
            return send(*reply)

        push(state, object_store, kept, push_object)
        for reply in sent:
            print(f"sent once more: {send(*reply)}", flush=True)

    supernode._push_messages = push_twice


def sign_ahead(date: ModuleType) -> None:
    """Let Flower's clock, by which nodes sign, be ahead."""
    now = date.now
    date.now = lambda: now() + datetime.timedelta(seconds=AHEAD)


CHANGES = {"client.app": answer_falsely, "flwr.supernode.start_client_internal": send_twice}
if AHEAD:
    wall = time.time
    time.time = lambda: wall() + AHEAD
    CHANGES["flwr.supercore.date"] = sign_ahead
sys.meta_path.insert(0, After(CHANGES))
