"""What a coordinator gives to a site that joins, signed: where the server is, which code runs, which items there are.

An invitation is a folder. Its terms hold the hash of every other file in it, and stand under one Ed25519 signature: a
site that knows the coordinator's key knows that nobody changed a byte on the way. What a site approved it keeps as two
hashes, of the bundle and of the catalogue: a server that controls the features of items can read interactions out of
meta-updates, so neither may change without the site's consent.
"""

import base64
import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from metarec_shared.errors import TrustError
from metarec_shared.files import write_bytes, write_text

BUNDLE = "metarec.fab"
CATALOGUE = "catalogue"
AUTHORITY = "ca.crt"
SIGNING_KEY = "signing-key.pub"
POINTER = "source.toml"
"""The file that says which other files, or which database, the items lie in: never part of an invitation."""
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
"""What a site may be called, by itself and by its coordinator."""
TERMS = "invitation.json"
SIGNATURE = "invitation.sig"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """The terms of a federation.

    Attributes:
        federation: Its name.
        server: Where its server listens, ``host:port``.
        metarec: Version of MetaRec that the bundle calls.
        text_encoder: What makes text vectors of the items, as ``text.encoder`` says it.
        authority: SHA-256 of the certificate of the authority that the server's certificate comes from, in hex.
        bundle: SHA-256 of the bundle of apps, in hex: what Flower calls its hash.
        catalogue: Content hash of the folder with the items, in hex.
        issued: When it was made, ISO 8601 with the zone: a site takes none that is older than what it approved.
    """

    federation: str
    server: str
    metarec: str
    text_encoder: str
    authority: str
    bundle: str
    catalogue: str
    issued: str


def content_hash(folder: Path) -> str:
    """Return a hash of the names and contents of all files in a folder, hex; hidden ones are passed over.

    Raises:
        TrustError: There is no such folder, or it holds a link, whose target could change.
    """
    if not folder.is_dir():
        raise TrustError(f"{folder}: wanted a folder, got {'a file' if folder.exists() else 'nothing'}")
    lines = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink():
            raise TrustError(f"{path}: a link; put the file itself there")
        if path.is_file():
            lines.append(f"{file_hash(path)}  {name.as_posix()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_self_contained(folder: Path) -> None:
    """Check that a published catalogue holds its items itself: what it points at would be read at a site unhashed.

    Raises:
        TrustError: A ``source.toml`` lies in it, which may point at a site's private files or database.
    """
    for path in sorted(folder.rglob("*")):
        if path.name.casefold() == POINTER:
            raise TrustError(f"{path}: says that the items lie elsewhere; wanted a catalogue with the items themselves")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """Return what people compare over the phone: ``SHA256:`` and the key's hash in base64, as OpenSSH writes it."""
    digest = hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def seal(folder: Path, invitation: Invitation, key: Ed25519PrivateKey) -> None:
    """Write the terms, their signature and the key that checks it into a folder that holds the rest."""
    terms = json.dumps(asdict(invitation), indent=2).encode() + b"\n"
    write_bytes(folder / TERMS, terms)
    write_text(folder / SIGNATURE, base64.b64encode(key.sign(terms)).decode() + "\n")
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_bytes(folder / SIGNING_KEY, public)


def open_invitation(folder: Path, fingerprint: str = "") -> tuple[Invitation, str]:
    """Read an invitation and check every byte of it.

    Args:
        folder: The invitation.
        fingerprint: Of the coordinator's signing key, where the site knows it already; empty: any key will do, and the
            caller shows its fingerprint to a person.

    Returns:
        The terms, and the fingerprint of the key that signed them.

    Raises:
        TrustError: A file is missing, was changed after it was signed, or another key signed it; or the catalogue
            points at files elsewhere.
    """
    try:
        terms = (folder / TERMS).read_bytes()
        signature = base64.b64decode((folder / SIGNATURE).read_text(encoding="ascii"), validate=False)
        key = load_pem_public_key((folder / SIGNING_KEY).read_bytes())
    except (OSError, ValueError) as error:
        raise TrustError(f"{folder}: no readable invitation: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError(f"{folder / SIGNING_KEY}: wanted an Ed25519 key")
    found = key_fingerprint(key)
    if fingerprint and found != fingerprint:
        raise TrustError(f"{folder}: signed by {found}, this site trusts {fingerprint}")
    try:
        key.verify(signature, terms)
    except InvalidSignature as error:
        raise TrustError(f"{folder / TERMS}: its signature does not fit: it was changed after it was signed") from error
    invitation = _parsed(folder / TERMS, terms)
    for name, wanted in ((AUTHORITY, invitation.authority), (BUNDLE, invitation.bundle)):
        got = file_hash(folder / name) if (folder / name).is_file() else "no file"
        if got != wanted:
            raise TrustError(f"{folder / name}: its SHA-256 must be {wanted}, got {got}")
    if (got := content_hash(folder / CATALOGUE)) != invitation.catalogue:
        raise TrustError(f"{folder / CATALOGUE}: its content hash must be {invitation.catalogue}, got {got}")
    check_self_contained(folder / CATALOGUE)
    return invitation, found


def _parsed(path: Path, terms: bytes) -> Invitation:
    names = {field.name for field in fields(Invitation)}
    try:
        values = json.loads(terms)
    except ValueError as error:
        raise TrustError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict) or set(values) != names or not all(isinstance(v, str) for v in values.values()):
        raise TrustError(f"{path}: wanted strings {', '.join(sorted(names))}; another version of MetaRec made it")
    invitation = Invitation(**values)
    try:
        issue_time(invitation.issued)
    except ValueError as error:
        raise TrustError(f"{path}: issued must be a time with its zone, got {invitation.issued!r}") from error
    return invitation


def issue_time(issued: str) -> datetime:
    """Return when an invitation was issued.

    Raises:
        ValueError: The text is no time of ISO 8601 with a zone.
    """
    time = datetime.fromisoformat(issued)
    if time.tzinfo is None:
        raise ValueError("no zone")
    return time
