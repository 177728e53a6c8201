"""Find out why a server cannot be reached, in words a person can act on, and what time it has there."""

import http.client
import socket
import ssl
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from client.site.folder import check_server
from metarec_shared.errors import TrustError

TIMEOUT = 10.0

_EXPIRED, _NOT_YET, _SELF_SIGNED = (10,), (9,), (18, 19, 20, 21)
_OTHER_HOST = (62, 64)


class UnreachableError(TrustError):
    """No connection that can be trusted; the message says why and what to do."""


def open_connection(server: str, authority: Path, *, timeout: float = TIMEOUT) -> ssl.SSLSocket:
    """Connect to a server by TLS as a SuperNode does: its own authority, and the name in the certificate.

    Args:
        server: ``host:port``.
        authority: Certificate of the one authority that is trusted.
        timeout: Seconds to wait for each step.

    Raises:
        UnreachableError: It cannot be reached, or is not to be trusted.
    """
    host, port = check_server(server, "server")
    context = trusting(authority)
    try:
        plain = socket.create_connection((host, port), timeout=timeout)
    except socket.gaierror as error:
        raise UnreachableError(f"{host}: no such name here: check site.server and the name service") from error
    except TimeoutError as error:
        raise UnreachableError(f"{server}: no answer in {timeout:g} s: check firewalls for TCP {port}") from error
    except ConnectionRefusedError as error:
        raise UnreachableError(
            f"{server}: refuses connections: nothing listens there yet, or another port does"
        ) from error
    except OSError as error:
        raise UnreachableError(f"{server}: {error.strerror or error}: check the network") from error
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise UnreachableError(_distrust(server, host, error)) from error
    except OSError as error:  # ssl.SSLError is one
        plain.close()
        raise UnreachableError(
            f"{server}: speaks no TLS there ({error.strerror or error}): plain text, a proxy or another service; check "
            "the port"
        ) from error


def trusting(authority: Path) -> ssl.SSLContext:
    """Return a TLS context that trusts one authority alone.

    Raises:
        UnreachableError: Its file is missing, or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=str(authority))
    except OSError as error:
        raise UnreachableError(f"{authority}: no certificate of an authority there: `metarec site approve`") from error
    return context


def server_time(server: str, authority: Path, *, timeout: float = TIMEOUT) -> datetime:
    """Return the time that the server's replies are dated with, to the second.

    Raises:
        UnreachableError: It cannot be reached, or dates no reply.
    """
    host, port = check_server(server, "server")
    connection = http.client.HTTPSConnection(host, port, timeout=timeout)
    connection.sock = open_connection(server, authority, timeout=timeout)
    try:
        connection.request("GET", "/v1/fleet/")  # among what nodes may ask for; any answer is dated
        date = connection.getresponse().getheader("Date")
        return parsedate_to_datetime(date or "")
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{server}: speaks TLS but no HTTP ({type(error).__name__}): check the port") from error
    except ValueError as error:
        raise UnreachableError(f"{server}: dates no reply, so clocks cannot be compared") from error
    finally:
        connection.close()


def _distrust(server: str, host: str, error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code in _EXPIRED:
        return f"{server}: its certificate has expired: the coordinator must renew it (or this clock is wrong)"
    if code in _NOT_YET:
        return f"{server}: its certificate is not valid yet: this clock is slow, or the server's was fast"
    if code in _OTHER_HOST:
        return f"{server}: its certificate is for another host than {host}: ask the coordinator for the right address"
    if code in _SELF_SIGNED:
        return (
            f"{server}: its certificate comes from another authority than ca.crt: a proxy that opens TLS, another "
            "server, or a newer invitation to approve"
        )
    return f"{server}: its certificate is not to be trusted: {error.verify_message}"
