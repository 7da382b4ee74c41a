"""What came of bringing each object to the server, and the status that says so. Plain data, no I/O."""

import logging
from datetime import datetime
from typing import NamedTuple

from controller.client import ControllerError, Refused, Unreachable
from controller.cluster.cache import ONE_SHOT, Cache, is_active, refers_to
from controller.cluster.kube import KubeError, Object
from controller.cluster.server_state import ServerState
from controller.cluster.status import (
    NotFoundError,
    Status,
    SyncState,
    host_status,
    reason,
    repository_status,
    restore_status,
    run_status,
    schedule_status,
)
from controller.resources import PLURALS, Key

log = logging.getLogger(__name__)

WAITS = ("HostNotFound", "RepositoryNotFound", "ScheduleNotFound", "SecretNotFound", "SecretKeyNotFound", "Conflict")
"""Reasons that are over once something else is there, or is gone, which may well be on its way."""


class Version(NamedTuple):
    """Which object, and which generation of it."""

    uid: str
    generation: int


class Result(NamedTuple):
    """How it went with an object.

    `error`: why it is not in force; `brought`: the version that was brought to the server, None where none was;
    `accepted`: whether the server has it for the first time; `note`: something to add to what is well.
    """

    error: ControllerError | None = None
    synced: Version | None = None
    accepted: bool = False
    note: str = ""


class Results:
    """The last result of each object."""

    def __init__(self, cache: Cache, server: ServerState) -> None:
        self._cache = cache
        self._resources, self._hosts, self._one_shot = server.resources, server.hosts, server.one_shot
        self._errors: dict[Key, ControllerError] = {}
        self._notes: dict[Key, str] = {}
        self._answered: dict[Key, Version] = {}  # what the server has last answered
        self._deferred: set[Key] = set()  # what fails for the first time, and may be well in a moment

    @property
    def failing(self) -> int:
        """Objects that could not be brought to the server."""
        return len(self._errors)

    def record(self, key: Key, result: Result) -> bool:
        """Remember a result. Whether it is another error than before, or an error no more."""
        error, before = result.error, self._errors.get(key)
        if result.synced is not None and (error is None or isinstance(error, Refused)):
            self._answered[key] = result.synced
        if error is None:
            self._notes[key] = result.note
            self._errors.pop(key, None)
            self._deferred.discard(key)
            return before is not None
        waits = reason(error) in WAITS
        if waits and before is None:
            self._deferred.add(key)
        else:
            self._deferred.discard(key)
        self._errors[key] = error
        if str(before) == str(error):
            return False
        level = logging.INFO if waits else logging.WARNING
        log.log(level, "%s not synced", key.kind.lower(), extra={key.kind.lower(): str(key), "reason": str(error)})
        return True

    def mark_unreached(self, key: Key, error: ControllerError) -> None:
        """Nothing can be brought to the server for now, which is logged elsewhere."""
        self._errors[key] = error

    def forget(self, key: Key) -> None:
        """An object is gone; why it cannot be deleted at the server is remembered as long as that is tried again."""
        self._answered.pop(key, None)
        self._notes.pop(key, None)
        if not may_pass(self._errors.get(key)):
            self._errors.pop(key, None)

    def is_new(self, key: Key, body: Object) -> bool:
        """Whether the server has yet to answer for this version of an object."""
        observed = (body.get("status") or {}).get("observedGeneration")
        return self._answered.get(key) != version_of(body) and observed != version_of(body).generation

    def status(self, key: Key, body: Object, now: datetime) -> Status | None:
        """What an object's status should be; None where there is nothing to say yet, or any more."""
        if key in self._deferred:
            return None
        old, error = body.get("status") or {}, self._why_not(key, body)
        uid, answered = version_of(body).uid, self._answered.get(key)
        generation = answered.generation if answered is not None and answered.uid == uid else None
        if key.kind in PLURALS:
            seen = self._resources.get(key)
            if error is None and (seen is None or generation is None):
                return None  # the server has yet to answer, or to be looked at
            made = schedule_status if key.kind == "Schedule" else repository_status
            return made(old, SyncState(generation, error, seen, self._notes.get(key, "")), now)
        if key.kind == "Host":
            return host_status(old, SyncState(generation, error, self._hosts.get(key.name)), now)
        if key.kind in ONE_SHOT and is_active(body):
            one_shot = run_status if key.kind == "Run" else restore_status
            return one_shot(old, SyncState(generation, error, self._one_shot.get(uid)), now)
        return None

    def _why_not(self, key: Key, body: Object) -> ControllerError | None:
        """Why an object is not in force: also for what it names, which the server does not know or still has."""
        error, named = self._errors.get(key), refers_to(key, body)
        if named is None or (error is not None and reason(error) != f"{named.kind}NotFound"):
            return error
        why = self._errors.get(named)
        if error is not None and why is not None and named in self._cache.objects:
            return NotFoundError(f"{named.kind}NotReady", f"{named.kind} {named.name} is not in force: {why}")
        if error is None and key.kind == "Schedule" and named not in self._cache.objects:
            message = f"Repository {named.name} was deleted: create it again, or name another"
            return NotFoundError("RepositoryNotFound", message)
        return error


def version_of(body: Object) -> Version:
    """The version of an object."""
    metadata = body["metadata"]
    return Version(metadata["uid"], metadata.get("generation", 1))


def may_pass(error: ControllerError | None) -> bool:
    """Whether an error may be over without a change of the object: it is worth another try."""
    if error is None:
        return False
    if reason(error) in WAITS:
        return True
    if isinstance(error, Refused):
        return error.status == 401 or error.status >= 500
    return isinstance(error, Unreachable) or (isinstance(error, KubeError) and error.passing)
