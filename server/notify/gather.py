"""Gathers what is wrong now from the survey that the overview is made of, with the hosts that each problem is about."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime

from server.fleet.catalog import Catalog
from server.jobs.outcomes import Health
from server.notify.decide import ObjectKey
from server.notify.situations import Facts, Found, HostFacts
from server.observe.controllers import Controllers
from server.observe.coverage import CoverageReader, OnHosts
from server.observe.overview import NOTHING_DECLARED, never_verified, of_schedule
from server.observe.problems import Coverage, Problem, problems_of_repository
from server.observe.survey import Survey, Surveyor


class Gatherer:
    """Gathers facts, and stores nothing."""

    def __init__(
        self,
        surveyor: Surveyor,
        catalog: Catalog,
        health: Health,
        coverage: CoverageReader,
        controllers: Controllers,
        clock: Callable[[], datetime],
    ) -> None:
        self._surveyor = surveyor
        self._catalog = catalog
        self._health = health
        self._coverage = coverage
        self._controllers = controllers
        self._clock = clock

    async def facts(self, namespaces: Collection[str] | None) -> Facts:
        """What is wrong in these namespaces, or in all; and with hosts and controllers. Raises Unavailable."""
        survey, now = await self._surveyor.survey(""), self._clock()
        hanging, pauses = await self._coverage.hanging(now), await self._coverage.pauses()
        labels: dict[ObjectKey, Mapping[str, str]] = {}
        found: list[Found] = []
        for row in survey.rows:
            if namespaces is not None and row.namespace not in namespaces:
                continue
            about, stands = ("Schedule", row.namespace, row.name), survey.stands[row.id]
            labels[about] = row.labels
            having = [it for it in survey.groups if row.id in it.entries.items]
            covers = self._coverage.coverage(row.id, stands, having, hanging.get(row.id, set()))
            covers = covers._replace(pause=pauses.get(row.id))
            found += _of_schedule(about, covers, stands)
        for repository in list(self._catalog.repositories.values()):
            if namespaces is None or repository.namespace in namespaces:
                about = ("Repository", repository.namespace, repository.name)
                labels[about] = repository.labels
                id_, spec, created = repository.id, repository.spec, repository.created_at
                problems = problems_of_repository(self._health, self._coverage.access(id_), id_, spec, created, now)
                is_verified, must_be = self._health.verified(id_) is not None, spec.get("verifyWithinDays") is not None
                never = never_verified(verified=is_verified, must_be=must_be)
                found += [Found(about, it) for it in (*problems, *never)]
        if not any(row.spec["kind"] == "backup" for row in survey.rows):
            found.append(Found(("Server", "", ""), NOTHING_DECLARED))
        for state in self._controllers.states():
            about = ("Controller", "", state.name)
            found += [Found(about, Problem(it.reason, it.message)) for it in state.problems]
        hosts = list(_hosts(survey, hanging.get("", set())))
        unknown = frozenset(("Controller", "", name) for name in self._controllers.awaited())
        labels_of = {name: it.labels for name, it in survey.hosts.items()}
        return Facts(labels, found, hosts, labels_of, survey.awaited, unknown)


def _of_schedule(about: ObjectKey, covers: Coverage, stands: OnHosts) -> Iterator[Found]:
    never_ran = set(stands.never_ran)
    hosts: dict[str, Sequence[str]] = {
        "Overdue": [host for host in stands.overdue if host not in never_ran],
        "NeverRan": stands.never_ran,
        "RunsFail": stands.ends.failed,
        "RunsIncomplete": stands.ends.warned,
        "RunsHang": covers.hanging,
        "HostsNotGranted": covers.not_granted_names,
    }
    for problem, count in of_schedule(covers):
        its = hosts.get(problem.reason, ())
        yield Found(about, problem, its, count - len(its) if its else 0)


def _hosts(survey: Survey, hanging: Collection[str]) -> Iterator[HostFacts]:
    """The hosts with which something is wrong. `hanging`: those on which a job of no schedule hangs."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for session in survey.suspects:
        for problem in session.problems(survey.at, {}):
            reasons[session.name].append(problem.reason)
    explained = {name for name, its in reasons.items() if {"EntriesLeftOut", "StoreEmpty"} & set(its)}
    away = survey.by_state["offline"]
    for reason, names in (
        ("NotConnected", away),
        ("NotInSync", survey.by_state["out_of_sync"] - explained - away - survey.awaited),
        ("NoBackup", survey.by_state["no_backup"]),
        ("RunsHang", survey.hosts.keys() & hanging),
    ):
        for name in names:
            reasons[name].append(reason)
    for name, its in reasons.items():
        yield HostFacts(name, its)
