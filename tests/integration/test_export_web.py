"""An exported page is one flat folder with all that it needs; what npm gives is checked."""

import base64
import hashlib
import io
import json
import re
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.export import web_runtime
from client.export.cli import app
from client.export.export import Choices
from client.export.exported import load_exported
from client.export.web_files import RUNTIME_FILES, TEMPLATES, WEB_FILES
from client.export.web_page import export_web
from metarec_shared.checkpoint import save_checkpoint
from metarec_shared.errors import DataError, MetaRecError, TrustError
from tests.exportable import exportable

TEMPLATE_FOLDER = Path(web_runtime.__file__).parent / "web"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_checkpoint(exportable(additions=False), folder)
    return folder


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an npm on the path that packs what lies beside it, and pin that; return its folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_package(folder, RUNTIME_FILES)
    program = folder / "npm"
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "assert sys.argv[1] == 'pack' and '--ignore-scripts' in sys.argv, sys.argv\n"
        "to = [one.partition('=')[2] for one in sys.argv if one.startswith('--pack-destination=')][0]\n"
        "if (here / 'fails').exists():\n"
        "    sys.exit('npm error network unreachable')\n"
        "shutil.copy(here / 'package', pathlib.Path(to) / 'package.tgz')\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(web_runtime, "SHA512", hash_of(folder / "package"))
    return folder


def write_package(folder: Path, names: tuple[str, ...]) -> None:
    with tarfile.open(folder / "package", "w:gz") as archive:
        for name in (*names, "../../outside", "other.wasm"):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))


def hash_of(path: Path) -> str:
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.mark.usefixtures("npm")
def test_the_folder_holds_all_that_the_page_needs_and_no_more(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "page"
    result = CliRunner().invoke(app, ["--model", str(run), "--out", str(out), "--format", "web", "--int8"])
    assert result.exit_code == 0, result.output
    assert f"{out / 'index.html'}  {(out / 'index.html').stat().st_size:,} bytes" in result.output
    assert sorted(path.name for path in out.iterdir()) == sorted(WEB_FILES)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o644}
    assert (out / RUNTIME_FILES[0]).read_text() == RUNTIME_FILES[0]
    assert json.loads((out / "page.json").read_text()) == {"reads_ratings": True}
    load_exported(out)
    with pytest.raises(DataError, match="holds an exported model already; --force replaces it"):
        export_web(run, out, Choices())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "page"]


def test_without_npm_the_error_says_what_to_install(run: Path, npm: Path, tmp_path: Path) -> None:
    (npm / "npm").unlink()
    with pytest.raises(MetaRecError, match=r"needs npm to get onnxruntime-web@[\d.]+, and finds none: install Node.js"):
        export_web(run, tmp_path / "page", Choices())
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_what_npm_cannot_get_is_said_and_nothing_is_left(run: Path, npm: Path, tmp_path: Path) -> None:
    (npm / "fails").touch()
    with pytest.raises(MetaRecError, match=r"npm cannot get onnxruntime-web@[\d.]+: npm error network unreachable"):
        export_web(run, tmp_path / "page", Choices())
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_another_package_than_the_pinned_one_is_refused(
    run: Path, npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(npm, RUNTIME_FILES[:1])
    with pytest.raises(TrustError, match=r"from npm: its SHA-512 is .*, wanted "):
        export_web(run, tmp_path / "page", Choices())
    monkeypatch.setattr(web_runtime, "SHA512", hash_of(npm / "package"))
    with pytest.raises(MetaRecError, match=f"has no file package/dist/{RUNTIME_FILES[1]}"):
        export_web(run, tmp_path / "page", Choices())
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_the_page_names_nothing_outside_its_folder() -> None:
    assert {path.name for path in TEMPLATE_FOLDER.iterdir()} == set(TEMPLATES)
    for path in TEMPLATE_FOLDER.iterdir():
        text = path.read_text()
        assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
        for forbidden in ("localStorage", "sessionStorage", "indexedDB", "document.cookie", "innerHTML", "eval("):
            assert forbidden not in text, path.name
    page = (TEMPLATE_FOLDER / "index.html").read_text()
    assert "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'" in page
    named = re.findall(r"(?:src|href)=\"([^\"#]+)\"", page)
    named += [
        name for script in TEMPLATE_FOLDER.glob("*.js") for name in re.findall(r'from "\./(.+)"', script.read_text())
    ]
    assert set(named) <= set(WEB_FILES)


def test_serving_a_page_needs_no_pytorch() -> None:
    program = "import sys, client.export.web_server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
