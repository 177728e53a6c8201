"""The federation's own certificate authority, the server's certificate, and the key that signs invitations."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from metarec_shared.errors import TrustError
from metarec_shared.files import write_bytes
from server.coordinator.home import Home

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
CLOCK_SLACK = timedelta(hours=1)
"""Certificates are valid from an hour ago on, for clocks that are behind."""


def make_authority(home: Home, federation: str) -> None:
    """Make a certificate authority that signs this federation's server and nothing else."""
    key = generate_ec_key(SECP384R1())
    name = _name(f"{federation} federation")
    began = datetime.now(UTC) - CLOCK_SLACK
    certificate = (
        _builder(name, name, key, began, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_key(home.authority_key, key)
    write_bytes(home.authority, certificate.public_bytes(Encoding.PEM))


def issue_certificate(home: Home, names: Sequence[str], days: int = CERTIFICATE_DAYS) -> datetime:
    """Make the server's key and a certificate for it; return until when that is valid.

    Args:
        home: The coordinator's folder, with its authority.
        names: Host names and addresses of the server.
        days: How long it is valid.

    Raises:
        TrustError: The authority's files cannot be read.
    """
    try:
        authority_key = load_pem_private_key(home.authority_key.read_bytes(), None)
        authority = x509.load_pem_x509_certificate(home.authority.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise TrustError(f"{home.authority_key}: the authority cannot be read: {error}") from error
    assert isinstance(authority_key, EllipticCurvePrivateKey)
    key = generate_ec_key(SECP384R1())
    began = datetime.now(UTC) - CLOCK_SLACK
    certificate = (
        _builder(_name(names[0]), authority.subject, key, began, days)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    write_key(home.server_key, key)
    write_bytes(home.certificate, certificate.public_bytes(Encoding.PEM))
    return certificate.not_valid_after_utc


def make_signing_key(home: Home) -> None:
    """Make the key that signs invitations."""
    write_key(home.signing_key, Ed25519PrivateKey.generate())


def load_signing_key(home: Home) -> Ed25519PrivateKey:
    """Read the key that signs invitations.

    Raises:
        TrustError: It is missing or is another kind of key.
    """
    try:
        key = load_pem_private_key(home.signing_key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise TrustError(f"{home.signing_key}: cannot be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{home.signing_key}: wanted an Ed25519 key")
    return key


def valid_until(path: Path) -> datetime:
    """Return until when a certificate is valid.

    Raises:
        TrustError: It cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise TrustError(f"{path}: no readable certificate: {error}") from error


def write_key(path: Path, key: EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
    """Write a private key for its owner alone."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_bytes(path, pem, mode=0o600)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, began: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
