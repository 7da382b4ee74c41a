"""What a push makes of the agent's set: the work of `Apply`, free of I/O, and long for a large set."""

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
"""Entries that are not in force and are told one by one; the server gets the number of all."""
MAX_REASON = 256
"""Characters of the reason why an entry is not in force."""


class Built(Struct, frozen=True):
    """A push worked out: the set that it gives, the timetable of that set, and where cursors of its entries begin.

    `push`: None where the set that the agent holds was put in force anew.
    """

    push: Push | None
    held: entries.EntrySet
    table: Timetable
    begins: Mapping[str, datetime] = {}


def built(state: AgentState, push: Push | None, host: str, now: datetime) -> Built | str:
    """What a push, or None for the set in `state`, makes of the agent's set; why it cannot be read, if an entry in it
    has no id.

    Only reads `version`, `entries` and `cursors` of the state. These change by nothing but the push's own record
    meanwhile, since nothing fires without a timetable; so this may run in a thread.
    """
    if push is None:
        return Built(None, state.entries, timetable.build(state.entries, state.cursors, host, now))
    try:
        held = state.after(push)
    except msgspec.DecodeError as error:
        return str(error)
    begins = state.begins(push, held)
    return Built(push, held, timetable.build(held, state.cursors | begins, host, now), begins)


def left_out(problems: Mapping[str, str]) -> tuple[list[LeftOut], int]:
    """What the server is told of entries that are not in force, and how many there are."""
    told = islice(problems.items(), MAX_LEFT_OUT)
    return [LeftOut(key, reason[:MAX_REASON]) for key, reason in told], len(problems)


def log_applied(result: Built) -> None:
    """Log what is in force, what is left out, and what is due next."""
    for key, problem in result.table.problems.items():
        log.warning("schedule left out", extra={"schedule": key, "reason": problem})
    facts: dict[str, object] = {"schedules": len(result.held)}
    if (entry := result.table.next_entry) is not None and result.table.next_at < NEVER:
        facts |= {"next": entry.name, "due": result.table.next_at}
    log.log(logging.INFO if result.held else logging.DEBUG, "schedules in force", extra=facts)
