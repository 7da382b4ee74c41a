"""Watches the Secrets that objects name, each by its name, where the controller may; so a change is noticed at once.

RBAC grants `watch` on single Secrets by `resourceNames`, for requests that select one by `metadata.name`. Watches are
hints: all named Secrets are read at intervals, too (`Timing.secrets`), whether they can be watched or not. So a Secret
that may not be watched, a watch that breaks, and more Secrets than LIMIT only make a change noticed later.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from typing import NamedTuple

from controller.cluster.kube import Kube, KubeError
from controller.cluster.workers import Workers
from controller.resources import Key

log = logging.getLogger(__name__)

LIMIT = 100
"""The most watches at once. Each is a connection to the API server. Of more Secrets, each is watched in turn."""
WATCH_S = 300
"""Seconds that a watch lasts. Then another Secret has its turn, or it begins again."""
REFUSED_S = 3600.0
"""Seconds until a watch that was refused, as RBAC does, is requested again."""
PAUSE_S = 1.0
"""Minimum seconds between two watches of one Secret."""


class SecretName(NamedTuple):
    """The namespace and the name of a Secret."""

    namespace: str
    name: str


class SecretWatches:
    """Watches Secrets while `run` runs.

    `on_change`: receives the keys that name a Secret which has changed, or may have. `retry_s`, `max_retry_s`: seconds
    before a watch that failed is requested again, at first and at most.
    """

    def __init__(
        self,
        kube: Kube,
        on_change: Callable[[Iterable[Key]], None],
        retry_s: float,
        max_retry_s: float,
        limit: int = LIMIT,
        watch_s: int = WATCH_S,
    ) -> None:
        self._kube = kube
        self._on_change = on_change
        self._watch_s = watch_s
        self._workers = Workers(self._watch, retry_s, max_retry_s, limit)
        self._named: dict[Key, set[SecretName]] = {}
        self._users: defaultdict[SecretName, set[Key]] = defaultdict(set)
        self._seen: dict[SecretName, tuple[bool, str]] = {}  # whether it was deleted, and the version

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._workers.run()

    def follow(self, key: Key, names: Collection[str]) -> None:
        """Watch just these Secrets of an object's namespace for it; none for one that is gone."""
        wanted, was = {SecretName(key.namespace, name) for name in names}, self._named.pop(key, set())
        if wanted:
            self._named[key] = wanted
        for secret in was - wanted:
            self._users[secret].discard(key)
            if not self._users[secret]:
                del self._users[secret]
                self._seen.pop(secret, None)
        added = [secret for secret in wanted - was if secret not in self._users]
        for secret in wanted - was:
            self._users[secret].add(key)
        self._workers.add(added)

    async def _watch(self, secret: SecretName) -> bool:
        """Watch a Secret for WATCH_S seconds. Returns whether that ended well, or is refused for long."""
        if secret not in self._users:
            return True
        try:
            async for event in self._kube.watch("Secret", *secret, self._watch_s):
                self._note(secret, event["type"], event["object"]["metadata"])
        except KubeError as error:
            if error.passing or error.status == HTTPStatus.UNAUTHORIZED:
                log.debug("secret not watched, trying again", extra={"secret": secret.name, "reason": str(error)})
                return False
            self._workers.add_after(secret, REFUSED_S)
            return True
        self._workers.add_after(secret, PAUSE_S)
        return True

    def _note(self, secret: SecretName, type_: str, metadata: dict[str, str]) -> None:
        """A watch reports a Secret as it is now. Each watch begins with that, whether it has changed or not."""
        now = (type_ == "DELETED", metadata["resourceVersion"])
        if secret in self._users and self._seen.get(secret) != now:
            self._seen[secret] = now
            self._on_change(self._users[secret])
