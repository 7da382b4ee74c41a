"""What a resource's status says, worked out from what came of it: plain data in, plain data out.

Conditions follow Kubernetes' API conventions ("Typical status properties"): one for each type, with a reason for
programs, a message for people, and the time at which its status last became another.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from controller.client import ControllerError, Refused, Unreachable

Status = dict[str, Any]
Condition = dict[str, Any]

_NO_HOST = "no Host has the labels that hostSelector selects"
_COUNTS = ("hosts", "hostsInSync", "hostsFailed")
_TIMES = ("lastScheduleTime", "nextScheduleTime")
_REASONS = {401: "Unauthorized", 403: "NotGranted", 404: "ScheduleNotFound", 409: "Conflict"}
_MISSING = {"spec.repositoryRef.name": "RepositoryNotFound", "spec.host": "HostNotFound"}
_PHASES = ("pending", "running", "succeeded", "failed")
_JOB_PHASES = {"pending": "Pending", "running": "Running", "succeeded": "Succeeded", "warning": "Succeeded"}
_JOB_FACTS = {
    "host": "host",
    "job": "id",
    "snapshot": "snapshot_id",
    "files": "files_processed",
    "bytes": "bytes_processed",
    "startTime": "accepted_at",
    "completionTime": "finished_at",
}


class NotFoundError(ControllerError):
    """Something in the cluster that a resource refers to is not there. `reason`: for the condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Notice(NamedTuple):
    """Something that a person should notice. `type`: Normal or Warning, as in Events."""

    type: str
    reason: str
    message: str


def schedule_status(
    old: Status, generation: int, error: ControllerError | None, seen: Mapping[str, Any] | None, now: datetime
) -> Status:
    """The status of a Schedule. `error`: why its declaration is not in force; `seen`: the resource at the server."""
    ready = _ready(error, "the server holds it as declared")
    if seen is None and isinstance(error, Unreachable):  # what was last known is still the best that is
        kept = [it for it in old.get("conditions", ()) if it["type"] != "Ready"]
        status = _status(old, generation, _facts(old), [ready], now)
        return {**status, "conditions": [*status["conditions"], *kept]}
    told = seen["status"] if seen is not None else {}
    status, conditions = _facts(told), [ready]
    if "hosts" in told:
        conditions += [_in_sync(told), _degraded(told)]
        if kept_out := told.get("hostsNotGranted"):
            message = f"hosts that it selects and its namespace is not granted: {kept_out}; ask the cluster's operator"
            conditions.append(_condition("Granted", "False", "HostsNotGranted", message))
    return _status(old, generation, status, conditions, now)


def _facts(told: Mapping[str, Any]) -> Status:
    return {name: told[name] for name in (*_COUNTS, *_TIMES) if told.get(name) is not None}


def repository_status(
    old: Status, generation: int, error: ControllerError | None, seen: Mapping[str, Any] | None, now: datetime
) -> Status:
    """The status of a Repository. `error`: why its declaration is not in force; `seen`: the resource at the server."""
    told = seen["status"] if seen is not None else {}
    facts = {name: told[name] for name in ("problem", "lastVerified") if told.get(name) is not None}
    conditions = [_ready(error, "the server holds it, and what opens it")]
    if seen is not None:
        conditions.append(_unwell(seen, now))
    return _status(old, generation, facts, conditions, now)


def host_status(
    old: Status, generation: int, error: ControllerError | None, seen: Mapping[str, Any] | None, now: datetime
) -> Status:
    """The status of a Host. `seen`: the host at the server."""
    if error is not None or seen is None:
        waiting = error or NotFoundError("Unknown", "the server does not know it yet")
        return _status(old, generation, {}, [_ready(waiting, "")], now)
    connected, in_sync = seen["connected"], seen["in_sync"]
    status = {
        "connected": connected,
        "desiredVersion": seen["desired_version"],
        "appliedVersion": seen["applied_version"],
        "inSync": in_sync,
        "agentVersion": seen["agent_version"],
        "lastSeen": seen["last_seen"],
    }
    facts = {name: value for name, value in status.items() if value not in (None, "")}
    if connected:
        ready = _condition("Ready", "True", "Connected", "its agent is connected")
    else:
        since = f"since {seen['last_seen']}" if seen["last_seen"] else "and never was"
        ready = _condition("Ready", "False", "Disconnected", f"its agent is not connected {since}")
    versions = f"holds version {seen['applied_version']} of {seen['desired_version']}"
    synced = _condition("InSync", _truth(in_sync), "Proved" if in_sync else "Behind", versions)
    status = _status(old, generation, facts, [ready, synced], now)
    unchanged = {**status, "lastSeen": old.get("lastSeen")} == old  # a sign of life alone is not worth a write
    return old if unchanged else status


def run_status(
    old: Status, generation: int, error: ControllerError | None, seen: Mapping[str, Any] | None, now: datetime
) -> Status:
    """The status of a Run. `seen`: how far the server says that it is."""
    ready = _ready(error, "the server took it")
    if seen is None:
        return _status(old, generation, {"phase": "Pending"}, [ready], now)
    counts = {name: seen[name] for name in ("hosts", *_PHASES)}
    over = counts["pending"] + counts["running"] == 0
    failed = f"{counts['failed']} of {counts['hosts']} hosts failed"
    if over:
        phase = "Failed" if counts["failed"] else "Succeeded"
        message = (
            failed if counts["failed"] else f"all {counts['hosts']} hosts succeeded" if counts["hosts"] else _NO_HOST
        )
    else:
        phase = "Running" if counts["running"] or counts["succeeded"] or counts["failed"] else "Pending"
        message = f"{counts['pending'] + counts['running']} of {counts['hosts']} hosts have not ended"
    times = {name: seen[name] for name in ("startTime", "completionTime") if seen.get(name)}
    complete = _condition("Complete", _truth(over), phase, message)
    return _status(old, generation, {"phase": phase, **counts, **times}, [ready, complete], now)


def restore_status(
    old: Status, generation: int, error: ControllerError | None, seen: Mapping[str, Any] | None, now: datetime
) -> Status:
    """The status of a Restore. `seen`: its job at the server."""
    ready = _ready(error, "the server took it")
    if seen is None:
        return _status(old, generation, {"phase": "Pending"}, [ready], now)
    phase = _JOB_PHASES.get(seen["status"], "Failed")
    over = phase in ("Succeeded", "Failed")
    facts = {name: seen[field] for name, field in _JOB_FACTS.items() if seen.get(field) not in (None, "")}
    if over:
        message = seen["error"] or f"snapshot {seen['snapshot_id']} was restored"
    else:
        message = f"waits for {seen['waits_for']}" if seen.get("waits_for") else f"host {seen['host']} is at it"
    complete = _condition("Complete", _truth(over), seen["reason"] or phase, message)
    return _status(old, generation, {"phase": phase, **facts}, [ready, complete], now)


def notices(old: Status, new: Status) -> list[Notice]:
    """What a person should notice of a change of status: trouble that begins, and trouble that is over."""
    was = {condition["type"]: condition for condition in old.get("conditions", ())}
    found = []
    for condition in new.get("conditions", ()):
        before = was.get(condition["type"], {})
        if (before.get("status"), before.get("reason")) == (condition["status"], condition["reason"]):
            continue
        bad = {"Ready": "False", "Degraded": "True", "Granted": "False"}.get(condition["type"])
        is_over = condition["type"] == "Complete" and condition["status"] == "True"
        if condition["status"] == bad or (is_over and new.get("phase") == "Failed"):
            found.append(Notice("Warning", condition["reason"], condition["message"]))
        elif before.get("status") == bad is not None or is_over:
            found.append(Notice("Normal", condition["reason"], condition["message"]))
    return found


def patch(old: Status, new: Status) -> Status:
    """The merge patch (RFC 7386) that makes one status the other."""
    return {**dict.fromkeys(old.keys() - new.keys()), **{name: it for name, it in new.items() if old.get(name) != it}}


def _ready(error: ControllerError | None, fine: str) -> Condition:
    if error is None:
        return _condition("Ready", "True", "Accepted", fine)
    if isinstance(error, Unreachable):
        return _condition("Ready", "Unknown", "ServerUnreachable", str(error))
    named = error.errors if isinstance(error, Refused) else ()
    said = "; ".join(f"{it.field}: {it.detail}" for it in named) or str(error)
    return _condition("Ready", "False", reason(error), said)


def reason(error: ControllerError) -> str:
    """Why a declaration is not in force, in a word."""
    if isinstance(error, NotFoundError):
        return error.reason
    if isinstance(error, Refused):
        fields = {it.field for it in error.errors}
        if error.status in _REASONS:
            return _REASONS[error.status]
        if error.status >= 500:
            return "ServerError"
        return _MISSING.get(fields.pop(), "Invalid") if len(fields) == 1 else "Invalid"
    return "Failed"


def _in_sync(told: Mapping[str, Any]) -> Condition:
    hosts, in_sync = told["hosts"], told["hostsInSync"]
    if hosts == 0:
        return _condition("InSync", "True", "NoHosts", _NO_HOST)
    if hosts == in_sync:
        return _condition(
            "InSync", "True", "AllHosts", f"all {hosts} hosts hold it" if hosts > 1 else "its host holds it"
        )
    behind = _named(told.get("outOfSync", ()), hosts - in_sync)
    return _condition("InSync", "False", "HostsBehind", f"{hosts - in_sync} of {hosts} hosts do not hold it: {behind}")


def _degraded(told: Mapping[str, Any]) -> Condition:
    failed = told.get("hostsFailed", 0)
    if not failed:
        return _condition("Degraded", "False", "RunsSucceed", "no host's last run failed")
    names = _named(told.get("failed", ()), failed)
    return _condition(
        "Degraded", "True", "RunsFail", f"the last run failed on {failed} of {told['hosts']} hosts: {names}"
    )


def _unwell(repository: Mapping[str, Any], now: datetime) -> Condition:
    """Whether a repository could not be used of late, or has not been shown in time to give back what is in it."""
    told, days = repository["status"], repository["spec"].get("verifyWithinDays")
    if (problem := told.get("problem")) is not None:
        return _condition("Degraded", "True", problem["reason"], f"{problem['message']} (on {problem['host']})")
    since = told.get("lastVerified") or repository["metadata"]["creationTimestamp"]
    if days is not None and now - datetime.fromisoformat(since) > timedelta(days=days):
        what = "no Schedule of kind verify has gone well" if told.get("lastVerified") is None else "last verified"
        return _condition("Degraded", "True", "NotVerified", f"{what} since {since}: it must be every {days} days")
    return _condition("Degraded", "False", "Usable", "no job's last attempt found it unusable")


def _named(names: Sequence[str], count: int) -> str:
    """Some names, and how many more there are."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if names and more > 0 else "")


def _condition(type_: str, status: str, reason: str, message: str) -> Condition:
    return {"type": type_, "status": status, "reason": reason, "message": message[:32768]}


def _truth(value: object) -> str:
    return "True" if value else "False"


def _status(
    old: Status, generation: int, facts: Mapping[str, Any], conditions: Sequence[Condition], now: datetime
) -> Status:
    """A status in which conditions keep the time of their last transition."""
    was = {condition["type"]: condition for condition in old.get("conditions", ())}
    at = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    timed = []
    for condition in conditions:
        before = was.get(condition["type"])
        same = before is not None and before["status"] == condition["status"]
        since = before["lastTransitionTime"] if before is not None and same else at
        timed.append({**condition, "observedGeneration": generation, "lastTransitionTime": since})
    return {"observedGeneration": generation, **facts, "conditions": timed}
