"""Compare what two runs trained, which may have added the same numbers in other orders."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def assert_close_runs(left: Path, right: Path) -> None:
    """Compare gradients with each other, and parameters wherever a gradient is more than rounding.

    Some gradients are zero but for rounding (the bias of attention's keys: softmax does not see it). The engines add in
    different orders, and Adam, which divides by the gradient's size, makes whole steps of that difference.
    """
    found, expected = load_file(right / "resume.safetensors"), load_file(left / "resume.safetensors")
    assert found.keys() == expected.keys()
    for moment in ("optimizer/exp_avg/", "optimizer/exp_avg_sq/"):
        difference, size = (
            torch.cat([value.double().flatten() for key, value in tensors.items() if key.startswith(moment)]).norm()
            for tensors in ({key: found[key] - expected[key] for key in expected}, expected)
        )
        assert difference <= 1e-5 * size, f"{moment}: {difference} of {size}"
    models = load_file(right / "model.safetensors"), load_file(left / "model.safetensors")
    assert models[0].keys() == models[1].keys()
    for key, size in expected.items():
        if key.startswith("optimizer/exp_avg_sq/"):
            name = key.removeprefix("optimizer/exp_avg_sq/")
            real = size.sqrt() > 1e-4
            for tensors, wanted in ((found, expected), models):
                parameter = f"parameters/{name}"
                torch.testing.assert_close(tensors[parameter][real], wanted[parameter][real], atol=1e-5, rtol=0.0)
