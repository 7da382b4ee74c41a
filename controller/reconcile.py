"""Makes the server's resources equal to the declared ones: `plan` finds the differences, `apply` corrects them.

Declared specs leave out defaults, and the server's specs have them, so comparing the two needs the schema. Instead, the
Reconciler remembers each resource as it was last applied, and the server's answer: while neither has changed, there is
nothing to do. It remembers nothing across restarts. After one, it puts everything, and the server does not store a PUT
that changes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from controller.client import Client, ControllerError, Object, Refused, Unreachable
from controller.resources import FOLDER_PLURALS, PLURALS, Key, Resource

OWNER_LABEL = "app.kubernetes.io/managed-by"
"""The label with a resource's owner. A controller changes only its own resources."""
CONCURRENCY = 8
"""The most requests at once."""

MACHINE_PREFIX = "kubernetes.io/"
"""The prefix of labels that describe a host's machine. They stay when a Host is declared without them."""


class Observed(NamedTuple):
    """A resource as the server has it. `generation`: counts its changes, also of its credentials."""

    generation: int
    labels: Mapping[str, str]
    spec: Mapping[str, Any]


class Declared(NamedTuple):
    """The declared resources.

    - `held`: resources whose declaration cannot be read for now; the server's are left as they are.
    - `complete`: whether all declared resources are known; otherwise nothing is deleted.
    - `may_delete_most`: whether more than half of the owner's resources at the server may be deleted at once; otherwise
      none of them is.
    """

    resources: Mapping[Key, Resource]
    held: Collection[Key] = ()
    complete: bool = True
    may_delete_most: bool = True


class Withheld(ControllerError):  # noqa: N818 - a state of affairs
    """A resource is no longer declared, but was not deleted. `owned`: the number of the owner's resources at the
    server."""

    def __init__(self, owned: int) -> None:
        super().__init__(
            "no longer declared, like most of this controller's resources: not deleted until that is confirmed"
        )
        self.owned = owned


class LastApplied(NamedTuple):
    """A resource as it was last applied, and the server's answer."""

    resource: Resource
    observed: Observed


class Put(NamedTuple):
    """Create or replace a resource."""

    key: Key
    resource: Resource


class Delete(NamedTuple):
    """Delete a resource that is no longer declared."""

    key: Key


Change = Put | Delete


class Outcome(NamedTuple):
    """The result of a change: the server's answer, or its error. `was`: what the server had before."""

    change: Change
    was: Observed | None
    answer: Object | None = None
    error: ControllerError | None = None


def plan(
    declared: Declared, observed: Mapping[Key, Observed], last_applied: Mapping[Key, LastApplied], owner: str
) -> list[Change]:
    """The changes that make `observed` equal to what is declared. What others refer to is put first and deleted last.

    Only resources of `owner` are changed or deleted.
    """
    puts = []
    for key, resource in declared.resources.items():
        seen = observed.get(key)
        if (
            may_change(key, owner, seen)
            and (seen is None or last_applied.get(key) != LastApplied(resource, seen))
            and not _equals(seen, resource, owner)
        ):
            puts.append(Put(key, resource))
    orphans = (
        [] if withheld(declared, observed, owner) else [Delete(key) for key in _orphans(declared, observed, owner)]
    )
    order = list(FOLDER_PLURALS)
    puts.sort(key=lambda put: (order.index(put.key.kind), put.key))
    orphans.sort(key=lambda delete: (-order.index(delete.key.kind), delete.key))
    return [*puts, *orphans]


def withheld(declared: Declared, observed: Mapping[Key, Observed], owner: str) -> list[Outcome]:
    """The deletions that are withheld: more than half of the owner's resources, so that it may be a mistake."""
    orphans, owned = _orphans(declared, observed, owner), sum(owns(owner, it) for it in observed.values())
    if declared.may_delete_most or 2 * len(orphans) <= owned:
        return []
    return [Outcome(Delete(key), observed[key], error=Withheld(owned)) for key in orphans]


def _orphans(declared: Declared, observed: Mapping[Key, Observed], owner: str) -> list[Key]:
    """The owner's resources at the server that are no longer declared."""
    kept = declared.resources.keys() | set(declared.held)
    return [key for key, it in observed.items() if declared.complete and key not in kept and owns(owner, it)]


def owns(owner: str, observed: Observed | None) -> bool:
    """Whether a resource is the owner's, or does not exist yet. "" owns what has no owner."""
    return observed is None or observed.labels.get(OWNER_LABEL, "") == owner


def may_change(key: Key, owner: str, observed: Observed | None) -> bool:
    """Whether the owner may change a resource: its own, or a Host without an owner."""
    return owns(owner, observed) or (key.kind == "Host" and observed is not None and OWNER_LABEL not in observed.labels)


def _equals(observed: Observed | None, resource: Resource, owner: str) -> bool:
    """Whether the server's spec and labels equal the declared ones, as in a cluster, where Kubernetes fills in
    defaults."""
    if observed is None or resource.credentials is not None:  # the server does not return credentials
        return False
    return (observed.spec, observed.labels) == (resource.spec, _labels(resource, owner))


def manifest(change: Put, owner: str) -> Object:
    """The body of the PUT that makes a resource `owner`'s."""
    metadata = {**change.resource.metadata, "labels": _labels(change.resource, owner)}
    metadata.pop("resourceVersion", None)  # it is the cluster's or the file's, not the server's
    body = {"kind": change.key.kind, "metadata": metadata}
    credentials = change.resource.credentials
    return {**body, "spec": change.resource.spec, **({} if credentials is None else {"credentials": credentials})}


def _labels(resource: Resource, owner: str) -> Any:
    """A resource's labels, with the owner's added. Invalid labels stay as they are, and the server reports them."""
    labels = resource.metadata.get("labels") or {}
    return {**labels, OWNER_LABEL: owner} if owner and isinstance(labels, dict) else labels


def host_labels(resource: Resource, was: Observed | None, owner: str) -> Any:
    """The labels of a PUT that makes a Host `owner`'s: those that describe its machine stay. `was`: the Host before."""
    machine = {key: it for key, it in (was.labels if was else {}).items() if key.startswith(MACHINE_PREFIX)}
    labels = _labels(resource, owner)
    return machine | labels if isinstance(labels, dict) else labels


def observe(answer: Object) -> Observed:
    """A resource in an answer of the server. A host has no metadata."""
    if "metadata" not in answer:
        return Observed(0, answer["labels"], answer.get("spec", {}))
    metadata = answer["metadata"]
    return Observed(metadata["generation"], metadata["labels"], answer["spec"])


class Reconciler:
    """Makes a server's resources equal to the declared ones.

    `owner`: the value of OWNER_LABEL on its resources. `plurals`: the kinds that it compares.
    """

    def __init__(self, client: Client, owner: str, plurals: Mapping[str, str] = PLURALS) -> None:
        self._client = client
        self._plurals = plurals
        self._owner = owner
        self._last_applied: dict[Key, LastApplied] = {}
        self._observed: dict[Key, Observed] = {}

    async def reconcile(self, declared: Declared) -> list[Outcome]:
        """Compare everything and correct the differences. Returns the outcomes of all changes.

        If the server becomes unreachable, the last outcomes say so, and the other changes wait for the next call.
        Raises Unreachable and Refused if the server's resources cannot be read.
        """
        await self.refresh()
        return await self._converge(declared, self._observed)

    async def refresh(self) -> Collection[Key]:
        """Read the server's resources again. Returns their keys. Raises Unreachable and Refused."""
        self._observed = {key: seen async for key, seen in self._observe()}
        return self._observed.keys()

    async def refresh_key(self, key: Key) -> Object | None:
        """Read one of the server's resources again, and forget what was last applied to it.

        Returns it; None if the server does not have it. Raises Unreachable and Refused.
        """
        answer = await self._client.get(self._plurals[key.kind], key.namespace, key.name)
        self._last_applied.pop(key, None)
        self._observed.pop(key, None)
        if answer is not None:
            self._observed[key] = observe(answer)
        return answer

    def holds(self, key: Key) -> bool:
        """Whether the server has a resource, by its last answer."""
        return key in self._observed

    async def reconcile_keys(self, declared: Declared, keys: Collection[Key]) -> list[Outcome]:
        """Like `reconcile`, for a few resources, and with the server's last answers in place of reading it again."""
        return await self._converge(declared, {key: self._observed[key] for key in keys if key in self._observed})

    async def _converge(self, declared: Declared, observed: Mapping[Key, Observed]) -> list[Outcome]:
        changes = plan(declared, observed, self._last_applied, self._owner)
        outcomes = await apply(changes, observed, self._client, self._owner)
        for change, _, answer, error in outcomes:
            self._last_applied.pop(change.key, None)
            if isinstance(change, Put) and answer is not None:
                self._observed[change.key] = seen = observe(answer)
                self._last_applied[change.key] = LastApplied(change.resource, seen)
            elif isinstance(change, Delete) and error is None:
                self._observed.pop(change.key, None)
        left_alone = [*foreign(declared, observed, self._owner), *withheld(declared, observed, self._owner)]
        return [*outcomes, *left_alone]

    async def _observe(self) -> AsyncIterator[tuple[Key, Observed]]:
        for kind, plural in self._plurals.items():
            async for item in self._client.resources(plural):
                named = item.get("metadata", item)
                yield Key(kind, named.get("namespace", ""), named["name"]), observe(item)


def foreign(declared: Declared, observed: Mapping[Key, Observed], owner: str) -> list[Outcome]:
    """Refusals of declared resources whose name another owner uses at the server."""
    detail = f"exists at the server with another owner (label {OWNER_LABEL}): delete it there, or rename this one"
    return [
        Outcome(Put(key, resource), observed[key], error=Refused(409, detail))
        for key, resource in declared.resources.items()
        if not may_change(key, owner, observed.get(key))
    ]


async def apply(
    changes: Iterable[Change], observed: Mapping[Key, Observed], client: Client, owner: str
) -> list[Outcome]:
    """Make changes, up to CONCURRENCY at once, one kind after the other. Ends early if the server is unreachable."""
    outcomes: list[Outcome] = []

    async def work(queue: Iterator[Change]) -> None:
        for change in queue:
            outcome = await _make(change, observed.get(change.key), client, owner)
            outcomes.append(outcome)
            if isinstance(outcome.error, Unreachable):
                return

    for _, stage in groupby(changes, key=lambda change: (type(change), change.key.kind)):
        together = list(stage)
        queue = iter(together)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(CONCURRENCY, len(together))):
                tasks.create_task(work(queue))
        if any(isinstance(outcome.error, Unreachable) for outcome in outcomes):
            break
    return outcomes


async def _make(change: Change, was: Observed | None, client: Client, owner: str) -> Outcome:
    plural = FOLDER_PLURALS[change.key.kind]
    try:
        if change.key.kind == "Host":
            return await _make_host(change, was, client, owner)
        if isinstance(change, Put):
            body = manifest(change, owner)
            return Outcome(change, was, await client.put(plural, change.key.namespace, change.key.name, body))
        await client.delete(plural, change.key.namespace, change.key.name)
        return Outcome(change, was)
    except ControllerError as error:
        return Outcome(change, was, error=error)


async def _make_host(change: Change, was: Observed | None, client: Client, owner: str) -> Outcome:
    if isinstance(change, Delete):
        await client.delete_host(change.key.name)
        return Outcome(change, was)
    labels, spec = host_labels(change.resource, was, owner), change.resource.spec or {}
    return Outcome(change, was, await client.put_host(change.key.name, labels, spec))
