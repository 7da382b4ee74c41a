"""Makes the server equal to one object as it is declared now, whatever happened before (level-triggered)."""

import logging
from collections.abc import Awaitable

from controller.client import Client, ControllerError
from controller.cluster.cache import ONE_SHOT, Cache, is_active, resource_of
from controller.cluster.conditions import NotFoundError
from controller.cluster.credentials import newline_note, read_credentials
from controller.cluster.kube import Kube, Object
from controller.cluster.results import Result, Results, version_of
from controller.cluster.server_state import ServerState
from controller.reconcile import Declared, Outcome, Put, Reconciler
from controller.resources import PLURALS, RESUME_REQUESTED, Key, names_secrets

log = logging.getLogger(__name__)


class Syncer:
    """Makes the server equal to objects of the cache, and keeps a Host for each Node of the cluster."""

    def __init__(
        self, kube: Kube, client: Client, reconciler: Reconciler, cache: Cache, server: ServerState, results: Results
    ) -> None:
        self._kube = kube
        self._client = client
        self._reconciler = reconciler
        self._cache = cache
        self._server = server
        self._resources, self._hosts, self._one_shot = server.resources, server.hosts, server.one_shot
        self._results = results

    async def sync(self, key: Key) -> Result | None:
        """Create, change or delete an object at the server. Returns None if there is no result to report.

        Where a look was requested, the server's state is read again, whatever is known of it. A paused Schedule of
        which that was requested goes on once it is as declared.
        """
        body = self._cache.get(key)
        look = None if body is None else self._results.open_request(key, body)
        result = await self._sync(key, body, again=look is not None)
        result = result and result._replace(done=[] if look is None else [look])
        resume = None if body is None else self._results.open_request(key, body, RESUME_REQUESTED)
        if resume is None or result is None or result.error is not None:
            return result  # what it was before is what failed
        error = await _error_of(self._resume(key))
        return result._replace(done=[*result.done, resume]) if error is None else result._replace(error=error)

    async def _resume(self, key: Key) -> None:
        """Have a Schedule go on, if the server has it and it is paused."""
        if (answer := await self._client.resume(key.namespace, key.name)) is not None:
            self._resources.put(key, answer)

    async def _sync(self, key: Key, body: Object | None, *, again: bool) -> Result | None:
        if key.kind in PLURALS:
            return await self._sync_resource(key, body, again=again)
        if key.kind == "Host":
            return await self._sync_host(key, again=again)
        if key.kind in ONE_SHOT and body is not None and is_active(body):
            return Result(await _error_of(self._sync_one_shot(key, body)), version_of(body))
        return Result() if again else None  # it has ended: what the server says of it is final

    async def _sync_resource(self, key: Key, body: Object | None, *, again: bool) -> Result | None:
        """Sync a Schedule, a Repository or an Alert. One whose Secrets are missing stays as it is at the server."""
        if self._server.unreachable is not None:
            is_new = body is not None and self._results.is_new(key, body)
            return Result(self._server.unreachable) if is_new else None  # the next comparison syncs all others
        if body is None:
            return self._result(key, await self._reconciler.reconcile_keys(Declared({}), [key]), Result())
        try:
            if again:
                self._resources.put(key, await self._reconciler.refresh_key(key))
            credentials = (
                await read_credentials(self._kube, key, body) if names_secrets(key.kind, body.get("spec")) else None
            )
        except ControllerError as error:
            return Result(error)
        outcomes = await self._reconciler.reconcile_keys(Declared({key: resource_of(body, credentials)}), [key])
        return self._result(key, outcomes, Result(synced=version_of(body), note=newline_note(credentials)))

    def _result(self, key: Key, outcomes: list[Outcome], well: Result) -> Result:
        """The result of a change; `well` if nothing had to be changed."""
        if not outcomes:
            return well
        (outcome,) = outcomes
        if outcome.error is not None:
            return well._replace(error=outcome.error)
        self._resources.put(key, outcome.answer)
        is_accepted = isinstance(outcome.change, Put) and outcome.was is None
        if is_accepted:
            log.info("%s accepted", key.kind.lower(), extra={key.kind.lower(): str(key)})
        return well._replace(accepted=is_accepted)

    async def _sync_host(self, key: Key, *, again: bool) -> Result:
        """Keep the node's Host in the cluster, and sync the Host to the server. The first error is in the result."""
        if key.namespace != self._cache.host_namespace:
            there = f"Hosts count only in namespace {self._cache.host_namespace}: create it there"
            return Result(NotFoundError("WrongNamespace", there))
        not_kept = await _error_of(self._keep_node_host(key))
        body = self._cache.get(key)
        not_put = await _error_of(self._put_host(key, body, again=again))
        return Result(not_kept or not_put, None if body is None else version_of(body))

    async def _keep_node_host(self, key: Key) -> None:
        """Create or update the Host of a node, with the node's labels; delete it if the node was deleted."""
        wanted, host = self._cache.node_host(key.name), self._cache.get(key)
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

    async def _put_host(self, key: Key, body: Object | None, *, again: bool) -> None:
        if body is None:
            self._server.check_reachable()
            await self._client.delete_host(key.name)
            self._hosts.put(key.name, None)
            return
        labels = body["metadata"].get("labels") or {}
        given = (body.get("spec") or {}).items()
        spec = {name: value for name, value in given if name != "nodeName" and value is not False}  # which is a default
        seen = self._hosts.get(key.name)
        if again or seen is None or (seen["labels"], seen.get("spec", {})) != (labels, spec):
            self._server.check_reachable()
            self._hosts.put(key.name, await self._client.put_host(key.name, labels, spec))

    async def _sync_one_shot(self, key: Key, body: Object) -> None:
        """Request a Run or a Restore, or read its progress. The server carries it out once, by the object's uid."""
        self._server.check_reachable()
        uid, spec = body["metadata"]["uid"], body["spec"]
        is_known = self._one_shot.get(uid) is not None
        if key.kind == "Restore" and is_known:
            answer = await self._client.restore_job(key.namespace, uid)
        elif key.kind == "Restore":
            answer = await self._client.restore(key.namespace, uid, spec)
        elif is_known:
            answer = await self._client.run_status(key.namespace, uid)
        else:
            schedule, selector = spec["scheduleRef"]["name"], spec.get("hostSelector") or {}
            answer = await self._client.run(key.namespace, schedule, uid, selector)
        self._one_shot.put(uid, answer)


async def _error_of(work: Awaitable[None]) -> ControllerError | None:
    """Await something. Returns its ControllerError; None if it succeeded."""
    try:
        await work
    except ControllerError as error:
        return error
    return None
