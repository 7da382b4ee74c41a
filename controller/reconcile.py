"""Makes what a server holds equal to what is declared: what differs (`plan`), put right (`apply`), again and again.

Declared specs leave defaults out, and those that the server tells have them filled in, so the two cannot be compared
field by field without knowing the schema. Instead it is remembered what was declared when the server last took a
resource, and what the server then said: while neither has changed, there is nothing to do. Nothing is remembered
across restarts, nor needs to be: the first time, everything is put, and a PUT that changes nothing writes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from controller.client import Client, ControllerError, Object, Refused, Unreachable
from controller.resources import FOLDER_PLURALS, PLURALS, Key, Resource

OWNER_LABEL = "app.kubernetes.io/managed-by"
"""Says who made a resource: a controller touches its own only."""
CONCURRENCY = 8
"""Requests under way at once."""

MACHINE_PREFIX = "kubernetes.io/"
"""How the labels of a host begin that say what machine it is: they stay when a Host is declared without them."""


class Observed(NamedTuple):
    """A resource as the server has it. Its generation counts changes, those of credentials too."""

    generation: int
    labels: Mapping[str, str]
    spec: Mapping[str, Any]


class Declared(NamedTuple):
    """What there should be.

    `held`: resources whose declaration cannot be understood for now, left as they are. `complete`: whether everything
    that is declared is known; while it is not, nothing is deleted. `may_delete_most`: whether more than half of what
    the server holds may be deleted at once; while it may not, none of it is.
    """

    resources: Mapping[Key, Resource]
    held: Collection[Key] = ()
    complete: bool = True
    may_delete_most: bool = True


class Withheld(ControllerError):  # noqa: N818 - a state of affairs
    """A resource is not declared any more, and is not deleted either. `owned`: how many the server holds in all."""

    def __init__(self, owned: int) -> None:
        super().__init__(
            "not declared any more, as more than half of what the server holds: kept until that is confirmed"
        )
        self.owned = owned


class Agreed(NamedTuple):
    """What was declared when the server took it, and what the server then had."""

    resource: Resource
    observed: Observed


class Put(NamedTuple):
    """Create a resource, or make it what is declared."""

    key: Key
    resource: Resource


class Delete(NamedTuple):
    """Delete a resource that is not declared any more."""

    key: Key


Change = Put | Delete


class Outcome(NamedTuple):
    """What came of a change: what the server now has, or why it would not. `was`: what it had before."""

    change: Change
    was: Observed | None
    answer: Object | None = None
    error: ControllerError | None = None


def plan(
    declared: Declared, observed: Mapping[Key, Observed], agreed: Mapping[Key, Agreed], owner: str
) -> list[Change]:
    """What makes `observed` what is declared, in an order in which every reference is there when it is needed.

    Of what is observed, only what `owner` made is changed or deleted.
    """
    puts = []
    for key, resource in declared.resources.items():
        seen = observed.get(key)
        if (
            may_change(key, owner, seen)
            and not _is_agreed(resource, seen, agreed.get(key))
            and not _says(seen, resource, owner)
        ):
            puts.append(Put(key, resource))
    gone = [] if withheld(declared, observed, owner) else [Delete(key) for key in _gone(declared, observed, owner)]
    order = list(FOLDER_PLURALS)
    puts.sort(key=lambda put: (order.index(put.key.kind), put.key))
    gone.sort(key=lambda delete: (-order.index(delete.key.kind), delete.key))
    return [*puts, *gone]


def withheld(declared: Declared, observed: Mapping[Key, Observed], owner: str) -> list[Outcome]:
    """What would be deleted, but is so much of what the owner has at the server that it may well be a mistake."""
    gone, owned = _gone(declared, observed, owner), sum(owns(owner, it) for it in observed.values())
    if declared.may_delete_most or 2 * len(gone) <= owned:
        return []
    return [Outcome(Delete(key), observed[key], error=Withheld(owned)) for key in gone]


def _gone(declared: Declared, observed: Mapping[Key, Observed], owner: str) -> list[Key]:
    """What the owner has at the server, and declares no more."""
    kept = declared.resources.keys() | set(declared.held)
    return [key for key, it in observed.items() if declared.complete and key not in kept and owns(owner, it)]


def owns(owner: str, observed: Observed | None) -> bool:
    """Whether this is the owner's to change: its own, or not there yet."""
    return observed is None or observed.labels.get(OWNER_LABEL) == owner


def may_change(key: Key, owner: str, observed: Observed | None) -> bool:
    """Whether a declaration may change what is there: the owner's own, or a Host that is nobody's."""
    return owns(owner, observed) or (key.kind == "Host" and observed is not None and OWNER_LABEL not in observed.labels)


def _is_agreed(resource: Resource, observed: Observed | None, agreed: Agreed | None) -> bool:
    return agreed is not None and (agreed.resource, agreed.observed) == (resource, observed)


def _says(observed: Observed | None, resource: Resource, owner: str) -> bool:
    """Whether a resource says the same word for word, as those do whose defaults Kubernetes has filled in."""
    if observed is None or resource.credentials is not None:  # what opens a repository cannot be looked at
        return False
    return (observed.spec, observed.labels) == (resource.spec, _labels(resource, owner))


def manifest(change: Put, owner: str) -> Object:
    """The body that declares a resource as `owner`'s."""
    metadata = {**change.resource.metadata, "labels": _labels(change.resource, owner)}
    metadata.pop("resourceVersion", None)  # of the cluster or the file, not the server's
    body = {"kind": change.key.kind, "metadata": metadata}
    credentials = change.resource.credentials
    return {**body, "spec": change.resource.spec, **({} if credentials is None else {"credentials": credentials})}


def _labels(resource: Resource, owner: str) -> Any:
    """A resource's labels with its owner's; as they are where they are none, for the server to tell what is wrong."""
    labels = resource.metadata.get("labels") or {}
    return {**labels, OWNER_LABEL: owner} if isinstance(labels, dict) else labels


def observe(answer: Object) -> Observed:
    """What an answer of the server says of a resource. A host is a plain record; its labels are what is declared."""
    if "metadata" not in answer:
        return Observed(0, answer["labels"], {})
    metadata = answer["metadata"]
    return Observed(metadata["generation"], metadata["labels"], answer["spec"])


class Reconciler:
    """Makes a server follow what is declared. `owner`: the label's value by which its resources are known; `plurals`:
    the kinds that are compared."""

    def __init__(self, client: Client, owner: str, plurals: Mapping[str, str] = PLURALS) -> None:
        self._client = client
        self._plurals = plurals
        self._owner = owner
        self._agreed: dict[Key, Agreed] = {}
        self._observed: dict[Key, Observed] = {}

    async def reconcile(self, declared: Declared) -> list[Outcome]:
        """Compare everything and put right what differs. Returns what was done, and what was not and why.

        Where the server becomes unreachable, the last outcomes say so and the rest is left to the next time. Raises
        Unreachable and Refused where nothing can even be compared.
        """
        await self.refresh()
        return await self._put_right(declared, self._observed)

    async def refresh(self) -> Collection[Key]:
        """Read anew what the server holds; the keys of it. Raises Unreachable and Refused."""
        self._observed = {key: seen async for key, seen in self._observe()}
        return self._observed.keys()

    def holds(self, key: Key) -> bool:
        """Whether the server holds a resource, as far as was heard of it."""
        return key in self._observed

    async def touch(self, declared: Declared, keys: Collection[Key]) -> list[Outcome]:
        """The same for a few resources, without looking at the server anew: as it was when last heard of."""
        return await self._put_right(declared, {key: self._observed[key] for key in keys if key in self._observed})

    async def _put_right(self, declared: Declared, observed: Mapping[Key, Observed]) -> list[Outcome]:
        changes = plan(declared, observed, self._agreed, self._owner)
        outcomes = await apply(changes, observed, self._client, self._owner)
        for change, _, answer, error in outcomes:
            self._agreed.pop(change.key, None)
            if isinstance(change, Put) and answer is not None:
                self._observed[change.key] = seen = observe(answer)
                self._agreed[change.key] = Agreed(change.resource, seen)
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
    """What is declared under a name that others use on the server: theirs is left alone."""
    detail = (
        f"exists, and is not of this controller's making (label {OWNER_LABEL}): delete it there, or rename this one"
    )
    return [
        Outcome(Put(key, resource), observed[key], error=Refused(409, detail))
        for key, resource in declared.resources.items()
        if not may_change(key, owner, observed.get(key))
    ]


async def apply(
    changes: Iterable[Change], observed: Mapping[Key, Observed], client: Client, owner: str
) -> list[Outcome]:
    """Make changes, some at once, but all of one kind before the next. Ends early when the server is unreachable."""
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
    machine = {key: it for key, it in (was.labels if was else {}).items() if key.startswith(MACHINE_PREFIX)}
    labels = _labels(change.resource, owner)
    return Outcome(change, was, await client.put_host(change.key.name, machine | labels))
