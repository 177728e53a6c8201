"""Which users a node holds: those in a folder of its own, or a part of a simulated federation's users."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from client.learner import Learner
from client.node import Node
from metarec_shared.errors import DataError
from metarec_shared.partition import Partition, partition_users
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features, load_training_dataset

NodeConfig = Mapping[str, bool | int | float | str]


def site_settings(settings: Settings, node_config: NodeConfig) -> Settings:
    """Return the run's settings with the data folder that the node's own configuration names, if it names one."""
    folder = node_config.get("data-path")
    if folder is None:
        return settings
    return replace(settings, data=replace(settings.data, path=str(folder)))


def load_node(settings: Settings, node_config: NodeConfig, node_id: int) -> Node:
    """Return the node that ``node_config`` describes.

    A site names its folder (``data-path``) and itself (``name``). A simulation's engine sets ``partition-id`` and
    ``num-partitions``, and the node holds that part of the run's data.

    Raises:
        DataError: The data cannot be used, or the configuration names neither a folder nor a partition.
    """
    population = load_population(settings)
    if "data-path" in node_config:
        users = np.arange(len(population.interactions))
        return Node(node_id=node_id, name=str(node_config.get("name", node_id)), population=population, users=users)
    if "partition-id" not in node_config:
        raise DataError("the node's configuration names neither data-path nor partition-id: it has no data")
    index = int(node_config["partition-id"])
    partition = load_partition(settings, int(node_config["num-partitions"]))
    return Node(node_id=node_id, name=f"{index:09d}", population=population, users=partition.of(index))


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
    """Return the model for the run's catalogue, built once a process."""
    public = load_item_features(settings)
    return Learner(settings, public.fingerprint, public.text)
