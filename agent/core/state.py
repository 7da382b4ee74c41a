"""What the agent must not forget, as records and the state that they add up to.

Every change of `AgentState` is a record; the journal holds the records, and a start replays them. So the state in
memory and the one on disk cannot differ in meaning, and a record that is lost with a torn tail is a change that never
happened. A record's tag and fields are the journal's format: they stay, so that a later agent reads an older journal.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from wire import entries
from wire.messages import Entry, JobFinished, ScheduleDiff, ScheduleFire, ScheduleSet

REMEMBERED_JOBS = 10_000
"""Ids of confirmed jobs, and due times that ran, that are kept: a command that arrives again, even from a server whose
database is that of yesterday, does not run twice, also as a job of another id."""
REMEMBERED_ENDS = 1000
"""Confirmed ends that are kept, to be told again to a server that has forgotten them."""
REMEMBERED_ERROR = 500
"""Characters that are kept of the error of each."""
REMEMBERED_SCHEDULES = 10_000
"""Schedules that are not held any more of which it is kept what was run: an older database may bring them back."""

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
    """The last cursors of schedules that are not held any more."""

    due: list[tuple[str, datetime]]


class Fired(Struct, frozen=True, tag="fired"):
    """Fires that the server has yet to answer; one for each schedule, the latest."""

    fires: list[ScheduleFire]


class Answered(Struct, frozen=True, tag="answered"):
    """The server answered that fire, or it is too late to send it."""

    schedule_id: str
    scheduled_at: datetime


class Accepted(Struct, frozen=True, tag="accepted"):
    """A command that this agent will run to an end."""

    job_id: str
    schedule_id: str = ""
    scheduled_at: datetime | None = None


class Ended(Struct, frozen=True, tag="ended"):
    """How a job ended; kept until the server confirms it."""

    end: JobFinished


class Confirmed(Struct, frozen=True, tag="confirmed"):
    """The server has these jobs' ends."""

    job_ids: list[str]


class Ran(Struct, frozen=True, tag="ran"):
    """Due times for which a command was accepted: (schedule id, due time, job id) each."""

    runs: list[tuple[str, datetime, str]]


Record = Ran | SetApplied | DiffApplied | CursorsMoved | Removed | Fired | Answered | Accepted | Ended | Confirmed


class AgentState:
    """The state that records add up to. Change it with `add` alone.

    `cursors`: for each schedule the latest due time that is dealt with, or the time from which its due times count;
    `removed`: the last cursors of schedules that are not held any more. `fires`: fires not yet answered.
    `running`: jobs accepted and not ended. `ends`: ends not yet confirmed. `done`: the last jobs that the server
    confirmed; `confirmed`: the ends of the last of these. `ran`: the last attempts of due times that were accepted, and
    as which job.
    """

    def __init__(self) -> None:
        self.version = 0
        self.digest = ""  # of no set at all; that of an empty set is zeros
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
        """Take one record in. A record that does not fit (its neighbours were lost) loses no more than itself."""
        match record:
            case SetApplied(push) | DiffApplied(push):
                if self.fits(push):
                    held = self.after(push)
                    self.put(push, held, self.begins(push, held))
                else:
                    self.version = 0  # a set with a gap: by its digest the server sees that, and sends it whole
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
                    if (told := self.ends.pop(job_id, None)) is not None:
                        self.confirmed[job_id] = msgspec.structs.replace(told, error=told.error[:REMEMBERED_ERROR])
                    self.done[job_id] = None
                _keep_last(self.done, REMEMBERED_JOBS)
                _keep_last(self.confirmed, REMEMBERED_ENDS)

    def ran_as(self, schedule_id: str, scheduled_at: datetime | None, job_id: str) -> str:
        """The job that this attempt of a due time was accepted as; `job_id` where it was not, or has no due time."""
        return job_id if scheduled_at is None else self.ran.get(_attempt(schedule_id, scheduled_at, job_id), job_id)

    def entry(self, schedule_id: str) -> Entry | None:
        """A schedule of the set that is held; None when it is not there, or cannot be read."""
        held = self.entries.items.get(schedule_id)
        try:
            return entries.parse_entry(held.raw) if held is not None else None
        except msgspec.DecodeError:
            return None

    def fits(self, push: ScheduleSet | ScheduleDiff) -> bool:
        """Whether a push can follow the set that is held: a whole set always, a diff only on its base."""
        return isinstance(push, ScheduleSet) or (push.base == self.version and bool(self.digest))

    def after(self, push: ScheduleSet | ScheduleDiff) -> entries.EntrySet:
        """The set that a fitting push makes of the one held. Raises msgspec.DecodeError for an entry without an id."""
        if isinstance(push, ScheduleSet):
            return entries.whole(push.schedules)
        return entries.apply(self.entries, entries.Diff(tuple(map(bytes, push.upsert)), tuple(push.remove)))

    def begins(self, push: ScheduleSet | ScheduleDiff, held: entries.EntrySet) -> dict[str, datetime]:
        """The cursors of a push's entries, in the set that `after` gave: for a new entry the later of its own beginning
        and the host's; for a changed one its cursor; for one whose `since` is later than before, that."""
        if isinstance(push, ScheduleSet):
            keys = list(held.items)
        else:
            keys = [entries.entry_id(bytes(raw)) for raw in push.upsert]
        begins = {}
        for key in keys:
            old, new = self.entries.items.get(key), held.items[key]
            since = _since(new.raw)
            if old is None or old.raw == new.raw or _since(old.raw) >= since:
                before = max(push.since or EPOCH, self.removed.get(key, EPOCH))
                since = max(self.cursors.get(key, before), since)
            begins[key] = since
        return begins

    def put(self, push: ScheduleSet | ScheduleDiff, held: entries.EntrySet, begins: Mapping[str, datetime]) -> None:
        """Hold the set that `after` gave, each entry from when `begins` says."""
        gone = self.cursors.keys() - held.items.keys() if isinstance(push, ScheduleSet) else push.remove
        for key in gone:
            if (at := self.cursors.pop(key, None)) is not None:
                self.removed.pop(key, None)
                self.removed[key] = at
        self.cursors.update(begins)
        for key in begins:
            self.removed.pop(key, None)
        _keep_last(self.removed, REMEMBERED_SCHEDULES)
        self.fires = {key: fire for key, fire in self.fires.items() if key in held.items}
        self.entries, self.version, self.digest = held, push.version, held.digest

    def records(self) -> Iterator[Record]:
        """The fewest records that add up to this state: what a compacted journal holds."""
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
    """The key of `ran`. From the second attempt on, its number follows a dot in the job's id on the wire."""
    return schedule_id, scheduled_at, job_id.partition(".")[2]


def _keep_last(found: dict[Any, Any], limit: int) -> None:
    """Forget the oldest beyond so many."""
    while len(found) > limit:
        del found[next(iter(found))]


def _since(raw: bytes) -> datetime:
    try:
        return entries.parse_entry(raw).since
    except msgspec.DecodeError:
        return EPOCH  # an entry that cannot be read never fires; the timetable says so
