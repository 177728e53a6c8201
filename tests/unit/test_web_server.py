"""The server of a page's folder gives what lies in it, typed, and nothing else."""

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from client.export.web_server import PageServer
from metarec_shared.cli import run as metarec
from metarec_shared.errors import DataError, SettingsError

TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "ort.mjs": "text/javascript; charset=utf-8",
    "ort.wasm": "application/wasm",
    "model.onnx": "application/octet-stream",
    "catalogue.json": "application/json",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "page"
    made.mkdir()
    for name in TYPES:
        (made / name).write_text(f"content of {name}")
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[PageServer]:
    with PageServer(folder, "127.0.0.1", 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: PageServer, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.putrequest(method, path)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_each_file_is_served_by_its_type(server: PageServer) -> None:
    for name, content_type in TYPES.items():
        status, headers, body = ask(server, f"/{name}?version=1")
        assert (status, body) == (200, f"content of {name}".encode())
        assert headers["Content-Type"] == content_type
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
    assert ask(server, "/")[2] == b"content of index.html"
    status, headers, body = ask(server, "/app.js", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len("content of app.js")), b"")


def test_a_file_that_has_not_changed_is_not_sent_again(server: PageServer, folder: Path) -> None:
    tag = ask(server, "/app.js")[1]["ETag"]
    status, _, body = ask(server, "/app.js", headers={"If-None-Match": tag})
    assert (status, body) == (304, b"")
    (folder / "app.js").write_text("another content")
    assert ask(server, "/app.js", headers={"If-None-Match": tag})[::2] == (200, b"another content")


def test_nothing_else_is_served(server: PageServer, folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / ".hidden.txt").write_text("secret")
    (folder / "notes.bak").write_text("secret")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "inner").mkdir()
    (folder / "inner" / "secret.txt").write_text("secret")
    os.mkfifo(folder / "pipe.txt")
    hostile = (
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "//secret.txt",
        f"/{folder.parent / 'secret.txt'}",
        "/inner/secret.txt",
        "/inner/",
        "/.hidden.txt",
        "/notes.bak",
        "/link.txt",
        "/pipe.txt",
        "/app.js/",
        "/app.js%00.txt",
        "/" + "a" * 5000,
        "http://127.0.0.1/../secret.txt",
    )
    for path in hostile:
        status, _, body = ask(server, path)
        assert status == 404, path
        assert b"secret" not in body, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/app.js", method)[0] == 501


def test_a_path_that_is_none_is_not_found(server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), 10) as connection:
        connection.sendall(b"GET http://[ HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404 ")
    assert capsys.readouterr().err == ""


def test_of_an_error_nothing_is_said_that_tells_of_a_visitor(
    server: PageServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("client.export.web_server._is_served", lambda entry: 1 // 0)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/app.js")
    assert capsys.readouterr().err == "web page: a request failed: ZeroDivisionError\n"


def test_what_comes_along_with_a_request_is_no_next_request(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        inner = b"GET /app.js HTTP/1.1\r\n\r\n"
        length = str(len(inner)).encode()
        connection.sendall(b"GET /style.css HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n" + inner)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert b"content of style.css" in received
    assert b"content of app.js" not in received


def test_other_machines_are_served_only_by_choice(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"refuses to listen on 0\.0\.0\.0, which other machines reach"):
        PageServer(folder, "0.0.0.0", 0)
    with PageServer(folder, "0.0.0.0", 0, public=True) as server:
        assert server.url == f"http://0.0.0.0:{server.server_port}/"
    with PageServer(folder, "localhost", 0) as server, pytest.raises(SettingsError, match="cannot listen on 127"):
        PageServer(folder, "127.0.0.1", server.server_port)


def test_a_folder_without_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no index\.html; wanted what metarec export --format web wrote"):
        PageServer(tmp_path, "127.0.0.1", 0)


def test_the_command_serves_a_page_or_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--model", "run", "--http", str(folder)]):
        assert metarec(["serve", *options]) == 2
        assert "give either --model RUN or --http DIR" in capsys.readouterr().err
    assert metarec(["serve", "--http", str(folder), "--tls-cert", "c.pem", "--metrics-port", "9999"]) == 2
    assert "--tls-cert, --metrics-port is for a model; a page is served as plain HTTP" in capsys.readouterr().err
    command = [
        sys.executable,
        "-u",
        "-c",
        "import sys; from metarec_shared.cli import run; sys.exit(run(sys.argv[1:]))",
    ]
    arguments = ["serve", "--http", str(folder), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = re.search(r"http://\S+/", process.stdout.readline())
        assert url is not None
        with urllib.request.urlopen(url[0] + "style.css", timeout=20) as answer:
            assert b"content of style.css" in answer.read()
        process.terminate()
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
