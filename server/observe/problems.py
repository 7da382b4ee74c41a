"""Problems of Schedules and Repositories, and the phase of a Run: plain functions from facts to reason and message.

REST shows them, and from there the command line, the conditions of the resources and the metrics.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from server.fleet.expected import span
from server.jobs import outcomes
from server.resources.selectors import selector_matches
from server.resources.specs import LabelSelector, Requirement
from server.store.rollouts import Pause

MAX_NAMED = 5
"""How many hosts a message names before it only counts them."""
_UNOPENED = (
    "no password opens it: put one into a Secret, and name that in passwordSecretRef; envSecretRef is for what the "
    "storage asks for, such as AWS_ACCESS_KEY_ID"
)
MAX_COMPARED = 1000
"""How many hosts' labels are compared with a selector that selects none of them, to find the reason."""


class Problem(NamedTuple):
    """A problem of a resource. `reason`: one word, as in a condition. `message`: what is wrong and what to do."""

    reason: str
    message: str


class Access(NamedTuple):
    """Whether a repository can be used. `denied`: why it is not granted any more; empty when it is."""

    denied: str
    has_password: bool


class Coverage(NamedTuple):
    """How a schedule stands on its hosts. Counts are of all hosts. `out_of_sync` and `…_names` hold up to `MAX_NAMED`.

    - `hosts`: hosts that should hold the schedule. `in_sync`: those on which it is in force.
    - `behind`: hosts that are connected and on which it is not in force.
    - `failed`, `warned`: hosts whose last job failed or had a warning. `errors`: why, by name of a named host.
    - `not_granted`: hosts that the selector selects and the grant of the namespace does not.
    - `denied`: why the schedule may not run on any host. `no_host`: why it has no host. Both are empty otherwise.
    - `overdue`: hosts without a success within `within`; none while the schedule is disabled.
    - `hanging`: the names of all hosts with a job that runs beyond its timeout.
    - `never_succeeded`: hosts without any success. `oldest_success`: the oldest of the hosts' last successes.
    - `refused_hooks`: by program of a hook or backup.command, the hosts whose agents do not allow it.
    - `unsupported`: by why its agent or its restic cannot run the schedule, the hosts.
    - `forgets_too_little`: why it does not forget what it is for; empty when it does.
    - `pause`: since when nothing of it begins, as it failed on too many hosts; None while it is not paused.
    - `never_ran`: overdue hosts on which no run has ended at all. `late_names`: names of the other overdue hosts.
    """

    hosts: int
    in_sync: int
    out_of_sync: Sequence[str]
    failed: int
    failed_names: Sequence[str]
    warned: int
    warned_names: Sequence[str]
    errors: Mapping[str, str]
    not_granted: int
    not_granted_names: Sequence[str]
    denied: str
    enabled: bool
    no_host: str
    has_password: bool
    overdue: int
    overdue_names: Sequence[str]
    within: timedelta
    hanging: Sequence[str]
    never_succeeded: int
    oldest_success: datetime | None
    refused_hooks: Mapping[str, Sequence[str]]
    never_ran: int = 0
    never_ran_names: Sequence[str] = ()
    late_names: Sequence[str] = ()
    unsupported: Mapping[str, Sequence[str]] = {}
    behind: int = 0
    behind_names: Sequence[str] = ()
    forgets_too_little: str = ""
    pause: Pause | None = None


def schedule_problems(coverage: Coverage) -> list[Problem]:
    """The problems of a schedule, the worst first."""
    found = []
    if coverage.denied:
        found.append(Problem("NotGranted", f"it runs nowhere: {coverage.denied}"))
    elif coverage.not_granted:
        where = "" if coverage.hosts else "it runs nowhere: "
        who = named(coverage.not_granted_names, coverage.not_granted)
        message = f"{where}its namespace is not granted {who}; the cluster's operator can change that"
        found.append(Problem("HostsNotGranted", message))
    elif coverage.hosts == 0 and coverage.enabled:
        found.append(Problem("NoHosts", f"it runs nowhere: {coverage.no_host}"))
    if coverage.enabled and not coverage.denied and not coverage.has_password:
        found.append(Problem("NoPassword", f"every run fails, for its Repository has none: {_UNOPENED}"))
    for program, hosts in coverage.refused_hooks.items():
        found.append(Problem("HookNotAllowed", _hook_refused(program, hosts, coverage)))
    if coverage.forgets_too_little:
        remedy = "list tags in retention.tags, or set retention.allTags"
        found.append(Problem("ForgetsTooLittle", f"{coverage.forgets_too_little}, so snapshots stay: {remedy}"))
    for why, hosts in coverage.unsupported.items():
        who = named(hosts[:MAX_NAMED], len(hosts))
        message = f"{of_hosts(len(hosts), coverage)} cannot run it, so each run there fails: {who}; {why}"
        found.append(Problem("NotSupported", message))
    if coverage.pause is not None:
        found.append(Problem("Paused", _paused(coverage.pause)))
    if coverage.overdue:
        where, who = of_hosts(coverage.overdue, coverage), named(coverage.overdue_names, coverage.overdue)
        found.append(Problem("Overdue", f"no success for more than {span(coverage.within)} on {where}: {who}"))
    if coverage.hanging:
        count, who = len(coverage.hanging), named(coverage.hanging[:MAX_NAMED], len(coverage.hanging))
        message = f"a run goes on beyond its timeoutSeconds on {of_hosts(count, coverage)}, whose agent may hang: {who}"
        found.append(Problem("RunsHang", message))
    if coverage.failed:
        who = named([_with_error(host, coverage.errors) for host in coverage.failed_names], coverage.failed)
        found.append(Problem("RunsFail", f"the last run failed on {of_hosts(coverage.failed, coverage)}: {who}"))
    if coverage.warned:
        who = named([_with_error(host, coverage.errors) for host in coverage.warned_names], coverage.warned)
        message = f"the last run left something undone on {of_hosts(coverage.warned, coverage)}: {who}"
        found.append(Problem("RunsIncomplete", message))
    return found


def repository_problems(
    access: Access,
    failure: outcomes.RepositoryFailure | None,
    verify_within_days: int | None,
    verified: datetime | None,
    created: datetime,
    now: datetime,
) -> list[Problem]:
    """The problems of a repository: it must not be used, jobs could not use it, or it was not verified in time.

    `failure`: why the last job could not use it. `verified`: when a job of kind verify last succeeded.
    """
    found = []
    if access.denied:
        found.append(Problem("NotGranted", access.denied))
    elif not access.has_password:
        found.append(Problem("NoPassword", _UNOPENED))
    if failure is not None:
        found.append(Problem(failure.reason, f"{failure.message} (on {failure.host})"))
    since = verified or created
    if verify_within_days is not None and now - since > timedelta(days=verify_within_days):
        what = "last verified" if verified is not None else "no Schedule of kind verify has gone well since"
        message = f"{what} {since:%Y-%m-%dT%H:%M:%SZ}: it must be every {verify_within_days} days"
        found.append(Problem("NotVerified", message))
    return found


class AlertFacts(NamedTuple):
    """An Alert. `failed_at`: when its last message did not arrive, None if it did; `error`: why. `selects`: whether its
    selector selects any Schedule or Repository."""

    namespace: str
    name: str
    failed_at: datetime | None
    error: str
    selects: bool


def alert_problems(alert: AlertFacts) -> list[Problem]:
    """The problems of an Alert: nobody is told by it."""
    found = []
    if alert.failed_at is not None:
        message = f"the last message did not arrive, at {alert.failed_at:%Y-%m-%dT%H:%M:%SZ}: {alert.error}"
        found.append(Problem("NotDelivered", message))
    if not alert.selects:
        message = "its selector selects no Schedule and no Repository: change spec.selector, or their labels"
        found.append(Problem("SelectsNothing", message))
    return found


def problems_of_repository(
    health: outcomes.Health, access: Access, id_: str, spec: Mapping[str, Any], created: datetime, now: datetime
) -> list[Problem]:
    """The problems of a repository, from what jobs told of it."""
    within = spec.get("verifyWithinDays")
    return repository_problems(access, health.problem(id_), within, health.verified(id_), created, now)


def run_phase(run: Mapping[str, Any]) -> tuple[str, str, str]:
    """Phase, reason and message of a Run, from its counts of hosts. A Run without hosts has failed."""
    hosts, failed, under_way = run["hosts"], run["failed"], run["pending"] + run["running"]
    if hosts == 0:
        why = "the Schedule has no host, or the Run's hostSelector selects none of them"
        return "Failed", "NoHosts", f"it ran nowhere: {why}; compare both with the hosts' labels"
    if under_way:
        begun = under_way < hosts or run["running"]
        waits = f"{under_way} of {hosts} hosts have not ended" if hosts > 1 else "its host has not ended"
        return ("Running" if begun else "Pending"), "", waits
    if failed:
        return "Failed", "RunsFail", f"{failed} of {hosts} hosts failed" if hosts > 1 else "its host failed"
    return "Succeeded", "", f"all {hosts} hosts succeeded" if hosts > 1 else "its host succeeded"


def no_host(selector: LabelSelector, hosts: Iterable[Mapping[str, str]]) -> str:
    """Why a selector selects none of the hosts with these labels, and what to do about it."""
    labels = list(islice(hosts, MAX_COMPARED))
    if not labels:
        return "there is no host that it may run on; start an agent, or declare a Host"
    remedy = "change hostSelector, or the labels of a host"
    wanted = [Requirement(key, "In", (value,)) for key, value in selector.match_labels.items()]
    for one in (*wanted, *selector.match_expressions):
        if not any(selector_matches(LabelSelector(match_expressions=(one,)), it) for it in labels):
            return f"hostSelector selects no host: {_unmet(one, labels)}; {remedy}"
    return f"hostSelector selects no host: none has all of the labels that it asks for; {remedy}"


def _unmet(one: Requirement, labels: Sequence[Mapping[str, str]]) -> str:
    """Why no host with these labels meets a requirement."""
    values = sorted({it[one.key] for it in labels if one.key in it})
    if one.operator in ("NotIn", "DoesNotExist"):
        return f"every host has the label {one.key}" + (f" with one of {', '.join(one.values)}" if one.values else "")
    if not values:
        keys = sorted({key for it in labels for key in it})
        return f"no host has the label {one.key}, there are {named(keys[:MAX_NAMED], len(keys)) or 'none at all'}"
    return f"no host has {one.key} {' or '.join(one.values)}, there are {named(values[:MAX_NAMED], len(values))}"


def named(names: Sequence[str], count: int) -> str:
    """These names as text, with how many more there are when they are some of `count`."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if names and more > 0 else "")


def _paused(pause: Pause) -> str:
    who = named(pause.hosts, pause.failed)
    many = "1 host" if pause.failed == 1 else f"{pause.failed} hosts"
    what = f"paused at {pause.since:%Y-%m-%dT%H:%M:%SZ}, as it failed on {many} ({who}), more than maxFailures"
    return f"{what}: nothing begins until you find out why, and let it go on with `lamplighter resume`"


def _hook_refused(program: str, hosts: Sequence[str], coverage: Coverage) -> str:
    who = named(hosts[:MAX_NAMED], len(hosts))
    remedy = "start them with --allow-hook and its path (agent.allowedHooks in the chart), or remove it from the spec"
    what = f"the agents of {of_hosts(len(hosts), coverage)} do not allow {program!r} as a hook, and fail each run"
    return f"{what}: {who}; {remedy}"


def _with_error(host: str, errors: Mapping[str, str]) -> str:
    return f"{host} ({errors[host]})" if errors.get(host) else host


def of_hosts(count: int, coverage: Coverage) -> str:
    """How many of a schedule's hosts, as text."""
    return "its only host" if count == coverage.hosts == 1 else f"{count} of {coverage.hosts} hosts"
