"""The metrics of a folder's controller. Names and units follow Prometheus' practices."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge


class FolderMetrics:
    """The metrics of a folder's controller, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._is_reached = False
        about = "Whether the server answered the last comparison: 0 or 1."
        self._reached = Gauge("lamplighter_folder_server_reached", about, registry=registry)
        about = "How many things keep the controller from following its folder."
        self._problems = Gauge("lamplighter_folder_problems", about, ["reason"], registry=registry)

    def compared(self, reached: bool, reasons: Iterable[str]) -> None:
        """A comparison is over. `reasons`: one word for each problem."""
        self._is_reached = reached
        self._reached.set(reached)
        self._problems.clear()
        for reason, count in Counter(reasons).items():
            self._problems.labels(reason).set(count)

    async def waits_for(self) -> str:
        """What the controller waits for before it is ready; empty once it is ready."""
        return "" if self._is_reached else "the server has not answered a comparison"
