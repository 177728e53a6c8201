"""Run a site in the foreground: one supervisor a folder, its SuperNode, its log and its metrics."""

import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from client.site.approval import read_approval
from client.site.enrolment import Enrolment, ask_enrolment
from client.site.folder import Site, load_site
from client.site.keys import public_file, read_key
from client.site.logs import log_to
from client.site.process import SuperNode, adopt_orphans
from client.site.server_probe import open_connection
from client.site.supervisor import Obstacle, Supervisor
from metarec_shared.errors import MetaRecError, NodeError
from metarec_shared.files import write_text
from metarec_shared.toml_text import toml_value

NODE_CONFIG_FILE = "node-config.toml"
LOCK_FILE = "lock"
FLOWER_FOLDER = "flower"
_PATIENCE = 3.0  # seconds for a look at the server while the SuperNode waits for it
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
}


def run_site(site: Site) -> None:
    """Run a site until SIGTERM or SIGINT.

    Raises:
        MetaRecError: Another supervisor runs it, or its key or what it approved cannot be read.
        OSError: The port for metrics is taken.
    """
    os.umask(0o077)
    site.state.mkdir(mode=0o700, exist_ok=True)
    with only_one(site.state):
        read_key(site.key)
        read_approval(site.approved)
        log_to(site.state, site.settings.log_format)
        adopt_orphans()
        supervisor = Supervisor(
            lambda: SuperNode(command(load_site(site.folder)), environment(site, os.environ), site.state),
            why=lambda: why_not(load_site(site.folder)),  # approving may have changed the address
            approved=site.approved,
            state=site.state,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())
        if site.settings.metrics_port:
            from client.site.metrics import serve_metrics

            serve_metrics(site, lambda: supervisor.status, site.settings.metrics_port)
        supervisor.run()


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the lock of a site's folder.

    Raises:
        NodeError: Another process holds it.
    """
    with (state / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise NodeError(f"{state.parent}: runs already, as process {file.read().strip() or '?'}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def command(site: Site) -> list[str]:
    """Return the command of a SuperNode, and write the node's configuration that it reads.

    Raises:
        TrustError: What was approved cannot be read.
    """
    approval, settings = read_approval(site.approved), site.settings
    config = site.state / NODE_CONFIG_FILE
    lines = [f"{key} = {toml_value(value)}\n" for key, value in site.node_config(approval).items()]
    write_text(config, "".join(lines), mode=0o600)
    return [
        sys.executable, "-P", "-m", "client.site.supernode",
        "--bundle", approval.bundle,
        "--parent", str(os.getpid()),
        "--",
        "--superlink", settings.server,
        "--root-certificates", str(site.authority),
        "--auth-supernode-private-key", str(site.key),
        "--host", settings.host,
        "--port", str(settings.port),
        "--node-config", str(config),
    ]  # fmt: skip


def environment(site: Site, given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a SuperNode: Flower's own files and caches in the site's folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", "")])
    direct = ",".join(filter(None, [given.get("NO_PROXY", given.get("no_proxy", "")), "127.0.0.1", "localhost"]))
    own = cache_environment(site.state, given)
    own |= {"PATH": path, "FLWR_HOME": str(site.state / FLOWER_FOLDER), "NO_PROXY": direct, "no_proxy": direct}
    return {**given, **_ENVIRONMENT, **own}


def cache_environment(state: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return where text vectors and downloaded encoders are kept: in the site's folder unless ``given`` says where."""
    own = {"METAREC_CACHE": state / "cache", "HF_HOME": state / "huggingface"}
    return {name: given.get(name) or str(folder) for name, folder in own.items()}


def why_not(site: Site) -> Obstacle | None:
    """Return what stands between a site and its server; None: nothing does."""
    try:
        open_connection(site.settings.server, site.authority, timeout=_PATIENCE).close()
        answer = ask_enrolment(site.settings.server, site.authority, read_key(site.key))
    except (MetaRecError, OSError) as error:
        return Obstacle(said=str(error), refused=False)
    if answer is Enrolment.UNKNOWN:
        key = public_file(site.key)
        return Obstacle(said=f"the server does not know this key: send {key} to the coordinator", refused=True)
    if answer is Enrolment.NOT_ACCEPTED:
        return Obstacle(said="the server does not accept this site's signature: check the clock", refused=True)
    return None
