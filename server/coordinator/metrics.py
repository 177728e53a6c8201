"""Figures of a running coordinator for Prometheus, and its health."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metarec_shared.errors import MetaRecError
from server.coordinator.certificates import valid_until
from server.coordinator.home import Home
from server.coordinator.runs import RunFiles, run_names

NodeStates = Callable[[], Mapping[str, str]]
"""Returns the status of every node that the SuperLink knows, by Flower's id."""


class CoordinatorCollector(Collector):
    """Reads the figures of a coordinator's folder, and the nodes' states, when somebody asks for them.

    Args:
        home: The folder.
        states: The SuperLink's view of its nodes.
    """

    def __init__(self, home: Home, states: NodeStates) -> None:
        self._home, self._states = home, states

    def collect(self) -> Iterator[Metric]:
        """Yield all figures; those that cannot be read are left out."""
        online = GaugeMetricFamily("metarec_site_online", "1: the site is connected", labels=["site"])
        states = self._states()
        for name, entry in self._home.sites().items():
            online.add_metric([name], float(states.get(entry["node"]) == "online"))
        yield online
        try:
            left = valid_until(self._home.certificate).timestamp() - time.time()
            yield GaugeMetricFamily(
                "metarec_certificate_seconds", "Seconds for which the server's certificate is still valid", value=left
            )
        except MetaRecError:
            pass
        if names := run_names(self._home):
            yield from self._run(names[-1])

    def _run(self, name: str) -> Iterator[Metric]:
        """Yield the figures of one run, the latest."""
        files = RunFiles(self._home.runs / name)
        rounds = files.rounds()
        for figure, text, value in (
            ("metarec_run_rounds", "Rounds that the latest run has done", len(rounds)),
            ("metarec_run_rounds_wanted", "Rounds that the latest run is to do", files.wanted()),
        ):
            gauge = GaugeMetricFamily(figure, text, labels=["run"])
            gauge.add_metric([name], float(value))
            yield gauge
        if rounds and rounds[-1].get("seconds") is not None:
            seconds = GaugeMetricFamily("metarec_round_seconds", "How long the last round took", labels=["run"])
            seconds.add_metric([name], float(rounds[-1]["seconds"]))
            yield seconds
        failures = CounterMetricFamily("metarec_site_failures", "Failures of the latest run", labels=["run", "site"])
        by_site: dict[str, int] = {}
        for (site, _), count in files.failures().items():
            by_site[site] = by_site.get(site, 0) + count
        for site, count in by_site.items():
            failures.add_metric([name, site], count)
        yield failures


def node_states(linkstate: Callable[[], Any]) -> dict[str, str]:
    """Return the status of every node, by Flower's id.

    Args:
        linkstate: Returns the SuperLink's state.
    """
    return {str(node.node_id): str(node.status) for node in linkstate().get_node_info()}
