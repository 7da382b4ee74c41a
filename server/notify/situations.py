"""What is wrong now, as each Alert sees it: plain functions over the problems that REST and the metrics tell, too."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from server.fleet.expected import duration
from server.notify.decide import Known, ObjectKey, Situation, Watched
from server.observe.problems import MAX_NAMED, Problem, named
from server.resources.grants import Grant
from server.resources.selectors import selector_matches
from server.resources.specs import AlertSpec

_EVENTS: Mapping[str, Sequence[str]] = {
    "Failure": (
        *("RunsFail", "RunsHang", "HookNotAllowed", "NotSupported", "ForgetsTooLittle", "Paused"),
        *("WrongPassword", "NoRepository", "Locked"),
    ),
    "Incomplete": ("RunsIncomplete",),
    "Overdue": ("Overdue", "NeverRan"),
    "NotVerified": ("NotVerified", "VerificationFailed"),
    "NeverVerified": ("NeverVerified",),
    "NotRunning": ("NoHosts", "NotGranted", "HostsNotGranted", "NoPassword", "NoBackup", "NothingDeclared"),
    "Suspended": ("Disabled",),
    "HostGone": ("NotConnected",),
    "OutOfSync": ("NotInSync", "EntriesLeftOut"),
    "HostProblem": ("DuplicateAgent", "ClockSkew", "StoreEmpty"),
}
EVENT_OF = {reason: event for event, reasons in _EVENTS.items() for reason in reasons}
"""The event of an Alert's spec to which each reason belongs."""
LASTING = frozenset({"NotConnected", "NotInSync", "EntriesLeftOut", "NoBackup", "NeverVerified"})
"""Reasons that are told when they have lasted for the Alert's `after`."""
ONCE = frozenset({"NeverVerified"})
"""Reasons that are told once and not repeated, since they may be meant so."""
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
    "RunsHang": "a job of no Schedule, such as a restore, runs beyond its time limit",
}
"""What is said of a host or of many. What a Session says of one may name what other namespaces have on it."""


class Found(NamedTuple):
    """A problem of a Schedule, a Repository or a controller. `hosts`: those that it concerns, and `more` others."""

    about: ObjectKey
    problem: Problem
    hosts: Sequence[str] = ()
    more: int = 0


class HostFacts(NamedTuple):
    """A host with which something is wrong. `reasons`: of its problems."""

    name: str
    reasons: Sequence[str]


class Facts(NamedTuple):
    """Everything that is wrong. `labels`: of each Schedule and Repository, whether or not anything is.

    `all_hosts`: the labels of each host. `awaited`: those of them that have not come back since the server started, and
    may do so still. `unknown`: other objects of which nothing can be known yet for that reason.
    """

    labels: Mapping[ObjectKey, Mapping[str, str]]
    found: Sequence[Found]
    hosts: Sequence[HostFacts]
    all_hosts: Mapping[str, Mapping[str, str]]
    awaited: Collection[str] = ()
    unknown: frozenset[ObjectKey] = frozenset()


def event_of(reason: str, about: str = "") -> str:
    """The event to which a reason belongs. `about`: the kind of object."""
    return "Controller" if about == "Controller" else EVENT_OF.get(reason, "Failure")


def seen_by(
    spec: AlertSpec, namespace: str, grant: Grant, facts: Facts, known: Mapping[str, Known]
) -> tuple[list[Situation], Watched]:
    """The situations that an Alert of a namespace tells, and what it is about. `known`: what it knows already."""
    is_fleet, after = spec.scope == "Fleet", duration(spec.after)
    covered = {
        key
        for key, labels in facts.labels.items()
        if (is_fleet or key[1] == namespace) and selector_matches(spec.selector, labels)
    }
    found = [_situation(it, after) for it in facts.found if it.about in covered]
    if is_fleet:
        covered |= {it.about for it in facts.found if it.about[0] == "Controller"} | {("Server", "", "")}
        found += [_situation(it, after) for it in facts.found if it.about[0] in ("Controller", "Server")]
    hosts = {
        name
        for name, labels in facts.all_hosts.items()
        if (is_fleet or grant.selects(labels)) and selector_matches(spec.host_selector, labels)
    }
    found += _of_hosts((it for it in (*facts.hosts, *_awaited(facts, known)) if it.name in hosts), after)
    told = [it for it in found if spec.events is None or it.event in spec.events]
    return told, Watched({*covered, ALL_HOSTS}, hosts, spec.events, facts.unknown)


def _awaited(facts: Facts, known: Mapping[str, Known]) -> Iterator[HostFacts]:
    """The hosts that are awaited, each with what was known of it: neither its end nor anything new is known."""
    of_hosts = [it for it in known.values() if it.about == ALL_HOSTS and it.reason != "NoBackup"]
    for name in facts.awaited if of_hosts else ():
        if reasons := [it.reason for it in of_hosts if name in it.hosts]:
            yield HostFacts(name, reasons)


def _situation(it: Found, after: timedelta) -> Situation:
    reason, message = it.problem
    lasting, repeats = after if reason in LASTING else timedelta(), reason not in ONCE
    return Situation(event_of(reason, it.about[0]), reason, it.about, message, it.hosts, it.more, lasting, repeats)


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
