"""Which Runs and Restores to delete because they ended long enough ago, and when the next ones are due. No I/O.

`spec.ttlSecondsAfterFinished` is as that of a Job (batch/v1, JobSpec), counted from `status.completionTime`. The
history limits are as those of a CronJob (batch/v1, CronJobSpec): a Schedule has them for its Runs, a Repository for the
Restores from it. Objects are taken as they are stored, so one whose end was not written yet has not ended.
"""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from controller.cluster.cache import ONE_SHOT, is_active, references
from controller.cluster.conditions import conditions_of
from controller.cluster.kube import Object
from controller.resources import Key

_LIMITS: Mapping[tuple[str, str], str] = {
    ("Run", "Succeeded"): "successfulRunsHistoryLimit",
    ("Run", "Failed"): "failedRunsHistoryLimit",
    ("Restore", "Succeeded"): "successfulRestoresHistoryLimit",
    ("Restore", "Failed"): "failedRestoresHistoryLimit",
}
"""By kind and final phase, the field that says how many to keep, of the object that they refer to."""


class Expired(NamedTuple):
    """The keys to delete, the earliest end first, and when more are due by their ttlSecondsAfterFinished."""

    keys: list[Key]
    next_at: datetime | None


def expired(objects: Mapping[Key, Object], now: datetime) -> Expired:
    """The Runs and Restores to delete now. Those that are being deleted do not count."""
    found = {key: ended_at(body) for key, body in objects.items() if key.kind in ONE_SHOT}
    ends = sorted((at, key) for key, at in found.items() if at is not None)
    deadlines = {key: deadline for at, key in ends if (deadline := _deadline(at, objects[key])) is not None}
    surplus = _beyond_limits([key for _, key in ends], objects)
    due = [key for _, key in ends if key in surplus or deadlines.get(key, now + timedelta(1)) <= now]
    return Expired(due, min((at for at in deadlines.values() if at > now), default=None))


def ended_at(body: Object) -> datetime | None:
    """When a Run or a Restore ended; None for one that has not, that is being deleted, or whose time is no time."""
    status = body.get("status") or {}
    if is_active(body) or body["metadata"].get("deletionTimestamp"):
        return None
    over = (it for it in conditions_of(status) if it["type"] in ("Complete", "Failed") and it["status"] == "True")
    # A Run that found no host has no job, and so no time at which its last job ended.
    told = status.get("completionTime") or next((it["lastTransitionTime"] for it in over), None)
    try:
        ended = None if told is None else datetime.fromisoformat(told)
    except ValueError:  # as for a leap second, which the API server accepts
        return None
    return ended if ended is not None and ended.tzinfo is not None else None


def _deadline(ended: datetime, body: Object) -> datetime | None:
    ttl = body["spec"].get("ttlSecondsAfterFinished")
    try:
        return None if ttl is None else ended + timedelta(seconds=ttl)
    except OverflowError:  # later than any time that there is
        return None


def _beyond_limits(by_end: list[Key], objects: Mapping[Key, Object]) -> set[Key]:
    """Of these keys, the earliest end first, those that exceed a limit of the object that they refer to."""
    groups: defaultdict[tuple[Key, str], list[Key]] = defaultdict(list)
    for key in by_end:
        groups[references(key, objects[key])[0], objects[key]["status"]["phase"]].append(key)
    surplus: set[Key] = set()
    for (owner, phase), keys in groups.items():
        spec = objects.get(owner) or {}
        limit = spec.get("spec", {}).get(_LIMITS[keys[0].kind, phase])
        surplus.update(keys[: max(0, len(keys) - limit)] if limit is not None else ())
    return surplus
