"""Events for a person to notice: one for each object and reason, however often it happens again.

A repetition is counted, and reported at most once in EVERY_S seconds as the Event's series (events.k8s.io/v1,
EventSeries), so that an object that flaps costs a bounded number of Events and of writes.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import NamedTuple

from controller.cluster.kube import COMPONENT, GROUP, Kube, KubeError, Object
from controller.cluster.status import Notice

log = logging.getLogger(__name__)

EVERY_S = 60.0
"""Seconds between two writes of one Event."""
KEPT = timedelta(hours=1)
"""How long after its last repetition an Event is remembered: the API server keeps Events for as long, by default."""


class EventKey(NamedTuple):
    """What an Event is about: an object, by its uid, and a reason."""

    uid: str
    reason: str


class Series(NamedTuple):
    """An Event that is there. `times`: how often it has happened; `reported`: how often the API server knows of."""

    namespace: str
    name: str
    times: int
    reported: int
    at: datetime


class Recorder:
    """Brings Events to the API server. `run` it for repetitions to be reported."""

    def __init__(self, kube: Kube, clock: Callable[[], datetime], every_s: float = EVERY_S) -> None:
        self._kube = kube
        self._clock = clock
        self._every_s = every_s
        self._series: dict[EventKey, Series] = {}

    async def record(self, about: Object, notice: Notice) -> None:
        """Post an Event about an object, or count it with those of its reason. Raises KubeError."""
        key, now = EventKey(about["metadata"]["uid"], notice.reason), self._clock()
        if (known := self._series.get(key)) is not None:
            self._series[key] = known._replace(times=known.times + 1, at=now)
            return
        event = _event(about, notice, key, now)
        namespace, name = event["metadata"]["namespace"], event["metadata"]["name"]
        try:
            await self._kube.create("Event", event)
            self._series[key] = Series(namespace, name, 1, 1, now)
        except KubeError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            there = await self._kube.get("Event", namespace, name)  # from before this controller began
            reported = ((there or {}).get("series") or {}).get("count", 1)
            self._series[key] = Series(namespace, name, reported + 1, reported, now)

    async def run(self) -> None:
        """Tell repetitions until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.flush()

    async def flush(self) -> None:
        """Tell the repetitions of each Event that were not reported yet, and forget old ones."""
        now = self._clock()
        for key, series in list(self._series.items()):
            if series.times > series.reported:
                await self._repeat(key, series)
            elif now - series.at > KEPT:
                self._series.pop(key, None)

    async def _repeat(self, key: EventKey, series: Series) -> None:
        changed = {"series": {"count": series.times, "lastObservedTime": _micro_time(series.at)}}
        try:
            found = await self._kube.patch("Event", series.namespace, series.name, changed)
        except KubeError as error:
            log.warning("event not posted", extra={"event": series.name, "reason": str(error)})
            return
        if found is None:  # it has run out: the next time it is a new one
            self._series.pop(key, None)
        elif (now := self._series.get(key)) is not None:
            self._series[key] = now._replace(reported=series.times)


def _event(about: Object, notice: Notice, key: EventKey, now: datetime) -> Object:
    metadata = about["metadata"]
    digest = hashlib.sha256("/".join(key).encode()).hexdigest()[:16]
    return {
        "metadata": {"namespace": metadata.get("namespace", "default"), "name": f"{metadata['name'][:200]}.{digest}"},
        "eventTime": _micro_time(now),
        "type": notice.type,
        "reason": notice.reason,
        "note": notice.message[:1024],
        "action": "Reconcile",
        "reportingController": f"{GROUP}/{COMPONENT}",
        "reportingInstance": COMPONENT,
        "regarding": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": metadata.get("namespace"),
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }


def _micro_time(at: datetime) -> str:
    """A time as Kubernetes' MicroTime."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
