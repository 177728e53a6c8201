"""Names that the coordinator enrolled nodes under: a node that says another one is not believed."""

import json
from collections.abc import Mapping
from pathlib import Path

from metarec_shared.errors import FederationError, WireError


def enrolled_names(path: Path) -> dict[int, str]:
    """Return the names of enrolled nodes by Flower's id.

    Args:
        path: File of ``{name: {"node": id}}``, as ``metarec server enroll`` keeps it.

    Raises:
        FederationError: It cannot be read.
    """
    try:
        sites = json.loads(path.read_text(encoding="utf-8"))
        return {int(entry["node"]): str(name) for name, entry in sites.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FederationError(f"{path}: no readable file of enrolled sites: {error}") from error


def check_name(name: str, node: int, sites: Mapping[int, str]) -> None:
    """Refuse a node under a name that is not its own.

    Raises:
        WireError: It is not enrolled, or under another name.
    """
    if node not in sites:
        raise WireError(f"node {node} calls itself {name!r}, but no site is enrolled with it")
    if sites[node] != name:
        raise WireError(f"a node that was enrolled as {sites[node]} calls itself {name!r}")
