"""Makes a server follow a cluster, and writes statuses back to the cluster.

It is level-triggered: an event only says which key to sync, and what to do follows from the present state. Each object
is a key in a work queue, and is tried again by itself when it fails. A full comparison, at regular intervals, reads
both sides and queues every key; so it finds what was missed, lost or orphaned on either side. The server's stream of
changes says when to read its answers again, which become the statuses.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from datetime import datetime
from typing import Literal, NamedTuple

from controller.client import Client, ControllerError, Refused, Unreachable
from controller.cluster import watching
from controller.cluster.cache import ONE_SHOT, WATCHED, Cache, key_of, references
from controller.cluster.conditions import may_pass
from controller.cluster.credentials import secrets_named
from controller.cluster.expiry import expired
from controller.cluster.kube import Kube, KubeError, Object
from controller.cluster.listings import Listings
from controller.cluster.results import Result, Results
from controller.cluster.secret_watches import SecretWatches
from controller.cluster.server_state import ServerState
from controller.cluster.status_writer import INTERVAL_S, StatusWriter
from controller.cluster.sync import Syncer
from controller.cluster.workers import Workers
from controller.reconcile import Reconciler
from controller.resources import PLURALS, Key, names_secrets

log = logging.getLogger(__name__)

OWNER = "lamplighter-controller"
PAUSE_RATIO, MAX_PAUSE_S = 10, 20.0
"""Minimum pause after reading statuses from the server, as a multiple of the read's duration, and its upper bound in
seconds, so that one slow answer does not delay the next read for long."""
CONCURRENCY = 8
"""The most objects that are synced at once."""
UNREACHED_LIMIT = 2 * CONCURRENCY
"""Objects in a row that did not reach the server before a comparison checks whether it can be reached at all."""

EXPIRY_S = 0.5
"""Seconds from a change until what has expired is looked for, so that changes that come together cost one look."""

Chore = Literal["compare", "check the lists", "read secrets", "read statuses", "find expired"]
"""Work that is repeated, one piece at a time."""


class Timing(NamedTuple):
    """Seconds.

    - `full`: between comparisons of everything.
    - `secrets`: between reads of the Secrets that resources name, whether they can be watched or not.
    - `statuses`: minimum between reads of the server's answers, however often they change.
    - `retry`, `max_retry`: before the first retry of what failed, and at most.
    - `listed`: a watch's list counts as complete when it listed no object for so long.
    - `write`: between writes of one object's status.
    - `watch`: see `WatchTiming`.
    """

    full: float = 300.0
    secrets: float = 60.0
    statuses: float = 2.0
    retry: float = 0.5
    max_retry: float = 30.0
    listed: float = 2.0
    write: float = INTERVAL_S
    watch: watching.WatchTiming = watching.WATCH_TIMING


DEFAULT_TIMING = Timing()


class ClusterFollower:
    """Syncs a cluster's resources to a server, and statuses back, while `run` runs. `on_event` passes it objects.

    `namespaces`: the namespaces to follow; empty for all.
    """

    def __init__(
        self,
        kube: Kube,
        client: Client,
        host_namespace: str,
        clock: Callable[[], datetime],
        namespaces: Collection[str] = (),
        times: Timing = DEFAULT_TIMING,
    ) -> None:
        self._times = times
        self._kube = kube
        self._client = client
        self._clock = clock
        self._namespaces = sorted({*namespaces, host_namespace}) if namespaces else [None]
        self._cache = Cache(host_namespace)
        self._server = ServerState()
        self._results = Results(self._cache, self._server)
        self._reconciler = Reconciler(client, OWNER)
        self._syncer = Syncer(kube, client, self._reconciler, self._cache, self._server, self._results)
        self._writer = StatusWriter(kube, clock, self._on_answer, times.write)
        self._objects = Workers(self._sync, times.retry, times.max_retry, CONCURRENCY)
        self._chores = Workers(self._run_chore, times.retry, times.max_retry)
        self._deletions = Workers(self._delete_expired, times.retry, times.max_retry, CONCURRENCY)
        self._secrets = SecretWatches(kube, self._objects.add, times.retry, times.max_retry)
        self._listings = Listings(times.listed)
        self._held_back: defaultdict[Key, set[Key]] = defaultdict(set)  # keys that wait until another key is synced
        self._unreached = 0  # objects in a row
        self._comparing: set[Key] = set()
        self._expired: dict[Key, Object] = {}  # as they were judged
        self._undeletable: dict[Key, str] = {}  # why the API server refused to delete these of them
        self._changed: set[str] = set()
        self._read_at = 0.0
        self.compared = asyncio.Event()

    def on_event(self, body: Object, *, deleted: bool = False, listed: bool = False) -> None:
        """A watch reports an object of a WATCHED kind, or its deletion.

        `listed`: the object comes from a watch's first list.
        """
        key, now = key_of(body), asyncio.get_running_loop().time()
        if not listed:
            self._listings.on_event(key)
        elif self._listings.on_listed(key, now):
            self._compare_soon()
        if listed:
            self._chores.add_after("check the lists", self._times.listed)
        self._take_in(body, deleted=deleted)

    def begin(self) -> None:
        """Watches are starting to list objects."""
        self._listings.begin(asyncio.get_running_loop().time())
        self._chores.add_after("check the lists", self._times.listed)

    @property
    def object_count(self) -> int:
        """The number of followed objects."""
        return len(self._cache.objects)

    @property
    def failing(self) -> int:
        """The number of objects that could not be synced."""
        return self._results.failing

    @property
    def queue_length(self) -> int:
        """The number of objects to sync, now or later."""
        return len(self._objects)

    @property
    def statuses_waiting(self) -> int:
        """The number of statuses that wait to be written."""
        return self._writer.waiting

    @property
    def statuses_written(self) -> int:
        """The number of statuses written so far."""
        return self._writer.writes

    @property
    def busy_since(self) -> float:
        """When the work that has been going on for longest was started; now, where none is."""
        return min(self._objects.busy_since, self._chores.busy_since, self._deletions.busy_since)

    async def run(self) -> None:
        """Follow until cancelled."""
        self._chores.add(["compare", "read secrets"])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._chores.run(), name="compare, and look at the server")
            tasks.create_task(self._objects.run(), name="bring objects to the server")
            tasks.create_task(self._deletions.run(), name="delete what has expired")
            tasks.create_task(self._secrets.run(), name="watch secrets")
            tasks.create_task(self._follow_changes(), name="listen to the server")
            tasks.create_task(self._writer.run(), name="statuses")

    # One object.

    def _on_answer(self, body: Object) -> None:
        """Take in an object as the API server returned it after a write: its watch may report it only later."""
        self._take_in(body)

    def _take_in(self, body: Object, *, deleted: bool = False) -> None:
        keys = self._cache.on_event(body, deleted=deleted)
        self._objects.add(keys)
        if keys or body["kind"] in ONE_SHOT:  # whose end is a change of the status alone
            self._chores.add_after("find expired", EXPIRY_S)

    async def _sync(self, key: Key) -> bool:
        """Sync an object to the server, and update its status. Returns whether it is done."""
        body = self._cache.get(key)
        for named in () if body is None else references(key, body):
            if named in self._objects and not self._reconciler.holds(named):
                self._held_back[named].add(key)  # the server would only refuse it
                return True
        try:
            result = await self._syncer.sync(key)
            if result is not None:
                self._record(key, result)
        finally:
            self._objects.add(self._held_back.pop(key, ()))
        names_any = body is not None and names_secrets(key.kind, body.get("spec"))
        self._secrets.follow(key, secrets_named(body) if body is not None and names_any else ())
        self._update_status(key)
        if key in self._comparing:
            self._comparing.discard(key)
            self._log_compared()
        return result is None or not may_pass(result.error)

    def _record(self, key: Key, result: Result) -> None:
        is_changed = self._results.record(key, result)
        if result.accepted:
            self._objects.add(self._cache.dependents(key))
        elif is_changed:
            for dependent in self._cache.dependents(key):
                self._update_status(dependent)
        self._unreached = self._unreached + 1 if isinstance(result.error, Unreachable) else 0
        if self._unreached >= UNREACHED_LIMIT and self._server.unreachable is None:
            self._unreached = 0
            self._compare_soon()

    def _update_status(self, key: Key) -> None:
        """Pass an object's present status to the writer."""
        body = self._cache.get(key)
        if body is None:
            self._writer.forget(key)
            self._listings.forget(key)
            self._results.forget(key)
            return
        try:
            status = self._results.status(key, body, self._clock())
        except Exception:  # a defect that one object meets stops no other
            log.exception("status not known", extra={key.kind.lower(): str(key)})
            return
        if status is not None:
            self._writer.update_status(key, body, status)

    # Chores.

    async def _run_chore(self, chore: Chore) -> bool:
        """Do a chore, and queue its next time. Returns whether it succeeded; otherwise it is tried again."""
        if chore == "compare":
            return await self._compare()
        if chore == "check the lists":
            self._check_lists()
        elif chore == "find expired":
            self._find_expired()
        elif chore == "read secrets":
            objects = self._cache.objects.items()
            self._objects.add([key for key, body in objects if names_secrets(key.kind, body.get("spec"))])
            self._chores.add_after("read secrets", self._times.secrets)
        else:
            await self._read_statuses()
        return True

    def _find_expired(self) -> None:
        """Have the Runs and Restores deleted that have expired, and look again when the next ones do."""
        now = self._clock()
        keys, next_at = expired(self._cache.objects, now)
        self._expired = {key: self._cache.objects[key] for key in keys}
        # One whose deletion is under way or failed waits for that or for its retry, and one that was refused for the
        # next comparison: any change leads here.
        waits = self._deletions
        waits.add(it for it in keys if not (it in self._undeletable or it in waits or waits.failures(it)))
        if next_at is not None:
            self._chores.add_after("find expired", (next_at - now).total_seconds())

    async def _delete_expired(self, key: Key) -> bool:
        """Delete a Run or a Restore that has expired. Returns whether it is done, or refused."""
        known = self._undeletable.pop(key, None)
        if (body := self._expired.get(key)) is None:
            return True
        metadata = body["metadata"]
        try:
            await self._kube.delete(key.kind, key.namespace, key.name, metadata["uid"], metadata["resourceVersion"])
        except KubeError as error:
            why = str(error)
            if not error.passing:
                self._undeletable[key] = why
            if why != known:
                named = {key.kind.lower(): str(key), "reason": why}
                log.warning("%s has expired and was not deleted", key.kind.lower(), extra=named)
            return not error.passing
        self._expired.pop(key, None)
        log.info("%s has expired: deleted", key.kind.lower(), extra={key.kind.lower(): str(key)})
        self._take_in(body, deleted=True)  # its watch reports it anew if a finalizer keeps it, or if it has changed
        return True

    def _compare_soon(self) -> None:
        """Queue a comparison of everything, unless a failed one is waiting for its retry."""
        if "compare" in self._chores or not self._chores.failures("compare"):
            self._chores.add(["compare"])

    def _check_lists(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._listings.omits(self._cache.objects, now):
            self._compare_soon()
        elif (ends_at := self._listings.ends_at) is not None:
            self._chores.add_after("check the lists", ends_at - now)

    async def _compare(self) -> bool:
        """Read both sides, and queue every object. Returns whether both could be read."""
        try:
            self._cache.begin()
            self._cache.replace([body async for body in self._list_all()])
            held = await self._read_server()
        except ControllerError as error:
            log.warning("not compared, trying again", extra={"reason": str(error)})
            if not isinstance(error, KubeError):
                self._server.mark_unreachable(error)
            self._update_new(error)
            return False
        self._server.mark_reachable()
        names = {*self._server.host_names, *(key.name for key, _ in self._cache.of("Node"))}
        hosts = {Key("Host", self._cache.host_namespace, name) for name in names}
        self._comparing = {*self._cache.objects, *held, *hosts}
        self._objects.add(
            sorted(self._comparing, key=lambda key: WATCHED.index(key.kind))
        )  # objects that others refer to come first
        self._note_changes({*PLURALS.values(), "hosts"})
        self._chores.add(["find expired"])
        self._deletions.add(self._undeletable)
        self._chores.add_after("compare", self._times.full)
        self._log_compared()
        self.compared.set()
        return True

    async def _read_server(self) -> Collection[Key]:
        """Read the server's state. Returns the keys of its Schedules, Repositories and Alerts."""
        objects = self._cache.objects
        uids = {objects[key]["metadata"]["uid"] for key in self._cache.active()}
        one_shot = self._server.one_shot
        one_shot.begin()
        one_shot.replace((), lambda uid: uid not in uids)
        await self._read_hosts()
        return await self._reconciler.refresh()

    def _log_compared(self) -> None:
        if not self._comparing:
            log.info("compared", extra={"objects": len(self._cache.objects)})

    def _update_new(self, error: ControllerError) -> None:
        """Update the statuses of objects that the server has not answered yet with this error."""
        for kind in PLURALS:
            for key, body in self._cache.of(kind):
                if self._results.is_new(key, body):
                    self._results.mark_unreached(key, error)
                    self._update_status(key)

    async def _list_all(self) -> AsyncIterator[Object]:
        for kind in WATCHED:
            for namespace in [None] if kind == "Node" else self._namespaces:
                async for body in self._kube.list(kind, namespace):
                    # Lists leave out these two fields.
                    yield {"apiVersion": "lamplighter.dev/v1alpha1", "kind": kind, **body}

    # The server's answers.

    async def _follow_changes(self) -> None:
        """Read the server's answers whenever they change. After a loss of the stream, compare everything."""
        retry_s = self._times.retry
        was_lost = False
        while True:
            try:
                async for changed in self._client.changes():
                    if was_lost:  # the server may have another state now
                        self._chores.add(["compare"])
                    was_lost = False
                    self._note_changes(changed)
                    retry_s = self._times.retry
            except (Unreachable, Refused) as error:
                log.warning("server's changes not received, trying again", extra={"reason": str(error)})
            was_lost = True
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, self._times.max_retry)

    def _note_changes(self, changed: Iterable[str]) -> None:
        self._changed |= set(changed)
        self._chores.add_after("read statuses", self._read_at - asyncio.get_running_loop().time())

    async def _read_statuses(self) -> None:
        """Read the server's answers that changed, and update the statuses."""
        now = asyncio.get_running_loop().time
        started = now()
        if started < self._read_at:  # something changed while the last answers were read
            return self._note_changes(())
        changed, self._changed = self._changed, set()
        if "runs" in changed:
            self._objects.add(self._cache.active())
        try:
            for kind in (kind for kind, plural in PLURALS.items() if plural in changed):
                await self._read_resources(kind)
                self._update_statuses(kind)
            if "hosts" in changed:
                await self._read_hosts()
                self._update_statuses("Host")
        except ControllerError as error:
            log.warning("server's answers not read, trying again", extra={"reason": str(error)})
            self._changed |= changed
        self._read_at = now() + max(self._times.statuses, min(PAUSE_RATIO * (now() - started), MAX_PAUSE_S))
        return self._note_changes(()) if self._changed else None

    async def _read_resources(self, kind: str) -> None:
        resources = self._server.resources
        resources.begin()
        found = [(key_of(it), it) async for it in self._client.resources(PLURALS[kind])]
        resources.replace(found, lambda key: key.kind == kind)

    async def _read_hosts(self) -> None:
        hosts = self._server.hosts
        hosts.begin()
        hosts.replace([(it["name"], it) async for it in self._client.resources("hosts")])

    def _update_statuses(self, kind: str) -> None:
        for key, _ in self._cache.of(kind):
            self._update_status(key)
