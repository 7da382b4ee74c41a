"""Decides what a Schedule pings, in the way of healthchecks.io: /start when a run begins, then its end. No I/O.

A URL with {host} is one for each host. One without it is for all hosts of the Schedule together: it is pinged as well
only when the last run of no host failed and none is overdue, so that one host's success hides no other's failure.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from msgspec import Struct

PLACEHOLDER = "{host}"
Kind = Literal["start", "success", "fail"]


class End(NamedTuple):
    """How the last run of a Schedule on a host ended, by its job's id. `why`: why it did not go well."""

    job_id: str
    is_good: bool
    why: str = ""


class Pinged(Struct, frozen=True, omit_defaults=True):
    """What was pinged: by host, the last run whose begin was, and the last whose end was."""

    started: dict[str, str] = {}
    ended: dict[str, str] = {}


class Ping(NamedTuple):
    """A ping to send. `host`: empty for a URL of all hosts. `key`: names it among all of the Schedule's."""

    host: str
    kind: Kind
    key: str
    why: str = ""


def decide(
    ended: Mapping[str, End], running: Mapping[str, str], late: Collection[str], was: Pinged, *, each_host: bool
) -> tuple[list[Ping], Pinged]:
    """The pings to send now, and what was pinged then.

    `ended`: by host, the last run that ended; `running`: the run that goes on. `late`: hosts that are overdue. A run
    that begins and ends between two looks is pinged with its end alone.
    """
    all_well = not late and all(end.is_good for end in ended.values())
    pings: list[Ping] = []
    for host, end in sorted(ended.items()):
        there = host if each_host else ""
        if was.ended.get(host) == end.job_id:
            continue
        if not end.is_good:
            why = end.why if each_host else f"{host}: {end.why}"
            pings.append(Ping(there, "fail", f"{end.job_id}-fail", why))
        elif each_host or all_well:
            pings.append(Ping(there, "success", f"{end.job_id}-success"))
    for host, job_id in sorted(running.items()):
        if was.started.get(host) != job_id:
            pings.append(Ping(host if each_host else "", "start", f"{job_id}-start"))
    after = Pinged(dict(running), {host: end.job_id for host, end in ended.items()})
    return pings if each_host else _last_of_each(pings), after


def _last_of_each(pings: Sequence[Ping]) -> list[Ping]:
    """Of many pings to one URL, one of each kind. There is no success where there is a failure."""
    order: Sequence[Kind] = ("success", "fail", "start")
    last = {ping.kind: ping for ping in pings}
    return [last[kind] for kind in order if kind in last]


def known(ended: Mapping[str, End]) -> Pinged:
    """What counts as pinged when a Schedule gets its URL: the runs that ended before."""
    return Pinged({}, {host: end.job_id for host, end in ended.items()})


def url_of(url: str, host: str, kind: Kind) -> str:
    """The URL to call: its path goes on with /start or /fail (https://healthchecks.io/docs/http_api/)."""
    parts = urlsplit(url.replace(PLACEHOLDER, quote(host, safe="")))
    path = parts.path.rstrip("/") + ("" if kind == "success" else f"/{kind}")
    return urlunsplit(parts._replace(path=path or "/"))
