"""The command line as a person types it: what it prints, what it leaves, and how it refuses bad input."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from client.data_source import load_learner, load_partition, load_population
from metarec_shared import sources
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.cli import run
from metarec_shared.settings import parse_assignments
from server.federation import announce
from tests.small import SMALL_RUN

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def metarec(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        for cached in (sources._dataset, load_population, load_partition, load_learner):
            cached.cache_clear()  # every command line is a process of its own
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def small(**values: object) -> list[str]:
    changes = {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
    options = []
    for key, value in {**SMALL_RUN, **changes}.items():
        options += ["--set", f"{key}={value}"]
    return options


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished small run with held-out items."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = small(generator__users=150, evaluation__query=4)
    assert run(["simulate", "--out", str(folder), "--hold-out-items", "0.2", *options]) == 0
    return folder


def write_own_data(folder: Path, rows: Sequence[str], items: Sequence[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,rating", *rows]) + "\n")
    titles = items if items is not None else [f"{i},Title {i},Some genre" for i in range(30)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,genres", *titles]) + "\n")
    return folder


def histories(users: int = 40, length: int = 12) -> list[str]:
    return [f"u{u},{(u * 7 + i * (1 + u % 3)) % 30},{1 + (u + i) % 5}" for u in range(users) for i in range(length)]


def test_help_lists_every_command(metarec: Run) -> None:
    code, out, _ = metarec("--help")
    assert code == 0
    for command in ("data", "simulate", "evaluate", "recommend"):
        assert command in out
    assert metarec("simulate", "--help")[0] == 0


def test_simulate_leaves_everything_a_run_should(finished: Path) -> None:
    for name in (
        "result.json", "metrics.jsonl", "settings.json", "model.safetensors", "model.json", "catalogue.json",
        "resume.safetensors", "report.html", "README.md", "tensorboard", "not_adapted/model.safetensors",
    ):  # fmt: skip
        assert (finished / name).exists(), name
    result = json.loads((finished / "result.json").read_text())
    assert result["dataset"].keys() >= {"name", "users", "items", "interactions"}
    assert result["privacy"] is None
    assert result["text_encoder"].startswith("builtin")
    assert result["train"].keys() == {"wall_seconds", "users_per_second", "bytes_down", "bytes_up"}
    for order in ("random", "time"):
        cell = result["cold_user"][order]
        assert (cell["support"], cell["query"]) == (4, 4)
        for method in ("metarec", "unadapted", "not_adapted", "popularity", "item_knn", "ease", "chance"):
            assert {"ndcg@10", "hr@10", "recall@10", "mrr"} <= cell[method].keys(), method
            assert 0 <= cell[method]["ndcg@10"] <= 1
    assert result["cold_item"]["items"] > 0


def test_simulate_prints_the_comparison_table_last_and_says_once_what_leaves_the_nodes(
    metarec: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    announce.cache_clear()
    code, out, _ = metarec("simulate", "--out", tmp_path / "run", *small())
    assert code == 0
    assert "nDCG@10 (higher is better)" in out
    assert "MetaRec before adaptation" in out
    assert caplog.text.count("raw item counts, raw gradients and raw moments of tasks leave the nodes") == 1


def test_data_without_timestamps_has_no_time_order(metarec: Run, tmp_path: Path) -> None:
    data = write_own_data(tmp_path / "data", histories())
    folder = tmp_path / "run"
    code, out, _ = metarec("simulate", "--data", data, "--out", folder, *small())
    assert code == 0
    assert json.loads((folder / "result.json").read_text())["cold_user"]["time"] is None
    assert "time order" not in out
    code, _, err = metarec("evaluate", "--model", folder, "--data", data, "--order", "time")
    assert code == 2
    assert "the data has no timestamps" in err


def test_resume_of_a_finished_run_changes_nothing(metarec: Run, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = (folder / "model.safetensors").read_bytes()
    options = small(generator__users=150, evaluation__query=4)
    code, _, _ = metarec("simulate", "--out", folder, "--hold-out-items", "0.2", "--resume", *options)
    assert code == 0
    assert (folder / "model.safetensors").read_bytes() == before
    old, new = (json.loads((path / "result.json").read_text()) for path in (finished, folder))
    assert old["cold_user"] == new["cold_user"]


def test_evaluate_takes_the_runs_own_test_users_on_its_own_data(metarec: Run, finished: Path) -> None:
    code, out, err = metarec("evaluate", "--model", finished, "--support", "1,4", "--order", "random")
    assert code == 0
    assert "evaluating the run's" in err
    assert "never seen in meta-training" in err
    assert out.count("support") >= 2


def test_evaluate_repeats_the_figures_of_the_run(metarec: Run, finished: Path, tmp_path: Path) -> None:
    code, *_ = metarec("evaluate", "--model", finished, "--support", "4", "--json", tmp_path / "figures.json")
    assert code == 0
    result = json.loads((finished / "result.json").read_text())["cold_user"]
    for cell in json.loads((tmp_path / "figures.json").read_text())["cells"]:
        for method in ("metarec", "unadapted", "popularity", "item_knn", "ease"):
            assert cell[method] == pytest.approx(result[cell["order"]][method]), method


def test_evaluate_takes_all_users_of_other_data(metarec: Run, finished: Path, tmp_path: Path) -> None:
    data = write_own_data(tmp_path / "data", histories())
    code, out, err = metarec("evaluate", "--model", finished, "--data", data, "--support", "3")
    assert code == 0
    assert "evaluating all 40 users of other data than the run's; training knew 0 of its 30 items" in err
    assert "EASE" not in out


def test_evaluate_on_grown_data_still_takes_only_the_runs_test_users(metarec: Run, tmp_path: Path) -> None:
    data, folder = write_own_data(tmp_path / "data", histories(users=60)), tmp_path / "run"
    assert metarec("simulate", "--data", data, "--out", folder, "--no-baselines", *small())[0] == 0
    with (data / "interactions.csv").open("a") as file:
        file.write("u0,29,3\n")
    code, _, err = metarec("evaluate", "--model", folder, "--data", data, "--support", "4")
    assert code == 0
    assert "evaluating the run's" in err
    assert "never seen in meta-training" in err
    assert "all 60 users" not in err


def test_cold_item_figures_of_evaluate_are_those_of_the_run(metarec: Run, finished: Path, tmp_path: Path) -> None:
    options = ["--protocol", "cold-item", "--support", "4", "--json", tmp_path / "figures.json"]
    assert metarec("evaluate", "--model", finished, *options)[0] == 0
    (cell,) = json.loads((tmp_path / "figures.json").read_text())["cells"]
    result = json.loads((finished / "result.json").read_text())["cold_item"]
    for method in ("metarec", "unadapted", "text_knn", "chance"):
        assert cell[method] == pytest.approx(result[method])
    assert (cell["users"], cell["items"]) == (result["users"], result["items"])


def test_cold_item_ranks_held_out_items_and_needs_a_run_that_held_some_out(
    metarec: Run, finished: Path, tmp_path: Path
) -> None:
    code, out, _ = metarec("evaluate", "--model", finished, "--protocol", "cold-item", "--support", "4")
    assert code == 0
    assert "text knn" in out
    metarec("simulate", "--out", tmp_path / "run", "--no-baselines", *small())
    code, _, err = metarec("evaluate", "--model", tmp_path / "run", "--protocol", "cold-item")
    assert code == 2
    assert "cold-item needs a run made with --hold-out-items; this one held out none" in err


def test_recommend_prints_json_that_a_program_can_read(metarec: Run, finished: Path, tmp_path: Path) -> None:
    catalogue = json.loads((finished / "catalogue.json").read_text())
    history = tmp_path / "history.txt"
    lines = [catalogue["item_ids"][0], catalogue["titles"][1], f"{catalogue['item_ids'][2]}\t5", "no such item"]
    history.write_text("\n".join(lines) + "\n")
    code, out, _ = metarec("recommend", "--model", finished, "--history", history, "--format", "json")
    answer = json.loads(out)
    assert code == 0
    assert len(answer["items"]) == 10
    assert answer["items"][0].keys() == {"item_id", "title", "score"}
    assert not {item["item_id"] for item in answer["items"]} & set(catalogue["item_ids"][:3])
    assert (answer["skipped"], answer["adapted"]) == (["no such item"], True)
    assert answer["milliseconds"] > 0


def test_recommend_ranks_items_that_came_after_training(metarec: Run, tmp_path: Path) -> None:
    data = write_own_data(tmp_path / "data", histories())
    options = small(data__path=str(data), federation__rounds=1, evaluation__query=4)
    assert metarec("simulate", "--out", tmp_path / "run", *options)[0] == 0
    history = tmp_path / "history.txt"
    history.write_text("0\n1\n2\n")
    asked = ("recommend", "--model", tmp_path / "run", "--history", history, "--format", "json", "--top-k", "99")
    before = {item["item_id"]: item["score"] for item in json.loads(metarec(*asked)[1])["items"]}
    today = write_own_data(tmp_path / "today", [], [f"{i},Title {i},Some genre" for i in (31, *range(29, 2, -1))])
    (today / "interactions.csv").unlink()
    code, out, err = metarec(*asked, "--catalogue", today)
    assert code == 0, err
    after = {item["item_id"]: item["score"] for item in json.loads(out)["items"]}
    assert after.keys() == {*before, "31"}
    answer = json.loads(metarec(*asked, "--catalogue", tmp_path / "data")[1])
    assert {item["item_id"]: item["score"] for item in answer["items"]} == pytest.approx(before, abs=1e-4)
    assert json.loads(out)["skipped"] == ["0", "1", "2"]
    assert "nowhere" in refused(metarec, *asked, "--catalogue", tmp_path / "nowhere")


def test_recommend_reads_standard_input_and_says_when_it_does_not_adapt(
    metarec: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"nothing known\n")))
    code, out, err = metarec("recommend", "--model", finished, "--history", "-", "--top-k", "3")
    assert code == 0
    assert "skipped, not in the catalogue: nothing known" in err
    assert "the history is empty: recommending by the unadapted meta-initialization" in err
    assert "ms to adapt and rank" in out


def refused(metarec: Run, *arguments: object) -> str:
    """Run a command that must fail as bad input does; return its one line."""
    code, out, err = metarec(*arguments)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("metarec: error: "), err
    return last.removeprefix("metarec: error: ")


def test_a_private_simulation_says_what_it_guarantees(metarec: Run, tmp_path: Path) -> None:
    options = small(generator__users=150, federation__rounds=2)
    private = ["--privacy", "site", "--epsilon", "8", "--delta", "1e-6"]
    code, _, err = metarec("simulate", "--out", tmp_path / "run", *options, *private)
    assert code == 0, err
    assert "Guarantee: epsilon " in err
    assert "delta 1e-06 (simulated noise: whoever has the seed can undo it)" in err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    privacy = result["privacy"]
    assert (privacy["mode"], privacy["unit"], privacy["delta"], result["nodes"]) == ("site", "user", 1e-6, 1)
    assert 7.0 < privacy["epsilon"] <= 8.0
    assert {"name", "noise_multiplier", "sampling_rate", "releases"} == set(privacy["mechanisms"][0])
    assert "not_adapted" not in result["cold_user"]["random"]
    assert load_checkpoint(tmp_path / "run").settings.model.item_ids is False
    for page in ("README.md", "report.html"):
        assert "simulated noise" in (tmp_path / "run" / page).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--privacy", "site"], "give privacy.epsilon (inf: clip alone) or privacy.noise-multiplier"),
        (["--privacy", "site", "--epsilon", "8", "--nodes", "4"], "or mode = central or local"),
        (["--privacy", "site", "--epsilon", "8", "--set", "federation.clip-norm=0"], "needs federation.clip-norm"),
        (["--init", "nowhere"], "nowhere"),
    ],
)
def test_a_simulation_that_cannot_be_private_ends_with_one_clear_line(
    metarec: Run, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in refused(metarec, "simulate", "--out", tmp_path / "run", *small(generator__users=150), *options)


@pytest.mark.parametrize(
    ("rows", "items", "message"),
    [
        (["u1,1,5", "u1,2,five"], None, "interactions.csv line 3: rating must be a number, got 'five'"),
        ([], None, "no interaction"),
        (["u1,x,5", "u2,y,4"], None, "none of"),
        ([f"u{u},{u},5" for u in range(20)], None, "none of the 20 nodes has a meta-training user with at least two"),
    ],
)
def test_data_that_cannot_be_used_ends_with_one_clear_line(
    metarec: Run, tmp_path: Path, rows: list[str], items: list[str] | None, message: str
) -> None:
    data = write_own_data(tmp_path / "data", rows, items)
    assert message in refused(metarec, "simulate", "--data", data, "--out", tmp_path / "run", *small())
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_missing_data_settings_files_and_runs_end_with_one_clear_line(metarec: Run, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in refused(metarec, "simulate", "--data", nowhere, "--out", tmp_path / "run")
    assert str(nowhere) in refused(metarec, "simulate", "--config", nowhere)
    assert str(nowhere) in refused(metarec, "recommend", "--model", nowhere, "--history", "-")
    assert str(nowhere) in refused(metarec, "evaluate", "--model", nowhere)
    assert "unknown setting outer.lr" in refused(metarec, "simulate", "--set", "outer.lr=1")
    assert "--support must be whole numbers" in refused(metarec, "evaluate", "--model", nowhere, "--support", "1,x")


def test_resume_with_other_data_or_settings_is_refused(metarec: Run, tmp_path: Path) -> None:
    first = write_own_data(tmp_path / "first", histories())
    second = write_own_data(tmp_path / "second", histories(users=41))
    run_folder = tmp_path / "run"
    options = ["--out", run_folder, "--no-baselines"]
    assert metarec("simulate", "--data", first, *options, *small())[0] == 0
    again = ["simulate", "--resume", *options]
    assert "made with other data" in refused(metarec, *again, "--data", second, *small())
    changed = small(outer__momentum=0.5)
    assert "outer.momentum was 0.9, is 0.5" in refused(metarec, *again, "--data", first, *changed)


def test_resume_with_changed_ratings_is_refused(metarec: Run, tmp_path: Path) -> None:
    data, folder = write_own_data(tmp_path / "data", histories()), tmp_path / "run"
    options = ["--data", data, "--out", folder, "--no-baselines", "--nodes", "1", *small()]
    assert metarec("simulate", *options)[0] == 0
    write_own_data(data, [row[:-1] + str(6 - int(row[-1])) for row in histories()])
    assert "made with other data" in refused(metarec, "simulate", "--resume", *options)


def test_a_run_folder_that_cannot_be_made_ends_with_one_clear_line(metarec: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "wanted a folder for the run, got a file" in refused(
        metarec, "simulate", "--out", tmp_path / "file", *small()
    )
    assert "file" in refused(metarec, "simulate", "--out", tmp_path / "file" / "below", *small())


def test_every_node_failing_ends_with_one_clear_line(metarec: Run, tmp_path: Path) -> None:
    data = write_own_data(tmp_path / "data", histories())
    options = ["--data", data, "--out", tmp_path / "run", *small(), "--set", "evaluation.select-by=time"]
    message = refused(metarec, "simulate", *options)
    assert "nodes failed or did not answer" in message
    assert "no timestamps" in message


def test_a_damaged_checkpoint_is_refused(metarec: Run, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = refused(metarec, "recommend", "--model", folder, "--history", "-")
    assert "damaged, cut short" in message


def test_the_traceback_is_shown_only_with_debug(metarec: Run, tmp_path: Path) -> None:
    code, _, err = metarec("recommend", "--model", tmp_path, "--history", "-", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("metarec: error: ")


def test_nodes_and_one_node_per_user_exclude_each_other(metarec: Run) -> None:
    code, _, err = metarec("simulate", "--nodes", "3", "--one-node-per-user")
    assert code == 2
    assert "either --nodes or --one-node-per-user" in err


def test_problems_in_the_data_are_counted_and_the_run_goes_on(metarec: Run, tmp_path: Path) -> None:
    rows = [*histories(), "u1,7,3", "u1,7,3", "u2,unknown,4", "lonely,3,5"]
    items = [f"{i},Title {i},Some genre" for i in range(29)] + ["29,,"]
    data = write_own_data(tmp_path / "data", rows, items)
    code, _, err = metarec("simulate", "--data", data, "--out", tmp_path / "run", "--no-baselines", *small())
    assert code == 0
    for kind in ("duplicate", "unknown items", "without text", "short"):
        assert kind in err, kind


def test_set_options_are_parsed_as_the_settings_file_is() -> None:
    assert parse_assignments(["federation.rounds=3"]) == {"federation.rounds": 3}
