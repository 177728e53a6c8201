"""What breaks at sites in the midst of a private run: each ends as a line for its operator, and the others go on.

One federation lives through all of it: in rounds 1 to 6 a site answers nonsense of several kinds, from round 2 to 4
others have a full disk, a table that is gone and a file that cannot be read, one has rows that cannot be, and one's
clock is ten minutes ahead.
"""

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.e2e import misbehaviour
from tests.e2e.partner_sites import (
    PRIVATE_RUN,
    Federation,
    federation,
    keep_ledger,
    make_site,
    meta_updates,
    ok,
    options,
    write_data,
)
from tests.e2e.processes import lines_of, metarec, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")]

USERS = 700
SITES = ("rows", "table", "file", "disk", "liar")
LIES = {1: "nan", 2: "shapes", 3: "garbage", 4: "norm", 6: "late"}
ROUNDS = 7
BROKEN, MENDED = 1, 4
"""Rounds after which things break and are mended."""

PATIENCE = 100.0
"""Seconds that the server waits for a round."""

BAD_ROWS = "u1,1,5,then\n,2,4,17\nu2,no such item,3,18\n"
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


@dataclass
class Story:
    """A federation after its run: what the run wrote, and where."""

    made: Federation
    rounds: list[dict[str, Any]]
    failures: list[dict[str, Any]]

    def causes(self, site: str) -> dict[int, str]:
        """Return why a site failed, by rounds."""
        return {line["round"]: line["cause"] for line in self.failures if line["name"] == site}

    def log(self, site: str) -> str:
        """Return what a site's operator saw."""
        return self.made.log(site).read_text(errors="replace")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Return what happened."""
    root = tmp_path_factory.mktemp("faults")
    parts = write_data(root / "whole", USERS, len(SITES))
    with federation(root) as made, contextlib.ExitStack() as disks:
        ok(made.command("server", "init", made.home, "--port", str(made.port), "--catalogue", root / "whole"))
        made.start_server()
        for name, part in zip(SITES, parts, strict=True):
            make_site(made, name, "site")
            keep_ledger(made, name)
            fill(made.sites[name] / "data", name, part)
            if name == "disk":
                disks.enter_context(small_disk(made.sites[name]))
            made.start(name, **(lying(root) if name == "liar" else {}))
        try:
            made.wait_for(SITES)
            yield run(made)
        finally:
            made.close()  # before the disk goes


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put a folder on a disk of 64 MB; skip where this account may not mount one."""
    before = folder.rename(folder.with_suffix(".before"))
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this account may not mount a small disk")
    shutil.copytree(before, folder, dirs_exist_ok=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(data: Path, site: str, part: pd.DataFrame) -> None:
    """Write a site's data in the way that it keeps them."""
    if site == "table":
        with sqlite3.connect(data / "shop.sqlite") as connection:
            part.to_sql("orders", connection, index=False)
        (data / "shop.url").touch(mode=0o600)
        (data / "shop.url").write_text(f"sqlite:///{data}/shop.sqlite")
        (data / "source.toml").write_text('[interactions]\nurl-file = "shop.url"\ntable = "orders"\n')
    elif site == "file":
        part.to_parquet(data / "interactions.parquet", index=False)
    else:
        part.to_csv(data / "interactions.csv", index=False)
    if site == "rows":
        with (data / "interactions.csv").open("a") as file:
            file.write(BAD_ROWS)


def lying(root: Path) -> dict[str, str]:
    """Return the environment of a site that lies."""
    (root / "lies").mkdir()
    shutil.copy(misbehaviour.__file__, root / "lies" / "sitecustomize.py")
    return {
        "PYTHONPATH": str(root / "lies"),
        "METAREC_TEST_LIES": json.dumps(LIES),
        "METAREC_TEST_LATE": str(PATIENCE + 5),
    }


def run(made: Federation) -> Story:
    """Run the federation, break things and mend them."""
    folder = made.home / "runs" / "faults"
    values = PRIVATE_RUN | {
        "federation.min-nodes": 1, "federation.max-failures": 1.0, "federation.round-timeout": PATIENCE,
    }  # fmt: skip
    more = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    arguments = ["--name", "faults", "--rounds", str(ROUNDS), *options(federation__evaluate_every=ROUNDS)]
    ok(made.command("server", "run", made.home, *arguments, *more, "--detach"))
    wait_until(lambda: lines_of(folder / "metrics.jsonl") >= BROKEN, "a round")
    kept = break_things(made)
    wait_until(lambda: lines_of(folder / "metrics.jsonl") >= MENDED, "rounds with what is broken")
    mend(made, kept)
    for number in range(MENDED + 1, ROUNDS + 1):
        wait_until(lambda n=number: lines_of(folder / "metrics.jsonl") >= n, f"round {number}")  # type: ignore[misc]
    wait_until((folder / "result.json").exists, "the run ends")
    read = [
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "failures.jsonl")
    ]
    return Story(made=made, rounds=read[0], failures=read[1])


def break_things(made: Federation) -> bytes:
    """Fill the disk, rename the table, tear the file; return the file as it was."""
    with sqlite3.connect(made.sites["table"] / "data" / "shop.sqlite") as connection:
        connection.execute("ALTER TABLE orders RENAME TO gone")
    file = made.sites["file"] / "data" / "interactions.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with contextlib.suppress(OSError), (made.sites["disk"] / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    return whole


def mend(made: Federation, whole: bytes) -> None:
    """Undo ``break_things``."""
    with sqlite3.connect(made.sites["table"] / "data" / "shop.sqlite") as connection:
        connection.execute("ALTER TABLE gone RENAME TO orders")
    (made.sites["file"] / "data" / "interactions.parquet").write_bytes(whole)
    (made.sites["disk"] / "ballast").unlink()


def test_the_others_go_on(story: Story) -> None:
    assert [line["round"] for line in story.rounds] == list(range(1, ROUNDS + 1))
    assert all(line["nodes"] >= 1 for line in story.rounds)
    assert story.rounds[4]["nodes"] == story.rounds[-1]["nodes"] == len(SITES), "all are back when all is mended"


def test_rows_that_cannot_be_read_are_counted_and_listed_and_the_others_are_used(story: Story) -> None:
    assert story.causes("rows") == {}
    check = story.made.command("site", "check", story.made.sites["rows"], "--json")
    said = next(one["said"] for one in json.loads(check.stdout) if one["name"] == "data")
    lines = len((story.made.sites["rows"] / "data" / "interactions.csv").read_text().splitlines())
    assert f"{lines - 2}" in said
    assert f"{lines}" in said


@pytest.mark.parametrize("site", ["table", "file"])
def test_data_that_is_gone_is_that_sites_failure_until_it_is_back(story: Story, site: str) -> None:
    causes = story.causes(site)
    assert set(causes) & {2, 3, 4} == set(causes)
    assert causes
    assert all("DataError, see the node's log" in cause for cause in causes.values())
    assert ("no such table" if site == "table" else "interactions.parquet") in story.log(site)
    assert meta_updates(story.made, site)[-1] == ROUNDS


def test_a_full_disk_is_said_and_loses_no_ledger(story: Story) -> None:
    assert story.causes("disk")
    assert set(story.causes("disk")) <= {2, 3, 4}
    assert "No space left on device" in story.log("disk")
    released = meta_updates(story.made, "disk")  # which checks the chain of its rows, and the witness
    assert released[0] == 1
    assert released[-1] == ROUNDS
    assert len(set(released)) == len(released)


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (1, "finite"),
        (2, "shape"),
        (3, "meta-update"),
        (4, "norm .* is above .*, the most that clip norm, weight and noise can give"),
        (6, "no answer within 100 s"),
    ],
)
def test_what_a_site_answers_instead_is_refused_by_name(story: Story, number: int, cause: str) -> None:
    assert re.search(cause, story.causes("liar")[number])
    assert "\x1b" not in story.causes("liar")[number]


def test_a_reply_that_is_sent_twice_counts_once(story: Story) -> None:
    assert story.log("liar").count("sent once more: ") >= ROUNDS - 1
    assert 5 not in story.causes("liar")
    assert story.rounds[4]["weight"] == pytest.approx(10.0 * len(SITES))
    assert meta_updates(story.made, "liar") == list(range(1, ROUNDS + 1)), "each was charged once"


def test_every_failure_is_in_the_coordinators_status(story: Story) -> None:
    status = json.loads(ok(story.made.command("server", "status", story.made.home, "--json")))
    told = status["runs"][0]["failures"]
    assert {one["site"] for one in told} == {"table", "file", "disk", "liar"}
    assert sum(one["count"] for one in told) == len(story.failures)


@pytest.mark.skipif(FAKETIME is None, reason="no libfaketime: apt-get install faketime")
def test_a_clock_that_is_ten_minutes_ahead_is_said_and_the_site_stays_out(story: Story) -> None:
    made = story.made
    make_site(made, "clock")
    ahead = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+600s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    check = metarec("site", "check", made.sites["clock"], "--json", env={**made.env, **ahead})
    failed = {one["name"]: one["said"] for one in json.loads(check.stdout) if not one["passed"]}
    assert re.search(r"this clock is \d+ s ahead", failed["clock"])
    made.start("clock", **ahead)
    said = "the server does not accept this site's signature: check the clock"
    wait_until(lambda: said in story.log("clock"), "the site's log says why", made.processes["clock"])
    states = made.states()
    assert states.pop("clock") != "online"
    assert states == dict.fromkeys(SITES, "online")
