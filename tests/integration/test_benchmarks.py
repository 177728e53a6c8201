"""Every benchmark runs, and says in JSON what its page promises."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from simulations.benchmarks import bytes as bytes_benchmark
from simulations.benchmarks import edge, engine, inner_loop, limit, scale
from simulations.benchmarks.measure import Ratio, ratio, take_turns
from simulations.repeated import run_once
from tests.small import small_settings


def run(command: Any, *arguments: str, json_file: Path) -> dict[str, Any]:
    app = typer.Typer()
    app.command()(command)
    finished = CliRunner().invoke(app, [*arguments, "--json", str(json_file)], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    return json.loads(json_file.read_text())  # type: ignore[no-any-return]


def test_turns_interleave_and_ratios_are_taken_turn_by_turn() -> None:
    order: list[str] = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert order == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == Ratio(median=2.0, low=1.0, high=3.0)


def test_inner_loop_compares_each_choice_with_the_textbook(tmp_path: Path) -> None:
    arguments = ("--users", "3", "--users-own", "2", "--turns", "1")
    figures = run(inner_loop.main, *arguments, json_file=tmp_path / "figures.json")
    assert figures.keys() == {"default", "user-vector", "head", "lora", "all"}
    for choice, found in figures.items():
        tolerance = 1e-4 if choice == "all" else 3e-5  # float32, by the processor's kernels; equal in float64
        assert found["difference"] < tolerance, choice
        assert found["difference_clipped"] < tolerance, choice
        assert min(found["speedup"], found["speedup_clipped"], found["memory_ratio"]) > 0
    assert {key: figures["default"][key] for key in figures["user-vector"]} == figures["user-vector"]


def test_engine_lists_rows_in_ascending_order_and_says_what_was_extrapolated(tmp_path: Path) -> None:
    figures = run(engine.main, "--nodes", "12,5", "--items", "40", "--ray-up-to", "0", json_file=tmp_path / "f.json")
    assert [row["nodes"] for row in figures["rows"]] == [5, 12]
    assert all(row["seconds_in_process"] > 0 for row in figures["rows"])
    row = engine.Row(nodes=10, seconds_in_process=0.1, seconds_ray=math.nan, measured=False, difference=None)
    largest = engine.Row(nodes=5, seconds_in_process=0.1, seconds_ray=2.0, measured=True, difference=0.0)
    assert engine.extrapolated(row, largest).figures()["seconds_ray"] == 4.0
    assert engine.extrapolated(row, largest).figures()["ray"] == "extrapolated"


def test_exactly_the_wanted_number_of_nodes_meta_trains(tmp_path: Path) -> None:
    from metarec_shared.population import Population
    from metarec_shared.sources import load_training_dataset
    from metarec_shared.split import Role

    dataset = load_training_dataset(engine.settings_for(37, 40, tmp_path))
    population = Population.of(dataset.interactions, dataset.rating_scale, 0)
    assert len(population.users(Role.TRAINING)) == 37


def test_bytes_counts_less_for_fewer_bits_and_fewer_parameters(tmp_path: Path) -> None:
    rows = run(bytes_benchmark.main, "--users", "2", json_file=tmp_path / "f.json")["rows"]
    by_case = {(row["released"], row["bits"]): row for row in rows}
    assert by_case["all", 16]["bytes_up"] == pytest.approx(by_case["all", 32]["bytes_up"] / 2, rel=0.02)
    assert by_case["head,adaptation", 32]["bytes_up"] == 4 * by_case["head,adaptation", 32]["parameters"]
    assert by_case["all", 32]["relative_error"] == 0
    assert 0 < by_case["all", 16]["relative_error"] < by_case["all", 8]["relative_error"] < 0.1


@pytest.mark.slow
def test_edge_compares_exports_with_the_run_itself(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run_once(small_settings(federation__rounds=2), tmp_path / "run", lambda line: None)
    arguments = ("--model", str(tmp_path / "run"), "--turns", "1", "--pruned", "")
    figures = run(edge.main, *arguments, json_file=tmp_path / "f.json")
    assert figures["parity"]["identical"] == 1.0
    assert figures["parity"]["relative_difference"] < 1e-5
    exact, small = figures["variants"]
    assert (exact["int8"], small["int8"]) == (False, True)
    assert small["bytes"] < exact["bytes"]
    assert all(share > 0.9 for share in small["of_ndcg"].values())
    assert figures["cost"].keys() == {"onnx", "onnx int8", "PyTorch", "EASE", "item-kNN"}
    assert figures["cost"]["onnx"]["ratio"] == 1.0
    assert all(10 < value < 150 for value in figures["memory_mb"].values())


@pytest.mark.slow
def test_scale_measures_federations_in_processes_of_their_own(tmp_path: Path) -> None:
    arguments = ("--largest", "10000", "--cohort", "20", "--items", "60", "--history", "10")
    figures = run(
        scale.main, *arguments, "--rounds", "3", "--turns", "1", "--only", "devices", json_file=tmp_path / "f.json"
    )
    assert [row["devices"] for row in figures["rows"]] == [1000, 10000]
    assert figures["rows"][1]["ratio"] == 1.0
    assert all(0.1 < row["peak_gb"] < 3 for row in figures["rows"])


@pytest.mark.slow
def test_limit_counts_the_products_of_a_round(tmp_path: Path) -> None:
    figures = run(limit.main, "--cohort", "16", "--rounds", "2", json_file=tmp_path / "f.json")
    assert 0 < figures["fraction"] < 1.5
    assert figures["gflop_a_round"] > 0.3
    assert sum(part["share"] for part in figures["profile"]) == pytest.approx(1.0, abs=0.5)


@pytest.mark.slow
def test_engine_measures_ray_beside_the_in_process_grid(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="no Ray: pip install 'metarec[ray]'")
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "simulations.benchmarks.engine", "--nodes", "10", "--items", "40", "--json", file]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert finished.returncode == 0, finished.stderr
    (row,) = json.loads(file.read_text())["rows"]
    assert row["ray"] == "measured"
    assert row["difference"] < 1e-4  # float32, added up in another order, through three steps of Adam
    assert row["speedup"] > 1
