"""The metrics of a cluster's controller. Names and units follow Prometheus' practices."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from controller.cluster.follower import ClusterFollower


class Metrics:
    """A controller's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._leading: ClusterFollower | None = None
        gauges: tuple[tuple[str, str, Callable[[ClusterFollower], float]], ...] = (
            ("leader", "Whether this replica is the one at work: 0 or 1.", lambda _: 1),
            ("objects", "Objects of the cluster that are followed.", lambda cluster: cluster.object_count),
            ("objects_failing", "Objects that could not be brought to the server.", lambda cluster: cluster.failing),
            ("queue_length", "Objects that are to be looked at.", lambda cluster: cluster.queue_length),
            ("statuses_waiting", "Statuses that are to be written.", lambda cluster: cluster.statuses_waiting),
        )
        for name, about, value in gauges:
            Gauge(f"lamplighter_controller_{name}", about, registry=registry).set_function(self.of_leader(value))
        registry.register(_Writes(self.of_leader(lambda cluster: cluster.statuses_written)))

    def begin(self, cluster: "ClusterFollower") -> None:
        """This replica starts to work, with this follower."""
        self._leading = cluster

    def end(self) -> None:
        """This replica no longer works."""
        self._leading = None

    def of_leader(self, value: "Callable[[ClusterFollower], float]") -> Callable[[], float]:
        """A metric of this replica's follower; 0 while it does not work."""
        return lambda: value(self._leading) if self._leading is not None else 0


class _Writes(Collector):
    def __init__(self, count: Callable[[], float]) -> None:
        self._count = count

    def collect(self) -> list[Metric]:
        """The metric families, for prometheus-client."""
        return [CounterMetricFamily("lamplighter_controller_status_writes", "Statuses written.", value=self._count())]
