"""Posts Events for people: one Event for each object and reason, however often it is repeated.

Repetitions are counted, and written at most every EVERY_S seconds as the Event's series (events.k8s.io/v1,
EventSeries). So an object that changes all the time causes a limited number of Events and writes.
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
"""How long an Event is remembered after its last repetition: as long as the API server keeps Events by default."""


class EventKey(NamedTuple):
    """The object's uid, and the reason of an Event."""

    uid: str
    reason: str


class Series(NamedTuple):
    """A posted Event. `times`: how often it happened. `reported`: how often by the API server's knowledge."""

    namespace: str
    name: str
    times: int
    reported: int
    at: datetime


class Recorder:
    """Posts Events to the API server. While `run` runs, it writes repetitions, too."""

    def __init__(self, kube: Kube, clock: Callable[[], datetime], every_s: float = EVERY_S) -> None:
        self._kube = kube
        self._clock = clock
        self._every_s = every_s
        self._series: dict[EventKey, Series] = {}

    async def record(self, about: Object, notice: Notice) -> None:
        """Post an Event about an object, or count a repetition of one. Raises KubeError."""
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
            there = await self._kube.get("Event", namespace, name)  # posted before this controller started
            reported = ((there or {}).get("series") or {}).get("count", 1)
            self._series[key] = Series(namespace, name, reported + 1, reported, now)

    async def run(self) -> None:
        """Write repetitions until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.flush()

    async def flush(self) -> None:
        """Write the repetitions that the API server does not know yet, and forget old Events."""
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
        if found is None:  # the API server has deleted it: the next one is posted anew
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
    """A time in the format of Kubernetes' MicroTime."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
