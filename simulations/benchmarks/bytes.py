"""Bytes that travel: a round's traffic of a node and of a user, by what is released and in how many bits.

``python -m simulations.benchmarks.bytes [--json FILE]``

Counted on the messages themselves, at the sizes of MovieLens 1M. The error is that of one node's update of a cohort
after rounding, relative to its norm; it has mean zero, so it falls with the root of the number of nodes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from metarec_shared import wire
from metarec_shared.exchange import MetaUpdate, Parameters, TrainRequest
from metarec_shared.initialization import released_names, travelling_names
from metarec_shared.meta_gradient import cohort_meta_gradient
from metarec_shared.settings import Settings
from simulations.benchmarks.cohort import Cohort, make_cohort
from simulations.benchmarks.measure import print_table, write_figures

RELEASED = (
    "all",
    "projection,item_norm,item_bias,encoder,head,adaptation",
    "encoder,head,adaptation",
    "head,adaptation",
)
BITS: tuple[Literal[32, 16, 8], ...] = (32, 16, 8)


def measure(cohort: Cohort, released: str, bits: Literal[32, 16, 8]) -> dict[str, Any]:
    """Pack one node's messages of a round, and count."""
    usual = Settings()
    settings = replace(usual, federation=replace(usual.federation, released=released))
    parameters = {name: value.detach() for name, value in cohort.model.named_parameters()}
    names = released_names(settings, parameters)
    found = cohort_meta_gradient(
        cohort.model, [(cohort.tasks, cohort.weights)], cohort.id_mask, released=names
    ).gradients
    rng = np.random.default_rng(0)
    update = MetaUpdate(gradients=found, weight=1.0, loss=1.0, users=len(cohort.tasks), nodes=1)
    content = wire.pack_meta_update(update, bits, rng)
    request = TrainRequest(round_number=1, sampling_rate=1.0, rating_scale=None, catalogue="")
    sent = {name: parameters[name] for name in travelling_names(settings, parameters)}
    down = wire.content_bytes(wire.pack_request(request, wire.pack_parameters(sent, bits, rng)))
    return {
        "released": released,
        "bits": bits,
        "parameters": sum(value.numel() for value in found.values()),
        "bytes_down": down,
        "bytes_up": wire.content_bytes(content),
        "relative_error": _relative_error(wire.unpack_meta_update(content, found).gradients, found),
    }


def _relative_error(got: Parameters, wanted: Parameters) -> float:
    difference = torch.stack([(got[name] - value).norm() for name, value in wanted.items()]).norm()
    return float(difference / torch.stack([value.norm() for value in wanted.values()]).norm())


def main(
    users: Annotated[int, typer.Option(help="Users that a node's update is summed over.")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Count the bytes of a round."""
    cohort = make_cohort(Settings(), users)
    rows = [measure(cohort, released, bits) for released in RELEASED for bits in BITS]
    for row in rows:
        row["saved"] = (rows[0]["bytes_down"] + rows[0]["bytes_up"]) / (row["bytes_down"] + row["bytes_up"])
        row["bytes_a_user"] = (row["bytes_down"] + row["bytes_up"]) / users
    columns = (
        "released",
        "bits",
        "parameters",
        "bytes down",
        "bytes up",
        "of a user",
        "times fewer",
        "error of an update",
    )
    keys = ("released", "bits", "parameters", "bytes_down", "bytes_up", "bytes_a_user", "saved", "relative_error")
    cells = [[f"{row[k]:,}" if isinstance(row[k], int) else row[k] for k in keys] for row in rows]
    note = f"of a node with {users} users in the cohort; a one-user node pays the whole message"
    print_table("A round's traffic of one node, both ways in the same bits", columns, cells, note)
    write_figures(json_file, {"rows": rows})


if __name__ == "__main__":
    typer.run(main)
