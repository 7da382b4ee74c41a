"""Gathers what is wrong now from the owners of the facts, as REST tells it."""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime

from server.agents.hub import Hub
from server.fleet.catalog import Catalog
from server.fleet.placement import Placement
from server.jobs.outcomes import Health
from server.notify.situations import Facts, Found, HostFacts
from server.observe.controllers import Controllers
from server.observe.coverage import CoverageReader
from server.observe.problems import Coverage, Problem, repository_problems, schedule_problems


class Gatherer:
    """Gathers facts, and stores nothing."""

    def __init__(
        self,
        catalog: Catalog,
        placement: Placement,
        hub: Hub,
        health: Health,
        coverage: CoverageReader,
        controllers: Controllers,
        clock: Callable[[], datetime],
    ) -> None:
        self._catalog = catalog
        self._placement = placement
        self._hub = hub
        self._health = health
        self._coverage = coverage
        self._controllers = controllers
        self._clock = clock

    async def facts(self, namespaces: Collection[str] | None) -> Facts:
        """What is wrong in these namespaces, or in all; and with hosts and controllers. Raises Unavailable."""
        rows = [it for it in list(self._catalog.schedules.values()) if namespaces is None or it.namespace in namespaces]
        coverage = await self._coverage.schedules([row.id for row in rows])
        labels = {("Schedule", row.namespace, row.name): row.labels for row in rows}
        found = [it for row in rows for it in _of_schedule(("Schedule", row.namespace, row.name), coverage[row.id])]
        for repository in list(self._catalog.repositories.values()):
            if namespaces is None or repository.namespace in namespaces:
                about = ("Repository", repository.namespace, repository.name)
                labels[about] = repository.labels
                days, verified = repository.spec.get("verifyWithinDays"), self._health.verified(repository.id)
                access, problem = self._coverage.access(repository.id), self._health.problem(repository.id)
                problems = repository_problems(access, problem, days, verified, repository.created_at, self._clock())
                found += [Found(about, it) for it in problems]
        for state in self._controllers.states():
            about = ("Controller", "", state.name)
            found += [Found(about, Problem(it.reason, it.message)) for it in state.problems]
        return Facts(labels, found, list(self._hosts()))

    def _hosts(self) -> Iterator[HostFacts]:
        now = self._clock()
        for session in self._hub.sessions():
            state = self._placement.hosts.get(session.name)
            if state is None:
                continue
            reasons: list[str] = [it.reason for it in session.problems(now, {})]
            if not self._hub.is_connected(session.name):
                reasons.append("NotConnected")
            elif not session.holds_desired:
                reasons.append("NotInSync")
            if reasons:
                yield HostFacts(session.name, state.labels, reasons)


def _of_schedule(about: tuple[str, str, str], coverage: Coverage) -> Iterator[Found]:
    hosts = {
        "Overdue": (coverage.overdue_names, coverage.overdue),
        "RunsFail": (coverage.failed_names, coverage.failed),
        "RunsIncomplete": (coverage.warned_names, coverage.warned),
        "RunsHang": (coverage.hanging, len(coverage.hanging)),
        "HostsNotGranted": (coverage.not_granted_names, coverage.not_granted),
    }
    for problem in schedule_problems(coverage):
        names, count = hosts.get(problem.reason, ((), 0))
        yield Found(about, problem, names, count - len(names))
    if not coverage.enabled:
        message = f"it is disabled, so nothing runs on its {coverage.hosts} hosts"
        yield Found(about, Problem("Disabled", message))
