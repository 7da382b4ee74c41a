"""What is wrong now, as each Alert sees it: plain functions over the problems that REST and the metrics tell, too."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from server.fleet.expected import duration
from server.notify.decide import ObjectKey, Situation
from server.observe.problems import MAX_NAMED, Problem, named
from server.resources.grants import Grant
from server.resources.selectors import selector_matches
from server.resources.specs import AlertSpec

_EVENTS: Mapping[str, Sequence[str]] = {
    "Failure": (
        *("RunsFail", "RunsHang", "HookNotAllowed", "NotSupported"),
        *("WrongPassword", "NoRepository", "Locked"),
    ),
    "Incomplete": ("RunsIncomplete",),
    "Overdue": ("Overdue", "NeverRan"),
    "NotVerified": ("NotVerified", "VerificationFailed"),
    "NotRunning": ("NoHosts", "NotGranted", "HostsNotGranted", "NoPassword", "NoBackup", "NothingDeclared"),
    "Suspended": ("Disabled",),
    "HostGone": ("NotConnected",),
    "OutOfSync": ("NotInSync", "EntriesLeftOut"),
    "HostProblem": ("DuplicateAgent", "ClockSkew", "StoreEmpty"),
}
EVENT_OF = {reason: event for event, reasons in _EVENTS.items() for reason in reasons}
"""The event of an Alert's spec to which each reason belongs."""
LASTING = frozenset({"NotConnected", "NotInSync", "EntriesLeftOut", "NoBackup"})
"""Reasons that are told when they have lasted for the Alert's `after`."""
ALL_HOSTS: ObjectKey = ("Host", "", "")
"""What situations of hosts are about: those of many hosts are one."""
_OF_HOSTS: Mapping[str, str] = {
    "NotConnected": "the agent is not connected",
    "NotInSync": "what is declared is not in force",
    "EntriesLeftOut": "the agent left out Schedules that it cannot put in force",
    "DuplicateAgent": "a second agent of the same name tries to connect",
    "ClockSkew": "the clock differs from the server's",
    "StoreEmpty": "the agent holds schedules, and nothing is declared: did the server start on the wrong store?",
    "NoBackup": "selected by no enabled Schedule of kind backup",
}
"""What is said of a host or of many. What a Session says of one may name what other namespaces have on it."""


class Found(NamedTuple):
    """A problem of a Schedule, a Repository or a controller. `hosts`: those that it concerns, and `more` others."""

    about: ObjectKey
    problem: Problem
    hosts: Sequence[str] = ()
    more: int = 0


class HostFacts(NamedTuple):
    """A host with its labels. `reasons`: of its problems."""

    name: str
    labels: Mapping[str, str]
    reasons: Sequence[str]


class Facts(NamedTuple):
    """Everything that is wrong. `labels`: of each Schedule and Repository, whether or not anything is."""

    labels: Mapping[ObjectKey, Mapping[str, str]]
    found: Sequence[Found]
    hosts: Sequence[HostFacts]


def event_of(reason: str, about: str = "") -> str:
    """The event to which a reason belongs. `about`: the kind of object."""
    return "Controller" if about == "Controller" else EVENT_OF.get(reason, "Failure")


def seen_by(
    spec: AlertSpec, namespace: str, grant: Grant, facts: Facts
) -> tuple[list[Situation], frozenset[ObjectKey]]:
    """The situations that an Alert of a namespace tells, and the objects that it is about."""
    is_fleet = spec.scope == "Fleet"
    covered = {
        key
        for key, labels in facts.labels.items()
        if (is_fleet or key[1] == namespace) and selector_matches(spec.selector, labels)
    }
    found = [_situation(it) for it in facts.found if it.about in covered]
    if is_fleet:
        covered |= {it.about for it in facts.found if it.about[0] == "Controller"} | {("Server", "", "")}
        found += [_situation(it) for it in facts.found if it.about[0] in ("Controller", "Server")]
    hosts = [
        it
        for it in facts.hosts
        if (is_fleet or grant.selects(it.labels)) and selector_matches(spec.host_selector, it.labels)
    ]
    found += _of_hosts(hosts, duration(spec.after))
    told = [it for it in found if spec.events is None or it.event in spec.events]
    return told, frozenset({*covered, ALL_HOSTS})


def _situation(it: Found) -> Situation:
    reason, message = it.problem
    return Situation(event_of(reason, it.about[0]), reason, it.about, message, it.hosts, it.more)


def _of_hosts(hosts: Iterable[HostFacts], after: timedelta) -> Iterator[Situation]:
    """One situation for each reason, with all hosts that have it."""
    by_reason: dict[str, list[str]] = {}
    for host in hosts:
        for reason in host.reasons:
            by_reason.setdefault(reason, []).append(host.name)
    for reason, names in by_reason.items():
        lasting = after if reason in LASTING else timedelta()
        what = _OF_HOSTS.get(reason, reason)
        count = f"{len(names)} {'host' if len(names) == 1 else 'hosts'}"
        message = f"{count}: {what}: {named(sorted(names)[:MAX_NAMED], len(names))}"
        yield Situation(event_of(reason), reason, ALL_HOSTS, message, names, after=lasting)
