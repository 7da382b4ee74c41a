"""The result of syncing each object, and the status that follows from it. Plain data, no I/O."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from controller.client import ControllerError
from controller.cluster.cache import ONE_SHOT, Cache, is_active, references, requests_of
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
from controller.resources import PLURALS, RECONCILE_REQUESTED, RESUME_REQUESTED, Key

log = logging.getLogger(__name__)


HANDLED = {RECONCILE_REQUESTED: "lastHandledReconcileAt", RESUME_REQUESTED: "lastHandledResumeAt"}
"""The field of a status that answers each annotation, as in Flux."""


class Version(NamedTuple):
    """An object's uid and generation."""

    uid: str
    generation: int


class Request(NamedTuple):
    """What was requested of the object with this uid, by an annotation with this value."""

    uid: str
    value: str
    annotation: str = RECONCILE_REQUESTED


class Result(NamedTuple):
    """The result of syncing an object.

    `error`: why it is not in force; None if it is. `synced`: the version that was sent to the server; None if none was.
    `accepted`: whether the server has just created it. `note`: an addition to the message of a success. `done`: what
    was requested by annotations, and has been done.
    """

    error: ControllerError | None = None
    synced: Version | None = None
    accepted: bool = False
    note: str = ""
    done: Sequence[Request] = ()


class Results:
    """The last result of each object."""

    def __init__(self, cache: Cache, server: ServerState) -> None:
        self._cache = cache
        self._resources, self._hosts, self._one_shot = server.resources, server.hosts, server.one_shot
        self._errors: dict[Key, ControllerError] = {}
        self._notes: dict[Key, str] = {}
        self._answered: dict[Key, Version] = {}  # the latest version that the server answered
        self._done: dict[tuple[Key, str], Request] = {}  # by object and annotation, the latest that was done
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
        if is_conclusive(error):
            self._done |= {(key, it.annotation): it for it in result.done}
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
        for annotation in HANDLED:
            self._done.pop((key, annotation), None)
        if not may_pass(self._errors.get(key)):
            self._errors.pop(key, None)

    def is_new(self, key: Key, body: Object) -> bool:
        """Whether the server has not answered this version of an object yet."""
        observed = (body.get("status") or {}).get("observedGeneration")
        return self._answered.get(key) != version_of(body) and observed != version_of(body).generation

    def open_request(self, key: Key, body: Object, annotation: str = RECONCILE_REQUESTED) -> Request | None:
        """What an annotation requests of an object and was not done yet; None if there is nothing."""
        value = requests_of(body).get(annotation)
        is_open = value is not None and value != self._last_done(key, body, annotation)
        return Request(version_of(body).uid, value, annotation) if value is not None and is_open else None

    def _last_done(self, key: Key, body: Object, annotation: str) -> str | None:
        """The last value of an annotation whose request was done; None if there was none."""
        done, told = self._done.get((key, annotation)), (body.get("status") or {}).get(HANDLED[annotation])
        return done.value if done is not None and done.uid == version_of(body).uid else told

    def status(self, key: Key, body: Object, now: datetime) -> Status | None:
        """The status that an object should have; None if it is not known yet, or final."""
        old = {name: it for name, it in own(body.get("status")).items() if name not in HANDLED.values()}
        is_final = key.kind in ONE_SHOT and not is_active(body)
        has_looked = (key, RECONCILE_REQUESTED) in self._done
        made = old if is_final and has_looked else self._status(key, body, old, now)
        answers = {field: self._last_done(key, body, annotation) for annotation, field in HANDLED.items()}
        return made and {**made, **{field: value for field, value in answers.items() if value is not None}}

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
