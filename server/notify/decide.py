"""Decides what an Alert tells: what is wrong now, compared with what was told, gives the messages to send. No I/O.

Everything that the next decision needs is in the state, which is stored together with the messages. So a server that is
killed has decided all of it or nothing, and the next one neither repeats a message nor leaves one out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

MAX_FOLLOWED = 1000
"""How many hosts of a situation are followed one by one; of more, the first by name are, and the others counted."""
MAX_FOLLOWED_IN_ALL = 20_000
"""How many hosts of all situations of an Alert are followed one by one; where there are more, each has a like share."""

Kind = Literal["firing", "repeat", "resolved"]
ObjectKey = tuple[str, str, str]
"""Kind, namespace and name of an object; hosts together, and the fleet, have an empty name."""


class Situation(NamedTuple):
    """Something that is wrong now with an object, on some of its hosts or without regard to hosts.

    `event`: what an Alert's spec calls it; `reason`: one word, as in a condition. `more`: how many hosts there are
    beside those in `hosts`. `after`: for how long it must last, for each host by itself, before it is told. `repeats`:
    whether it is told again while nothing changes.
    """

    event: str
    reason: str
    about: ObjectKey
    message: str
    hosts: Sequence[str] = ()
    more: int = 0
    after: timedelta = timedelta()
    repeats: bool = True

    @property
    def key(self) -> str:
        """Names the situation, however its hosts and its message change."""
        return "/".join((*self.about, self.reason))


class Known(Struct, frozen=True, omit_defaults=True):
    """What is known of a situation that lasts. `since`: when it began; `hosts`: since when each followed host is in it.

    `told_at`: when it was last told, None if it was not yet. `told`: the hosts that were told and are still in it;
    `count`: how many hosts there were when it was told.
    """

    event: str
    reason: str
    about: ObjectKey
    message: str
    since: datetime
    hosts: dict[str, datetime] = {}
    told_at: datetime | None = None
    told: list[str] = []
    count: int = 0


class State(Struct, frozen=True, omit_defaults=True):
    """What an Alert has told. `sequence`: the number of its messages so far; `quiet_until`: when it may tell again."""

    known: dict[str, Known] = {}
    sequence: int = 0
    quiet_until: datetime | None = None


class Policy(NamedTuple):
    """When an Alert tells. `repeat`: how long after a message the next one comes while nothing changes."""

    repeat: timedelta
    send_resolved: bool


class Watched(NamedTuple):
    """What an Alert is about now: these objects, these hosts, and these events; None for all.

    `unknown`: those of the objects of which nothing can be known yet.
    """

    objects: Collection[ObjectKey]
    hosts: Collection[str] = ()
    events: Collection[str] | None = None
    unknown: Collection[ObjectKey] = ()

    def covers(self, known: Known) -> bool:
        """Whether the Alert is still about all that was told of a situation."""
        if known.about not in self.objects or not (self.events is None or known.event in self.events):
            return False
        return known.about[0] != "Host" or all(host in self.hosts for host in known.told)


class Item(Struct, frozen=True):
    """One message of an Alert. `id`: its number, so that each is told apart, and a copy recognised.

    `hosts`: some of those in the situation, those first that were not told before; `count`: how many there are.
    """

    id: int
    kind: Kind
    event: str
    reason: str
    about: ObjectKey
    message: str
    since: datetime
    hosts: list[str]
    count: int


def decide(
    situations: Iterable[Situation], watched: Watched, state: State, policy: Policy, now: datetime
) -> tuple[list[Item], State]:
    """The messages to send now, and the state after them.

    What was told of anything that is not `watched` any more is ended with a message that says so, and never as if all
    were well. A situation is told when it has lasted, again when further hosts are in it or it was not told for
    `policy.repeat`, and once more when it is over.
    """
    present = {it.key: it for it in situations}
    items: list[Item] = []
    known: dict[str, Known] = {}
    for key, was in state.known.items():
        if key not in present and was.about in watched.unknown:
            known[key] = was
        elif key not in present and was.told_at is not None and policy.send_resolved:
            items.append(_resolved(was, is_covered=watched.covers(was)))
    limit = _followed_of_each(present.values())
    for key, situation in present.items():
        said, entry = _consider(situation, state.known.get(key), policy, limit, now)
        items += said
        known[key] = entry
    numbered = [replace(item, id=state.sequence + at) for at, item in enumerate(items, 1)]
    return numbered, State(known, state.sequence + len(items))


def _followed_of_each(situations: Collection[Situation]) -> int:
    """How many hosts of each situation are followed one by one."""
    wanted = sum(min(len(it.hosts), MAX_FOLLOWED) for it in situations)
    return MAX_FOLLOWED if wanted <= MAX_FOLLOWED_IN_ALL else MAX_FOLLOWED_IN_ALL // len(situations)


def _consider(
    situation: Situation, was: Known | None, policy: Policy, limit: int, now: datetime
) -> tuple[list[Item], Known]:
    """What to tell of a situation that is there now, and what is known of it then. `limit`: of hosts to follow."""
    was = was if was is not None else Known(situation.event, situation.reason, situation.about, "", now)
    followed = sorted(situation.hosts)[:limit]
    more = situation.more + len(situation.hosts) - len(followed)
    hosts = {host: min(was.hosts.get(host, now), now) for host in followed}  # the clock may have been set back
    ripe = [host for host, at in hosts.items() if now - at >= situation.after]
    are_ripe = frozenset(ripe)
    entry = replace(
        was,
        message=situation.message,
        since=min(was.since, now),
        hosts=hosts,
        told_at=min(was.told_at, now) if was.told_at is not None else None,
        told=[host for host in was.told if host in are_ripe],
    )
    if not (ripe if hosts else now - entry.since >= situation.after):
        # Those that were told are well, and others not long enough in it.
        ended = [_resolved(was)] if was.told_at is not None and policy.send_resolved else []
        return ended, replace(entry, told_at=None, told=[], since=now if was.told_at is not None else entry.since)
    kind = _kind(entry, [] if more else ripe, len(ripe) + more, policy, now)
    if kind is None or (kind == "repeat" and not situation.repeats):
        return [], entry
    told = set(entry.told)
    named = [*(host for host in ripe if host not in told), *entry.told]
    count = len(ripe) + more
    item = Item(0, kind, entry.event, entry.reason, entry.about, entry.message, entry.since, named, count)
    return [item], replace(entry, told_at=now, told=ripe, count=count)


def _kind(entry: Known, ripe: Sequence[str], count: int, policy: Policy, now: datetime) -> Kind | None:
    """How to tell of a situation that lasts; None not to. `ripe`: all hosts in it, none where not all are followed."""
    told = set(entry.told)
    grown = any(host not in told for host in ripe) if ripe else count > entry.count
    if entry.told_at is None or grown:
        return "firing"
    return "repeat" if now - entry.told_at >= policy.repeat else None


def _resolved(was: Known, *, is_covered: bool = True) -> Item:
    gone = "no longer watched: it was deleted, or the Alert does not select it any more"
    message = f"over; it was: {was.message}" if is_covered else f"{gone}; it was: {was.message}"
    return Item(0, "resolved", was.event, was.reason, was.about, message, was.since, list(was.told), was.count)


def firing(state: State) -> Mapping[str, Known]:
    """What was told and is not over."""
    return {key: it for key, it in state.known.items() if it.told_at is not None}
