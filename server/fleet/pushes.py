"""A push: one set made another at a host, and its frame, which is encoded once for all hosts that need the same."""

from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from msgspec import Raw

from wire import codec, entries
from wire.entries import EMPTY, EntrySet
from wire.messages import ScheduleDiff, ScheduleSet


class Push(NamedTuple):
    """From `old` at version `base` to `new` at `version`; `base` None sends the whole of `new`.

    `since`: when the host began; None where that says nothing about the entries that are sent.
    """

    base: int | None
    version: int
    old: EntrySet
    new: EntrySet
    since: datetime | None


def whole(version: int, new: EntrySet, since: datetime) -> Push:
    """A push of the whole set."""
    return Push(None, version, EMPTY, new, since)


def change(base: int, version: int, old: EntrySet, new: EntrySet, since: datetime) -> Push:
    """A push of what differs."""
    return Push(base, version, old, new, since if _has_older(old, new, since) else None)


@lru_cache(maxsize=256)
def message(push: Push) -> ScheduleSet | ScheduleDiff:
    """What the push says."""
    if push.base is None:
        return ScheduleSet(push.version, [Raw(item.raw) for item in push.new.items.values()], push.since)
    diff = _diff(push.old, push.new)
    return ScheduleDiff(push.base, push.version, [Raw(raw) for raw in diff.upsert], list(diff.remove), push.since)


@lru_cache(maxsize=256)
def frame(push: Push) -> str:
    """The frame that carries it."""
    return codec.encode((message(push),))


_diff = lru_cache(maxsize=256)(entries.diff)


@lru_cache(maxsize=256)
def _oldest(old: EntrySet, new: EntrySet) -> datetime | None:
    return min((entries.parse_entry(raw).since for raw in _diff(old, new).upsert), default=None)


def _has_older(old: EntrySet, new: EntrySet, since: datetime) -> bool:
    """Whether an entry that is sent began before the host did, so that the host must know its own beginning."""
    oldest = _oldest(old, new)
    return oldest is not None and oldest < since
