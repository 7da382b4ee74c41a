"""Writes statuses to the Kubernetes API: only changes, at a limited rate.

The first write for an object is made at once. Later ones are INTERVAL_S seconds apart, and have the latest status. Ten
thousand Hosts may change together, so each waits HOST_WAITS times as long, and all share HOSTS_PER_S.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus

from controller.cluster.conditions import equal, own
from controller.cluster.events import Recorder
from controller.cluster.kube import Kube, KubeError, Object
from controller.cluster.status import Status, notices
from controller.resources import Key

log = logging.getLogger(__name__)

WORKERS = 8
"""The most writes at once."""
INTERVAL_S = 5.0
"""Seconds between two writes for one object."""
HOST_WAITS = 6
"""The interval of a Host as a multiple of INTERVAL_S: an agent that reconnects all the time costs two writes a
minute."""
HOSTS_PER_S = 50.0
"""The most writes a second for all Hosts together."""


class StatusWriter:
    """Writes statuses to the API server while `run` runs.

    `on_answer`: receives each object as the API server returns it after a write.
    """

    def __init__(
        self,
        kube: Kube,
        clock: Callable[[], datetime],
        on_answer: Callable[[Object], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._kube = kube
        self._on_answer = on_answer
        self._interval_s = interval_s
        self._events = Recorder(kube, clock)
        self._wanted: dict[Key, tuple[Object, Status]] = {}
        self._writing: set[Key] = set()
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._not_before: dict[Key, float] = {}
        self._host_slot = 0.0
        self.writes = 0

    def update_status(self, key: Key, about: Object, status: Status) -> None:
        """Have `run` write an object's status. `about`: the object as last seen; its status is updated after the
        write."""
        if equal(own(about.get("status")), status) and key not in self._writing:
            self._wanted.pop(key, None)
            return
        waiting = key in self._wanted
        self._wanted[key] = (about, status)
        if not waiting:
            self._enqueue(key, self._not_before.get(key, 0.0))

    def forget(self, key: Key) -> None:
        """An object was deleted."""
        self._wanted.pop(key, None)
        self._not_before.pop(key, None)

    @property
    def waiting(self) -> int:
        """Statuses that wait to be written."""
        return len(self._wanted)

    @property
    def settled(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._wanted

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._events.run(), name="repeated events")
            for _ in range(WORKERS):
                tasks.create_task(self._work(), name="write statuses")

    def _enqueue(self, key: Key, not_before: float) -> None:
        loop = asyncio.get_running_loop()
        at = max(loop.time(), not_before)
        if key.kind == "Host":
            at = self._host_slot = max(at, self._host_slot + 1 / HOSTS_PER_S)
        loop.call_at(at, self._ready.put_nowait, key)

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            key = await self._ready.get()
            if key not in self._wanted or key in self._writing:
                continue
            about, status = self._wanted[key]
            waits = HOST_WAITS if key.kind == "Host" else 1
            self._not_before[key] = clock() + waits * self._interval_s
            self._writing.add(key)
            try:
                done = await self._write(key, about, status)
            except Exception:
                log.exception("status not written", extra={key.kind.lower(): str(key)})
                done = True  # its next status is tried
            self._writing.discard(key)
            if done and key in self._wanted and self._wanted[key][1] == status:
                del self._wanted[key]
            elif key in self._wanted:
                self._enqueue(key, self._not_before.get(key, 0.0))
            else:  # it was deleted
                self._not_before.pop(key, None)

    async def _write(self, key: Key, about: Object, status: Status) -> bool:
        """Write one status. Returns whether it is done: written, or refused for good."""
        old = own(about.get("status"))
        try:
            answer = await self._apply(key, about, status)
            self.writes += 1
        except KubeError as error:
            log.warning("status not written", extra={key.kind.lower(): str(key), "reason": str(error)})
            return not error.passing and error.status != HTTPStatus.CONFLICT
        about["status"] = status
        if answer is not None:
            self._on_answer(answer)
        try:
            for notice in notices(old, status):
                await self._events.record(about, notice)
        except KubeError as error:
            log.warning("event not posted", extra={key.kind.lower(): str(key), "reason": str(error)})
        return True

    async def _apply(self, key: Key, about: Object, status: Status) -> Object | None:
        """Apply a status to an object, also if that has changed since it was seen. Returns it; None if it is gone."""
        try:
            return await self._kube.apply_status(about, status)
        except KubeError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
        now = await self._kube.get(key.kind, key.namespace, key.name)
        if now is None or now["metadata"]["uid"] != about["metadata"]["uid"]:
            return None  # the status of one object is not written onto another with the same name
        return await self._kube.apply_status(now, status)
