"""Read what Weights & Biases wrote offline, by the format of its files rather than by what wrote them."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
HEADER = 7
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: a LevelDB log behind seven bytes, each entry a protocol buffer."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, entry = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # no room for a header: the block's rest is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        entry += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            yield record
            entry = b""


def finished(path: Path) -> Path:
    """Wait until a run that has ended is on disk as a whole: a process of the library's own writes it."""
    deadline = time.monotonic() + 30
    while not any(record.WhichOneof("record_type") == "exit" for record in records(path)):
        assert time.monotonic() < deadline, f"no end: {path}"
        time.sleep(0.02)
    return path


def history(path: Path) -> list[dict[str, Any]]:
    """Return what was logged, one dictionary a step."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def config(path: Path) -> dict[str, Any]:
    """Return the settings that were recorded."""
    run = next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")
    return {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}


def summary(path: Path) -> dict[str, Any]:
    """Return the last value of everything in the summary."""
    found = {}
    for record in records(path):
        for item in record.summary.update:
            found["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return found


def exit_code(path: Path) -> int:
    """Return the code a run ended with."""
    return next(r.exit.exit_code for r in records(path) if r.WhichOneof("record_type") == "exit")
