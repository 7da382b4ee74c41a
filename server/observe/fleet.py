"""The fleet by days: what is wrong with each host, and the worst end of its jobs on each day. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Literal, NamedTuple

from msgspec import Struct

from server.observe.host_days import Bits, Worst
from server.resources.specs import LabelSelector

State = Literal["overdue", "failed", "never_ran", "offline", "out_of_sync", "agents", "no_backup", "incomplete"]
STATES: Sequence[State] = (
    "overdue",
    "failed",
    "never_ran",
    "offline",
    "out_of_sync",
    "agents",
    "no_backup",
    "incomplete",
)
"""What may be wrong with a host, the worst first: as the sections of the overview, and `no_backup`."""
GOOD_STATE = "good"
"""The state of a host with which nothing is wrong."""
DAYS = 14
"""Days that are shown unless somebody asks for others."""
MAX_LABEL_KEYS = 100
"""The most keys of labels that are named."""


class FleetHost(Struct, frozen=True):
    """A host. `states`: what is wrong with it, the worst first; `good` alone if nothing is.

    `days`: the worst end of its jobs on each day, `none` where none ended. `bytes_added`: on these days together.
    """

    name: str
    states: Sequence[str]
    connected: bool
    last_seen: datetime | None
    days: Sequence[Worst]
    bytes_added: int
    path: str


class GroupDay(Struct, frozen=True):
    """On how many hosts of a group the worst end of a day was this one."""

    succeeded: int
    warned: int
    failed: int
    none: int


class FleetGroup(Struct, frozen=True):
    """The hosts whose label has the same value, empty for those without the label.

    `states`: how many hosts are in each state; a host may be in several. `days`: for each day.
    """

    value: str
    hosts: int
    states: Mapping[str, int]
    days: Sequence[GroupDay]


class Fleet(Struct, frozen=True):
    """Hosts by days. `days`: oldest first, in UTC. `hosts`: how many match. `label_keys`: labels to group by.

    With a label to group by, `groups` has the page; else `items` has it.
    """

    at: datetime
    days: Sequence[date]
    hosts: int
    label_keys: Sequence[str]
    groups: Sequence[FleetGroup]
    items: Sequence[FleetHost]
    next: str | None = None


class FleetQuery(NamedTuple):
    """Which hosts are asked for. Empty fields ask for all. `schedule`: NAMESPACE/NAME.

    `after`: the last group or host of the page before.
    """

    namespace: str = ""
    selector: LabelSelector = LabelSelector()
    schedule: str = ""
    state: str = ""
    group: str = ""
    days: int = DAYS
    after: str | None = None
    limit: int = 100


def states_of(host: str, by_state: Mapping[State, frozenset[str]]) -> list[str]:
    """What is wrong with a host."""
    return [state for state in STATES if host in by_state[state]] or [GOOD_STATE]


def group(
    value: str, hosts: frozenset[str], bits: int, by_state: Mapping[State, frozenset[str]], days: Iterable[Bits]
) -> FleetGroup:
    """A group of hosts. `bits`: the same hosts, as in `days`."""
    bad = {state: hosts & by_state[state] for state in STATES}
    counts: dict[str, int] = {state: len(its) for state, its in bad.items() if its}
    if good := len(hosts) - len(frozenset().union(*bad.values())):
        counts[GOOD_STATE] = good
    return FleetGroup(value, len(hosts), counts, [_group_day(len(hosts), bits, it) for it in days])


def _group_day(hosts: int, bits: int, day: Bits) -> GroupDay:
    failed = day.failed & bits
    warned = day.warned & bits & ~failed
    ended = (day.ended & bits).bit_count()
    bad = failed.bit_count(), warned.bit_count()
    return GroupDay(ended - sum(bad), bad[1], bad[0], hosts - ended)


def page(names: Iterable[str], after: str | None, limit: int) -> tuple[list[str], bool]:
    """A page of these names in order, and whether there are more."""
    rest = sorted(it for it in names if after is None or it > after)
    return rest[:limit], len(rest) > limit
