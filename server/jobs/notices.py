"""What servers tell each other in news: what happened to jobs and hosts on one of them, as plain data.

Each is told in the transaction in which it happened. Whoever hears one brings copies up to date, or does what only the
server can do that has the host. To hear one again, or one that others overtook, does no harm.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from server.agents.session import HelloFacts, LeftOutEntries
from wire.messages import JobFinished


class Notice(Struct, frozen=True, tag_field="is", omit_defaults=True):
    """The base of all."""


class SlotsGiven(Notice, frozen=True, tag="slots"):
    """Jobs were given slots whose hosts other servers have: by host, their ids. The host's server sends them."""

    jobs: Mapping[str, Sequence[str]]


class EndAsked(Notice, frozen=True, tag="ask"):
    """An attempt is to end whose host another server has. The host's server asks it. `attempt`: its id on the wire."""

    host: str
    attempt: str
    why: str


class Ended(Notice, frozen=True, tag="ended"):
    """An attempt ended. `attempt`: its number; `final`: whether the job has ended, too, which was created at
    `created_at`; `schedule_id`: "" for none; `url`: at which it opened its repository, "" if it may not have."""

    end: JobFinished
    host: str
    schedule_id: str
    kind: str
    repository: str
    attempt: int
    final: bool
    created_at: datetime
    url: str = ""


class Recorded(Notice, frozen=True, tag="recorded"):
    """Jobs were recorded."""


class Changed(Notice, frozen=True, tag="changed"):
    """Jobs began, or wait for their next attempt."""


class Resumed(Notice, frozen=True, tag="resumed"):
    """Somebody had a Schedule go on that was paused."""

    schedule_id: str


class Arrived(Notice, frozen=True, tag="arrived"):
    """A host said hello: its newest session is on the server that tells this. `instance`: the agent's process."""

    host: str
    session: int
    instance: str
    hello: HelloFacts


class Left(Notice, frozen=True, tag="left"):
    """A host's newest session is over, and no server has the host."""

    host: str


class Acked(Notice, frozen=True, tag="acked"):
    """Hosts acked this version of their sets, with this digest. `hosts`: each with the number of its hello."""

    hosts: Mapping[str, int]
    version: int
    digest: str


class LeftOut(Notice, frozen=True, tag="left_out"):
    """What a host left out of its set. `session`: the number of its hello."""

    host: str
    session: int
    left_out: LeftOutEntries


class Opened(Notice, frozen=True, tag="opened"):
    """A job has opened a repository at this URL."""

    repository: str
    url: str


class Output(Notice, frozen=True, tag="output"):
    """Lines that a job printed which lists snapshots or files, and which this server was not asked for."""

    job_id: str
    lines: Sequence[str]


class Duplicate(Notice, frozen=True, tag="duplicate"):
    """A second agent of a host tried to connect."""

    host: str
    at: datetime


class Reported(Notice, frozen=True, tag="reported"):
    """A controller sent a report, which is in the table."""

    controller: str


class Alerts(Notice, frozen=True, tag="alerts"):
    """An Alert has told something, or a message of one did or did not arrive. `declared`: one was created, changed or
    deleted instead."""

    declared: bool = False


class ServerGone(Notice, frozen=True, tag="gone"):
    """A server has died; no server has its hosts."""

    server: str


AnyNotice = (
    SlotsGiven
    | EndAsked
    | Ended
    | Recorded
    | Changed
    | Resumed
    | Arrived
    | Left
    | Acked
    | LeftOut
    | Opened
    | Output
    | Duplicate
    | Reported
    | Alerts
    | ServerGone
)

_encoder = msgspec.json.Encoder()
_each = msgspec.json.Decoder(list[msgspec.Raw])
_decoder = msgspec.json.Decoder(AnyNotice)


def encode(notices: Sequence[AnyNotice]) -> str:
    """The body of a row of news."""
    return _encoder.encode(notices).decode()


def _refuse(error: msgspec.DecodeError) -> None:
    raise error


def decode(body: str, left_out: Callable[[msgspec.DecodeError], None] = _refuse) -> list[AnyNotice]:
    """The notices in a row of news. `left_out` is called for each that this release does not know: a newer one tells it
    beside others, which are heard all the same. Raises msgspec.DecodeError for what is no
    list, and where `left_out` raises it."""
    found: list[AnyNotice] = []
    for notice in _each.decode(body):
        try:
            found.append(_decoder.decode(notice))
        except msgspec.DecodeError as error:
            left_out(error)
    return found
