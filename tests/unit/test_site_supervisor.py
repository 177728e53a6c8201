"""The supervisor of a site's SuperNode: what it says, how long it waits, and that it leaves nothing behind."""

import errno
import io
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.site.events import Event, Kind, event_of, plain
from client.site.folder import Site, load_site
from client.site.logs import PrivateFile, log_to
from client.site.process import SuperNode
from client.site.start import command, environment, only_one
from client.site.status import Status, read_status, write_status
from client.site.supervisor import REFUSED_WAIT, REJOIN_WAIT, Backoff, Obstacle, Supervisor
from metarec_shared.errors import NodeError
from tests.sites import make_invitation, make_site

TIMES = 60.0


class FakeTime:
    """A clock that only ``sleep`` moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


class FakeChild:
    """A SuperNode that says its lines, lives for a while and ends."""

    def __init__(self, time: FakeTime, lines: list[str], lifetime: float = 1.0) -> None:
        self._time, self._lines, self._end = time, list(lines), time.now + lifetime
        self.stopped = False

    def read(self, timeout: float) -> str | None:
        if self._lines:
            return self._lines.pop(0)
        self._time.now += timeout
        return None

    def ended(self) -> bool:
        return not self._lines and self._time.now >= self._end

    def stop(self) -> None:
        self.stopped = True


def supervise(
    folder: Path,
    scripts: list[tuple[list[str], float]],
    *,
    why: Callable[[], Obstacle | None] = lambda: None,
    during: Callable[[int], None] = lambda place: None,
) -> tuple[Supervisor, FakeTime, list[float], list[FakeChild]]:
    """Run one child a script, then stop; return also when each child started."""
    time, started, children = FakeTime(), [], []  # type: ignore[var-annotated]

    def launch() -> FakeChild:
        place = len(started)
        started.append(time.now)
        during(place)
        if place == len(scripts):
            supervisor.stop()
            children.append(FakeChild(time, []))
        else:
            children.append(FakeChild(time, *scripts[place]))
        return children[-1]

    supervisor = Supervisor(
        launch, why=why, approved=folder / "approved.json", state=folder, clock=time.clock, sleep=time.sleep
    )
    supervisor.run()
    return supervisor, time, started, children


def test_waits_double_up_to_a_minute_and_begin_anew_after_two_minutes_of_life() -> None:
    backoff = Backoff()
    assert [backoff.after(3.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [backoff.after(life) for life in (119.0, 120.0, 1.0)] == [60, 1, 2]


def test_a_supernode_that_dies_is_started_again_later_and_later(tmp_path: Path) -> None:
    supervisor, time, started, children = supervise(tmp_path, [([], 1.0)] * 3 + [([], 200.0)])
    gaps = [later - before for before, later in pairwise(started)]
    assert gaps == pytest.approx([1 + 1, 1 + 2, 1 + 4, 200 + 1], abs=0.6)
    assert max(time.slept) <= 0.5, "a request to stop is noticed soon"
    assert all(child.stopped for child in children), "what a dead one left is cleaned away too"
    found = read_status(tmp_path)
    assert found is not None
    assert (found.state, found.restarts, found.pid) == ("stopped", 4, os.getpid())
    assert found == supervisor.status
    assert stat.S_IMODE((tmp_path / "status.json").stat().st_mode) == 0o600


TRAINED = [
    "\x1b[92mINFO \x1b[0m:      SuperNode ID: 42\n",
    "INFO :      \n",
    "INFO :      [RUN 77, ROUND 3]\n",
    "INFO :      Receiving: train message (ID: abc)\n",
    "INFO :      Received successfully\n",
    "INFO :      [RUN 77, ROUND 3]\n",
    "INFO :      Sending: train message (ID: def)\n",
    "INFO :      Sent successfully\n",
]


def test_what_happens_is_said_in_plain_words_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    supervisor, *_ = supervise(tmp_path, [(TRAINED + TRAINED[2:], 1.0)])
    said = [record.getMessage() for record in caplog.records if record.name == "site"]
    assert said[:4] == [
        "starting", "connected: as node 42", "train of run 77, round 3 came", "answered run 77, round 3"
    ]  # fmt: skip
    status = supervisor.status
    assert (status.node, dict(status.messages)) == ("42", {"train": 2})
    assert status.last_message is not None
    assert (status.last_message.kind, status.last_message.run, status.last_message.round) == ("train", "77", "3")
    raw = [record.getMessage() for record in caplog.records if record.name == "supernode"]
    assert raw[0] == "INFO :      SuperNode ID: 42"


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("INFO : [RUN 7]", Event(kind=Kind.RUN, first="7")),
        ("WARNING : Connection attempt failed, retrying in 1.17 seconds", Event(kind=Kind.UNREACHABLE)),
        ("INFO : Connection successful after 3.00 seconds and 3 tries.", Event(kind=Kind.RECONNECTED)),
        ("[code: 2004] Failed to activate SuperNode.", Event(kind=Kind.NOT_ACTIVATED)),
        ("[code: 9] Other.", Event(kind=Kind.REFUSED_REQUEST, first="[code: 9] Other.")),
        ("refused a message of type train: no budget", Event(kind=Kind.REFUSAL, first="no budget")),
        (
            "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 9094): address already in use",
            Event(kind=Kind.PORT_TAKEN, first="('127.0.0.1', 9094)"),
        ),
        ("a line of something else", None),
    ],
)
def test_lines_become_events(line: str, event: Event | None) -> None:
    assert event_of(plain(line)) == event


def end_of(folder: Path, lines: list[str], obstacle: Obstacle | None) -> tuple[str, float]:
    """Return the last error after a child that says ``lines`` and lives a second, and the wait after it."""
    supervisor, _, started, _ = supervise(folder, [(lines, 1.0)], why=lambda: obstacle)
    return supervisor.status.error, started[1] - started[0] - 1.0


UNKNOWN = Obstacle(said="the server does not know this key: send site.key.pub to the coordinator", refused=True)
EXPIRED = Obstacle(said="its certificate has expired", refused=False)
AWAY = Obstacle(said="refuses connections", refused=False)
NOT_ACTIVATED = "[code: 2004] Failed to activate SuperNode.\n"


@pytest.mark.parametrize(
    ("lines", "obstacle", "error", "wait"),
    [
        ([NOT_ACTIVATED], UNKNOWN, UNKNOWN.said, REFUSED_WAIT),
        ([NOT_ACTIVATED], None, "", REJOIN_WAIT),  # the server takes the last connection for alive
        (
            ["ERROR : SSL/TLS handshake error detected.\n"],
            Obstacle(said="expired", refused=False),
            "expired",
            REFUSED_WAIT,
        ),
        (
            ["[code: 9] Another one.\n"],
            None,
            "the server refuses this node: [code: 9] Another one.",
            REFUSED_WAIT,
        ),
        (TRAINED[:1], UNKNOWN, UNKNOWN.said, REFUSED_WAIT),  # revoked while connected: Flower ends without a word
        ([], UNKNOWN, UNKNOWN.said, REFUSED_WAIT),
        ([], Obstacle(said="nothing listens there", refused=False), "nothing listens there", 1.0),
        ([], None, "", 1.0),  # it crashed
    ],
)
def test_why_a_supernode_ended_decides_what_is_said_and_how_long_the_next_one_waits(
    tmp_path: Path, lines: list[str], obstacle: Obstacle | None, error: str, wait: float
) -> None:
    said, waited = end_of(tmp_path, lines, obstacle)
    assert said == error
    assert waited == pytest.approx(wait, abs=0.6)


def test_a_server_that_is_away_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    away = "WARNING : Connection attempt failed, retrying in 1.00 seconds\n"
    back = "INFO : Connection successful after 2.00 seconds and 3 tries.\n"
    supervise(
        tmp_path,
        [([*TRAINED[:1], away, away, back], 1.0)],
        why=lambda: Obstacle(said="refuses connections", refused=False),
    )
    said = [record.getMessage() for record in caplog.records if record.name == "site"]
    assert said[1:4] == ["connected: as node 42", "unreachable: refuses connections", "connected: again"]


def test_a_refused_bundle_leaves_the_node_connected(tmp_path: Path) -> None:
    refused = f"bundle {'a' * 64} is refused: this site approved {'b' * 64}"
    seen: list[tuple[str, str]] = []
    lines = [*TRAINED[:1], f"ERROR : {refused}\n", "refused a message of type train: privacy.mode is site here\n"]

    class Watching(FakeChild):
        def ended(self) -> bool:
            found = read_status(tmp_path)
            if found is not None and self is not None:
                seen.append((found.state, found.error))
            return super().ended()

    time = FakeTime()
    children: list[FakeChild] = []

    def launch() -> FakeChild:
        if children:
            supervisor.stop()
        children.append(Watching(time, lines))
        return children[-1]

    supervisor = Supervisor(
        launch,
        why=lambda: None,
        approved=tmp_path / "approved.json",
        state=tmp_path,
        clock=time.clock,
        sleep=time.sleep,
    )
    supervisor.run()
    assert ("connected", refused) in seen
    assert ("connected", "privacy.mode is site here") in seen


def test_another_approval_starts_the_supernode_anew_at_once(tmp_path: Path) -> None:
    (tmp_path / "approved.json").write_text("{}")

    class Changing(FakeChild):
        def read(self, timeout: float) -> str | None:
            if not self.stopped:
                os.utime(tmp_path / "approved.json", ns=(1, len(started)))
            return super().read(timeout)

    time, started = FakeTime(), []  # type: ignore[var-annotated]

    def launch() -> FakeChild:
        started.append(time.now)
        if len(started) == 3:
            supervisor.stop()
        return Changing(time, [], 1000.0)

    supervisor = Supervisor(
        launch,
        why=lambda: None,
        approved=tmp_path / "approved.json",
        state=tmp_path,
        clock=time.clock,
        sleep=time.sleep,
    )
    supervisor.run()
    assert started[1] - started[0] < 2
    assert supervisor.status.restarts == 0


def test_only_one_supervisor_runs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with only_one(tmp_path / "state"), pytest.raises(NodeError, match=f"runs already, as process {os.getpid()}"):  # noqa: SIM117
        with only_one(tmp_path / "state"):
            pass
    with only_one(tmp_path / "state"):
        pass


def alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMES
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def next_line(child: SuperNode) -> str:
    line = child.read(TIMES)
    assert line is not None
    return line.strip()


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
FAMILY = (
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_a_supernode_that_will_not_end_is_killed_with_all_it_started(tmp_path: Path) -> None:
    child = SuperNode([sys.executable, "-c", FAMILY], os.environ, tmp_path, grace=0.3)
    grandchild = int(next_line(child))
    assert alive(grandchild)
    child.stop()
    assert child.ended()
    until(lambda: not alive(grandchild))
    assert not alive(child.pid)


def test_a_supernodes_output_comes_line_by_line_and_its_end_is_seen(tmp_path: Path) -> None:
    child = SuperNode([sys.executable, "-c", "print('one'); print(b'\\xff'); print('two')"], os.environ, tmp_path)
    assert [next_line(child) for _ in range(3)] == ["one", "b'\\xff'", "two"]
    until(child.ended)
    assert child.read(0.0) is None
    child.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_dies_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    body = (
        "import os, sys, time\n"
        "from client.site.process import die_with\n"
        "die_with(int(sys.argv[1]))\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {body!r}, str(os.getpid())])\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert alive(child)
        process.send_signal(signal.SIGKILL)
        until(lambda: not alive(child))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = make_site(tmp_path / "site", make_invitation(tmp_path / "invitation", Ed25519PrivateKey.generate()))
    text = (made.folder / "site.toml").read_text()
    text = text.replace('item-vectors = ""', 'item-vectors = "vectors.npz"').replace(
        'user-attributes = ""', 'user-attributes = "age, town"'
    )
    (made.folder / "site.toml").write_text(text)
    return load_site(made.folder)


def test_a_supernode_gets_the_sites_own_configuration_as_flower_reads_it(site: Site) -> None:
    from flwr.common.config import parse_config_args

    words = command(site)
    path = words[words.index("--node-config") + 1]
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert parse_config_args([path]) == {
        "name": "clinic",
        "data-path": str(site.folder / "data"),
        "catalogue-path": str(site.folder / "catalogue"),
        "catalogue-hash": json.loads(site.approved.read_text())["catalogue"],
        "privacy-file": str(site.folder / "privacy.toml"),
        "excluded-file": str(site.folder / "excluded.txt"),
        "on-bad-rows": "skip",
        "rating-low": 0.0,
        "rating-high": 0.0,
        "item-vectors": str(site.folder / "vectors.npz"),
        "user-attributes": "age, town",
        "text-encoder": "random",
    }
    assert words[words.index("--bundle") + 1] == json.loads(site.approved.read_text())["bundle"]
    assert words[words.index("--superlink") + 1] == "127.0.0.1:9092"
    assert words[words.index("--host") + 1] == "127.0.0.1"


def test_caches_lie_in_the_sites_folder_unless_the_operator_says_where(site: Site) -> None:
    env = environment(site, {"PATH": "/bin", "METAREC_CACHE": "/mine"})
    assert (env["METAREC_CACHE"], env["HF_HOME"]) == ("/mine", str(site.state / "huggingface"))
    assert environment(site, {"HF_HOME": ""})["METAREC_CACHE"] == str(site.state / "cache")


def test_a_supernodes_environment_keeps_flower_in_the_sites_folder(site: Site) -> None:
    env = environment(site, {"PATH": "/bin", "HOME": "/h", "no_proxy": "intern"})
    assert env["FLWR_HOME"] == str(site.folder / "state" / "flower")
    assert env["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert env["NO_PROXY"] == env["no_proxy"] == "intern,127.0.0.1,localhost"
    assert (env["HOME"], env["FLWR_TELEMETRY_ENABLED"]) == ("/h", "0")


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    for handler in list(root.handlers):
        root.removeHandler(handler)
        if handler not in handlers:
            handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_lines_are_one_line_each_on_stderr_and_in_a_private_file(
    tmp_path: Path, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    log_to(tmp_path, form)  # type: ignore[arg-type]
    logging.getLogger("site").warning("unreachable: %s", "ünterwegs")
    printed = capsys.readouterr().err
    assert (tmp_path / "site.log").read_text() == printed
    assert stat.S_IMODE((tmp_path / "site.log").stat().st_mode) == 0o600
    if form == "json":
        line = json.loads(printed)
        assert (line["level"], line["source"], line["message"]) == ("warning", "site", "unreachable: ünterwegs")
        assert line["time"].endswith("+00:00")
    else:
        assert printed.endswith(" WARNING site: unreachable: ünterwegs\n")


@pytest.mark.parametrize("broken", ["status", "start"])
def test_a_full_disk_does_not_end_the_supervisor(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    caplog.set_level(logging.INFO)

    def write(state: Path, status: Status) -> None:
        if broken == "status" and 1 <= len(writes) <= 5:
            writes.append(status)
            raise full
        writes.append(status)
        write_status(state, status)

    def during(place: int) -> None:
        if broken == "start" and place in (1, 2):
            raise full

    writes: list[Status] = []
    monkeypatch.setattr("client.site.supervisor.write_status", write)
    scripts = [(["INFO :      Starting Flower SuperNode"], 5.0)] * 4
    supervisor, _, started, _ = supervise(tmp_path, scripts, during=during)
    assert len(started) == 5
    assert read_status(tmp_path) == supervisor.status
    said = [record.message for record in caplog.records if "No space left" in record.message]
    if broken == "status":
        assert said == ["the status cannot be written, so it is out of date: [Errno 28] No space left on device"]
    else:
        assert said == ["no SuperNode can be started: [Errno 28] No space left on device"] * 2
        assert [round(b - a) for a, b in pairwise(started)][1:3] == [2, 4], "later and later"


class _FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_on_a_full_disk_goes_on_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    try:
        log_to(tmp_path, "text")
        file = next(handler for handler in root.handlers if isinstance(handler, PrivateFile))
        file.stream.close()
        file.stream = _FullDisk()  # type: ignore[assignment]
        logging.getLogger("site").info("what happens")
        file.close()
    finally:
        root.handlers[:] = before
    told = capfd.readouterr().err
    assert "what happens" in told
    assert "Traceback" not in told
