"""Who may call: TLS, and a token that every call must bear."""

import hmac
import stat
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from client.service.address import is_loopback
from metarec_shared.errors import SettingsError, TrustError

HEADER = "authorization"
HEALTH = "/grpc.health.v1.Health/"
SHORTEST = 16
"""Characters of a token, at least: what is shorter can be guessed."""


def read_token(path: Path) -> str:
    """Read a token, which its file holds and nothing else.

    Raises:
        TrustError: Others may read the file, or it holds no token.
    """
    text = _private_bytes(path).strip()
    if len(text) < SHORTEST or not text.isascii() or not text.decode("ascii").isprintable() or b" " in text:
        raise TrustError(
            f"{path}: holds {len(text)} bytes, wanted a token: {SHORTEST} or more printable ASCII characters"
        )
    return text.decode("ascii")


def bearing(token: str) -> tuple[str, str]:
    """Return the header of a call that bears a token."""
    return HEADER, f"Bearer {token}"


def check_exposure(host: str, *, tls: bool, token: bool, insecure: bool) -> None:
    """Refuse what would let others read histories or the token on their way.

    Args:
        host: Where the service listens.
        tls: Whether calls are encrypted.
        token: Whether they bear a token.
        insecure: Whether somebody asked for it in so many words.

    Raises:
        SettingsError: The service would listen beyond this machine without TLS.
    """
    if tls or is_loopback(host):
        return
    if token:
        raise SettingsError(f"--auth-token-file: {host} is not this machine alone, and a token is sent by TLS only")
    if not insecure:
        raise SettingsError(
            f"--listen: {host} is not this machine alone; wanted --tls-cert and --tls-key, or --insecure behind a proxy"
        )


def server_credentials(certificate: Path, key: Path) -> grpc.ServerCredentials:
    """Return the credentials of a server.

    Raises:
        TrustError: Certificate or key cannot be used, others may read the key, or the two do not belong together.
    """
    secret, public = _private_bytes(key), _bytes(certificate)
    try:
        found = x509.load_pem_x509_certificates(public)[0]
    except ValueError as error:
        raise TrustError(f"{certificate}: holds no certificate in PEM: {error}") from error
    try:
        of_key = load_pem_private_key(secret, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{key}: holds no private key in PEM without a passphrase") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if of_key.public_bytes(*form) != found.public_key().public_bytes(*form):
        raise TrustError(f"{key}: is not the key of {certificate}")
    if found.not_valid_after_utc <= datetime.now(UTC):
        raise TrustError(f"{certificate}: expired on {found.not_valid_after_utc:%Y-%m-%d}")
    return grpc.ssl_server_credentials([(secret, public)])


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls that do not bear the token; health checks need none.

    Args:
        token: The token.
    """

    def __init__(self, token: str) -> None:
        self._wanted = bearing(token)[1].encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method's handler, or one that refuses."""
        if handler_call_details.method.startswith(HEALTH):
            return await continuation(handler_call_details)
        given = [value for name, value in handler_call_details.invocation_metadata or () if name == HEADER]
        if len(given) == 1 and hmac.compare_digest(_as_bytes(given[0]), self._wanted):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(_: Any, context: Any) -> None:
    """End a call before anything of it is read."""
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{HEADER}: wanted 'Bearer TOKEN' with the service's token")


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _private_bytes(path: Path) -> bytes:
    content = _bytes(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise TrustError(f"{path}: others may use it, its mode must be 0600 or stricter, got {mode:04o}")
    return content


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrustError(f"{path}: cannot be read: {error.strerror}") from error
