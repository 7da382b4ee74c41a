"""What the agent must not forget across restarts: records, and the state that they add up to.

Every change of `AgentState` is a record. The journal holds the records, and the agent replays them when it starts. So
the state in memory and the one on disk always mean the same, and a record that was lost in a torn write is a change
that never happened. Tags and fields of records are the journal's format: they must stay, so that old journals can be
read.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from wire import entries
from wire.messages import Entry, JobFinished, ScheduleDiff, ScheduleFire, ScheduleSet

REMEMBERED_JOBS = 10_000
"""Confirmed job ids that are kept, and due times that ran. They stop a command from running twice when a server
sends it again. A server with a restored database sends it with another job id."""
REMEMBERED_ENDS = 1000
"""Confirmed ends that are kept for a server that has lost them."""
REMEMBERED_ERROR = 500
"""Characters of the error in each confirmed end that is kept."""
REMEMBERED_SCHEDULES = 10_000
"""Removed schedules whose cursors are kept: a server with a restored database may push them again."""

EPOCH = datetime.fromtimestamp(0, UTC)


class SetApplied(Struct, frozen=True, tag="set"):
    """A whole set came into force."""

    push: ScheduleSet


class DiffApplied(Struct, frozen=True, tag="diff"):
    """A diff came into force."""

    push: ScheduleDiff


class CursorsMoved(Struct, frozen=True, tag="passed"):
    """New cursors: (schedule id, due time) each."""

    due: list[tuple[str, datetime]]


class Removed(Struct, frozen=True, tag="removed"):
    """The last cursors of removed schedules: (schedule id, due time) each."""

    due: list[tuple[str, datetime]]


class Fired(Struct, frozen=True, tag="fired"):
    """Fires that the server has yet to answer; one for each schedule, the latest."""

    fires: list[ScheduleFire]


class Answered(Struct, frozen=True, tag="answered"):
    """A fire needs no answer any more: the server gave one, or it is too late to send the fire."""

    schedule_id: str
    scheduled_at: datetime


class Accepted(Struct, frozen=True, tag="accepted"):
    """The agent took on a command, and will report its end."""

    job_id: str
    schedule_id: str = ""
    scheduled_at: datetime | None = None


class Ended(Struct, frozen=True, tag="ended"):
    """How a job ended; kept until the server confirms it."""

    end: JobFinished


class Confirmed(Struct, frozen=True, tag="confirmed"):
    """The server has confirmed the ends of these jobs."""

    job_ids: list[str]


class Ran(Struct, frozen=True, tag="ran"):
    """Due times for which a command was accepted: (schedule id, due time, job id) each."""

    runs: list[tuple[str, datetime, str]]


Record = Ran | SetApplied | DiffApplied | CursorsMoved | Removed | Fired | Answered | Accepted | Ended | Confirmed


class AgentState:
    """The state that records add up to. Change it only with `add`.

    - `cursors`: for each schedule its latest due time that was handled, or the time after which its due times count.
    - `removed`: the last cursors of removed schedules, oldest first.
    - `fires`: unanswered fires, by schedule.
    - `running`: jobs that were accepted and have not ended.
    - `ends`: ends that the server has not confirmed.
    - `done`: ids of the last REMEMBERED_JOBS confirmed jobs; `confirmed`: the ends of the last REMEMBERED_ENDS of them.
    - `ran`: the job id of each of the last accepted attempts, by schedule, due time and attempt.
    """

    def __init__(self) -> None:
        self.version = 0
        self.digest = ""  # empty while the agent holds no set; the digest of an empty set is zeros
        self.entries = entries.EMPTY
        self.cursors: dict[str, datetime] = {}
        self.removed: dict[str, datetime] = {}
        self.fires: dict[str, ScheduleFire] = {}
        self.running: dict[str, Accepted] = {}
        self.ends: dict[str, JobFinished] = {}
        self.done: dict[str, None] = {}
        self.confirmed: dict[str, JobFinished] = {}
        self.ran: dict[tuple[str, datetime, str], str] = {}

    def add(self, record: Record) -> None:
        """Apply one record. A record that does not fit, because earlier ones were lost, is ignored."""
        match record:
            case SetApplied(push) | DiffApplied(push):
                if self.fits(push):
                    held = self.with_push(push)
                    self.hold(push, held, self.new_cursors(push, held))
                else:
                    self.version = 0  # a diff is missing: the server sees another digest, and sends the whole set
            case CursorsMoved(due):
                self.cursors.update(due)
            case Removed(due):
                self.removed.update(due)
            case Fired(fires):
                for fire in fires:
                    self.fires[fire.schedule_id] = fire
                    self.cursors[fire.schedule_id] = fire.scheduled_at
            case Answered(schedule_id, scheduled_at):
                self._answer(schedule_id, scheduled_at)
            case Accepted(job_id, schedule_id, scheduled_at):
                self.running[job_id] = record
                if scheduled_at is not None:
                    self._answer(schedule_id, scheduled_at)
                    self._remember([(schedule_id, scheduled_at, job_id)])
            case Ran(runs):
                self._remember(runs)
            case Ended(end):
                self.running.pop(end.job_id, None)
                self.ends[end.job_id] = end
            case Confirmed(job_ids):
                for job_id in job_ids:
                    if (known := self.ends.pop(job_id, None)) is not None:
                        self.confirmed[job_id] = msgspec.structs.replace(known, error=known.error[:REMEMBERED_ERROR])
                    self.done[job_id] = None
                _keep_last(self.done, REMEMBERED_JOBS)
                _keep_last(self.confirmed, REMEMBERED_ENDS)

    def ran_as(self, schedule_id: str, scheduled_at: datetime | None, job_id: str) -> str:
        """The id under which this attempt of a due time ran; `job_id` if it did not run, or has no due time."""
        return job_id if scheduled_at is None else self.ran.get(_attempt(schedule_id, scheduled_at, job_id), job_id)

    def entry(self, schedule_id: str) -> Entry | None:
        """An entry of the set; None when it is not in the set or cannot be read."""
        held = self.entries.items.get(schedule_id)
        try:
            return entries.parse_entry(held.raw) if held is not None else None
        except msgspec.DecodeError:
            return None

    def fits(self, push: ScheduleSet | ScheduleDiff) -> bool:
        """Whether a push can be applied: a whole set always can, a diff only to the version that it starts from."""
        return isinstance(push, ScheduleSet) or (push.base == self.version and bool(self.digest))

    def with_push(self, push: ScheduleSet | ScheduleDiff) -> entries.EntrySet:
        """The set after a push that `fits`. Raises msgspec.DecodeError for an entry without an id."""
        if isinstance(push, ScheduleSet):
            return entries.whole(push.schedules)
        return entries.apply(self.entries, entries.Diff(tuple(map(bytes, push.upsert)), tuple(push.remove)))

    def new_cursors(self, push: ScheduleSet | ScheduleDiff, held: entries.EntrySet) -> dict[str, datetime]:
        """The cursors of a push's entries. `held`: the set after the push.

        A new entry starts at the latest of its own `since`, the host's, and the cursor that it had before it was
        removed. A changed entry keeps its cursor, unless its `since` is now later: then it starts there.
        """
        if isinstance(push, ScheduleSet):
            keys = list(held.items)
        else:
            keys = [entries.entry_id(bytes(raw)) for raw in push.upsert]
        cursors = {}
        for key in keys:
            old, new = self.entries.items.get(key), held.items[key]
            since = _since(new.raw)
            if old is None or old.raw == new.raw or _since(old.raw) >= since:
                before = max(push.since or EPOCH, self.removed.get(key, EPOCH))
                since = max(self.cursors.get(key, before), since)
            cursors[key] = since
        return cursors

    def hold(self, push: ScheduleSet | ScheduleDiff, held: entries.EntrySet, cursors: Mapping[str, datetime]) -> None:
        """Replace the set by `held`, the set after the push, with these cursors for its changed entries."""
        removed = self.cursors.keys() - held.items.keys() if isinstance(push, ScheduleSet) else push.remove
        for key in removed:
            if (at := self.cursors.pop(key, None)) is not None:
                self.removed.pop(key, None)
                self.removed[key] = at
        self.cursors.update(cursors)
        for key in cursors:
            self.removed.pop(key, None)
        _keep_last(self.removed, REMEMBERED_SCHEDULES)
        self.fires = {key: fire for key, fire in self.fires.items() if key in held.items}
        self.entries, self.version, self.digest = held, push.version, held.digest

    def records(self) -> Iterator[Record]:
        """The records that add up to this state, and no more: what a compacted journal holds."""
        if self.done:
            yield Confirmed(list(self.done))
        yield from map(Ended, self.confirmed.values())
        if self.confirmed:
            yield Confirmed(list(self.confirmed))
        yield from map(Ended, self.ends.values())
        if self.ran:
            yield Ran([(schedule_id, at, job_id) for (schedule_id, at, _), job_id in self.ran.items()])
        yield from self.running.values()
        if self.digest:
            raws = [Raw(item.raw) for item in self.entries.items.values()]
            yield SetApplied(ScheduleSet(self.version, raws))
        if self.fires:
            yield Fired(list(self.fires.values()))
        if self.cursors:
            yield CursorsMoved(list(self.cursors.items()))
        if self.removed:
            yield Removed(list(self.removed.items()))

    def _remember(self, runs: Iterable[tuple[str, datetime, str]]) -> None:
        for run in runs:
            self.ran[_attempt(*run)] = run[2]
        _keep_last(self.ran, REMEMBERED_JOBS)

    def _answer(self, schedule_id: str, scheduled_at: datetime) -> None:
        fire = self.fires.get(schedule_id)
        if fire is not None and fire.scheduled_at == scheduled_at:
            del self.fires[schedule_id]


def replay(records: Iterable[Record]) -> AgentState:
    """The state that these records add up to."""
    state = AgentState()
    for record in records:
        state.add(record)
    return state


def _attempt(schedule_id: str, scheduled_at: datetime, job_id: str) -> tuple[str, datetime, str]:
    """The key of `ran`. From the second attempt on, a job's id on the wire ends in a dot and the attempt's number."""
    return schedule_id, scheduled_at, job_id.partition(".")[2]


def _keep_last(found: dict[Any, Any], limit: int) -> None:
    """Drop the oldest items until `limit` are left."""
    while len(found) > limit:
        del found[next(iter(found))]


def _since(raw: bytes) -> datetime:
    try:
        return entries.parse_entry(raw).since
    except msgspec.DecodeError:
        return EPOCH  # an entry that cannot be read never fires; the timetable reports it
