"""`flwr run .` from a fresh checkout: Flower's own SuperLink and simulation run the two apps from a bundle."""

import json
import os
import shutil
import signal
import socket
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.processes import BIN, alive, environment, metarec, wait_until
from tests.small import SMALL_RUN

pytest.importorskip("ray", reason="no Ray: pip install 'metarec[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")]

ROOT = Path(__file__).resolve().parents[2]
SIMULATION = "num-supernodes=3 client-resources-num-cpus=1"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what git tracks, or would: a fresh clone with the changes of the working tree."""
    folder = tmp_path_factory.mktemp("clone") / "metarec"
    for name in _git_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for ignored in ("metarec-runs/private/result.json", ".venv/private.py", "client/__pycache__/private.py"):
        (folder / ignored).parent.mkdir(parents=True, exist_ok=True)
        (folder / ignored).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the environment of a Flower of its own; its SuperLink is stopped afterwards."""
    with own_flower(tmp_path_factory.mktemp("flower")) as env:
        yield env


@contextmanager
def own_flower(folder: Path) -> Iterator[dict[str, str]]:
    """Give a home folder, ports and a cache that no other Flower uses; stop, by id, what was started with them."""
    with socket.socket() as one, socket.socket() as other:
        for port in (one, other):
            port.bind(("127.0.0.1", 0))
        numbers = [str(port.getsockname()[1]) for port in (one, other)]
    env = environment(
        folder,
        HOME=str(folder / "home"),
        FLWR_HOME=str(folder / "flwr"),
        FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=numbers[0],
        FLWR_LOCAL_CONTROL_API_PORT=numbers[1],
    )
    try:
        yield env
    finally:
        for process in alive(env):
            os.kill(process, signal.SIGTERM)
        wait_until(lambda: not alive(env), "SuperLink and its processes end")


def flwr(*arguments: object, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "flwr"), *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=400, check=False)


def run_config(**values: object) -> str:
    """Return SMALL_RUN and more as `--run-config` wants it."""
    changes = {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
    merged = {**SMALL_RUN, "federation.rounds": 2, "federation.round-timeout": 200.0, **changes}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in merged.items())


def runs(env: dict[str, str], cwd: Path) -> list[dict[str, str]]:
    """Return what Flower's SuperLink says of its runs, the latest first."""
    listing = flwr("list", "--format", "json", env=env, cwd=cwd).stdout
    found: list[dict[str, str]] = json.loads(listing[listing.index("{") :])["runs"]
    return found


def test_the_bundle_holds_every_module_of_the_apps_and_nothing_that_git_ignores(
    checkout: Path, tmp_path: Path, flower: dict[str, str]
) -> None:
    built = flwr("build", "--app", checkout, env=flower, cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    (bundle,) = tmp_path.glob("*.fab")
    assert bundle.stat().st_size < 10_000_000
    names = set(zipfile.ZipFile(bundle).namelist())
    folders = ("client/", "metarec_shared/", "server/")
    modules = {name for name in _git_files() if name.startswith(folders) and name.endswith(".py")}
    assert len(modules) > 40
    assert modules <= names
    assert not [name for name in names if "private" in name]


def test_flwr_run_trains_a_model_that_recommends(checkout: Path, tmp_path: Path, flower: dict[str, str]) -> None:
    out = tmp_path / "run"
    config = run_config(run__out=str(out))
    ran = flwr(
        "run", ".", "--stream", "--federation-config", SIMULATION, "--run-config", config, env=flower, cwd=checkout
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert runs(flower, checkout)[0]["status"] == "finished:completed"
    assert f"run folder: {out}" in ran.stdout
    assert "round 2/2: " in ran.stdout
    assert "failed" not in ran.stdout
    training = json.loads((out / "training.json").read_text())
    assert (training["rounds"], training["nodes"]) == (2, 3)
    history = tmp_path / "history.txt"
    history.write_text("\n".join(json.loads((out / "catalogue.json").read_text())["item_ids"][:3]) + "\n")
    recommended = metarec("recommend", "--model", out, "--history", history, "--format", "json", env=flower)
    assert len(json.loads(recommended.stdout)["items"]) == 10


def test_a_failing_run_says_why_and_does_not_look_finished(checkout: Path, flower: dict[str, str]) -> None:
    ran = flwr("run", ".", "--stream", "--run-config", run_config(data__path="/nowhere"), env=flower, cwd=checkout)
    assert runs(flower, checkout)[0]["status"] == "finished:failed"
    assert "DataError: /nowhere: no such folder" in ran.stdout
    assert "round 1" not in ran.stdout
    kept = Path(flower["HOME"]) / ".metarec" / "runs"
    assert f"run folder: {kept}" in ran.stdout, "a run that names no folder is kept where no working directory matters"
    assert not list(kept.glob("*/training.json"))
    assert not list(kept.glob("*/*.safetensors"))


def test_a_foreign_client_package_beside_the_superlink_is_refused_by_name(checkout: Path, tmp_path: Path) -> None:
    """Ray's workers look in the working directory of the SuperLink before they look into the bundle."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "client").mkdir(parents=True)
    (elsewhere / "client" / "__init__.py").touch()
    (elsewhere / "client" / "app.py").write_text("from flwr.clientapp import ClientApp\n\napp = ClientApp()\n")
    with own_flower(tmp_path / "flower") as env:
        options = ["--federation-config", SIMULATION, "--run-config", run_config(run__out=str(tmp_path / "run"))]
        ran = flwr("run", checkout, "--stream", *options, env=env, cwd=elsewhere)
        assert runs(env, elsewhere)[0]["status"] == "finished:failed"
    assert "FederationError: 3 of 3 nodes failed" in ran.stdout
    assert str(elsewhere / "client" / "app.py") in ran.stdout.split("FederationError")[-1].splitlines()[0]
    assert not list((tmp_path / "run").glob("*.safetensors"))


def _git_files() -> list[str]:
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]
