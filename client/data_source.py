"""Which users a node holds: those in a folder of its own, or a part of a simulated federation's users."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from client.consent import NodeConfig, without_excluded
from client.learner import Learner
from client.node import Nodes
from client.privacy.guard import SimulatedGuard, SiteGuard
from client.rating_learner import RatingLearner
from metarec_shared.errors import DataError, NodeError, PrivacyError
from metarec_shared.partition import Partition, partition_users
from metarec_shared.population import Population
from metarec_shared.privacy.terms import FEWEST_USERS_OF_A_SITE, run_terms
from metarec_shared.settings import DataSettings, Settings
from metarec_shared.sources import load_item_features, load_training_dataset
from metarec_shared.split import Role

_OWN_KEYS = ("on-bad-rows", "rating-low", "rating-high", "item-vectors")


def site_settings(settings: Settings, node_config: NodeConfig) -> Settings:
    """Return the run's settings, but how a site's data is read comes from the site's own configuration.

    A run that could say which rows are errors could ask yes-or-no questions about them: a node that fails where a
    rating is above 4 answers one. Only ``hold-out-items`` is the run's, a rule on public item ids.

    Args:
        settings: The run's settings.
        node_config: The node's own configuration: ``data-path``, and if need be ``on-bad-rows``, ``rating-low``,
            ``rating-high``, ``catalogue-path``, where the items are if not beside the interactions, ``item-vectors``,
            the site's copy of the run's file, ``user-attributes``, what the site's users choose to tell: never what
            the run names, and ``text-encoder``, what the site approved. Without ``data-path`` the node is a simulated
            one, and all settings are the run's.

    Raises:
        SettingsError: The configuration has a value that cannot be.
    """
    if "data-path" not in node_config:
        return settings
    own = {f"data.{key}": node_config[key] for key in _OWN_KEYS if key in node_config}
    if "user-attributes" in node_config and settings.model.attribute_buckets:  # else no model would read them
        own["data.user-attributes"] = node_config["user-attributes"]
    data = DataSettings(
        path=str(node_config["data-path"]),
        catalogue=str(node_config.get("catalogue-path", "")),
        hold_out_items=settings.data.hold_out_items,
    )
    text = settings.text
    if "text-encoder" in node_config:  # whoever chooses it chooses the items' features: a revision is none of a run's
        text = replace(text, encoder=str(node_config["text-encoder"]), revision="")
    return replace(settings, data=data, text=text).with_values(own, "node configuration")


def load_node(settings: Settings, node_config: NodeConfig, node_id: int, guard: SiteGuard | None = None) -> Nodes:
    """Return the node that ``node_config`` describes.

    A site names its folder (``data-path``), itself (``name``) and the users to leave out (``excluded-file``). A
    simulation's engine sets ``partition-id`` and ``num-partitions``, and the node holds that part of the run's data.

    Args:
        settings: The run's settings.
        node_config: The node's own configuration.
        node_id: Flower's id of the node.
        guard: What stands between a deployed node's users and its replies.

    Raises:
        DataError: The data cannot be used, or the configuration names neither a folder nor a partition.
        Refusal: A site's file of excluded users cannot be read.
    """
    if "data-path" in node_config:
        population = without_excluded(load_population(settings), node_config)
        users = np.arange(len(population.interactions))
        return Nodes(
            node_ids=np.array([node_id], dtype=np.uint64),
            names=(str(node_config.get("name", node_id)),),
            population=population,
            users=users,
            offsets=np.array([0, len(users)]),
            guard=guard,
        )
    if "partition-id" not in node_config:
        raise DataError("the node's configuration names neither data-path nor partition-id: it has no data")
    places = np.array([int(node_config["partition-id"])])
    return simulated_nodes(settings, int(node_config["num-partitions"]), places, np.array([node_id], dtype=np.uint64))


def simulated_nodes(settings: Settings, count: int, places: NDArray[np.int64], node_ids: NDArray[np.uint64]) -> Nodes:
    """Return some of the ``count`` nodes that the run's users are spread over.

    Args:
        settings: The run's settings.
        count: Nodes of the federation.
        places: Which of them, from 0.
        node_ids: Flower's ids of these.
    """
    if settings.federation.own_catalogues:
        raise NodeError("federation.catalogues = own is for deployed sites: simulated nodes all have the run's items")
    users, offsets = load_partition(settings, count).of_all(places)
    return Nodes(
        node_ids=node_ids,
        names=_PlaceNames(places),
        population=load_population(settings),
        users=users,
        offsets=offsets,
        guard=simulated_guard(settings, count),
    )


@lru_cache(maxsize=4)
def simulated_guard(settings: Settings, count: int) -> SimulatedGuard | None:
    """Return what guards the users of simulated nodes; None where privacy is off.

    A simulation has no constants that sites declare: the users in the meta-training role stand in for them.

    Raises:
        PrivacyError: The settings do not determine the terms, or a site would have too few users.
    """
    if settings.privacy.mode == "none":
        return None
    if settings.privacy.randomness != "simulated":
        raise PrivacyError("simulated nodes draw their noise from the run's seed; set privacy.randomness = simulated")
    roles = load_population(settings).roles
    terms = run_terms(settings, int((roles == Role.TRAINING).sum()))
    assert terms is not None
    if terms.mode == "site":
        users, offsets = load_partition(settings, count).of_all(np.arange(count))
        fewest = int(np.add.reduceat(roles[users] == Role.TRAINING, offsets[:-1]).min())
        if fewest < FEWEST_USERS_OF_A_SITE:
            raise PrivacyError(
                f"privacy.mode = site needs at least {FEWEST_USERS_OF_A_SITE} meta-training users at each node, got "
                f"{fewest} with federation.nodes = {count}: take fewer nodes, or mode = central or local"
            )
    return SimulatedGuard(terms, settings.run.seed)


class _PlaceNames(Sequence[str]):
    """Names of simulated nodes, in the order of their places; written down only when somebody reads them."""

    def __init__(self, places: NDArray[np.int64]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return _PlaceNames(self._places[index]) if isinstance(index, slice) else f"{self._places[index]:09d}"


@lru_cache(maxsize=2)
def load_population(settings: Settings) -> Population:
    """Return all users of the run's data, read once a process."""
    dataset = load_training_dataset(settings)
    return Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)


@lru_cache(maxsize=2)
def load_partition(settings: Settings, nodes: int) -> Partition:
    """Return how the users of the run's data are spread over ``nodes``."""
    users = len(load_population(settings).interactions)
    return partition_users(users, nodes, settings.federation.partition, settings.run.seed)


@lru_cache(maxsize=2)
def load_learner(settings: Settings) -> Learner:
    """Return the ranking model for the run's catalogue, built once a process."""
    public = load_item_features(settings)
    return Learner(settings, public.fingerprint, public.text)


@lru_cache(maxsize=2)
def load_rating_learner(settings: Settings) -> RatingLearner:
    """Return the rating model for the run's catalogue, built once a process."""
    return RatingLearner(settings, load_item_features(settings))


def load_target(settings: Settings) -> Learner | RatingLearner:
    """Return the model that the run trains, by ``model.target``."""
    return load_rating_learner(settings) if settings.model.target == "rating" else load_learner(settings)
