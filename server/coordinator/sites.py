"""Who takes part: enrol a site's key, take it off again, and see who is there.

Flower keeps nodes and their keys, we keep their names, and a crash may come between the two. So an enrolment is written
down before Flower is asked, with the nodes that there were; whoever comes next finds the new one and gives it its name.
"""

import fcntl
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from metarec_shared.errors import FederationError, SettingsError, TrustError
from metarec_shared.files import write_json
from metarec_shared.invitation import SITE_NAME
from server.coordinator.flower import CONNECTION, flwr
from server.coordinator.home import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """An enrolled site.

    Attributes:
        name: As it was enrolled.
        node_id: Flower's id of its node, as text.
        key: Fingerprint of its public key.
        status: ``online``, ``offline``, or what else Flower says.
        seen: Since when it has been online, or when it went.
    """

    name: str
    node_id: str
    key: str
    status: str
    seen: str


def enroll_site(home: Home, key_file: Path, name: str) -> str:
    """Let the holder of a key take part under a name; return the key's fingerprint. Once more changes nothing.

    Raises:
        SettingsError: The name is none.
        TrustError: The file holds no public key of the wanted kind.
        FederationError: The name or the key is enrolled already, or the server is not running.
    """
    if not SITE_NAME.fullmatch(name):
        raise SettingsError(f"a site's name must be letters, digits and hyphens, at most 63, got {name!r}")
    fingerprint = _fingerprint(key_file)
    with _alone(home):
        _finish(home)
        sites = home.sites()
        if name in sites and sites[name]["key"] == fingerprint:
            return fingerprint
        if name in sites:
            raise FederationError(f"{name} is enrolled already, with another key; metarec server revoke takes it off")
        for other, entry in sites.items():
            if entry["key"] == fingerprint:
                raise FederationError(f"{key_file}: this key is enrolled already, as {other}")
        begun = {"name": name, "key": fingerprint, "nodes": sorted(_nodes(home))}
        write_json(_begun_file(home), begun)
        answer = flwr(home, "supernode", "register", str(key_file.absolute()), CONNECTION, "--name", name)
        _name_node(home, begun, str(answer["node-id"]))
    return fingerprint


def _finish(home: Home) -> None:
    """Give the node of an enrolment that was cut off its name, if Flower took it."""
    file = _begun_file(home)
    if not file.exists():
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    new = _nodes(home).keys() - set(begun["nodes"])
    if len(new) > 1:
        raise FederationError(f"{file}: {len(new)} nodes came with the last enrolment; flwr supernode unregister them")
    if new:
        _name_node(home, begun, *new)
    file.unlink(missing_ok=True)


def _name_node(home: Home, begun: dict[str, Any], node: str) -> None:
    entry = {"node": node, "key": begun["key"], "enrolled": datetime.now(UTC).isoformat()}
    home.write_sites(home.sites() | {begun["name"]: entry})
    _begun_file(home).unlink()


def _begun_file(home: Home) -> Path:
    return home.folder / "enrolling.json"


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Wait until nobody else changes who takes part."""
    with (home.folder / "enrolling.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _nodes(home: Home) -> dict[str, dict[str, Any]]:
    """Return the nodes that Flower knows, by their ids."""
    nodes: list[dict[str, Any]] = flwr(home, "supernode", "list", CONNECTION)["nodes"]
    return {str(node["node-id"]): node for node in nodes}


def revoke_site(home: Home, name: str) -> None:
    """Let a site take part no more, from now on; one that Flower has forgotten already is forgotten here, too.

    Raises:
        FederationError: There is no such site, or the server is not running.
    """
    with _alone(home):
        _finish(home)
        sites = home.sites()
        if name not in sites:
            raise FederationError(f"no site {name}; there are {', '.join(sites) or 'none'}")
        node = sites[name]["node"]
        if _nodes(home).get(node, {}).get("status", "unregistered") != "unregistered":
            flwr(home, "supernode", "unregister", node, CONNECTION)
        home.write_sites({other: entry for other, entry in sites.items() if other != name})


def site_states(home: Home) -> list[Site]:
    """Return all enrolled sites and whether they are there.

    Raises:
        FederationError: The server is not running.
    """
    by_id, found = _nodes(home), []
    for name, entry in sorted(home.sites().items()):
        node = by_id.get(entry["node"], {})
        status = str(node.get("status", "unknown to the server"))
        seen = str(node.get("online-at" if status == "online" else "offline-at", "never"))
        found.append(Site(name=name, node_id=entry["node"], key=entry["key"], status=status, seen=seen))
    return found


def _fingerprint(path: Path) -> str:
    """Return the fingerprint of a public key as ssh-keygen prints it.

    Raises:
        TrustError: It is no ECDSA key in OpenSSH's format.
    """
    try:
        content = path.read_bytes()
        key = load_ssh_public_key(content)
        blob = content.split()[1]
    except (OSError, ValueError, IndexError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{path}: no readable public key in OpenSSH's format: {error}") from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise TrustError(f"{path}: wanted an ECDSA key, as metarec site init makes it, got {type(key).__name__}")
    return "SHA256:" + b64encode(hashlib.sha256(b64decode(blob)).digest()).decode().rstrip("=")
