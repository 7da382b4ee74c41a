"""The result of syncing each object, and the status that follows from it. Plain data, no I/O."""

import logging
from datetime import datetime
from typing import NamedTuple

from controller.client import ControllerError
from controller.cluster.cache import ONE_SHOT, Cache, is_active, references, requested_look
from controller.cluster.conditions import WAITS, NotFoundError, is_answer, is_conclusive, may_pass, own, reason
from controller.cluster.kube import Object
from controller.cluster.server_state import ServerState
from controller.cluster.status import (
    Status,
    SyncState,
    alert_status,
    host_status,
    repository_status,
    restore_status,
    run_status,
    schedule_status,
)
from controller.resources import PLURALS, Key

log = logging.getLogger(__name__)


HANDLED = "lastHandledReconcileAt"
"""The field of a status that answers RECONCILE_REQUESTED, as in Flux."""


class Version(NamedTuple):
    """An object's uid and generation."""

    uid: str
    generation: int


class Look(NamedTuple):
    """A look at the object with this uid, and the value of the annotation that requested it."""

    uid: str
    value: str


class Result(NamedTuple):
    """The result of syncing an object.

    `error`: why it is not in force; None if it is. `synced`: the version that was sent to the server; None if none was.
    `accepted`: whether the server has just created it. `note`: an addition to the message of a success. `look`: the
    look that this was, if one was requested.
    """

    error: ControllerError | None = None
    synced: Version | None = None
    accepted: bool = False
    note: str = ""
    look: Look | None = None


class Results:
    """The last result of each object."""

    def __init__(self, cache: Cache, server: ServerState) -> None:
        self._cache = cache
        self._resources, self._hosts, self._one_shot = server.resources, server.hosts, server.one_shot
        self._errors: dict[Key, ControllerError] = {}
        self._notes: dict[Key, str] = {}
        self._answered: dict[Key, Version] = {}  # the latest version that the server answered
        self._looks: dict[Key, Look] = {}  # the latest that was done
        self._deferred: set[Key] = set()  # failed once for one of WAITS, which may end in a moment: no status yet

    @property
    def failing(self) -> int:
        """The number of objects that could not be synced."""
        return len(self._errors)

    def record(self, key: Key, result: Result) -> bool:
        """Keep a result. Returns whether the object's error changed or ended."""
        error, before = result.error, self._errors.get(key)
        if result.synced is not None and is_answer(error):
            self._answered[key] = result.synced
        if result.look is not None and is_conclusive(error):
            self._looks[key] = result.look
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
        """The server cannot be reached. The caller has logged it."""
        self._errors[key] = error

    def forget(self, key: Key) -> None:
        """An object was deleted. An error is kept while its deletion at the server is tried again."""
        self._answered.pop(key, None)
        self._notes.pop(key, None)
        self._looks.pop(key, None)
        if not may_pass(self._errors.get(key)):
            self._errors.pop(key, None)

    def is_new(self, key: Key, body: Object) -> bool:
        """Whether the server has not answered this version of an object yet."""
        observed = (body.get("status") or {}).get("observedGeneration")
        return self._answered.get(key) != version_of(body) and observed != version_of(body).generation

    def open_look(self, key: Key, body: Object) -> Look | None:
        """The look at an object that was requested and not done yet; None if there is none."""
        value = requested_look(body)
        is_open = value is not None and value != self._last_look(key, body)
        return Look(version_of(body).uid, value) if value is not None and is_open else None

    def _last_look(self, key: Key, body: Object) -> str | None:
        """The value that requested the last look at an object that was done; None if there was none."""
        done, told = self._looks.get(key), (body.get("status") or {}).get(HANDLED)
        return done.value if done is not None and done.uid == version_of(body).uid else told

    def status(self, key: Key, body: Object, now: datetime) -> Status | None:
        """The status that an object should have; None if it is not known yet, or final."""
        old = {name: it for name, it in own(body.get("status")).items() if name != HANDLED}
        is_final = key.kind in ONE_SHOT and not is_active(body)
        made = old if is_final and key in self._looks else self._status(key, body, old, now)
        last_look = self._last_look(key, body)
        return made if made is None or last_look is None else {**made, HANDLED: last_look}

    def _status(self, key: Key, body: Object, old: Status, now: datetime) -> Status | None:
        error = self._why_not(key, body)
        uid, answered = version_of(body).uid, self._answered.get(key)
        generation = answered.generation if answered is not None and answered.uid == uid else None
        if key in self._deferred or (error is None and generation is None):
            return None  # the object is on its way to the server
        if key.kind in PLURALS:
            seen = self._resources.get(key)
            if error is None and seen is None:
                return None  # the server's answer was not read yet
            return _STATUSES[key.kind](old, SyncState(generation, error, seen, self._notes.get(key, "")), now)
        if key.kind == "Host":
            return host_status(old, SyncState(generation, error, self._hosts.get(key.name)), now)
        if key.kind in ONE_SHOT and is_active(body):
            one_shot = run_status if key.kind == "Run" else restore_status
            return one_shot(old, SyncState(generation, error, self._one_shot.get(uid)), now)
        return None

    def _why_not(self, key: Key, body: Object) -> ControllerError | None:
        """Why an object is not in force. An error of an object that it refers to explains more, and comes first."""
        error = self._errors.get(key)
        found = (self._of_reference(key, named, error) for named in references(key, body))
        return next((it for it in found if it is not None), error)

    def _of_reference(self, key: Key, named: Key, error: ControllerError | None) -> ControllerError | None:
        """What an object that another one refers to explains of its error; None if nothing."""
        if error is not None and reason(error) != f"{named.kind}NotFound":
            return None
        why = self._errors.get(named)
        if error is not None and why is not None and named in self._cache.objects:
            return NotFoundError(f"{named.kind}NotReady", f"{named.kind} {named.name} is not in force: {why}")
        if error is None and key.kind == "Schedule" and named not in self._cache.objects:
            message = f"Repository {named.name} was deleted: create it again, or refer to another"
            return NotFoundError("RepositoryNotFound", message)
        return None


_STATUSES = {"Schedule": schedule_status, "Repository": repository_status, "Alert": alert_status}


def version_of(body: Object) -> Version:
    """An object's version."""
    metadata = body["metadata"]
    return Version(metadata["uid"], metadata.get("generation", 1))
