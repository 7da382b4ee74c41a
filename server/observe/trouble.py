"""What is wrong with what is declared, in a word for programs and a sentence for people: plain data in and out.

REST, the command line and conditions tell the same, from here. What is well has no trouble.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from server.fleet.expected import span
from server.jobs.outcomes import Problem
from server.resources.selectors import selector_matches
from server.resources.specs import LabelSelector, Requirement

NAMED = 5
"""Hosts that are told by name where a count is not enough."""
_UNOPENED = (
    "no password opens it: put one into a Secret, and name that in passwordSecretRef; envSecretRef is for what the "
    "storage asks for, such as AWS_ACCESS_KEY_ID"
)
MAX_LOOKED = 1000
"""Hosts whose labels are looked at to say why none is selected."""


class Trouble(NamedTuple):
    """`reason`: one word, as the reason of a condition. `message`: what is wrong and, where it is known, the remedy."""

    reason: str
    message: str


class Access(NamedTuple):
    """Whether a repository can be used. `denied`: why it must not be any more; `opened`: whether it has a password."""

    denied: str
    opened: bool


class Coverage(NamedTuple):
    """On how many hosts a schedule is, how many of them hold it, and how it goes there; some hosts by name.

    `failing`: some of those where the last run failed; `incomplete`: some of the `warned`, where it left something
    undone; `why`: what was wrong, by each host of both. `not_granted`: how many it selects and its namespace may not
    reach, of which some are `kept_out`; `denied`: why none is, where that is of the schedule itself; `no_host`: why it
    has none, for its labels, empty while it has one; `opened`: whether a password opens its repository. `late`,
    `overdue`: hosts without a success within `within`, none while it is disabled; `hanging`: all hosts where a run
    should have been stopped by now; `unproven`: hosts without any success; `oldest`: of each host's last success, the
    oldest. `refused_hooks`: of the programs that are its hooks, those that agents do not allow, and on which hosts.
    """

    hosts: int
    in_sync: int
    behind: Sequence[str]
    failed: int
    failing: Sequence[str]
    warned: int
    incomplete: Sequence[str]
    why: Mapping[str, str]
    not_granted: int
    kept_out: Sequence[str]
    denied: str
    enabled: bool
    no_host: str
    opened: bool
    late: int
    overdue: Sequence[str]
    within: timedelta
    hanging: Sequence[str]
    unproven: int
    oldest: datetime | None
    refused_hooks: Mapping[str, Sequence[str]]


def schedule_troubles(covers: Coverage) -> list[Trouble]:
    """What is wrong with a schedule, the worst first."""
    found = []
    if covers.denied:
        found.append(Trouble("NotGranted", f"it runs nowhere: {covers.denied}"))
    elif covers.not_granted:
        found.append(Trouble("HostsNotGranted", _not_granted(covers)))
    elif covers.hosts == 0 and covers.enabled:
        found.append(Trouble("NoHosts", f"it runs nowhere: {covers.no_host}"))
    if covers.enabled and not covers.denied and not covers.opened:
        found.append(Trouble("NoPassword", f"every run fails, for its Repository has none: {_UNOPENED}"))
    for program, hosts in covers.refused_hooks.items():
        found.append(Trouble("HookNotAllowed", _hook_refused(program, hosts, covers)))
    if covers.late:
        who = named(covers.overdue, covers.late)
        found.append(
            Trouble("Overdue", f"no success for more than {span(covers.within)} on {_of(covers.late, covers)}: {who}")
        )
    if covers.hanging:
        count, who = len(covers.hanging), named(covers.hanging[:NAMED], len(covers.hanging))
        message = f"a run goes on beyond its timeoutSeconds on {_of(count, covers)}, whose agent may hang: {who}"
        found.append(Trouble("RunsHang", message))
    if covers.failed:
        who = named([_with_why(host, covers.why) for host in covers.failing], covers.failed)
        found.append(Trouble("RunsFail", f"the last run failed on {_of(covers.failed, covers)}: {who}"))
    if covers.warned:
        who = named([_with_why(host, covers.why) for host in covers.incomplete], covers.warned)
        message = f"the last run left something undone on {_of(covers.warned, covers)}: {who}"
        found.append(Trouble("RunsIncomplete", message))
    return found


def repository_troubles(
    access: Access,
    problem: Problem | None,
    verify_within_days: int | None,
    verified: datetime | None,
    created: datetime,
    now: datetime,
) -> list[Trouble]:
    """What is wrong with a repository: it may or could not be used, or was not shown in time to give back its files."""
    found = []
    if access.denied:
        found.append(Trouble("NotGranted", access.denied))
    elif not access.opened:
        found.append(Trouble("NoPassword", _UNOPENED))
    if problem is not None:
        found.append(Trouble(problem.reason, f"{problem.message} (on {problem.host})"))
    since = verified or created
    if verify_within_days is not None and now - since > timedelta(days=verify_within_days):
        what = "last verified" if verified is not None else "no Schedule of kind verify has gone well since"
        message = f"{what} {since:%Y-%m-%dT%H:%M:%SZ}: it must be every {verify_within_days} days"
        found.append(Trouble("NotVerified", message))
    return found


def run_phase(run: Mapping[str, Any]) -> tuple[str, str, str]:
    """The phase of a run, its reason and a message, from its counts of hosts. One on no host has failed."""
    hosts, failed, under_way = run["hosts"], run["failed"], run["pending"] + run["running"]
    if hosts == 0:
        why = "the Schedule has no host, or the Run's hostSelector selects none of them"
        return "Failed", "NoHosts", f"it ran nowhere: {why}; compare both with the hosts' labels"
    if under_way:
        begun = under_way < hosts or run["running"]
        return ("Running" if begun else "Pending"), "", f"{under_way} of {hosts} hosts have not ended"
    if failed:
        return "Failed", "RunsFail", f"{failed} of {hosts} hosts failed"
    return "Succeeded", "", f"all {hosts} hosts succeeded" if hosts > 1 else "its host succeeded"


def no_host(selector: LabelSelector, hosts: Iterable[Mapping[str, str]]) -> str:
    """Why a selector selects none of the hosts with these labels, and what to do."""
    labels = list(islice(hosts, MAX_LOOKED))
    if not labels:
        return "there is no host that it may run on; start an agent, or declare a Host"
    remedy = "change hostSelector, or the labels of a host"
    wanted = [Requirement(key, "In", (value,)) for key, value in selector.match_labels.items()]
    for one in (*wanted, *selector.match_expressions):
        if not any(selector_matches(LabelSelector(match_expressions=(one,)), it) for it in labels):
            return f"hostSelector selects no host: {_unmet(one, labels)}; {remedy}"
    return f"hostSelector selects no host: none has all of the labels that it asks for; {remedy}"


def _unmet(one: Requirement, labels: Sequence[Mapping[str, str]]) -> str:
    values = sorted({it[one.key] for it in labels if one.key in it})
    if one.operator in ("NotIn", "DoesNotExist"):
        return f"every host has the label {one.key}" + (f" with one of {', '.join(one.values)}" if one.values else "")
    if not values:
        keys = sorted({key for it in labels for key in it})
        return f"no host has the label {one.key}, there are {named(keys[:NAMED], len(keys)) or 'none at all'}"
    return f"no host has {one.key} {' or '.join(one.values)}, there are {named(values[:NAMED], len(values))}"


def named(names: Sequence[str], count: int) -> str:
    """Some names of `count`, and how many more there are."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if names and more > 0 else "")


def _not_granted(covers: Coverage) -> str:
    where = "" if covers.hosts else "it runs nowhere: "
    who = named(covers.kept_out, covers.not_granted)
    return f"{where}its namespace is not granted {who}; the cluster's operator can change that"


def _hook_refused(program: str, hosts: Sequence[str], covers: Coverage) -> str:
    who = named(hosts[:NAMED], len(hosts))
    remedy = "start them with --allow-hook and its path (agent.allowedHooks in the chart), or remove it from spec.hooks"
    what = f"the agents of {_of(len(hosts), covers)} do not allow {program!r} as a hook, and fail each run"
    return f"{what}: {who}; {remedy}"


def _with_why(host: str, why: Mapping[str, str]) -> str:
    return f"{host} ({why[host]})" if why.get(host) else host


def _of(count: int, covers: Coverage) -> str:
    return f"{count} of {covers.hosts} hosts"
