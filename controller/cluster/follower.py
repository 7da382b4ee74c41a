"""A server made to follow a cluster, and the cluster told what came of it.

Level-triggered: an event only says what to look at, and what is done follows from what is there. Events bring things up
to date quickly; a full comparison, from time to time, finds what was missed, lost or orphaned on either side. The
server's news says when to look at it again; what it then says becomes the statuses.
"""

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from controller.client import Client, ControllerError, Refused, Unreachable
from controller.cluster import watching
from controller.cluster.cache import (
    ONCE,
    WATCHED,
    Cache,
    credentials_of,
    is_active,
    key_of,
    newline_note,
    refers_to,
    resource_of,
    secrets_named,
)
from controller.cluster.kube import Kube, KubeError, Object
from controller.cluster.status import (
    NotFoundError,
    Status,
    Told,
    host_status,
    reason,
    repository_status,
    restore_status,
    run_status,
    schedule_status,
)
from controller.cluster.status_writer import INTERVAL_S, StatusWriter
from controller.reconcile import Declared, Outcome, Put, Reconciler
from controller.resources import PLURALS, Key, Resource, repository_urls

log = logging.getLogger(__name__)

OWNER = "lamplighter-controller"
WAITS = ("HostNotFound", "RepositoryNotFound", "ScheduleNotFound", "SecretNotFound", "SecretKeyNotFound", "Conflict")
"""Reasons that are over once something else is there, or is gone, which may well be on its way."""
LOOK_RATIO, MOST_LOOK_S = 10, 20.0
"""How many times as long as a look at the server the pause after it is at least, and what it need not be longer than:
a look that was slow once must not hide for long how things stand."""
CONCURRENCY = 8
"""Requests for Secrets, Hosts, Runs and Restores under way at once."""


class Times(NamedTuple):
    """Seconds between one and the next.

    `full`: comparisons of everything. `secrets`: looks at the Secrets that Repositories name, for the cluster does not
    tell when they change. `look`: looks at the server, at least, however much news it has. `retry`, `most_retry`:
    attempts at what failed, the first ones and at most. `listed`: an object that a watch lists and the end of its list.
    `write`: writes of one object's status. `watch`: those of the watches.
    """

    full: float = 300.0
    secrets: float = 60.0
    look: float = 2.0
    retry: float = 0.5
    most_retry: float = 30.0
    listed: float = 2.0
    write: float = INTERVAL_S
    watch: watching.Times = watching.TIMES


TIMES = Times()


class Version(NamedTuple):
    """Which object, and which generation of it."""

    uid: str
    generation: int


class Cluster:
    """Brings one cluster's resources to one server, and statuses back. Feed it with `on_event`; `run` it.

    `namespaces`: those whose resources count; none for all.
    """

    def __init__(
        self,
        kube: Kube,
        client: Client,
        host_namespace: str,
        clock: Callable[[], datetime],
        namespaces: Collection[str] = (),
        times: Times = TIMES,
    ) -> None:
        self.writer = StatusWriter(kube, clock, times.write)
        self._times = times
        self._kube = kube
        self._client = client
        self._clock = clock
        self._cache = Cache(host_namespace)
        self._namespaces = sorted({*namespaces, host_namespace}) if namespaces else [None]
        self._reconciler = Reconciler(client, OWNER)
        self._errors: dict[Key, ControllerError] = {}
        self._notes: dict[Key, str] = {}  # what there is to say of a Repository's Secrets
        self._answered: dict[Key, Version] = {}  # what the server has last answered
        self._resources: dict[Key, Object] = {}  # as the server has them
        self._hosts: dict[str, Object] = {}
        self._once: dict[str, Object] = {}
        self._dirty: set[Key] = set()
        self._again: set[Key] = set()
        self._news: set[str] = set()
        self._missed = True
        self._listed: set[Key] = set()
        self._listed_at: float | None = None  # when there is something to be checked after a listing
        self._retry_s, self._again_at = times.retry, 0.0
        self._unsaid: set[Key] = set()  # what fails for the first time, and may be well in a moment
        self._woken = asyncio.Event()
        self.compared = asyncio.Event()
        self.turned_at = asyncio.get_running_loop().time()  # when it last came round, whatever it then found

    def on_event(self, body: Object, *, deleted: bool = False, listed: bool = False) -> None:
        """An object of a WATCHED kind is there as it is now, or is no more.

        `listed`: a watch has begun, and lists what is there. What was deleted before goes unsaid: where it is not the
        first one, or leaves out what was there, everything is compared.
        """
        key = key_of(body)
        if listed:
            self._missed |= key in self._listed
            self.begin()
        self._listed.add(key)
        self._dirty |= self._cache.on_event(body, deleted=deleted)
        self._woken.set()

    def begin(self) -> None:
        """Watches are beginning to list what is there."""
        self._listed_at = asyncio.get_running_loop().time() + self._times.listed
        self._woken.set()

    @property
    def settled(self) -> bool:
        """Whether all that was seen is done and told."""
        return not (self._dirty or self._again or self._news) and self.writer.settled

    @property
    def object_count(self) -> int:
        """Objects that are followed."""
        return len(self._cache.objects)

    @property
    def failing(self) -> int:
        """Objects that could not be brought to the server."""
        return len(self._errors)

    @property
    def queue_length(self) -> int:
        """Objects that are to be looked at, now or again."""
        return len(self._dirty | self._again)

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow the cluster")
            tasks.create_task(self._listen(), name="listen to the server")
            tasks.create_task(self.writer.run(), name="statuses")

    # The loop.

    async def _follow(self) -> None:
        now = asyncio.get_running_loop().time
        full_at = secrets_at = look_at = 0.0
        while True:
            self._woken.clear()
            self.turned_at = now()
            if now() >= self._again_at:
                self._dirty, self._again = self._dirty | self._again, set()
            if now() >= secrets_at:
                secrets_at = now() + self._times.secrets
                self._dirty |= {key for key, _ in self._cache.of("Repository")}
            if self._listed_at is not None and now() >= self._listed_at:
                self._missed |= not self._cache.objects.keys() <= self._listed
                self._listed_at = None
            if now() >= full_at or (self._missed and now() >= self._again_at):
                self._missed = False
                self._missed |= not await self._compare_all()  # more may be missed meanwhile
                full_at = now() + self._times.full
            keys, self._dirty = self._dirty, set()
            await self._bring(keys)
            if self._news and now() >= look_at:
                begun = now()
                await self._look()
                look_at = now() + max(self._times.look, min(LOOK_RATIO * (now() - begun), MOST_LOOK_S))
            if not (failing := self._missed or bool(self._again)):
                self._retry_s = self._times.retry
            elif now() >= self._again_at:
                self._again_at, self._retry_s = now() + self._retry_s, min(2 * self._retry_s, self._times.most_retry)
            times = [full_at, secrets_at, *([look_at] if self._news else []), *([self._again_at] if failing else [])]
            times += [] if self._listed_at is None else [self._listed_at]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(times)):
                    await self._woken.wait()

    async def _listen(self) -> None:
        """Have the server looked at whenever it has news; after each loss of the stream, for all that was missed."""
        retry_s = self._times.retry
        was_lost = False
        while True:
            try:
                async for changed in self._client.news():
                    self._missed |= was_lost  # the server that is back may hold something else
                    was_lost = False
                    self._news |= set(changed)
                    self._woken.set()
                    retry_s = self._times.retry
            except (Unreachable, Refused) as error:
                log.warning("server's news not heard, trying again", extra={"reason": str(error)})
            was_lost = True
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, self._times.most_retry)

    async def _compare_all(self) -> bool:
        """Read everything on both sides anew, and put right what differs. Whether that could be done."""
        try:
            self._cache.begin()
            self._cache.replace([body async for body in self._all_objects()])
            self._hosts = {item["name"]: item async for item in self._client.resources("hosts")}
            declared, versions = await self._declare(key for key in self._cache.objects if key.kind in PLURALS)
            outcomes = await self._reconciler.reconcile(declared)
        except ControllerError as error:
            log.warning("not compared, trying again", extra={"reason": str(error)})
            self._tell_new(error)
            return False
        self._take(declared, outcomes, (), versions)
        uids = {self._cache.objects[key]["metadata"]["uid"] for key in self._cache.active()}
        self._once = {uid: run for uid, run in self._once.items() if uid in uids}
        names = {*self._hosts, *(key.name for key, _ in self._cache.of("Node"))}
        self._dirty |= {Key("Host", self._cache.host_namespace, name) for name in names}
        self._dirty |= {key for key in self._cache.objects if key.kind in ("Host", *ONCE)}
        self._news |= {"schedules", "repositories", "hosts"}
        for key in declared.resources:
            self._tell(key)
        log.info("compared", extra={"objects": len(self._cache.objects), "changes": len(outcomes)})
        self.compared.set()
        return not any(isinstance(outcome.error, Unreachable) for outcome in outcomes)

    def _tell_new(self, error: ControllerError) -> None:
        """Say of what the server has yet to take why it has not."""
        for key, body in list(self._cache.objects.items()):
            is_new = (body.get("status") or {}).get("observedGeneration") != _version(body).generation
            if key.kind in PLURALS and is_new:
                self._errors[key] = error
                self._tell(key)

    async def _all_objects(self) -> AsyncIterator[Object]:
        for kind in WATCHED:
            for namespace in [None] if kind == "Node" else self._namespaces:
                async for body in self._kube.list(kind, namespace):
                    yield {"apiVersion": "lamplighter.dev/v1alpha1", "kind": kind, **body}  # lists leave them out

    # What was seen to change.

    async def _bring(self, keys: Collection[Key]) -> None:
        """Bring what these keys name to the server, in the order in which things depend on each other."""
        if not keys:
            return
        await _each((key for key in keys if key.kind == "Host"), self._bring_host)
        resources = {key for key in keys if key.kind in PLURALS}
        declared, versions = await self._declare(resources)
        self._take(declared, await self._reconciler.touch(declared, resources), resources, versions)
        await _each((key for key in keys if key.kind in ONCE), self._bring_once)
        for key in keys:
            self._tell(key)

    async def _declare(self, keys: Iterable[Key]) -> tuple[Declared, Mapping[Key, Version]]:
        """What is declared of these resources, and in which versions.

        One whose Secrets are missing is left as it is at the server.
        """
        resources: dict[Key, Resource] = {}
        versions: dict[Key, Version] = {}
        held: list[Key] = []

        async def declare(key: Key) -> None:
            body = self._cache.objects.get(key)
            if body is None:
                return
            try:
                credentials = await self._credentials(key, body) if key.kind == "Repository" else None
            except ControllerError as error:
                self._settle(key, error)
                held.append(key)
            else:
                self._notes[key] = newline_note(credentials)
                resources[key], versions[key] = resource_of(body, credentials), _version(body)

        await _each(keys, declare)
        return Declared(resources, held), versions

    async def _credentials(self, key: Key, body: Object) -> dict[str, Any] | None:
        secrets: dict[str, dict[str, bytes]] = {}
        urls: dict[str, list[str]] = {}
        for name in secrets_named(body):
            try:
                secret = await self._kube.get("Secret", key.namespace, name)
            except KubeError as error:
                if error.passing:
                    raise
                raise NotFoundError("SecretForbidden", f"Secret {name} cannot be read: {error}") from None
            if secret is not None:
                secrets[name] = {it: base64.b64decode(value) for it, value in (secret.get("data") or {}).items()}
                if (bound := repository_urls(secret["metadata"])) is not None:
                    urls[name] = bound
        return credentials_of(body, secrets, urls)

    def _take(
        self,
        declared: Declared,
        outcomes: Collection[Outcome],
        keys: Collection[Key],
        versions: Mapping[Key, Version],
    ) -> None:
        """Remember what came of changes, and what has to be tried again; where nothing had to be done, all is well."""
        rest = {*keys, *declared.resources} - {outcome.change.key for outcome in outcomes} - set(declared.held)
        if any(isinstance(outcome.error, Unreachable) for outcome in outcomes):
            self._again |= rest
        else:
            for key in rest:
                self._settle(key, None, versions.get(key))
        for outcome in outcomes:
            key = outcome.change.key
            self._settle(key, outcome.error, versions.get(key))
            if outcome.answer is not None:
                self._resources[key] = outcome.answer
            elif outcome.error is None:
                self._resources.pop(key, None)
            if isinstance(outcome.change, Put) and outcome.answer is not None and outcome.was is None:
                log.info("%s accepted", key.kind.lower(), extra={key.kind.lower(): str(key)})
                self._dirty |= set(self._cache.dependents(key))

    async def _keep_node_host(self, key: Key) -> None:
        """Have a Host for a node, with its labels, and none for a node that is gone."""
        wanted, host = self._cache.node_host(key.name), self._cache.objects.get(key)
        if wanted is None:
            if host is not None and (host.get("spec") or {}).get("nodeName"):
                await self._kube.delete("Host", key.namespace, key.name, host["metadata"]["uid"])
                self._cache.on_event(host, deleted=True)
        elif host is None:
            self._cache.on_event(await self._kube.create("Host", wanted))
        elif (has := host["metadata"].get("labels") or {}) != (due := wanted["metadata"]["labels"]):
            labels = {**dict.fromkeys(has.keys() - due.keys()), **due}
            changed = await self._kube.patch("Host", key.namespace, key.name, {"metadata": {"labels": labels}})
            if changed is not None:
                self._cache.on_event(changed)

    async def _bring_host(self, key: Key) -> None:
        """Keep a node's Host, and bring it and others to the server; what went wrong with either is told."""
        if key.namespace != self._cache.host_namespace:
            there = f"Hosts count in namespace {self._cache.host_namespace} only: create it there"
            return self._settle(key, NotFoundError("WrongNamespace", there))
        not_kept = await _error_of(self._keep_node_host(key))
        body = self._cache.objects.get(key)
        not_put = await _error_of(self._put_host(key, body))
        return self._settle(key, not_kept or not_put, None if body is None else _version(body))

    async def _put_host(self, key: Key, body: Object | None) -> None:
        if body is None:
            await self._client.delete_host(key.name)
            self._hosts.pop(key.name, None)
            return
        labels = body["metadata"].get("labels") or {}
        seen = self._hosts.get(key.name)
        if seen is None or seen["labels"] != labels:
            self._hosts[key.name] = await self._client.put_host(key.name, labels)

    async def _bring_once(self, key: Key) -> None:
        body = self._cache.objects.get(key)
        if body is not None and is_active(body):
            await self._trying(key, self._do_once(key, body), body)

    async def _do_once(self, key: Key, body: Object) -> None:
        """Ask for it, which the server knows by its uid and so does once, and how far it is."""
        uid, spec = body["metadata"]["uid"], body["spec"]
        if key.kind == "Restore":
            known = uid in self._once
            ask = (
                self._client.restore_job(key.namespace, uid)
                if known
                else self._client.restore(key.namespace, uid, spec)
            )
            self._once[uid] = await ask
        elif uid in self._once:
            self._once[uid] = await self._client.run_status(key.namespace, uid)
        else:
            schedule, selector = spec["scheduleRef"]["name"], spec.get("hostSelector") or {}
            self._once[uid] = await self._client.run(key.namespace, schedule, uid, selector)

    # What the server says.

    async def _look(self) -> None:
        """Read anew what the server has news of, and tell it as statuses."""
        news, self._news = self._news, set()
        try:
            for kind in (kind for kind, plural in PLURALS.items() if plural in news):
                found = [it async for it in self._client.resources(PLURALS[kind])]
                others = {key: it for key, it in self._resources.items() if key.kind != kind}
                self._resources = others | {key_of(it): it for it in found}
                for key, _ in self._cache.of(kind):
                    self._tell(key)
            if "hosts" in news:
                self._hosts = {it["name"]: it async for it in self._client.resources("hosts")}
                for key, _ in self._cache.of("Host"):
                    self._tell(key)
        except ControllerError as error:
            log.warning("server not looked at, trying again", extra={"reason": str(error)})
            self._news |= news
        if "runs" in news:
            self._dirty |= set(self._cache.active())

    def _tell(self, key: Key) -> None:
        """Have an object's status say what is known of it."""
        body = self._cache.objects.get(key)
        if body is None:
            self.writer.forget(key)
            self._listed.discard(key)
            self._answered.pop(key, None)
            self._notes.pop(key, None)
            if key not in self._again:
                self._errors.pop(key, None)
            return
        if key in self._unsaid:
            return
        if (status := self._status(key, body)) is not None:
            self.writer.update_status(key, body, status)

    def _status(self, key: Key, body: Object) -> Status | None:
        """What an object's status should be, None where there is nothing to say yet, or any more."""
        old, error, now = body.get("status") or {}, self._why_not(key, body), self._clock()
        uid, answered = _version(body).uid, self._answered.get(key)
        generation = answered.generation if answered is not None and answered.uid == uid else None
        if key.kind in PLURALS:
            seen = self._resources.get(key)
            if error is None and (seen is None or generation is None):
                return None  # the server has yet to answer, or to be looked at
            made = schedule_status if key.kind == "Schedule" else repository_status
            return made(old, Told(generation, error, seen, self._notes.get(key, "")), now)
        if key.kind == "Host":
            return host_status(old, Told(generation, error, self._hosts.get(key.name)), now)
        if key.kind in ONCE and is_active(body):
            once = run_status if key.kind == "Run" else restore_status
            return once(old, Told(generation, error, self._once.get(uid)), now)
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

    # What fails.

    async def _trying(self, key: Key, work: Awaitable[None], body: Object | None) -> None:
        """Do something for a key, and remember why it could not be done. `body`: the object that it brings, if any."""
        self._settle(key, await _error_of(work), None if body is None else _version(body))

    def _settle(self, key: Key, error: ControllerError | None, brought: Version | None = None) -> None:
        """Remember how it went with a key. What may go better without a change here is tried again.

        `brought`: what was brought to the server, which has answered unless the error says otherwise.
        """
        if brought is not None and (error is None or isinstance(error, Refused)):
            self._answered[key] = brought
        if error is None:
            self._errors.pop(key, None)
            self._unsaid.discard(key)
            return
        waits = reason(error) in WAITS
        if waits and key not in self._errors:
            self._unsaid.add(key)
        else:
            self._unsaid.discard(key)
        if str(self._errors.get(key)) != str(error):
            self._retry_s = self._times.retry
            self._again_at = min(self._again_at, asyncio.get_running_loop().time() + self._retry_s)
            level = logging.INFO if waits else logging.WARNING
            log.log(level, "%s not brought", key.kind.lower(), extra={key.kind.lower(): str(key), "reason": str(error)})
        self._errors[key] = error
        if waits or _passes(error):
            self._again.add(key)


async def _error_of(work: Awaitable[None]) -> ControllerError | None:
    """Do something; why it could not be done, None where it could."""
    try:
        await work
    except ControllerError as error:
        return error
    return None


async def _each(keys: Iterable[Key], work: Callable[[Key], Awaitable[None]]) -> None:
    """Do something for each key, a few at a time."""
    queue = iter(list(keys))

    async def worker() -> None:
        for key in queue:
            await work(key)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(worker())


def _version(body: Object) -> Version:
    metadata = body["metadata"]
    return Version(metadata["uid"], metadata.get("generation", 1))


def _passes(error: ControllerError) -> bool:
    """Whether it is over once a server or the network is well."""
    if isinstance(error, Refused):
        return error.status == 401 or error.status >= 500
    return isinstance(error, Unreachable) or (isinstance(error, KubeError) and error.passing)
