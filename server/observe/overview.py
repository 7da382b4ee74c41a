"""The overview: is everything backed up, and what is wrong? A plain function from facts to the answer, without I/O.

REST shows it, and from there the command line and the pages. Whatever is wrong anywhere has a reason of one word; each
reason belongs to a section, and the order of the sections is that in which somebody should look at them.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Literal, NamedTuple

from msgspec import Struct

from server.fleet.expected import span
from server.observe.problems import (
    MAX_NAMED,
    AlertFacts,
    Coverage,
    Problem,
    alert_problems,
    named,
    of_hosts,
    schedule_problems,
)

MAX_ITEMS = 20
"""How many objects of a section are named before they are only counted."""
MAX_LISTED = 10
"""How many running jobs and due Schedules are listed."""
STARTING = timedelta(minutes=2)
"""How long after its start a server waits for agents before it calls a host offline: they come back spread over it."""

SectionName = Literal[
    "overdue",
    "failed",
    "never_ran",
    "offline",
    "out_of_sync",
    "not_verified",
    "repositories",
    "agents",
    "controllers",
    "alerts",
    "server",
    "incomplete",
    "suspended",
    "unverified",
]
SECTIONS: Mapping[SectionName, tuple[str, ...]] = {
    "overdue": ("Overdue",),
    "failed": ("RunsFail", "RunsHang", "HookNotAllowed", "NotSupported", "ForgetsTooLittle", "Paused"),
    "never_ran": ("NeverRan", "NoHosts", "NotGranted", "HostsNotGranted", "NoBackup", "NothingDeclared"),
    "offline": ("NotConnected",),
    "out_of_sync": ("NotInSync", "EntriesLeftOut", "StoreEmpty"),
    "not_verified": ("NotVerified", "VerificationFailed"),
    "repositories": ("WrongPassword", "NoRepository", "Locked", "NoPassword"),
    "agents": ("ClockSkew", "DuplicateAgent"),
    "controllers": ("NotFollowing",),
    "alerts": ("NotDelivered", "SelectsNothing"),
    "server": ("NotWriting",),
    "incomplete": ("RunsIncomplete",),
    "suspended": ("Disabled",),
    "unverified": ("NeverVerified",),
}
"""The reasons of each section, which are in the order in which they are shown. A reason that a controller or a job
reports and that stands nowhere is shown in `controllers` or `repositories`."""
AMBER: frozenset[SectionName] = frozenset({"incomplete", "suspended", "unverified"})
"""Sections that somebody should know of, though what is in them may be meant so."""
TITLES: Mapping[SectionName, str] = {
    "overdue": "Overdue",
    "failed": "Failed",
    "never_ran": "Never ran",
    "offline": "Offline",
    "out_of_sync": "Out of sync",
    "not_verified": "Not verified",
    "repositories": "Repositories",
    "agents": "Agents",
    "controllers": "Controllers",
    "alerts": "Alerts",
    "server": "Server",
    "incomplete": "Incomplete",
    "suspended": "Suspended",
    "unverified": "Never verified",
}
"""What people call each section."""
_SECTION_OF = {reason: name for name, reasons in SECTIONS.items() for reason in reasons}


class Trouble(Struct, frozen=True):
    """What is wrong with an object. `reason`: one word for programs; `message`: what is wrong and what to do.

    `namespace`, `name`: of the object; `path`: of its page. `count`: on how many hosts, for a Schedule; else 1.
    """

    kind: str
    namespace: str
    name: str
    reason: str
    message: str
    path: str
    count: int = 1


class Section(Struct, frozen=True):
    """What is wrong in one way. `title`: what people call it. `count`: on how many hosts of Schedules, or with how many
    objects.

    `items`: up to MAX_ITEMS, the worst first; `more`: how many others there are. `severity`: `amber` may be meant so.
    """

    name: SectionName
    title: str
    severity: Literal["red", "amber"]
    count: int
    items: Sequence[Trouble]
    more: int


class Counts(Struct, frozen=True):
    """How many hosts, Schedules and Repositories there are.

    `hosts_backed_up`: on how many every enabled Schedule of kind backup has succeeded, in time. `hosts_waiting`: on how
    many of the others the first backup is not due yet.
    """

    hosts: int
    hosts_connected: int
    hosts_in_sync: int
    hosts_backed_up: int
    hosts_waiting: int
    schedules: int
    schedules_disabled: int
    repositories: int
    jobs_running: int


class RunningJob(Struct, frozen=True):
    """A job that runs. `schedule`: NAMESPACE/NAME, None for a restore. `fraction`: how much of it is done, if known."""

    id: str
    host: str
    schedule: str | None
    kind: str
    since: datetime | None
    fraction: float | None
    path: str


class DueSchedule(Struct, frozen=True):
    """When a Schedule is due next, its spread not included, and on how many hosts."""

    schedule: str
    kind: str
    at: datetime
    hosts: int
    path: str


class Day(Struct, frozen=True):
    """How many jobs of Schedules ended so on a day (UTC), and the bytes that they added to their repositories."""

    day: date
    succeeded: int = 0
    warned: int = 0
    failed: int = 0
    bytes_added: int = 0


class Overview(Struct, frozen=True):
    """Whether everything is backed up: in one word, and in a sentence; and what is wrong.

    `answer`: `no` when anything is red or nothing is backed up, `unknown` while it is too early to tell. `namespace`:
    the only one that this is about; empty for all. `sections`: those with something in them, in their order. `days`:
    the last ones, oldest first.
    """

    at: datetime
    namespace: str
    answer: Literal["yes", "no", "unknown"]
    sentence: str
    counts: Counts
    sections: Sequence[Section]
    running: Sequence[RunningJob]
    due: Sequence[DueSchedule]
    days: Sequence[Day]


class ScheduleFacts(NamedTuple):
    """A schedule, how it stands on its hosts, and when it is due next."""

    namespace: str
    name: str
    kind: str
    coverage: Coverage
    next_due: datetime | None


class RepositoryFacts(NamedTuple):
    """A repository. `verified`: whether it ever was; `must_be`: whether it declares how often it must be."""

    namespace: str
    name: str
    problems: Sequence[Problem]
    verified: bool
    must_be: bool


class HostTroubles(NamedTuple):
    """What is wrong with hosts in one way. `named`: the first of them by name, up to MAX_ITEMS, each with a message."""

    reason: str
    hosts: int
    named: Sequence[tuple[str, str]]


class Facts(NamedTuple):
    """What the overview is made of. `refuses`: why the server cannot write its store, empty if it can.

    `awaited`: how many hosts have not come back since the server started, and may do so still. `controllers`: each with
    its problems.
    """

    now: datetime
    namespace: str
    refuses: str
    counts: Counts
    awaited: int
    schedules: Sequence[ScheduleFacts]
    repositories: Sequence[RepositoryFacts]
    hosts: Sequence[HostTroubles]
    controllers: Sequence[tuple[str, Sequence[Problem]]]
    running: Sequence[RunningJob]
    days: Sequence[Day]
    alerts: Sequence[AlertFacts] = ()


def overview(facts: Facts) -> Overview:
    """The overview of these facts."""
    found: dict[SectionName, _Found] = {name: _Found() for name in SECTIONS}
    for section, trouble in _troubles(facts):
        found[section].add(trouble)
    for its in facts.hosts:
        items = [Trouble("Host", "", name, its.reason, message, f"/hosts/{name}") for name, message in its.named]
        found[section_of(its.reason, "agents")].add(*items, others=its.hosts - len(items))
    sections = [it.section(name) for name, it in found.items() if it.items]
    is_red = any(it.severity == "red" for it in sections) or bool(facts.refuses or _nothing(facts))
    is_early = facts.counts.hosts_waiting > 0 or facts.awaited > 0
    due = [_due(it, it.next_due) for it in facts.schedules if it.next_due is not None]
    return Overview(
        facts.now,
        facts.namespace,
        "no" if is_red else "unknown" if is_early else "yes",
        sentence(facts, {it.name: it for it in sections}),
        facts.counts,
        sections,
        facts.running,
        sorted(due, key=lambda it: (it.at, it.schedule))[:MAX_LISTED],
        facts.days,
    )


class _Found:
    """What was found for a section. `others`: how many objects there are besides `items`."""

    def __init__(self) -> None:
        self.items: list[Trouble] = []
        self._others = 0

    def add(self, *items: Trouble, others: int = 0) -> None:
        self.items += items
        self._others += others

    def section(self, name: SectionName) -> Section:
        """The section."""
        its = sorted(self.items, key=lambda it: (-it.count, it.kind, it.namespace, it.name))
        severity: Literal["red", "amber"] = "amber" if name in AMBER else "red"
        count = sum(it.count for it in its) + self._others
        return Section(
            name, TITLES[name], severity, count, its[:MAX_ITEMS], max(0, len(its) - MAX_ITEMS) + self._others
        )


def _due(it: ScheduleFacts, at: datetime) -> DueSchedule:
    name = f"{it.namespace}/{it.name}"
    return DueSchedule(name, it.kind, at, it.coverage.hosts, f"/schedules/{name}")


# What is wrong.


def _troubles(facts: Facts) -> Iterator[tuple[SectionName, Trouble]]:
    """Everything that is wrong, each with its section."""
    if facts.refuses:
        message = f"the server records nothing: {facts.refuses}"
        yield "server", Trouble("Server", "", "", "NotWriting", message, "/problems")
    if not any(it.kind == "backup" for it in facts.schedules):
        yield "never_ran", Trouble("Server", facts.namespace, "", *NOTHING_DECLARED, "/problems")
    for schedule in facts.schedules:
        for problem, count in of_schedule(schedule.coverage):
            path = f"/schedules/{schedule.namespace}/{schedule.name}"
            names = schedule.namespace, schedule.name
            yield section_of(problem.reason, "failed"), Trouble("Schedule", *names, *problem, path, count)
    for repository in facts.repositories:
        never = never_verified(verified=repository.verified, must_be=repository.must_be)
        for problem in (*repository.problems, *never):
            path = f"/repositories/{repository.namespace}/{repository.name}"
            names = repository.namespace, repository.name
            section = "repositories" if problem.reason == "NotGranted" else section_of(problem.reason, "repositories")
            yield section, Trouble("Repository", *names, *problem, path)
    for alert in facts.alerts:
        for problem in alert_problems(alert):
            yield "alerts", Trouble("Alert", alert.namespace, alert.name, *problem, "/problems")
    for controller, problems in facts.controllers:
        for problem in problems:
            yield "controllers", Trouble("Controller", "", controller, *problem, "/problems")


NOTHING_DECLARED = Problem(
    "NothingDeclared", "no Schedule of kind backup is declared: declare one, and the Repository that it uses"
)
"""The problem of a server, or a namespace, without any."""


def section_of(reason: str, otherwise: SectionName) -> SectionName:
    """The section of a reason; `otherwise` for one that a later version may have."""
    return _SECTION_OF.get(reason, otherwise)


def of_schedule(coverage: Coverage) -> Iterator[tuple[Problem, int]]:
    """The problems of a schedule, and on how many hosts each is."""
    ran = coverage._replace(overdue=coverage.overdue - coverage.never_ran, overdue_names=coverage.late_names)
    counts = {
        "Overdue": ran.overdue,
        "RunsFail": coverage.failed,
        "RunsIncomplete": coverage.warned,
        "RunsHang": len(coverage.hanging),
        "HostsNotGranted": coverage.not_granted,
    }
    for problem in schedule_problems(ran):
        yield problem, counts.get(problem.reason, 1)
    if coverage.never_ran:
        who = named(coverage.never_ran_names, coverage.never_ran)
        where = of_hosts(coverage.never_ran, coverage)
        message = f"no run has ended in the {span(coverage.within)} and more that it is due on {where}: {who}"
        yield Problem("NeverRan", message), coverage.never_ran
    if not coverage.enabled:
        where = "its host" if coverage.hosts == 1 else f"its {coverage.hosts} hosts"
        yield Problem("Disabled", f"it is disabled, so nothing runs on {where}"), 1


def never_verified(*, verified: bool, must_be: bool) -> Iterator[Problem]:
    """The problem of a repository that was never verified. `must_be`: whether it declares how often it must be."""
    if not verified and not must_be:
        message = "nobody knows whether it can be restored: no Schedule of kind verify has gone well, and none must"
        yield Problem("NeverVerified", f"{message}; declare one, and verifyWithinDays")


def not_connected(last_seen: datetime | None) -> str:
    """That a host's agent is not connected, and since when."""
    since = f"since {last_seen:%Y-%m-%dT%H:%M:%SZ}" if last_seen else "and never was"
    return f"its agent is not connected, {since}"


def no_backup(disabled: Sequence[str]) -> str:
    """That nothing backs a host up. `disabled`: the Schedules that would if they were enabled."""
    which = f": disabled {'is' if len(disabled) == 1 else 'are'} {named(disabled[:MAX_NAMED], len(disabled))}"
    return f"no enabled Schedule of kind backup selects it{which if disabled else ''}"


HANGS = "a job of no Schedule, such as a restore, runs beyond its time limit: cancel it, or restart the agent"
"""The message of a host on which such a job hangs; others are told of with their Schedules."""
NOT_IN_SYNC = "its agent does not hold what is declared for it"
"""The message of a host that is not in sync."""


# The sentence.


def sentence(facts: Facts, sections: Mapping[SectionName, Section]) -> str:
    """Whether everything is backed up. `sections`: those with something in them, by name."""
    if facts.refuses:
        return "Nobody can tell: the server cannot write its store, so nothing that happens is recorded."
    if nothing := _nothing(facts):
        return f"Nothing is backed up: {nothing}."
    details = _details(sections)
    said = _answer(facts, is_red=any(it.severity == "red" for it in sections.values()))
    return f"{said} ({details})." if details else f"{said}."


def _answer(facts: Facts, *, is_red: bool) -> str:
    """How many hosts are backed up, in words without a full stop."""
    hosts, waiting = facts.counts.hosts, facts.counts.hosts_waiting
    lacking = hosts - facts.counts.hosts_backed_up - waiting
    if lacking > 0:
        return f"No: {_hosts(lacking, hosts)} not backed up in time"
    if waiting:
        return f"Not yet: {_hosts(waiting, hosts)} without a backup still, and none is overdue"
    good = f"all {hosts} hosts are backed up in time" if hosts > 1 else "the only host is backed up in time"
    if is_red:
        return f"Not all is well, though {good}"
    if facts.awaited:
        return f"It seems so: {good}, but the server has just started, and {_hosts(facts.awaited, hosts)} not back yet"
    return f"Yes: {good}"


def _nothing(facts: Facts) -> str:
    """Why nothing at all can be backed up; empty if something can."""
    backups = [it for it in facts.schedules if it.kind == "backup"]
    if not backups:
        return "no Schedule of kind backup is declared"
    if not any(it.coverage.enabled for it in backups):
        return "the only Schedule of kind backup is disabled" if len(backups) == 1 else "all of them are disabled"
    if not facts.counts.hosts and not facts.namespace:
        return "there is no host"
    if not any(it.coverage.hosts for it in backups if it.coverage.enabled):
        return "no host has an enabled Schedule of kind backup"
    return ""


_WORDS: Mapping[SectionName, tuple[str, str]] = {
    "overdue": ("run is overdue", "runs are overdue"),
    "failed": ("run failed or hangs", "runs failed or hang"),
    "never_ran": ("never ran where it should", "never ran where they should"),
    "offline": ("host is offline", "hosts are offline"),
    "out_of_sync": ("host is out of sync", "hosts are out of sync"),
    "not_verified": ("repository is not verified in time", "repositories are not verified in time"),
    "repositories": ("repository cannot be used", "repositories cannot be used"),
    "agents": ("agent has a problem", "agents have a problem"),
    "controllers": ("controller is in trouble", "controllers are in trouble"),
    "alerts": ("Alert tells nobody", "Alerts tell nobody"),
    "server": ("server is in trouble", "servers are in trouble"),
    "incomplete": ("run left something undone", "runs left something undone"),
    "suspended": ("Schedule is disabled", "Schedules are disabled"),
    "unverified": ("repository was never verified", "repositories were never verified"),
}


def _details(sections: Mapping[SectionName, Section]) -> str:
    """What is not well, in words; empty if all is."""
    return ", ".join(f"{it.count} {_WORDS[name][it.count != 1]}" for name, it in sections.items())


def _hosts(count: int, hosts: int) -> str:
    """Some of the hosts, and the verb."""
    if hosts == 1:
        return "the only host is"
    return f"{count} of {hosts} hosts {'is' if count == 1 else 'are'}"
