"""Works out a resource's status from its result and the server's answer: plain data in, plain data out.

Conditions follow Kubernetes' API conventions ("Typical status properties"): one for each type, with a reason for
programs, a message for people, and the time at which its status last changed.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from controller.client import ControllerError, Refused, Unreachable

Status = dict[str, Any]
Condition = dict[str, Any]

_FACTS = ("hosts", "hostsInSync", "hostsFailed", "hostsOverdue", "lastScheduleTime", "nextScheduleTime")
_NOWHERE = ("NotGranted", "HostsNotGranted", "NoHosts")
"""The reasons for which a Schedule may have no host."""
_ENDS = {"failed": "Failed", "timed_out": "TimedOut", "cancelled": "Cancelled", "interrupted": "Interrupted"}
"""The reason of a failed job without one, by its status."""
_UNUSABLE = ("NotGranted", "NoPassword")
"""The reasons for which no job can use a Repository."""
MAX_MESSAGE = 2048
"""Characters of a condition's message. Each change sends the whole message to its Event and to all watches."""
_REASONS = {401: "Unauthorized", 403: "NotGranted", 404: "ScheduleNotFound", 409: "Conflict"}
_MISSING = {"spec.repositoryRef.name": "RepositoryNotFound", "spec.host": "HostNotFound"}
_ALERT_FACTS = ("firing", "waiting", "dropped", "lastDeliveryTime")
_UNTOLD = ("NothingTold", "there was nothing to tell yet")
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


_BAD = {"Ready": "False", "Degraded": "True", "Granted": "False", "Delivering": "False", "Failed": "True"}
"""For each type of condition, the status that people should notice."""


class NotFoundError(ControllerError):
    """Something that a resource refers to is missing in the cluster, or unusable. `reason`: for the condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Notice(NamedTuple):
    """An Event for people. `type`: Normal or Warning."""

    type: str
    reason: str
    message: str


class SyncState(NamedTuple):
    """What is known of an object. `generation`: the last one that the server answered; None if it answered none.

    `error`: why the declared object is not in force; None if it is. `answer`: the server's latest answer; None if it
    has nothing. `note`: an addition to the message of a Ready condition that is True.
    """

    generation: int | None
    error: ControllerError | None
    answer: Mapping[str, Any] | None
    note: str = ""


def schedule_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Schedule."""
    if state.answer is None and isinstance(state.error, Unreachable):  # the last known status stays
        return _with_ready(old, state, now)
    if state.answer is None:
        return _status(old, state.generation, {}, [_ready(state.error, "")], now)
    said = state.answer["status"]
    problems = said["problems"]
    ready = _ready(state.error, "the server holds it as declared")
    nowhere = next((it for it in problems if _runs_nowhere(it, said)), None)
    if state.error is None and nowhere is not None:
        ready = _condition("Ready", "False", nowhere["reason"], nowhere["message"])
    # A selector may select hosts that the namespace is not granted, as long as others are left.
    worse = [it for it in problems if it["reason"] != "HostsNotGranted" or said["hosts"] == 0]
    conditions = [ready, _in_sync(said, state.error), _degraded(worse, *_going_well(said, state.answer["spec"]))]
    conditions += [
        _condition("Granted", "False", it["reason"], it["message"]) for it in problems if "NotGranted" in it["reason"]
    ]
    return _status(old, state.generation, _only(said, _FACTS), conditions, now)


def _runs_nowhere(problem: Mapping[str, str], said: Mapping[str, Any]) -> bool:
    """Whether a problem keeps the Schedule from running on any host."""
    if problem["reason"] == "HookNotAllowed":
        return bool(said["hostsRefusingHooks"] == said["hosts"])
    if problem["reason"] == "NotSupported":
        return bool(said["hostsUnsupported"] == said["hosts"])
    if problem["reason"] == "NoPassword":
        return True
    return problem["reason"] in _NOWHERE and said["hosts"] == 0


def _going_well(said: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[str, str]:
    """The reason and message of a Schedule that is not degraded. Hosts without a success are not called successful."""
    if not spec.get("enabled", True):
        return "Disabled", "spec.enabled is false, so it does not run"
    if not said["hosts"]:
        return "NoHosts", "no host has it: condition Ready says why"
    if unproven := said["hostsWithoutSuccess"]:
        return "NotOverdue", f"{unproven} of {said['hosts']} hosts have had no success yet, and are not overdue"
    return "RunsSucceed", "the last run of each host went well"


def repository_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Repository."""
    if state.answer is None and isinstance(state.error, Unreachable):
        return _with_ready(old, state, now)
    said = state.answer["status"] if state.answer is not None else {}
    ready = _ready(
        state.error, f"the server holds it, and the password that opens it{state.note and f'; {state.note}'}"
    )
    unusable = next((it for it in said.get("problems", ()) if it["reason"] in _UNUSABLE), None)
    if state.error is None and unusable is not None:
        ready = _condition("Ready", "False", unusable["reason"], unusable["message"])
    conditions = [ready]
    if state.answer is not None:
        conditions.append(_degraded(said["problems"], "Usable", "no job's last attempt found it unusable"))
    return _status(old, state.generation, _only(said, ("problem", "lastVerified")), conditions, now)


def alert_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of an Alert."""
    if state.answer is None and isinstance(state.error, Unreachable):
        return _with_ready(old, state, now)
    said = state.answer["status"] if state.answer is not None else {}
    conditions = [_ready(state.error, "the server holds it, and the URLs that it notifies")]
    if state.answer is not None:
        fine = ("Delivered", "the last message arrived") if "lastDeliveryTime" in said else _UNTOLD
        failed = next(iter(said["problems"]), None)
        reason, message = (failed["reason"], failed["message"]) if failed else fine
        conditions.append(_condition("Delivering", _truth(failed is None), reason, message))
    return _status(old, state.generation, _only(said, _ALERT_FACTS), conditions, now)


def host_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Host."""
    seen = state.answer
    if state.error is not None or seen is None:
        if isinstance(state.error, Unreachable):
            return _with_ready(old, state, now)
        waiting = state.error or NotFoundError("Unknown", "the server does not know it yet")
        return _status(old, state.generation, {}, [_ready(waiting, "")], now)
    status = {
        "connected": seen["connected"],
        "desiredVersion": seen["desired_version"],
        "appliedVersion": seen["applied_version"],
        "inSync": seen["in_sync"],
        "agentVersion": seen["agent_version"],
        "resticVersion": seen["restic_version"],
        "lastSeen": seen["last_seen"],
    }
    facts = {name: value for name, value in status.items() if value not in (None, "")}
    if seen["connected"]:
        ready = _condition("Ready", "True", "Connected", "its agent is connected")
    else:
        since = f"since {seen['last_seen']}" if seen["last_seen"] else "and never was"
        ready = _condition("Ready", "False", "Disconnected", f"its agent is not connected {since}")
    left_out = [it for it in seen["problems"] if it["reason"] == "EntriesLeftOut"]
    others = [it for it in seen["problems"] if it["reason"] != "EntriesLeftOut"]
    conditions = [ready, _host_in_sync(seen, left_out), _degraded(others, "AgentWell", "its agent has no problem")]
    made = _status(old, state.generation, facts, conditions, now)
    unchanged = {**made, "lastSeen": old.get("lastSeen")} == old  # a new lastSeen alone is not written
    return old if unchanged else made


def _host_in_sync(seen: Mapping[str, Any], left_out: Sequence[Mapping[str, str]]) -> Condition:
    if left_out:
        return _condition("InSync", "False", left_out[0]["reason"], left_out[0]["message"])
    versions = f"holds version {seen['applied_version']} of {seen['desired_version']}"
    return _condition("InSync", _truth(seen["in_sync"]), "Proved" if seen["in_sync"] else "Behind", versions)


def run_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Run."""
    ready, seen = _ready(state.error, "the server took it"), state.answer
    if seen is None:
        return _status(old, state.generation, {"phase": "Pending"}, [ready], now)
    message = seen["message"]
    if failures := "; ".join(_failure(it) for it in seen["failures"]):
        message += f": {failures}"
        message += f"; and {more} more" if (more := seen["failed"] - len(seen["failures"])) > 0 else ""
    facts = _only(seen, ("phase", "hosts", *_PHASES, "startTime", "completionTime"))
    ended = _ended(seen["phase"], seen["reason"], message)
    return _status(old, state.generation, facts, [ready, *ended], now)


def _failure(job: Mapping[str, Any]) -> str:
    """The host of a failed job, and why it failed."""
    why = ": ".join(it for it in (job["reason"] or _ENDS.get(job["status"], "Failed"), job["error"]) if it)
    return f"{job['host']} ({' '.join(why.split())[:256]})"


def restore_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Restore. The server's answer is its job."""
    ready, seen = _ready(state.error, "the server took it"), state.answer
    if seen is None:
        return _status(old, state.generation, {"phase": "Pending"}, [ready], now)
    phase, host = _JOB_PHASES.get(seen["status"], "Failed"), seen["host"]
    facts = {name: seen[field] for name, field in _JOB_FACTS.items() if seen.get(field) not in (None, "")}
    if phase == "Failed":
        message = _failure(seen)
    elif phase == "Succeeded":
        message = seen["error"] or f"snapshot {seen['snapshot_id']} was restored"
    else:
        message = f"waits for {seen['waits_for']}" if seen.get("waits_for") else f"host {host} is working on it"
    why = seen["reason"] or _ENDS.get(seen["status"], "")
    if phase == "Succeeded" and not seen["files_processed"]:
        why, message = "NoFiles", f"{message}; it holds no file, only folders and links at most"
    return _status(old, state.generation, {"phase": phase, **facts}, [ready, *_ended(phase, why, message)], now)


def _ended(phase: str, why: str, message: str) -> list[Condition]:
    """The conditions Complete and Failed, of which one becomes True in the end (batch/v1, JobCondition)."""
    return [
        _condition("Complete", _truth(phase == "Succeeded"), why or phase, message),
        _condition("Failed", _truth(phase == "Failed"), why or phase, message),
    ]


def notices(old: Status, new: Status) -> list[Notice]:
    """The Events for a change of status: problems that begin, and problems that are over."""
    was = {condition["type"]: condition for condition in old.get("conditions", ())}
    found = []
    for condition in new.get("conditions", ()):
        before = was.get(condition["type"], {})
        if (before.get("status"), before.get("reason")) == (condition["status"], condition["reason"]):
            continue
        bad = _BAD.get(condition["type"])
        is_over = condition["type"] == "Complete" and condition["status"] == "True"
        if condition["status"] == bad:
            found.append(Notice("Warning", condition["reason"], condition["message"]))
        elif before.get("status") == bad is not None or is_over:
            found.append(Notice("Normal", condition["reason"], condition["message"]))
    return list(dict.fromkeys(found))


def patch(old: Status, new: Status) -> Status:
    """The merge patch (RFC 7386) from one status to another."""
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
    """The reason, in one word, why an object is not in force."""
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


def _in_sync(said: Mapping[str, Any], error: ControllerError | None) -> Condition:
    hosts, in_sync = said["hosts"], said["hostsInSync"]
    if error is not None:
        message = "the latest version was not accepted; the one before stays in force"
        return _condition("InSync", "Unknown", "NotAccepted", f"{message} on {in_sync} of {hosts} hosts")
    if hosts == 0:
        return _condition("InSync", "Unknown", "NoHosts", "no host has it: condition Ready says why")
    if hosts == in_sync:
        return _condition(
            "InSync", "True", "AllHosts", f"all {hosts} hosts hold it" if hosts > 1 else "its host holds it"
        )
    behind = _named(said.get("outOfSync", ()), hosts - in_sync)
    return _condition("InSync", "False", "HostsBehind", f"{hosts - in_sync} of {hosts} hosts do not hold it: {behind}")


def _degraded(problems: Sequence[Mapping[str, str]], well: str, fine: str) -> Condition:
    """The condition Degraded, with the first problem's reason. `well`, `fine`: reason and message without problems."""
    if not problems:
        return _condition("Degraded", "False", well, fine)
    return _condition("Degraded", "True", problems[0]["reason"], "; ".join(it["message"] for it in problems))


def _only(said: Mapping[str, Any], names: Sequence[str]) -> Status:
    return {name: said[name] for name in names if said.get(name) is not None}


def _with_ready(old: Status, state: SyncState, now: datetime) -> Status:
    """The last known status, with a new Ready condition."""
    kept = [it for it in old.get("conditions", ()) if it["type"] != "Ready"]
    facts = {name: it for name, it in old.items() if name not in ("observedGeneration", "conditions")}
    made = _status(old, state.generation, facts, [_ready(state.error, "")], now)
    return {**made, "conditions": [*made["conditions"], *kept]}


def _named(names: Sequence[str], count: int) -> str:
    """These names, and how many more there are of `count`."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if names and more > 0 else "")


def _condition(type_: str, status: str, reason: str, message: str) -> Condition:
    return {"type": type_, "status": status, "reason": reason, "message": message[:MAX_MESSAGE]}


def _truth(value: object) -> str:
    return "True" if value else "False"


def _status(
    old: Status, generation: int | None, facts: Mapping[str, Any], conditions: Sequence[Condition], now: datetime
) -> Status:
    """A status whose conditions keep the times of their last transitions.

    `generation`: the last one that the server answered; None to keep the old status's.
    """
    was = {condition["type"]: condition for condition in old.get("conditions", ())}
    at = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    answered = generation if generation is not None else old.get("observedGeneration")
    observed = {} if answered is None else {"observedGeneration": answered}
    timed = []
    for condition in conditions:
        before = was.get(condition["type"])
        same = before is not None and before["status"] == condition["status"]
        since = before["lastTransitionTime"] if before is not None and same else at
        timed.append({**condition, **observed, "lastTransitionTime": since})
    return {**observed, **facts, "conditions": timed}
