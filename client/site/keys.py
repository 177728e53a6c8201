"""A site's key pair, by which the server knows it: ECDSA on P-384 in OpenSSH's format, as ``ssh-keygen`` makes them."""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from metarec_shared.errors import TrustError


def make_keys(private: Path, comment: str) -> None:
    """Write a new private key, for its owner alone, and its public half beside it (``.pub``)."""
    key = generate_private_key(SECP384R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    public_file(private).write_bytes(public + f" {comment}\n".encode())


def public_file(private: Path) -> Path:
    """Return where the public half of a private key lies."""
    return private.with_name(private.name + ".pub")


def read_key(private: Path) -> EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        TrustError: It is missing, of another kind or curve, or protected by a passphrase.
    """
    try:
        key = load_ssh_private_key(private.read_bytes(), None)
    except OSError as error:
        raise TrustError(f"{private}: cannot read the key: {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it wants a passphrase
        raise TrustError(f"{private}: no OpenSSH private key without passphrase") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise TrustError(f"{private}: wanted an ECDSA key on P-384, as `ssh-keygen -t ecdsa -b 384` makes")
    return key
