"""Works out a resource's status from its result and the server's answer: plain data in, plain data out.

Conditions follow Kubernetes' API conventions ("Typical status properties"): one for each type, with a reason for
programs, a message for people, and the time at which its status last changed.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from controller.client import ControllerError, Unreachable
from controller.cluster.conditions import (
    BEHIND,
    PROGRESS,
    Condition,
    NotFoundError,
    condition,
    conditions_of,
    progress,
    progress_of_phase,
    readiness,
    truth,
)

Status = dict[str, Any]

_FACTS = ("hosts", "hostsInSync", "hostsFailed", "hostsOverdue", "lastScheduleTime", "nextScheduleTime")
_NOWHERE = ("NotGranted", "HostsNotGranted", "NoHosts")
"""The reasons for which a Schedule may have no host."""
_ENDS = {"failed": "Failed", "timed_out": "TimedOut", "cancelled": "Cancelled", "interrupted": "Interrupted"}
"""The reason of a failed job without one, by its status."""
_UNUSABLE = ("NotGranted", "NoPassword")
"""The reasons for which no job can use a Repository."""
UNANSWERED = -1
"""The observedGeneration of an object that the server has not answered, as in the definitions."""
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
        return _with_readiness(old, state, now)
    if state.answer is None:
        return _status(old, state.generation, {}, _not_ready(state.error), now)
    said = state.answer["status"]
    problems = said["problems"]
    ready = readiness(state.error, "the server holds it as declared, and so does every host that is online")
    if state.error is None:
        ready = _not_everywhere(said) or ready
    # A selector may select hosts that the namespace is not granted, as long as others are left.
    worse = [it for it in problems if it["reason"] != "HostsNotGranted" or said["hosts"] == 0]
    conditions = [ready, *progress(ready), _in_sync(said, state.error)]
    conditions.append(_degraded(worse, *_going_well(said, state.answer["spec"])))
    conditions += [
        condition("Paused", "True", "RunsFail", it["message"]) for it in problems if it["reason"] == "Paused"
    ]
    conditions += [
        condition("Granted", "False", it["reason"], it["message"]) for it in problems if "NotGranted" in it["reason"]
    ]
    return _status(old, state.generation, _only(said, _FACTS), conditions, now)


def _not_everywhere(said: Mapping[str, Any]) -> Condition | None:
    """The condition Ready of a Schedule that the server has accepted and that runs nowhere, or that a host which is
    online does not hold; None otherwise. A server of an earlier release does not count these hosts."""
    if nowhere := next((it for it in said["problems"] if _runs_nowhere(it, said)), None):
        return condition("Ready", "False", nowhere["reason"], nowhere["message"])
    if not (behind := said.get("hostsBehind", 0)):
        return None
    who = _named(said["behind"], behind)
    return condition("Ready", "False", BEHIND, f"the server accepted it; not yet held by {who}, though online")


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
    if spec.get("suspend", False):
        return "Suspended", "spec.suspend is true, so it does not run"
    if not said["hosts"]:
        return "NoHosts", "no host has it: condition Ready says why"
    if unproven := said["hostsWithoutSuccess"]:
        return "NotOverdue", f"{unproven} of {said['hosts']} hosts have had no success yet, and are not overdue"
    return "RunsSucceed", "the last run of each host went well"


def repository_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Repository."""
    if state.answer is None and isinstance(state.error, Unreachable):
        return _with_readiness(old, state, now)
    said = state.answer["status"] if state.answer is not None else {}
    ready = readiness(
        state.error, f"the server holds it, and the password that opens it{state.note and f'; {state.note}'}"
    )
    unusable = next((it for it in said.get("problems", ()) if it["reason"] in _UNUSABLE), None)
    if state.error is None and unusable is not None:
        ready = condition("Ready", "False", unusable["reason"], unusable["message"])
    conditions = [ready, *progress(ready)]
    if state.answer is not None:
        conditions.append(_degraded(said["problems"], "Usable", "no job's last attempt found it unusable"))
    return _status(old, state.generation, _only(said, ("problem", "lastVerified", "snapshots")), conditions, now)


def alert_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of an Alert."""
    if state.answer is None and isinstance(state.error, Unreachable):
        return _with_readiness(old, state, now)
    said = state.answer["status"] if state.answer is not None else {}
    ready = readiness(state.error, "the server holds it, and the URLs that it notifies")
    conditions = [ready, *progress(ready)]
    if state.answer is not None:
        fine = ("Delivered", "the last message arrived") if "lastDeliveryTime" in said else _UNTOLD
        failed = next(iter(said["problems"]), None)
        reason, message = (failed["reason"], failed["message"]) if failed else fine
        conditions.append(condition("Delivering", truth(failed is None), reason, message))
    return _status(old, state.generation, _only(said, _ALERT_FACTS), conditions, now)


def host_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Host."""
    seen = state.answer
    if state.error is not None or seen is None:
        if isinstance(state.error, Unreachable):
            return _with_readiness(old, state, now)
        waiting = state.error or NotFoundError("Unknown", "the server does not know it yet")
        return _status(old, state.generation, {}, _not_ready(waiting), now)
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
        ready = condition("Ready", "True", "Connected", "its agent is connected")
    else:
        since = f"since {seen['last_seen']}" if seen["last_seen"] else "and never was"
        ready = condition("Ready", "False", "Disconnected", f"its agent is not connected {since}")
    left_out = [it for it in seen["problems"] if it["reason"] == "EntriesLeftOut"]
    others = [it for it in seen["problems"] if it["reason"] != "EntriesLeftOut"]
    conditions = [ready, *progress(ready), _host_in_sync(seen, left_out)]
    conditions.append(_degraded(others, "AgentWell", "its agent has no problem"))
    conditions += _drained(seen.get("drain"))
    made = _status(old, state.generation, facts, conditions, now)
    unchanged = {**made, "lastSeen": old.get("lastSeen")} == old  # a new lastSeen alone is not written
    return old if unchanged else made


def _drained(drain: Mapping[str, Any] | None) -> list[Condition]:
    """Of a host that is being drained, whether nothing runs there any more."""
    if drain is None:
        return []
    if drain["done"]:
        return [condition("Drained", "True", "Drained", "nothing runs there, and nothing begins")]
    return [condition("Drained", "False", "Draining", f"none begins; jobs that still run there: {drain['jobs']}")]


def _host_in_sync(seen: Mapping[str, Any], left_out: Sequence[Mapping[str, str]]) -> Condition:
    if left_out:
        return condition("InSync", "False", left_out[0]["reason"], left_out[0]["message"])
    versions = f"holds version {seen['applied_version']} of {seen['desired_version']}"
    return condition("InSync", truth(seen["in_sync"]), "Proved" if seen["in_sync"] else "Behind", versions)


def run_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Run."""
    ready, seen = readiness(state.error, "the server took it"), state.answer
    if seen is None:
        return _status(old, state.generation, {"phase": "Pending"}, [ready, *progress(ready)], now)
    message = seen["message"]
    if failures := "; ".join(_failure(it) for it in seen["failures"]):
        message += f": {failures}"
        message += f"; and {more} more" if (more := seen["failed"] - len(seen["failures"])) > 0 else ""
    facts = _only(seen, ("phase", "hosts", *_PHASES, "startTime", "completionTime"))
    ended = _ended(ready, seen["phase"], seen["reason"], message)
    return _status(old, state.generation, facts, ended, now)


def _failure(job: Mapping[str, Any]) -> str:
    """The host of a failed job, and why it failed."""
    why = ": ".join(it for it in (job["reason"] or _ENDS.get(job["status"], "Failed"), job["error"]) if it)
    return f"{job['host']} ({' '.join(why.split())[:256]})"


def restore_status(old: Status, state: SyncState, now: datetime) -> Status:
    """The status of a Restore. The server's answer is its job."""
    ready, seen = readiness(state.error, "the server took it"), state.answer
    if seen is None:
        return _status(old, state.generation, {"phase": "Pending"}, [ready, *progress(ready)], now)
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
    return _status(old, state.generation, {"phase": phase, **facts}, _ended(ready, phase, why, message), now)


def _ended(ready: Condition, phase: str, why: str, message: str) -> list[Condition]:
    """The conditions of a Run or a Restore that the server knows.

    Complete and Failed are as those of a Job (batch/v1, JobCondition): one of them becomes True in the end.
    """
    return [
        ready,
        *(progress(ready) or progress_of_phase(phase, why, message)),
        condition("Complete", truth(phase == "Succeeded"), why or phase, message),
        condition("Failed", truth(phase == "Failed"), why or phase, message),
    ]


def notices(old: Status, new: Status) -> list[Notice]:
    """The Events for a change of status: problems that begin, and problems that are over."""
    was = {it["type"]: it for it in conditions_of(old)}
    found = []
    for now in conditions_of(new):
        before = was.get(now["type"], {})
        if (before.get("status"), before.get("reason")) == (now["status"], now["reason"]):
            continue
        is_over = now["type"] == "Complete" and now["status"] == "True"
        if _is_bad(now):
            found.append(Notice("Warning", now["reason"], now["message"]))
        elif _is_bad(before) or is_over:
            found.append(Notice("Normal", now["reason"], now["message"]))
    return list(dict.fromkeys(found))


def _is_bad(it: Condition) -> bool:
    """Whether people should notice a condition. That hosts lack a Schedule is so for a moment after each change."""
    return bool(it) and it["status"] == _BAD.get(it["type"]) and it["reason"] != BEHIND


def _in_sync(said: Mapping[str, Any], error: ControllerError | None) -> Condition:
    hosts, in_sync = said["hosts"], said["hostsInSync"]
    if error is not None:
        message = "the latest version was not accepted; the one before stays in force"
        return condition("InSync", "Unknown", "NotAccepted", f"{message} on {in_sync} of {hosts} hosts")
    if hosts == 0:
        return condition("InSync", "Unknown", "NoHosts", "no host has it: condition Ready says why")
    if hosts == in_sync:
        return condition(
            "InSync", "True", "AllHosts", f"all {hosts} hosts hold it" if hosts > 1 else "its host holds it"
        )
    behind = _named(said.get("outOfSync", ()), hosts - in_sync)
    return condition("InSync", "False", "HostsBehind", f"{hosts - in_sync} of {hosts} hosts do not hold it: {behind}")


def _degraded(problems: Sequence[Mapping[str, str]], well: str, fine: str) -> Condition:
    """The condition Degraded, with the first problem's reason. `well`, `fine`: reason and message without problems."""
    if not problems:
        return condition("Degraded", "False", well, fine)
    return condition("Degraded", "True", problems[0]["reason"], "; ".join(it["message"] for it in problems))


def _only(said: Mapping[str, Any], names: Sequence[str]) -> Status:
    return {name: said[name] for name in names if said.get(name) is not None}


def _not_ready(error: ControllerError | None) -> list[Condition]:
    """The conditions of an object of which nothing else is known."""
    ready = readiness(error, "")
    return [ready, *progress(ready)]


def _with_readiness(old: Status, state: SyncState, now: datetime) -> Status:
    """The last known status, with new conditions Ready, Reconciling and Stalled."""
    kept = [it for it in conditions_of(old) if it["type"] not in PROGRESS]
    facts = {name: it for name, it in old.items() if name not in ("observedGeneration", "conditions")}
    made = _status(old, state.generation, facts, _not_ready(state.error), now)
    return {**made, "conditions": [*made["conditions"], *kept]}


def _named(names: Sequence[str], count: int) -> str:
    """These names, and how many more there are of `count`."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if names and more > 0 else "")


def _status(
    old: Status, generation: int | None, facts: Mapping[str, Any], conditions: Sequence[Condition], now: datetime
) -> Status:
    """A status whose conditions keep the times of their last transitions.

    `generation`: the last one that the server answered; None to keep the old status's. -1, the default of the
    definitions, means that it answered none.
    """
    was = {it["type"]: it for it in conditions_of(old)}
    at = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    answered = generation if generation is not None else old.get("observedGeneration", UNANSWERED)
    observed = {} if answered == UNANSWERED else {"observedGeneration": answered}
    timed = []
    for made in conditions:
        before = was.get(made["type"])
        same = before is not None and before["status"] == made["status"]
        since = before["lastTransitionTime"] if before is not None and same else at
        timed.append({**made, **observed, "lastTransitionTime": since})
    return {"observedGeneration": answered, **facts, "conditions": timed}
