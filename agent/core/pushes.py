"""Applies a push to the agent's set: the work of the effect `Apply`. No I/O, but slow for a large set."""

import logging
from collections.abc import Mapping
from datetime import datetime
from itertools import islice

import msgspec
from msgspec import Struct

from agent.core import timetable
from agent.core.effects import Push
from agent.core.state import AgentState
from agent.core.timetable import NEVER, Timetable
from wire import entries
from wire.messages import LeftOut

log = logging.getLogger(__name__)

MAX_LEFT_OUT = 100
"""Left-out entries that the ack names. Of a larger number, it has only the count."""
MAX_REASON = 256
"""Characters of the reason why an entry is left out."""


class Built(Struct, frozen=True):
    """The result of a push: the new set, its timetable, and the new cursors of the entries that changed.

    `push`: None when the set that the agent already held was put in force again.
    """

    push: Push | None
    held: entries.EntrySet
    table: Timetable
    new_cursors: Mapping[str, datetime] = {}


def build(state: AgentState, push: Push | None, host: str, now: datetime) -> Built | str:
    """The result of a push, or a message when an entry in it has no id. `push`: None for the set that is in `state`.

    This may run in a thread. It reads only `version`, `entries` and `cursors` of the state, and none of these change
    meanwhile: the core has no timetable until the result is in, so nothing fires.
    """
    if push is None:
        return Built(None, state.entries, timetable.build(state.entries, state.cursors, host, now))
    try:
        held = state.with_push(push)
    except msgspec.DecodeError as error:
        return str(error)
    cursors = state.new_cursors(push, held)
    return Built(push, held, timetable.build(held, state.cursors | cursors, host, now), cursors)


def left_out(problems: Mapping[str, str]) -> tuple[list[LeftOut], int]:
    """The left-out entries for an ack, at most MAX_LEFT_OUT, and how many there are."""
    named = islice(problems.items(), MAX_LEFT_OUT)
    return [LeftOut(key, reason[:MAX_REASON]) for key, reason in named], len(problems)


def log_applied(result: Built) -> None:
    """Log how many entries are in force, which are left out, and what is due next."""
    for key, problem in result.table.problems.items():
        log.warning("schedule left out", extra={"schedule": key, "reason": problem})
    facts: dict[str, object] = {"schedules": len(result.held)}
    if (entry := result.table.next_entry) is not None and result.table.next_at < NEVER:
        facts |= {"next": entry.name, "due": result.table.next_at}
    log.log(logging.INFO if result.held else logging.DEBUG, "schedules in force", extra=facts)
