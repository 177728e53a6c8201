"""Downloading data sets, from a server on the loopback interface."""

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metarec_shared.data_cli import Downloadable
from metarec_shared.download import BASE_URL, KNOWN, KnownDataset, download
from metarec_shared.errors import DataError

MEMBERS = {"tiny/README": b"terms", "tiny/items.csv": b"item_id,title\n1,a\n"}


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder; yield it and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield folder, f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def publish(folder: Path, content: bytes) -> dict[str, KnownDataset]:
    (folder / "tiny.zip").write_bytes(content)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    tiny = KnownDataset(archive="tiny.zip", hash=f"md5:{digest}", folder="tiny", members=("README", "items.csv"))
    return {"tiny": tiny}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def assert_fails(out: Path, base_url: str, known: dict[str, KnownDataset], message: str) -> None:
    with pytest.raises(DataError, match=message):
        download("tiny", out, base_url=base_url, known=known, quiet=True)
    assert not list(out.iterdir()), "something was left behind"


@pytest.mark.parametrize("quiet", [True, False])
def test_a_data_set_is_fetched_and_unpacked(
    tmp_path: Path, served: tuple[Path, str], quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    known = publish(served[0], zipped(MEMBERS))
    folder = download("tiny", tmp_path / "deep" / "out", base_url=served[1], known=known, quiet=quiet)
    assert folder == tmp_path / "deep" / "out" / "tiny"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "README": b"terms",
        "items.csv": MEMBERS["tiny/items.csv"],
    }
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert ("tiny.zip" in capsys.readouterr().err) is not quiet


def test_only_expected_members_leave_the_archive(tmp_path: Path, served: tuple[Path, str]) -> None:
    known = publish(served[0], zipped(MEMBERS | {"../evil": b"x", "/evil": b"x", "tiny/extra": b"x"}))
    folder = download("tiny", tmp_path / "out", base_url=served[1], known=known, quiet=True)
    assert sorted(path.name for path in folder.iterdir()) == ["README", "items.csv"]
    assert not list(tmp_path.rglob("evil"))


def test_a_changed_archive_is_an_error(tmp_path: Path, served: tuple[Path, str]) -> None:
    known = publish(served[0], zipped(MEMBERS))
    publish(served[0], zipped(MEMBERS | {"tiny/README": b"other"}))
    message = r"tiny.zip: damaged or changed: its hash is not the published md5:"
    assert_fails(tmp_path / "out", served[1], known, message)


def test_a_missing_archive_is_an_error(tmp_path: Path, served: tuple[Path, str]) -> None:
    known = publish(served[0], zipped(MEMBERS))
    (served[0] / "tiny.zip").unlink()
    assert_fails(tmp_path / "out", served[1], known, r"/tiny.zip: cannot be downloaded: 404 Client Error")


def test_an_unreachable_server_is_an_error(tmp_path: Path, served: tuple[Path, str]) -> None:
    known = publish(served[0], zipped(MEMBERS))
    assert_fails(tmp_path / "out", "http://127.0.0.1:1/", known, r"127.0.0.1:1/tiny.zip: cannot be downloaded: ")


def test_an_archive_without_an_expected_member_is_an_error(tmp_path: Path, served: tuple[Path, str]) -> None:
    known = publish(served[0], zipped({"tiny/README": b"terms"}))
    assert_fails(tmp_path / "out", served[1], known, r"tiny.zip: There is no item named 'tiny/items.csv'")


def test_what_is_no_zip_file_is_an_error(tmp_path: Path, served: tuple[Path, str]) -> None:
    known = publish(served[0], b"no zip")
    assert_fails(tmp_path / "out", served[1], known, r"tiny.zip: cannot be unpacked: File is not a zip file")


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ml-1m").mkdir()
    with pytest.raises(DataError, match="ml-1m: exists already; remove it, or choose another folder"):
        download("ml-1m", tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    message = "unknown data set 'netflix'; those that can be downloaded are ml-1m, ml-100k"
    with pytest.raises(DataError, match=f"^{message}$"):
        download("netflix", tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="ml-1m: cannot be written: "):
        download("ml-1m", tmp_path / "file")


def test_the_command_offers_what_is_known_at_the_official_address() -> None:
    assert [choice.value for choice in Downloadable] == list(KNOWN)
    assert BASE_URL == "https://files.grouplens.org/datasets/movielens/"
    assert all(re.fullmatch(r"md5:[0-9a-f]{32}", known.hash) for known in KNOWN.values())
