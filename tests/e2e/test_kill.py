"""A run that is killed or interrupted, whenever that is, goes on as if it had never stopped."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metarec_shared.cli import INTERRUPTION
from server.run_folder import read_metrics
from tests.e2e.processes import environment, lines_of, metarec, small, started, wait_until

pytestmark = pytest.mark.slow

OPTIONS = small(federation__rounds=120, federation__evaluate_every=10, federation__checkpoint_every=7)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    """Return the folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finished = metarec("simulate", "--out", folder, *OPTIONS, env=env)
    assert finished.returncode == 0, finished.stderr
    return folder


def resume(folder: Path, env: dict[str, str]) -> None:
    finished = metarec("simulate", "--out", folder, "--resume", *OPTIONS, env=env)
    assert finished.returncode == 0, finished.stderr


def assert_same_run(left: Path, right: Path) -> None:
    for part in (".", "not_adapted"):
        for name in ("model.safetensors", "resume.safetensors"):
            tensors, expected = load_file(right / part / name), load_file(left / part / name)
            assert tensors.keys() == expected.keys()
            for key, value in expected.items():
                assert torch.equal(tensors[key], value), f"{part}/{name}: {key}"
        rounds = [
            [{**line, "seconds": 0} for line in read_metrics(run / part / "metrics.jsonl")] for run in (left, right)
        ]
        assert rounds[0] == rounds[1]


@pytest.mark.parametrize(
    ("part", "rounds"),
    [(".", 2), (".", 61), ("not_adapted", 30)],
    ids=lambda value: str(value),
)
def test_a_run_killed_in_the_middle_of_a_round_resumes_bit_for_bit(
    tmp_path: Path, whole: Path, env: dict[str, str], part: str, rounds: int
) -> None:
    folder = tmp_path / "run"
    metrics = folder / part / "metrics.jsonl"
    with started("simulate", "--out", folder, *OPTIONS, env=env, log=tmp_path / "log") as process:
        wait_until(lambda: lines_of(metrics) >= rounds, f"{rounds} rounds", process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert rounds <= lines_of(metrics) < 120
    resume(folder, env)
    assert_same_run(whole, folder)


def test_a_run_killed_twice_resumes_bit_for_bit(tmp_path: Path, whole: Path, env: dict[str, str]) -> None:
    folder = tmp_path / "run"
    metrics = folder / "metrics.jsonl"
    for options, rounds in (((), 30), (("--resume",), 70)):
        with started("simulate", "--out", folder, *options, *OPTIONS, env=env, log=tmp_path / "log") as process:
            wait_until(lambda least=rounds: lines_of(metrics) >= least, f"{rounds} rounds", process)
            process.kill()
    resume(folder, env)
    assert_same_run(whole, folder)


def test_ctrl_c_ends_a_run_with_one_line_and_the_run_can_be_resumed(
    tmp_path: Path, whole: Path, env: dict[str, str]
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    with started("simulate", "--out", folder, *OPTIONS, env=env, log=log) as process:
        wait_until(lambda: lines_of(folder / "metrics.jsonl") >= 20, "20 rounds", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    said = log.read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"metarec: {INTERRUPTION}"
    assert not (folder / "result.json").exists()
    resume(folder, env)
    assert_same_run(whole, folder)
