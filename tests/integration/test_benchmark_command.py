"""The command ``metarec benchmark``: what it writes, what it does not do twice, what it refuses."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from metarec_shared.errors import CheckpointError, SettingsError
from metarec_shared.settings import Settings
from simulations.benchmark_cli import benchmark_app
from simulations.evaluation.benchmark import Table, parse_seeds, run_benchmark
from simulations.evaluation.cold_user import ColdUser
from simulations.evaluation.protocol import Figures
from simulations.evaluation.ranking import RankingTrial
from simulations.evaluation.registry import PROTOCOLS, protocol_named
from simulations.evaluation.render import markdown, page
from tests.small import SMALL_RUN, small_settings

QUICK = ("ease", "popularity", "chance")
SEEDS = (0, 3)


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def settings() -> Settings:
    return small_settings(generator__users=90)


@pytest.fixture(scope="module")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table]:
    """Return a folder with a finished benchmark of methods that train nothing, and its table."""
    folder = tmp_path_factory.mktemp("benchmark")
    return folder, run_benchmark(ColdUser(), settings, SEEDS, QUICK, folder, quiet)


def cells_on_disk(folder: Path, method: str) -> list[Figures]:
    return [json.loads((folder / "cells" / method / f"seed-{seed}.json").read_text()) for seed in SEEDS]


def test_the_table_holds_mean_and_standard_error_of_every_metric_and_nothing_else(
    finished: tuple[Path, Table],
) -> None:
    folder, _ = finished
    found = json.loads((folder / "table.json").read_text())
    expected: dict[str, Any] = {}
    for method in QUICK:
        one, other = cells_on_disk(folder, method)
        assert one.keys() == other.keys()
        expected[method] = {}
        for cell, metrics in one.items():
            pairs = {metric: [metrics[metric], other[cell][metric]] for metric in metrics}
            means = {metric: math.fsum(pair) / 2 for metric, pair in pairs.items()}
            errors = {f"{metric}_se": statistics.stdev(pair) / math.sqrt(2) for metric, pair in pairs.items()}
            expected[method][cell] = {**means, **errors}
    assert list(found) == list(QUICK)
    assert {"random-1", "random-10", "time-3", "time-5"} <= found["chance"].keys()
    assert {"users", "ndcg@10", "hr@10", "recall@10", "mrr"} <= found["ease"]["random-10"].keys()
    for method, cells in expected.items():
        assert found[method].keys() == cells.keys()
        for cell, metrics in cells.items():
            assert found[method][cell] == pytest.approx(metrics, rel=1e-12), (method, cell)


def test_one_seed_alone_has_no_standard_error(settings: Settings, tmp_path: Path) -> None:
    run_benchmark(ColdUser(), settings, [1], ["chance"], tmp_path, quiet)
    metrics = json.loads((tmp_path / "table.json").read_text())["chance"]["random-1"]
    assert metrics["ndcg@10"] > 0
    assert metrics["ndcg@10_se"] is None


def test_finished_cells_are_not_run_again(
    finished: tuple[Path, Table], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = finished
    asked: list[str] = []

    def figures(self: RankingTrial, method: str) -> Figures:
        asked.append(f"{method} {self.problem.settings.run.seed}")
        return {"random-1": {"ndcg@10": 0.5}}

    monkeypatch.setattr(RankingTrial, "figures", figures)
    again = run_benchmark(ColdUser(), settings, SEEDS, QUICK, folder, quiet)
    assert again.figures == table.figures
    assert asked == []
    lost = folder / "cells" / "chance" / "seed-3.json"
    before = lost.read_text()
    lost.unlink()
    try:
        run_benchmark(ColdUser(), settings, SEEDS, QUICK, folder, quiet)
        assert asked == ["chance 3"]
        assert json.loads(lost.read_text()) == {"random-1": {"ndcg@10": 0.5}}
    finally:
        lost.write_text(before)


def test_other_settings_and_other_data_are_refused(finished: tuple[Path, Table], settings: Settings) -> None:
    folder, _ = finished
    changed = replace(settings, tasks=replace(settings.tasks, support=4))
    with pytest.raises(CheckpointError, match="made with other settings; give another --out"):
        run_benchmark(ColdUser(), changed, SEEDS, QUICK, folder, quiet)
    larger = replace(settings, generator=replace(settings.generator, users=91))
    with pytest.raises(CheckpointError, match="made with other data and other settings"):
        run_benchmark(ColdUser(), larger, SEEDS, QUICK, folder, quiet)


def test_a_figure_that_is_no_number_is_not_kept(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RankingTrial, "figures", lambda *_: {"random-1": {"ndcg@10": math.nan}})
    with pytest.raises(CheckpointError, match=r"chance: ndcg@10 of random-1 is nan"):
        run_benchmark(ColdUser(), settings, [0], ["chance"], tmp_path, quiet)
    assert not (tmp_path / "cells" / "chance" / "seed-0.json").exists()


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", [7]), ("0,3", [0, 3]), ("0-4", [0, 1, 2, 3, 4]), ("9, 1-2", [9, 1, 2])]
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "3-", "4-0", "1,,2", "1.5", "0-x"])
def test_what_is_no_seed_is_an_error(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--seeds must be like 7, 0,3 or 0-4, got"):
        parse_seeds(text)


def test_a_seed_named_twice_is_an_error() -> None:
    with pytest.raises(SettingsError, match="names a seed twice: '0-3,2'"):
        parse_seeds("0-3,2")


def test_an_unknown_method_or_protocol_is_an_error_that_names_what_there_is(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--methods: cold-user has no easy, magic; it has metarec, .*ease.*chance"):
        run_benchmark(ColdUser(), settings, [0], ["magic", "ease", "easy"], tmp_path, quiet)
    with pytest.raises(SettingsError, match=r"there is no benchmark 'warm-user'; there are cold-user"):
        protocol_named("warm-user")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_compares_ours_with_chance(name: str) -> None:
    protocol = protocol_named(name)
    methods = [method.name for method in protocol.methods]
    assert protocol.name == name
    assert len(set(methods)) == len(methods)
    assert {"metarec", "chance"} <= set(methods)


def test_the_reports_hold_the_figures_with_the_best_in_bold(finished: tuple[Path, Table]) -> None:
    _, table = finished
    text, html = markdown(table), page(table)
    summary = table.to_dict()
    for metric in ("ndcg@10", "hr@10", "recall@10"):
        for cell in table.cells:
            best = max(summary[method][cell][metric] or 0.0 for method in QUICK)
            for method in QUICK:
                value, error = summary[method][cell][metric], summary[method][cell][f"{metric}_se"]
                assert value is not None
                shown = f"{value:.4f} ± {error:.4f}"
                assert shown in html
                assert (f"**{shown}**" in text) if value == best else (shown in text)
    rows = [line for line in text.splitlines() if line.startswith("| ease* |")]
    assert len(rows) == 3
    assert "| chance |" in text
    assert "<svg" in html


def test_the_command_meta_trains_judges_and_prints_the_table(tmp_path: Path) -> None:
    options = [f"--set={key}={value}" for key, value in SMALL_RUN.items()]
    out = tmp_path / "out"
    arguments = ["cold-user", "--seeds", "2", "--methods", "metarec,unadapted,chance", "--out", str(out), *options]
    done = CliRunner().invoke(benchmark_app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "table.json").read_text())
    assert list(found) == ["metarec", "unadapted", "chance"]
    assert found["metarec"]["random-3"]["users"] == found["chance"]["random-3"]["users"] > 0
    assert found["metarec"]["random-3"]["ndcg@10"] != found["unadapted"]["random-3"]["ndcg@10"]
    assert (out / "table.md").read_text() in done.output
    assert "metarec" in (out / "report.html").read_text()
    assert (out / "seed-2" / "metarec" / "model.safetensors").exists()
