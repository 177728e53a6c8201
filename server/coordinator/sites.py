"""Who takes part: enrol a site's key, take it off again, and see who is there."""

import hashlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from metarec_shared.errors import FederationError, SettingsError, TrustError
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
    """Let the holder of a key take part under a name; return the key's fingerprint.

    Raises:
        SettingsError: The name is none.
        TrustError: The file holds no public key of the wanted kind.
        FederationError: The name or the key is enrolled already, or the server is not running.
    """
    if not SITE_NAME.fullmatch(name):
        raise SettingsError(f"a site's name must be letters, digits and hyphens, at most 63, got {name!r}")
    fingerprint, sites = _fingerprint(key_file), home.sites()
    if name in sites:
        raise FederationError(f"{name} is enrolled already; metarec server revoke takes it off")
    for other, entry in sites.items():
        if entry["key"] == fingerprint:
            raise FederationError(f"{key_file}: this key is enrolled already, as {other}")
    answer = flwr(home, "supernode", "register", str(key_file.absolute()), CONNECTION, "--name", name)
    entry = {"node": str(answer["node-id"]), "key": fingerprint, "enrolled": datetime.now(UTC).isoformat()}
    home.write_sites(sites | {name: entry})
    return fingerprint


def revoke_site(home: Home, name: str) -> None:
    """Let a site take part no more, from now on.

    Raises:
        FederationError: There is no such site, or the server is not running.
    """
    sites = home.sites()
    if name not in sites:
        raise FederationError(f"no site {name}; there are {', '.join(sites) or 'none'}")
    flwr(home, "supernode", "unregister", sites[name]["node"], CONNECTION)
    home.write_sites({other: entry for other, entry in sites.items() if other != name})


def site_states(home: Home) -> list[Site]:
    """Return all enrolled sites and whether they are there.

    Raises:
        FederationError: The server is not running.
    """
    nodes: list[dict[str, Any]] = flwr(home, "supernode", "list", CONNECTION)["nodes"]
    by_id = {str(node["node-id"]): node for node in nodes}
    found = []
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
