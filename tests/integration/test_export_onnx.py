"""An exported model recommends what its run does, through ONNX Runtime, in a process that has no PyTorch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.export.cli import app
from client.export.export import Choices, export_onnx
from client.export.exported import load_exported
from client.export.runtime import EdgeRecommender
from client.history import Profile
from client.recommend import recommend
from metarec_shared.checkpoint import Checkpoint, save_checkpoint
from metarec_shared.cli import run
from metarec_shared.errors import CheckpointError, DataError, MetaRecError
from metarec_shared.settings import AdaptationSettings, ModelSettings
from tests.exportable import ALL, EVERYTHING, TWO_STEPS, exportable, some_profiles
from tests.small import SMALL_MODEL

pytest.importorskip("onnxruntime")

VARIANTS: list[tuple[ModelSettings, AdaptationSettings, bool]] = [
    (EVERYTHING, TWO_STEPS, True),
    (replace(SMALL_MODEL, feedback=False, order_aware=False), AdaptationSettings(method="proximal", steps=3), False),
    (replace(SMALL_MODEL, recency=True), AdaptationSettings(method="hypernetwork"), False),
    (SMALL_MODEL, AdaptationSettings(parameters="head", steps=2), False),
]

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for number, variant in enumerate(VARIANTS):
        save_checkpoint(checkpoint_of(*variant), folder / str(number))
    return folder


@pytest.fixture(scope="module")
def everything(runs: Path) -> Path:
    """Return the export of a run that has all there is; tests leave it as it is."""
    folder = runs / "everything"
    export_onnx(runs / "0", folder, Choices(top_k=4))
    return folder


def checkpoint_of(sizes: ModelSettings, adaptation: AdaptationSettings, additions: bool) -> Checkpoint:
    return exportable(sizes, adaptation, additions=additions)


def assert_same(checkpoint: Checkpoint, folder: Path, *, attributes: bool) -> None:
    model, edge = checkpoint.full_model(), EdgeRecommender(folder)
    profiles = some_profiles(attributes=attributes)
    together = edge.recommend_all(profiles, 10)
    for profile, in_a_batch in zip(profiles, together, strict=True):
        expected, found = recommend(model, profile, 10), edge.recommend(profile, 10)
        assert [at for at, _ in found] == [at for at, _ in expected] == [at for at, _ in in_a_batch]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)
        assert [score for _, score in in_a_batch] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_a_model_with_all_there_is_recommends_the_same(everything: Path) -> None:
    assert sorted(path.name for path in everything.iterdir()) == ["catalogue.json", "model.onnx"]
    assert_same(checkpoint_of(*VARIANTS[0]), everything, attributes=True)


@pytest.mark.parametrize("number", range(1, len(VARIANTS)))
def test_other_models_recommend_the_same(number: int, runs: Path, tmp_path: Path) -> None:
    export_onnx(runs / str(number), tmp_path / "edge", Choices())
    assert_same(checkpoint_of(*VARIANTS[number]), tmp_path / "edge", attributes=False)


def test_how_many_are_recommended_and_what_is_left_out(everything: Path) -> None:
    edge = EdgeRecommender(everything)
    assert sum(one.endswith(".onnx") for one in map(str, everything.iterdir())) == 1
    for profile in some_profiles():
        ranked = edge.recommend(profile, ALL)
        assert len(ranked) == ALL - len(profile.items)
        assert {at for at, _ in ranked}.isdisjoint(item.position for item in profile.items)
        assert edge.recommend(profile) == ranked[:4]
        without = edge.recommend(profile, 3, exclude=[at for at, _ in ranked[:2]])
        assert [at for at, _ in without] == [at for at, _ in ranked[2:5]]
    assert edge.recommend_all([]) == []
    with pytest.raises(DataError, match="items to recommend: got 0, wanted at least 1"):
        edge.recommend(Profile(items=[]), 0)
    with pytest.raises(DataError, match=f"position {ALL} is not in the catalogue of {ALL} items"):
        edge.recommend(Profile(items=[]), 3, exclude=[ALL])


def test_an_export_is_replaced_only_by_choice_and_other_folders_never(
    everything: Path, runs: Path, tmp_path: Path
) -> None:
    """What replaces it here is quantized and pruned, and ranks alike."""
    taken = tmp_path / "taken"
    shutil.copytree(everything, taken)
    with pytest.raises(DataError, match="holds an exported model already; --force replaces it"):
        export_onnx(runs / "0", taken, Choices())
    (taken / "photos").touch()
    with pytest.raises(
        DataError, match="holds photos, which this export does not write; wanted a folder that does not exist"
    ):
        export_onnx(runs / "0", taken, Choices(replace=True))
    (taken / "photos").unlink()
    with pytest.raises(DataError, match="is a file; wanted a folder"):
        export_onnx(runs / "0", taken / "model.onnx", Choices(replace=True))
    line = ["--model", runs / "0", "--out", taken, "--force", "--int8", "--neighbours", "8", "--top-k", "2"]
    result = CliRunner().invoke(app, [str(one) for one in line])
    assert result.exit_code == 0, result.output
    assert f"{taken / 'model.onnx'}  {(taken / 'model.onnx').stat().st_size:,} bytes" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    exact, small = EdgeRecommender(everything), EdgeRecommender(taken)
    assert len(small.recommend(Profile(items=[]))) == 2
    shared = [
        len({at for at, _ in exact.recommend(profile, 10)} & {at for at, _ in small.recommend(profile, 10)})
        for profile in some_profiles()
    ]
    assert sum(shared) >= 8 * len(shared)


def test_damaged_exports_are_refused(everything: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file; wanted what metarec export"):
        EdgeRecommender(tmp_path / "model.onnx")
    folder = tmp_path / "copy"
    shutil.copytree(everything, folder)
    graph, catalogue = folder / "model.onnx", folder / "catalogue.json"
    value = json.loads(catalogue.read_text())
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"is not the graph that .* was written with"):
        EdgeRecommender(folder)
    catalogue.write_text(json.dumps({**value, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99 is not the format 1 this version reads"):
        EdgeRecommender(graph)
    catalogue.write_text(json.dumps({**value, "titles": []}))
    with pytest.raises(CheckpointError, match=f"cannot read the catalogue .*{ALL} ids and 0 titles"):
        EdgeRecommender(graph)
    catalogue.write_text("[]")
    with pytest.raises(CheckpointError, match="cannot read the catalogue of the exported model"):
        EdgeRecommender(graph)


def test_without_onnx_runtime_the_error_says_what_to_install(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MetaRecError, match=r"needs onnxruntime: pip install 'metarec\[export\]'"):
        EdgeRecommender(everything)


def test_without_the_exporter_the_error_says_what_to_install(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MetaRecError, match=r"needs onnx_ir: pip install 'metarec\[export\]'"):
        export_onnx(runs / "1", tmp_path / "edge", Choices())
    assert list(tmp_path.iterdir()) == []


def test_the_command_recommends_without_pytorch(
    everything: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    history = "id 3\t5\t100\nTïtle 31\t2\t50\nnowhere\t1\t70\n"
    program = (
        "import sys\n"
        "from metarec_shared.cli import run\n"
        "code = run(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'pandas', 'scipy'} & set(sys.modules), 'heavy'\n"
        "sys.exit(code)\n"
    )
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(history.encode())))
    line = ["--history", "-", "--format", "json", "--attribute", "gender=f", "--top-k", "10"]
    assert run(["recommend", "--model", str(runs / "0"), *line]) == 0
    expected = json.loads(capsys.readouterr().out)
    command = [sys.executable, "-c", program, "recommend", "--model", str(everything / "model.onnx"), *line]
    finished = subprocess.run(command, input=history.encode(), capture_output=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr.decode()
    found = json.loads(finished.stdout)
    assert (found["skipped"], found["adapted"]) == (["nowhere"], True)
    assert [one["item_id"] for one in found["items"]] == [one["item_id"] for one in expected["items"]]
    for mine, theirs in zip(found["items"], expected["items"], strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)


def test_the_command_says_what_an_exported_model_cannot_do(
    everything: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history").write_text("id 3\n")
    line = ["recommend", "--model", str(everything), "--history", str(tmp_path / "history")]
    assert run([*line, "--catalogue", str(tmp_path)]) == 2
    assert "has its own; to recommend new items, give --model the run's folder" in capsys.readouterr().err
    assert run([*line, "--attribute", "gender"]) == 2
    assert "--attribute must be column=value" in capsys.readouterr().err
    assert run(line) == 0
    assert "ms to adapt and rank" in capsys.readouterr().out
    assert load_exported(everything)[1].attributes == ()
