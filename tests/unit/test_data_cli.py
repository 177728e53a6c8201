"""The commands that describe, pack and download data."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metarec_shared import download as download_module
from metarec_shared.data_cli import app
from metarec_shared.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of eight items and three users with histories of 1, 3 and 8."""
    directory = tmp_path / "[red]shop"
    directory.mkdir()
    (directory / "items.csv").write_text("item_id,title\n" + "".join(f"{item},item {item}\n" for item in range(8)))
    rows = [f"{user},{item},{item % 5}\n" for user, length in enumerate((1, 3, 8)) for item in range(length)]
    (directory / "interactions.csv").write_text("user_id,item_id,rating\n" + "".join(rows))
    return directory


def test_describe_prints_counts_lengths_and_problems(folder: Path) -> None:
    result = CliRunner().invoke(app, ["describe", str(folder)], catch_exceptions=False)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert lines[:8] == [
        "[red]shop",
        "layout own",
        "users 3",
        "items 8",
        "interactions 12",
        "density 50.000%",
        "ratings from 0 to 4, no fixed scale",
        "order of a history file (no timestamps)",
    ]
    assert "History lengths: shortest 1, quarter 1, median 3, three quarters 8, longest 8" in lines
    assert [line.split()[:2] for line in lines[10:14]] == [["1", "1"], ["2-3", "1"], ["4-7", "0"], ["8-15", "1"]]
    assert lines[-1] == "Problem: 1 short users: kept, but too short to form a task"


def test_describe_shows_users_whose_every_item_is_unknown(folder: Path) -> None:
    with (folder / "interactions.csv").open("a") as file:
        file.write("7,unknown,1\n")
    result = CliRunner().invoke(app, ["describe", str(folder)], catch_exceptions=False)
    assert "shortest 0" in result.stdout
    assert "1 interactions with unknown items: dropped" in result.stdout


def test_describe_stops_at_a_bad_row_unless_told_to_skip_it(folder: Path) -> None:
    with (folder / "interactions.csv").open("a") as file:
        file.write("7,1,five\n")
    with pytest.raises(DataError, match="line 14: rating must be a number, got 'five'"):
        CliRunner().invoke(app, ["describe", str(folder)], catch_exceptions=False)
    result = CliRunner().invoke(app, ["describe", str(folder), "--on-bad-rows", "skip"], catch_exceptions=False)
    assert "Problem: 1 unreadable interaction rows: skipped (line 14)" in result.stdout


def test_describe_lists_twenty_of_the_rows_that_were_skipped(folder: Path) -> None:
    with (folder / "interactions.csv").open("a") as file:
        file.write("7,1,five\n" * 21)
    result = CliRunner().invoke(app, ["describe", str(folder), "--on-bad-rows", "skip"], catch_exceptions=False)
    lines = ", ".join(f"line {line}" for line in range(14, 34))
    assert f"Problem: 21 unreadable interaction rows: skipped ({lines}, …)\n" in result.stdout


def test_describe_says_so_where_there_are_no_problems_and_no_ratings(folder: Path) -> None:
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\na,1,5\na,2,6\n")
    result = CliRunner().invoke(app, ["describe", str(folder)], catch_exceptions=False)
    assert "ratings" in result.stdout
    assert "none" in result.stdout
    assert "No problems found." in result.stdout


def test_pack_says_sizes_and_what_it_packs_is_described_alike(folder: Path) -> None:
    packed = folder.parent / "packed" / folder.name  # the same name, that of the data set
    described = CliRunner().invoke(app, ["describe", str(folder)], catch_exceptions=False).stdout
    result = CliRunner().invoke(app, ["pack", str(folder), "--out", str(packed)], catch_exceptions=False)
    assert result.exit_code == 0
    problem, sizes = result.stdout.splitlines()
    assert problem == "Problem: 1 short users: kept, but too short to form a task"
    assert re.fullmatch(rf"{re.escape(str(packed))}: 3 users, 8 items, 12 interactions in \d\.\d kB", sizes)
    assert CliRunner().invoke(app, ["describe", str(packed)], catch_exceptions=False).stdout == described


def test_pack_refuses_an_existing_folder_before_it_reads(folder: Path) -> None:
    (folder / "interactions.csv").write_text("unreadable")
    with pytest.raises(DataError, match=f"^{re.escape(str(folder))}: exists already"):
        CliRunner().invoke(app, ["pack", str(folder), "--out", str(folder)], catch_exceptions=False)


def test_pack_skips_rows_that_cannot_be_read_on_request(folder: Path) -> None:
    with (folder / "interactions.csv").open("a") as file:
        file.write("7,1,five\n")
    arguments = ["pack", str(folder), "--out", str(folder.parent / "packed")]
    with pytest.raises(DataError, match="line 14: rating must be a number, got 'five'"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    CliRunner().invoke(app, [*arguments, "--on-bad-rows", "skip"], catch_exceptions=False)
    result = CliRunner().invoke(app, ["describe", str(folder.parent / "packed")], catch_exceptions=False)
    assert "Problem: 1 unreadable interaction rows: skipped (line 14)" in result.stdout


def test_download_passes_name_and_folder_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "download", lambda name, out: out / name)
    result = CliRunner().invoke(app, ["download", "ml-100k", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.stdout == f"{tmp_path / 'ml-100k'}: ready; its README states the terms of use\n"


def test_download_refuses_other_names() -> None:
    result = CliRunner().invoke(app, ["download", "netflix"])
    assert result.exit_code == 2
    assert "'netflix'" in result.stderr


def test_loading_the_commands_loads_no_heavy_library() -> None:
    script = (
        "import sys, metarec_shared.data_cli; print(sorted({'numpy', 'pandas', 'pyarrow', 'pooch'} & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
