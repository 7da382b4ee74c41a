"""Pushes, which bring a host from one set to another. A frame is encoded once for all hosts that need the same push."""

from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from msgspec import Raw

from wire import codec, entries
from wire.entries import EMPTY, EntrySet
from wire.messages import ScheduleDiff, ScheduleSet


class Push(NamedTuple):
    """Brings a host from set `old` at version `base` to set `new` at `version`. With `base` None it sends all of `new`.

    `since`: the host's `HostState.since`; None when every entry sent is younger, so that hosts can share the frame.
    """

    base: int | None
    version: int
    old: EntrySet
    new: EntrySet
    since: datetime | None


def whole(version: int, new: EntrySet, since: datetime) -> Push:
    """A push of a whole set."""
    return Push(None, version, EMPTY, new, since)


def change(base: int, version: int, old: EntrySet, new: EntrySet, since: datetime) -> Push:
    """A push of the difference between two sets."""
    oldest = _oldest(old, new)
    return Push(base, version, old, new, since if oldest is not None and oldest < since else None)


@lru_cache(maxsize=256)
def message(push: Push) -> ScheduleSet | ScheduleDiff:
    """The message of a push."""
    if push.base is None:
        return ScheduleSet(push.version, [Raw(item.raw) for item in push.new.items.values()], push.since)
    diff = _diff(push.old, push.new)
    return ScheduleDiff(push.base, push.version, [Raw(raw) for raw in diff.upsert], list(diff.remove), push.since)


@lru_cache(maxsize=256)
def frame(push: Push) -> str:
    """The frame of a push: JSON text with the one message."""
    return codec.encode((message(push),))


_diff = lru_cache(maxsize=256)(entries.diff)


@lru_cache(maxsize=256)
def _oldest(old: EntrySet, new: EntrySet) -> datetime | None:
    """When the oldest entry of the difference began; None when no entry is sent."""
    return min((entries.parse_entry(raw).since for raw in _diff(old, new).upsert), default=None)
