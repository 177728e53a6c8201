"""`metarec site check`: each thing that can be wrong is said in words, and none hides another."""

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from typer.testing import CliRunner

from client.privacy.ledger import Ledger
from client.privacy.policy import load_policy
from client.site import checks_folder
from client.site.checks import Check, guarded, run_checks
from client.site.checks_server import clock
from client.site.cli import site_app
from client.site.counts import read_counts
from client.site.enrolment import Enrolment, ask_enrolment
from client.site.folder import Site
from client.site.keys import read_key
from client.site.server_probe import UnreachableError, open_connection, server_time
from client.site.start import why_not
from client.site.supervisor import Obstacle
from metarec_shared import sources
from metarec_shared.errors import DataError, TrustError
from tests.certificates import Authority
from tests.sites import make_invitation, make_site

KEY = Ed25519PrivateKey.generate()


class SuperLinkLike(BaseHTTPRequestHandler):
    """Answers a node's activation as Flower does, for the keys that the server knows."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(404, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ActivateNodeRequest.FromString(body)
        server = self.server
        assert isinstance(server, Server)
        server.asked.append((self.path, request.heartbeat_interval))
        if server.replies is not None:
            self._answer(*server.replies)
        elif request.public_key in server.known:
            self._answer(400, b'{"code": 2003, "detail": "Invalid heartbeat interval."}')
        else:
            self._answer(412, b'{"code": 2004, "detail": "Failed to activate SuperNode."}')

    def date_time_string(self, timestamp: float | None = None) -> str:
        server = self.server
        assert isinstance(server, Server)
        return server.date() if server.date else super().date_time_string(timestamp)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        pass

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    known: tuple[bytes, ...] = ()
    replies: tuple[int, bytes] | None = None
    date: Callable[[], str] | None = None

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.asked: list[tuple[str, float]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that break off the handshake are what is tested


@contextmanager
def serving(certificate: tuple[Path, Path] | None) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), SuperLinkLike)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new()


@pytest.fixture
def trusted(tmp_path: Path, authority: Authority) -> Path:
    return authority.write(tmp_path / "ca.crt")


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[Server]:
    with serving(authority.server(tmp_path / "tls")) as running:
        yield running


def address(server: socketserver.BaseServer) -> str:
    return f"127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def site(tmp_path: Path, authority: Authority, server: Server, monkeypatch: pytest.MonkeyPatch) -> Site:
    invitation = make_invitation(tmp_path / "invitation", KEY, authority=authority, server=address(server))
    sources._dataset.cache_clear()
    made = make_site(tmp_path / "site", invitation)
    monkeypatch.delenv("METAREC_CACHE")
    monkeypatch.setenv("HF_HOME", "")
    server.known = (public_key_to_bytes(read_key(made.key).public_key()),)
    return made


def found(site: Site) -> dict[str, Check]:
    sources._dataset.cache_clear()
    return {one.name: one for one in run_checks(site.folder)}


def failures(site: Site) -> dict[str, str]:
    return {name: one.said for name, one in found(site).items() if not one.passed}


def test_a_site_with_everything_in_order_passes_every_check(site: Site) -> None:
    ran = CliRunner().invoke(site_app, ["check", str(site.folder)])
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"pass  {name}" for name in (
            "settings", "approval", "files", "key", "disk", "catalogue", "text encoder", "data", "excluded users",
            "privacy", "server", "clock", "enrolment",
        )
    ]  # fmt: skip
    assert "layout own, 150 users, " in ran.stdout
    counts = read_counts(site.state)
    assert counts is not None
    assert (counts.users, counts.skipped) == (150, 0)
    assert list((site.state / "cache" / "text").iterdir()), "runs find the text vectors"


def test_checks_as_json(site: Site) -> None:
    site.approved.chmod(0o644)
    ran = CliRunner().invoke(site_app, ["check", str(site.folder), "--json"])
    assert ran.exit_code == 1
    (failed,) = [one for one in json.loads(ran.stdout) if not one["passed"]]
    assert failed == {"name": "files", "passed": False, "said": f"others may read them: chmod 600 {site.approved}"}


def test_one_failure_hides_no_other(site: Site, server: Server) -> None:
    site.key.unlink()
    (site.data / "interactions.csv").write_text("nothing\n")
    (site.catalogue / "items.csv").write_text("item_id,title\n0,Another\n")
    site.excluded.unlink()
    site.privacy_file.write_text("[privacy]\nusers = 10\n")
    site.privacy_file.chmod(0o600)
    assert set(failures(site)) == {"key", "data", "catalogue", "excluded users", "privacy", "enrolment"}
    assert "`metarec site approve`" in failures(site)["catalogue"]


def test_without_settings_there_is_one_failure(site: Site) -> None:
    (site.folder / "site.toml").unlink()
    assert list(failures(site)) == ["settings"]


def test_without_an_approval_what_needs_none_is_still_checked(site: Site) -> None:
    site.approved.write_text("{")
    site.folder.chmod(0o755)
    assert set(failures(site)) == {"approval", "files"}
    assert f"chmod 700 {site.folder}" in failures(site)["files"]


def test_a_check_that_breaks_is_a_failure_and_not_the_end() -> None:
    def broken() -> str:
        raise KeyError("inside")

    assert guarded("x", broken) == Check(name="x", passed=False, said="KeyError: 'inside'")


def test_skipped_rows_are_counted_and_errors_where_the_site_wants_them(site: Site) -> None:
    with (site.data / "interactions.csv").open("a") as file:
        file.write("u1,\n")
    assert "1 unreadable interaction rows: skipped" in found(site)["data"].said
    counts = read_counts(site.state)
    assert counts is not None
    assert counts.skipped == 1
    path = site.folder / "site.toml"
    path.write_text(path.read_text().replace('on-bad-rows = "skip"', 'on-bad-rows = "error"'))
    assert list(failures(site)) == ["data"]


def test_a_text_encoder_that_is_not_there_is_said(site: Site) -> None:
    approved = json.loads(site.approved.read_text())
    site.approved.write_text(json.dumps(approved | {"text_encoder": "/nowhere"}))
    assert list(failures(site)) == ["text encoder"]
    site.approved.write_text(json.dumps(approved | {"metarec": "9.9.9"}))
    assert "pip install metarec==9.9.9" in failures(site)["approval"]


def test_excluded_users_that_are_not_in_the_data_are_counted_and_not_named(site: Site) -> None:
    site.excluded.write_text("u3\nsomebody\nu5\n", encoding="utf-8-sig")  # as a Windows editor saves it
    assert found(site)["excluded users"] == Check(
        name="excluded users", passed=True, said="3, 1 of them not in the data"
    )
    (site.data / "interactions.csv").write_text("nothing\n")
    assert found(site)["excluded users"].said == "3, whether they are in the data is not known"


def test_a_full_disk_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_folder, "ROOM", 1 << 62)
    assert "make room" in failures(site)["disk"]


PRIVACY = """
[privacy]
mode = "site"
users = 120
noise-multiplier = 1.0
sampling-rate = 0.1
popularity-noise = 0.0
witness = "witness.json"
"""


def test_privacy_needs_a_ledger_that_fits_its_file_and_has_budget_left(site: Site) -> None:
    site.privacy_file.write_text(PRIVACY)
    site.privacy_file.chmod(0o600)
    assert "no ledger at" in failures(site)["privacy"]
    files = site.folder / "ledger.sqlite", site.folder / "witness.json"
    plan = load_policy(site.privacy_file).plan()
    ledger = Ledger.create(*files, epsilon=2.6, delta=1e-5, plan=plan)
    assert "epsilon 0 of 2.6 spent at delta 1e-05" in found(site)["privacy"].said
    site.privacy_file.write_text(PRIVACY.replace("0.1", "0.05"))
    assert "the ledger was planned for meta-update (noise 1, sampling rate 0.1)" in failures(site)["privacy"]
    site.privacy_file.write_text(PRIVACY)
    for number in range(1, ledger.affordable(plan[0]) + 1):
        ledger.charge(run="1", round_number=number, mechanism=plan[0])
    assert "nothing is left; `metarec privacy set-budget`" in failures(site)["privacy"]
    files[1].unlink()
    assert "witness" in failures(site)["privacy"]


def test_a_trusted_server_is_connected_to(server: Server, trusted: Path) -> None:
    with open_connection(address(server), trusted) as connection:
        assert str(connection.version()).startswith("TLS")


def reason(server: str, trusted: Path) -> str:
    with pytest.raises(UnreachableError) as caught:
        open_connection(server, trusted, timeout=5)
    return str(caught.value)


def test_a_refused_connection_and_an_unknown_name_are_told_apart(trusted: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # bound, but it does not listen
        assert "refuses connections" in reason(f"127.0.0.1:{one.getsockname()[1]}", trusted)
    assert "no such name here" in reason("no-such-host.invalid:9092", trusted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"days": (-30, -1)}, "its certificate has expired"),
        ({"days": (1, 30)}, "its certificate is not valid yet"),
        ({"host": "127.0.0.2"}, "its certificate is for another host than 127.0.0.1"),
        ({"host": "films.example"}, "its certificate is for another host than 127.0.0.1"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(
    tmp_path: Path, authority: Authority, trusted: Path, options: dict[str, object], message: str
) -> None:
    with serving(authority.server(tmp_path / "tls", **options)) as running:  # type: ignore[arg-type]
        assert message in reason(address(running), trusted)


def test_a_certificate_for_another_name_is_not_taken_for_localhost(
    tmp_path: Path, authority: Authority, trusted: Path
) -> None:
    with serving(authority.server(tmp_path / "tls", host="films.example")) as running:
        assert "for another host than localhost" in reason(address(running).replace("127.0.0.1", "localhost"), trusted)


def test_another_authority_is_said(tmp_path: Path, trusted: Path) -> None:
    with serving(Authority.new("a proxy").server(tmp_path / "tls")) as running:
        assert "comes from another authority than ca.crt" in reason(address(running), trusted)


def test_a_port_without_tls_is_said(trusted: Path) -> None:
    with serving(None) as running:
        assert "speaks no TLS there" in reason(address(running), trusted)


def test_a_server_that_says_nothing_is_given_up(trusted: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        with pytest.raises(UnreachableError, match="speaks no TLS there"):
            open_connection(f"127.0.0.1:{one.getsockname()[1]}", trusted, timeout=0.2)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_authority_that_cannot_be_read_is_said(tmp_path: Path, server: Server, content: str | None) -> None:
    path = tmp_path / "other.crt"
    if content is not None:
        path.write_text(content)
    assert "no certificate of an authority there" in reason(address(server), path)


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(0.5, "as the server's"), (-200, "s behind the server's"), (4, "s ahead of the server's")],
)
def test_clocks_may_differ_as_much_as_flower_allows(site: Site, server: Server, ahead: float, said: str) -> None:
    at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    server.date = lambda: format_datetime(at, usegmt=True)
    assert server_time(address(server), site.authority) == at
    assert said in clock(site, None, lambda: at.timestamp() + ahead)  # type: ignore[arg-type]


@pytest.mark.parametrize(("ahead", "said"), [(9, "8 s ahead of"), (-400, "400 s behind")])
def test_clocks_that_differ_by_more_fail_with_the_difference(
    site: Site, server: Server, ahead: float, said: str
) -> None:
    at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    server.date = lambda: format_datetime(at, usegmt=True)
    with pytest.raises(TrustError, match=f"this clock is {said} the server's, allowed are 5 s ahead and 305 s behind"):
        clock(site, None, lambda: at.timestamp() + ahead)  # type: ignore[arg-type]


def test_a_server_that_dates_nothing_is_said(site: Site, server: Server) -> None:
    server.date = lambda: "yesterday"
    with pytest.raises(UnreachableError, match="dates no reply"):
        server_time(address(server), site.authority)


def test_a_known_key_an_unknown_one_and_a_refused_signature_are_told_apart(site: Site, server: Server) -> None:
    key = read_key(site.key)
    assert ask_enrolment(address(server), site.authority, key) is Enrolment.KNOWN
    assert why_not(site) is None
    server.known = ()
    assert ask_enrolment(address(server), site.authority, key) is Enrolment.UNKNOWN
    assert f"send {site.key}.pub to the coordinator" in failures(site)["enrolment"]
    assert why_not(site) == Obstacle(said=failures(site)["enrolment"], refused=True)
    server.replies = (401, b'{"detail": "Invalid SuperNode authentication"}')
    assert ask_enrolment(address(server), site.authority, key) is Enrolment.NOT_ACCEPTED
    assert "check the clock" in str(why_not(site))
    assert {path for path, _ in server.asked} == {"/v1/fleet/activate-node"}
    assert {interval for _, interval in server.asked} == {0.0}, "an interval that Flower never activates a node with"


@pytest.mark.parametrize("replies", [(200, b""), (404, b"not here"), (500, b'{"code": 1, "detail": "x"}')])
def test_a_server_that_is_no_superlink_is_said(site: Site, server: Server, replies: tuple[int, bytes]) -> None:
    server.replies = replies
    with pytest.raises(TrustError, match="SuperLink"):
        ask_enrolment(address(server), site.authority, read_key(site.key))
    obstacle = why_not(site)
    assert obstacle is not None
    assert not obstacle.refused


def test_a_site_reads_its_items_and_interactions_apart(site: Site) -> None:
    (site.data / "interactions.csv").unlink()
    assert "interactions" in failures(site)["data"]
    with pytest.raises(DataError):
        sources.load_dataset(sources.Settings().with_values({"data.path": str(site.data)}, "test"))
