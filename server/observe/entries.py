"""What a host should hold and what it holds, entry by entry: plain functions from sets to differences."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

import cron
from wire.entries import EntrySet, parse_entry
from wire.messages import Entry

State = Literal["InForce", "LeftOut", "ToAdd", "ToChange", "ToRemove", "Unknown"]
"""How an entry of a host stands.

- `InForce`: the host runs it as it is declared.
- `LeftOut`: the host holds it, and could not put it in force.
- `ToAdd`, `ToChange`, `ToRemove`: what is still to be done on the host.
- `Unknown`: the host holds a set of which only the digest is known here.
"""


class Timed(Struct, frozen=True, rename="camel"):
    """What an entry says. `revision`: changes with whatever the schedule runs."""

    cron: str
    time_zone: str
    spread_seconds: int
    enabled: bool
    revision: str


class LastRun(Struct, frozen=True, rename="camel"):
    """The end of a schedule's last job on a host. `why`: why it did not fully succeed; empty if it did."""

    status: str
    finished_at: datetime
    succeeded_at: datetime | None
    why: str


class HostEntry(Struct, frozen=True, rename="camel"):
    """One schedule of a host. `schedule`: NAMESPACE/NAME. `id`: its uid.

    `differs`: the fields that differ. `reason`: why it was left out. `next_due`: the host's own next due time, with its
    offset of the spread; None while it is disabled.
    """

    schedule: str
    id: str
    state: State
    desired: Timed | None
    applied: Timed | None
    differs: list[str]
    reason: str = ""
    kind: str = ""
    next_due: datetime | None = None
    last_run: LastRun | None = None


def names(desired: EntrySet, applied: EntrySet | None, known: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (NAMESPACE/NAME, id) of all entries of both sets, in order. `known`: names of schedules that exist, by id."""
    sets = [desired] if applied is None else [desired, applied]
    raws = {id_: it.raw for entries in sets for id_, it in entries.items.items()}
    return sorted((known.get(id_) or parse_entry(raw).name, id_) for id_, raw in raws.items())


def compared(id_: str, desired: EntrySet, applied: EntrySet | None, reason: str) -> HostEntry:
    """An entry that is in one of the sets. `applied`: None if it is not known. `reason`: why it was left out."""
    wanted = _parsed(desired, id_)
    held = None if applied is None else _parsed(applied, id_)
    entry = wanted or held
    before, after = _timed(held), _timed(wanted)
    differs = [] if before is None or after is None else _differs(before, after)
    name = entry.name if entry is not None else id_
    state = _state(wanted, held, is_known=applied is not None, reason=reason)
    return HostEntry(name, id_, state, after, before, differs, reason if state == "LeftOut" else "")


def _state(wanted: Entry | None, held: Entry | None, *, is_known: bool, reason: str) -> State:
    if not is_known:
        return "Unknown"
    if held is None:
        return "ToAdd"
    if wanted is None:
        return "ToRemove"
    if wanted != held:
        return "ToChange"
    return "LeftOut" if reason else "InForce"


def next_due(entry: Timed | None, host: str, schedule_id: str, now: datetime) -> datetime | None:
    """The next due time of an entry on a host, with its spread; None when it is disabled or cannot be read here."""
    if entry is None or not entry.enabled:
        return None
    offset = cron.spread(host, schedule_id, entry.spread_seconds)
    try:
        return cron.next_due(cron.parse_all(entry.cron), cron.zone(entry.time_zone), now - offset) + offset
    except cron.CronError:
        return None


def _parsed(entries: EntrySet, id_: str) -> Entry | None:
    held = entries.items.get(id_)
    return None if held is None else parse_entry(held.raw)


def _timed(entry: Entry | None) -> Timed | None:
    if entry is None:
        return None
    return Timed(entry.cron, entry.time_zone, entry.spread_s, entry.enabled, entry.revision)


def _differs(before: Timed, after: Timed) -> list[str]:
    """The fields in which two entries differ, as they are called in answers."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    return [name for name in new if old[name] != new[name]]
