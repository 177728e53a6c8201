"""Addresses: a host and a port, and whether it is this machine alone that reaches them."""

import ipaddress

from metarec_shared.errors import SettingsError


def split_address(address: str, option: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; an IPv6 host stands in brackets.

    Args:
        address: The address.
        option: What it was given as, for the error.

    Raises:
        SettingsError: It is no such address.
    """
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not (colon and bare and port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise SettingsError(f"{option}: got {address!r}, wanted HOST:PORT such as 127.0.0.1:50051")
    if (":" in bare) != (host != bare):
        raise SettingsError(f"{option}: got {address!r}, wanted an IPv6 host, and no other, in brackets: [::1]:50051")
    return bare, int(port)


def joined_address(host: str, port: int) -> str:
    """Return ``HOST:PORT``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host: 127.0.0.0/8, ::1, localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
