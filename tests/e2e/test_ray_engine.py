"""`metarec simulate --engine ray`: the same federation with every message handled by a Ray worker."""

import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.comparison import assert_close_runs
from tests.e2e.processes import alive, environment, lines_of, metarec, small, started, wait_until

pytest.importorskip("ray", reason="no Ray: pip install 'metarec[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")]

OUR_LINES = re.compile(
    r"(run folder|meta-training on|task regression|privacy|text encoder|FedMAML|round \d|evaluating|report|Mode"
    r"|Guarantee|Unit of privacy|Neighbours|Trusted|Not protected)\b"
)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path)


def patient(**values: object) -> list[str]:
    """Return the options of a small run that waits for Ray to start on a machine with other things to do."""
    return small(federation__round_timeout=200.0, **values)


@pytest.mark.parametrize(
    "options",
    [
        ["--nodes", "4", *patient(federation__rounds=3)],
        patient(federation__rounds=3, federation__cohort=6, generator__users=12),
        [
            *("--privacy", "central", "--epsilon", "8"),
            *patient(federation__rounds=3, federation__cohort=6, generator__users=12),
        ],
    ],
    ids=["four nodes", "a dozen one-user nodes", "a dozen devices with privacy"],
)
def test_ray_trains_the_same_parameters_as_the_in_process_engine(
    tmp_path: Path, env: dict[str, str], options: list[str]
) -> None:
    for engine in ("in-process", "ray"):
        out = tmp_path / engine
        finished = metarec("simulate", "--engine", engine, "--no-baselines", "--out", out, *options, env=env)
        assert finished.returncode == 0, finished.stderr
    assert_close_runs(tmp_path / "in-process", tmp_path / "ray")
    assert [line for line in finished.stderr.splitlines() if not OUR_LINES.match(line)] == []
    wait_until(lambda: not alive(env), "no process left")


def test_a_federation_whose_every_node_fails_under_ray_ends_with_one_clear_line(
    tmp_path: Path, env: dict[str, str]
) -> None:
    """The data vanishes once the server has read it; a worker takes seconds to start and then finds none."""
    data, log = tmp_path / "data", tmp_path / "log"
    data.mkdir()
    (data / "items.csv").write_text("item_id,title\n" + "".join(f"{i},Title {i}\n" for i in range(30)))
    rows = [f"{user},{(user * 7 + i) % 30},{1 + i % 5}\n" for user in range(40) for i in range(12)]
    (data / "interactions.csv").write_text("user_id,item_id,rating\n" + "".join(rows))
    options = ["--data", data, "--nodes", "4", "--out", tmp_path / "run", *patient()]
    with started("simulate", "--engine", "ray", *options, env=env, log=log) as process:
        wait_until(lambda: "text encoder:" in log.read_text(), "the server has read the catalogue", process)
        shutil.rmtree(data)
        assert process.wait(230) == 2
    said = log.read_text()
    assert "Traceback" not in said
    assert said.count("failed: DataError:") == 4
    assert said.splitlines()[-1].startswith("metarec: error: 4 of 4 nodes failed or did not answer within 200 s")
    assert f"{data}: no such folder" in said.splitlines()[-1]
    assert not list((tmp_path / "run").glob("*.safetensors"))
    wait_until(lambda: not alive(env), "no process left")


def test_ctrl_c_ends_a_run_on_ray_at_once_and_leaves_no_process(tmp_path: Path, env: dict[str, str]) -> None:
    log, metrics = tmp_path / "log", tmp_path / "run" / "metrics.jsonl"
    options = ["--nodes", "4", "--out", tmp_path / "run", *patient(federation__rounds=1000)]
    with started("simulate", "--engine", "ray", *options, env=env, log=log) as process:
        wait_until(lambda: lines_of(metrics) >= 2, "two rounds", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(25) == 130  # sooner than the 30 seconds that the server waits for replies
    assert "Traceback" not in log.read_text()
    assert log.read_text().splitlines()[-1].startswith("metarec: interrupted; ")
    wait_until(lambda: not alive(env), "no process left")
