"""Checks of the connection: the server and its certificate, the clocks, and whether the server knows this site."""

import time
from collections.abc import Callable

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from client.site.approval import Approval
from client.site.enrolment import Enrolment, ask_enrolment
from client.site.folder import Site
from client.site.keys import public_file, read_key
from client.site.server_probe import open_connection, server_time
from metarec_shared.errors import TrustError

MOST_AHEAD = SYSTEM_TIME_TOLERANCE
MOST_BEHIND = TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
"""Seconds by which a site's clock may be ahead of the server's, or behind: Flower refuses signatures beyond."""


def server(site: Site, approved: Approval) -> str:
    """Check that the server answers by TLS and proves who it is."""
    with open_connection(site.settings.server, site.authority) as connection:
        return f"{site.settings.server} by {connection.version()}"


def clock(site: Site, approved: Approval, wall: Callable[[], float] = time.time) -> str:
    """Check that the clocks differ by less than Flower's signatures allow."""
    before = wall()
    dated = server_time(site.settings.server, site.authority).timestamp()
    ahead = (before + wall()) / 2 - dated - 0.5  # the date is cut to whole seconds
    said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if ahead - 0.5 > MOST_AHEAD or -ahead - 0.5 > MOST_BEHIND:
        raise TrustError(
            f"this clock is {said}, allowed are {MOST_AHEAD} s ahead and {MOST_BEHIND} s behind: set the clock, "
            "better let it follow a time server (NTP)"
        )
    return said if abs(ahead) >= 1 else "as the server's"


def enrolment(site: Site, approved: Approval) -> str:
    """Check that the server knows this site's key."""
    match ask_enrolment(site.settings.server, site.authority, read_key(site.key)):
        case Enrolment.KNOWN:
            return "the server knows this site's key"
        case Enrolment.UNKNOWN:
            raise TrustError(f"the server does not know this key: send {public_file(site.key)} to the coordinator")
        case _:
            raise TrustError("the server does not accept this site's signature: check the clock")
