"""What a site's operator has decided, checked at every message: which catalogue is read, which users take no part."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metarec_shared.errors import Refusal, TrustError
from metarec_shared.invitation import check_self_contained, content_hash
from metarec_shared.population import Population
from metarec_shared.settings import Settings

logger = logging.getLogger(__name__)

NodeConfig = Mapping[str, bool | int | float | str]


def check_catalogue(node_config: NodeConfig) -> None:
    """Check that the catalogue is the one that the site approved, where the node's configuration says its hash.

    A server that controls the features of items can read interactions out of meta-updates.

    Args:
        node_config: The node's own configuration: ``catalogue-path`` and ``catalogue-hash``.

    Raises:
        Refusal: It is another one, or it cannot be read, or it points at files or a database elsewhere.
    """
    if "catalogue-hash" not in node_config:
        return
    approved, folder = str(node_config["catalogue-hash"]), str(node_config.get("catalogue-path", ""))
    if not folder:
        raise Refusal("the node's configuration has a catalogue-hash without a catalogue-path")
    try:
        found = content_hash(Path(folder))
    except (TrustError, OSError) as error:
        logger.warning("the catalogue cannot be read: %s", error)
        raise Refusal(f"the catalogue here cannot be read; this site approved the content hash {approved}") from error
    if found != approved:
        raise Refusal(f"the catalogue here has the content hash {found}, this site approved {approved}")
    try:
        check_self_contained(Path(folder))
    except TrustError as error:
        logger.warning("the catalogue is not read: %s", error)
        raise Refusal("the catalogue here points at files or a database elsewhere, which nobody approved") from error


def check_own_items(node_config: NodeConfig, settings: Settings) -> None:
    """Check that a site whose items are its own is asked for nothing that has a row an item.

    Args:
        node_config: The node's own configuration: ``own-catalogue``.
        settings: The run's settings.

    Raises:
        Refusal: The run wants all nodes to know the same items.
    """
    if node_config.get("own-catalogue", False) and not settings.federation.own_catalogues:
        raise Refusal(
            "the items here are this site's own: federation.catalogues must be own, the run's is "
            f"{settings.federation.catalogues}"
        )


def excluded_users(file: Path) -> frozenset[str]:
    """Read the ids of users who take no part, one a line.

    Raises:
        Refusal: The file cannot be read: nobody knows who must be left out.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("the file of excluded users cannot be read: %s", type(error).__name__)
        raise Refusal("the file of excluded users cannot be read here, so nothing leaves") from error
    return frozenset(line.strip() for line in lines if line.strip())


def without_excluded(population: Population, node_config: NodeConfig) -> Population:
    """Return the population without the users in the node's ``excluded-file``; all of it where there is no such key.

    Raises:
        Refusal: The file cannot be read.
    """
    if "excluded-file" not in node_config:
        return population
    excluded = excluded_users(Path(str(node_config["excluded-file"])))
    if not excluded:
        return population
    histories = population.interactions
    kept = np.array([name not in excluded for name in histories.user_ids.tolist()], dtype=bool)
    if kept.all():
        return population
    return Population.of(histories.take(np.flatnonzero(kept)), population.rating_scale, population.seed)
