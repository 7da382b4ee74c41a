"""Works out the conditions Ready, Reconciling and Stalled: plain data in, plain data out.

They are as kstatus reads them (sigs.k8s.io/cli-utils, pkg/kstatus), and with it Flux and Helm: an object is in progress
while Reconciling is True, has failed while Stalled is True, and is current where neither is there and Ready is True.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from controller.client import ControllerError, Refused, Unreachable
from controller.cluster.kube import KubeError

Condition = dict[str, Any]

OWN = frozenset(
    ("Ready", "Reconciling", "Stalled", "InSync", "Degraded", "Granted", "Delivering", "Complete", "Failed")
)
"""The types of the controller's conditions. Conditions of other types are others', and stay as they are."""
PROGRESS = frozenset(("Ready", "Reconciling", "Stalled"))
MAX_MESSAGE = 2048
"""Characters of a condition's message. Each change sends the whole message to its Event and to all watches."""
BEHIND = "HostsBehind"
"""The reason of a Schedule that not all hosts hold. They do in a moment after each change."""
WAITS = ("HostNotFound", "RepositoryNotFound", "ScheduleNotFound", "SecretNotFound", "SecretKeyNotFound", "Conflict")
"""Reasons that end when another object is created or deleted, which may happen at any moment."""
_PASSING = {*WAITS, "ServerUnreachable", "ServerError", "Unauthorized", "KubernetesUnreachable"}
"""Reasons that may end without a change of the object, so that syncing is tried again."""
_AWAITED = {"RepositoryNotReady", "ScheduleNotReady", "NoHosts", BEHIND, "Disconnected", "Unknown"}
"""Further reasons that may end without a change of the object; syncing it again does not help."""
_REASONS = {401: "Unauthorized", 403: "NotGranted", 404: "ScheduleNotFound", 409: "Conflict"}
_MISSING = {
    "spec.repositoryRef.name": "RepositoryNotFound",
    "spec.copy.fromRepositoryRef.name": "RepositoryNotFound",
    "spec.host": "HostNotFound",
}


class NotFoundError(ControllerError):
    """Something that a resource refers to is missing in the cluster, or unusable. `reason`: for the condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def condition(type_: str, status: str, why: str, message: str) -> Condition:
    """A condition, with its message cut to MAX_MESSAGE."""
    return {"type": type_, "status": status, "reason": why, "message": message[:MAX_MESSAGE]}


def truth(is_so: bool) -> str:
    """The status of a condition that is known."""
    return "True" if is_so else "False"


def readiness(error: ControllerError | None, fine: str) -> Condition:
    """The condition Ready. `error`: why an object is not in force; None if it is. `fine`: the message then."""
    if error is None:
        return condition("Ready", "True", "Accepted", fine)
    if isinstance(error, Unreachable):
        return condition("Ready", "Unknown", reason(error), str(error))
    named = error.errors if isinstance(error, Refused) else ()
    said = "; ".join(f"{it.field}: {it.detail}" for it in named) or str(error)
    return condition("Ready", "False", reason(error), said)


def progress(ready: Condition) -> list[Condition]:
    """Reconciling or Stalled for an object that is not Ready, with the same reason; nothing for one that is."""
    if ready["status"] == "True":
        return []
    type_ = "Reconciling" if ready["reason"] in _PASSING | _AWAITED else "Stalled"
    return [condition(type_, "True", ready["reason"], ready["message"])]


def progress_of_phase(phase: str, why: str, message: str) -> list[Condition]:
    """Reconciling while a Run or a Restore goes on, and Stalled when it failed."""
    if phase == "Succeeded":
        return []
    return [condition("Stalled" if phase == "Failed" else "Reconciling", "True", why or phase, message)]


def reason(error: ControllerError) -> str:
    """The reason, in one word, why an object is not in force."""
    if isinstance(error, NotFoundError):
        return error.reason
    if isinstance(error, Unreachable):
        return "ServerUnreachable"
    if isinstance(error, Refused):
        return _reason_of_refusal(error)
    return "KubernetesUnreachable" if isinstance(error, KubeError) and error.passing else "Failed"


def _reason_of_refusal(error: Refused) -> str:
    if error.status in _REASONS and (error.status == 401 or not error.is_foreign):
        return _REASONS[error.status]
    if error.status >= 500 or error.is_foreign:
        return "ServerError"
    fields = {it.field for it in error.errors}
    return _MISSING.get(fields.pop(), "Invalid") if len(fields) == 1 else "Invalid"


def may_pass(error: ControllerError | None) -> bool:
    """Whether an error may end without a change of the object, so that syncing is tried again."""
    return error is not None and reason(error) in _PASSING


def is_answer(error: ControllerError | None) -> bool:
    """Whether a request that ended so was judged by the server: accepted, or refused for what it says."""
    if error is None:
        return True
    return isinstance(error, Refused) and reason(error) not in ("ServerError", "Unauthorized")


def is_conclusive(error: ControllerError | None) -> bool:
    """Whether a sync that ended so found out how things are; otherwise something did not answer."""
    return error is None or reason(error) in WAITS or not may_pass(error)


def own(status: Mapping[str, Any] | None) -> dict[str, Any]:
    """The controller's part of a status: without conditions of others."""
    if not status:
        return {}
    mine = [it for it in conditions_of(status) if it["type"] in OWN]
    return {**status, **({"conditions": mine} if "conditions" in status else {})}


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two statuses say the same. The API server keeps the order in which conditions were first written."""
    return _by_type(one) == _by_type(other)


def _by_type(status: Mapping[str, Any]) -> dict[str, Any]:
    return {**status, "conditions": {it["type"]: it for it in conditions_of(status)}}


def conditions_of(status: Mapping[str, Any]) -> Sequence[Condition]:
    """The conditions in a status."""
    return [it for it in status.get("conditions", ()) if isinstance(it, dict)]
