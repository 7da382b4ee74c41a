"""The server's side of one host, as a state machine without I/O: an event goes in, effects come out.

It knows which version of its set the host should hold and which it was told, and keeps at most one push on its way:
the next one waits for the ack, so that a slow host cannot pile them up. What must be stored comes out as an effect, and
what is said once it is stored (a confirmation) follows in `finished`. What becomes of fires is for `jobs` to say.

A connection's hello begins a session. What comes from an older session is not heard: its sender says it again.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct

from server.fleet import pushes
from server.fleet.placement import HostState
from server.fleet.pushes import Push
from wire.entries import EMPTY, EntrySet
from wire.messages import (
    AgentClock,
    CommandRun,
    FromAgent,
    FromServer,
    Hello,
    JobAccepted,
    JobConfirmed,
    JobFinished,
    JobLog,
    JobProgress,
    ScheduleAck,
    ScheduleFire,
    ScheduleResync,
)

log = logging.getLogger(__name__)

MAX_SKEW_S = 60.0
"""Seconds by which a host's clock may differ from ours before that is told."""
DUPLICATE = timedelta(minutes=3)
"""For how long a second agent is told of after it was refused: it tries again at least once a minute."""
NAMED = 3
"""Schedules that are told by name where a count is not enough."""
MAX_RUNS = 1000
"""Open jobs of one schedule on one host, whatever its concurrencyPolicy; of no schedule, restores and looks."""


class Send(Struct, frozen=True):
    """Write these messages, as one frame, to the session's connection. `answers`: the ids of what they answer."""

    messages: Sequence[FromServer]
    answers: Sequence[str] = ()


class Fired(Struct, frozen=True):
    """Due times that came, each with the id of its envelope: for the jobs' side to record or to refuse."""

    fires: Sequence[tuple[ScheduleFire, str]]


class Acked(Struct, frozen=True):
    """Store what the host holds. `left_out`: what of it is not in force, where that has changed."""

    version: int
    digest: str
    left_out: "NotInForce | None" = None


class Accepted(Struct, frozen=True):
    """Store that the host took these attempts of jobs."""

    job_ids: Sequence[str]


class Ended(Struct, frozen=True):
    """Attempts of jobs ended: the first end of each counts, and is confirmed once it is stored."""

    ends: Sequence[JobFinished]


class Told(Struct, frozen=True):
    """Progress and log lines of running jobs."""

    messages: Sequence[JobProgress | JobLog]


class Problem(Struct, frozen=True):
    """Something that is wrong with a host: for programs, and for people."""

    reason: Literal["EntriesLeftOut", "DuplicateAgent", "ClockSkew", "StoreEmpty"]
    message: str


class NotInForce(Struct, frozen=True):
    """The entries that a host holds and could not put in force: why, by schedule id, and how many there are.

    `count` is greater than the number of reasons where the host has more of them than it tells.
    """

    reasons: Mapping[str, str] = {}
    count: int = 0


ALL_IN_FORCE = NotInForce()

Effect = Send | Push | Fired | Acked | Accepted | Ended | Told


class Session:
    """What the server knows of one host's agent. `desired`: what the host should hold, which placement changes.

    `applied_version`, `applied_digest`: what it said that it holds; `left_out`: what of that is not in force.
    `instance`: which agent process it is. `clock_skew_s`: seconds by which the agent's clock was ahead of ours when it
    last told, None where it did not. `duplicate_at`: when a second agent of this name was last refused.
    `allowed_hooks`: the programs that the agent runs as hooks, None while that is not known. `held_back`: whether the
    agent was left the schedules of another store. `in_force_since`: when it was first known, in this session, to hold
    the set that it should.
    """

    __slots__ = (
        "_on_way",
        "_ready",
        "_resent",
        "_resync",
        "_told",
        "agent_version",
        "allowed_hooks",
        "applied_digest",
        "applied_version",
        "capabilities",
        "clock_skew_s",
        "desired",
        "duplicate_at",
        "held_back",
        "in_force_since",
        "instance",
        "left_out",
        "session",
    )

    def __init__(
        self,
        desired: HostState,
        applied_version: int = 0,
        applied_digest: str = "",
        left_out: NotInForce = ALL_IN_FORCE,
    ) -> None:
        self.desired = desired
        self.applied_version = applied_version
        self.applied_digest = applied_digest
        self.agent_version = ""
        self.capabilities: frozenset[str] = frozenset()
        self.allowed_hooks: frozenset[str] | None = None
        self.left_out = left_out
        self.instance = ""
        self.clock_skew_s: float | None = None
        self.duplicate_at: datetime | None = None
        self.held_back = False
        self.session: int | None = None
        self.in_force_since: datetime | None = None
        self._ready = False  # whether the first push was written and changes may follow
        self._told: tuple[int, EntrySet] | None = None  # what the host holds once it applied what it was sent
        self._on_way = False  # whether that was sent and not acked
        self._resync = False  # whether that is the whole set, sent because the host asked for it
        self._resent = -1  # the version sent whole again, because digests differed

    @property
    def name(self) -> str:
        """The host's name."""
        return self.desired.name

    @property
    def proved(self) -> bool:
        """Whether the host proved that it holds what it should: same version, same digest."""
        return self.applied_version == self.desired.version and self.applied_digest == self.desired.digest

    @property
    def in_sync(self) -> bool:
        """Whether the host proved that it holds what it should, and has all of it in force."""
        return self.proved and not self.left_out.count

    def problems(self, now: datetime, names: Mapping[str, str]) -> list[Problem]:
        """What is wrong with this host's agent, as far as the server can tell. `names`: of schedules, by id."""
        found = []
        if count := self.left_out.count:
            told = [f"{names.get(key, key)} ({why})" for key, why in list(self.left_out.reasons.items())[:NAMED]]
            more = f" and {count - len(told)} more" if count > len(told) else ""
            found.append(Problem("EntriesLeftOut", f"its agent cannot put in force: {', '.join(told)}{more}"))
        if self.is_duplicate(now):
            error = "a second agent of this name tries to connect: stop it, or give it a name of its own"
            found.append(Problem("DuplicateAgent", error))
        if (skew := self.clock_skew_s) is not None and abs(skew) > MAX_SKEW_S:
            way = "ahead of" if skew > 0 else "behind"
            error = f"its clock is {abs(skew):.0f} s {way} the server's: have both follow a time server"
            found.append(Problem("ClockSkew", error))
        if self.held_back:
            error = "its agent holds schedules, and nothing is declared here: did the server start on the wrong store?"
            found.append(Problem("StoreEmpty", error))
        return found

    def refuse_duplicate(self, now: datetime) -> bool:
        """A second agent of this name was refused. Whether that was not known."""
        known, self.duplicate_at = self.is_duplicate(now), now
        return not known

    def is_duplicate(self, now: datetime) -> bool:
        """Whether a second agent of this name was refused a short while ago."""
        return self.duplicate_at is not None and abs(now - self.duplicate_at) < DUPLICATE

    def missing_capabilities(self, command: CommandRun) -> str:
        """What of a command this host's agent does not do, in words; empty where it does all, or never said."""
        needs = {command.kind, *(["hooks"] if command.hooks else [])}
        lacking = sorted(needs - self.capabilities) if self.capabilities else ()
        version = f" {self.agent_version}" if self.agent_version else ""
        return (
            f"agent{version} does not run {' and '.join(lacking)}: update the agent of {self.name}" if lacking else ""
        )

    # The connection.

    def hello(self, session: int, hello: Hello, now: datetime | None = None, *, empty: bool = False) -> list[Effect]:
        """A connection's first message: what to write to it before anything else.

        `now`: what our clock shows. `empty`: whether nothing is declared here: an agent that holds schedules of another
        store keeps them until something is.
        """
        self.session = session
        self._ready = False
        self._resent = -1
        self.agent_version = hello.agent_version
        self.capabilities = frozenset(map(sys.intern, hello.capabilities))
        self.allowed_hooks = None if hello.allowed_hooks is None else frozenset(map(sys.intern, hello.allowed_hooks))
        self.instance = hello.instance
        self.clock_skew_s = None
        if hello.now is not None and now is not None:
            self._clock_shows(hello.now, now)
        facts = {"agent": hello.agent_version, "desired": self.desired.version, "applied": hello.applied_version}
        log.info("host connected", extra={"host": self.name, **facts})
        effects: list[Effect] = [self._applied(hello)]
        self.held_back = empty and self.desired.version == 0 and hello.digest not in ("", EMPTY.digest)
        if self.held_back:
            log.warning("agent holds schedules, and nothing is declared here: it keeps them", extra={"host": self.name})
            self._told = None
        elif self.proved and self.desired.version > 0:
            self._told, self._on_way = (self.desired.version, self.desired.held), False
        else:
            self.in_force_since = None
            effects += self._push_whole()
        return effects

    def _clock_shows(self, theirs: datetime, ours: datetime) -> None:
        """Its agent said what its clock shows."""
        was_wrong = abs(self.clock_skew_s or 0) > MAX_SKEW_S
        self.clock_skew_s = (theirs - ours).total_seconds()
        if abs(self.clock_skew_s) > MAX_SKEW_S and not was_wrong:
            log.warning("host's clock is wrong", extra={"host": self.name, "ahead_s": round(self.clock_skew_s)})

    def registered(self) -> list[Effect]:
        """The first push is written and the connection can be found by others: catch up with changes since."""
        self._ready = True
        return self._push_whole() if self._told is None and not self.held_back else self._push()

    def lost(self, session: int) -> None:
        """A connection is gone; another one may have taken its place before."""
        if self.session == session:
            self.session = None
            self._ready = False

    # What the host should hold.

    def changed(self) -> list[Effect]:
        """The set that this host should hold is another."""
        self.in_force_since = None
        return self.declared() or self._push()

    def declared(self) -> list[Effect]:
        """Something is declared here: an agent that was left those of another store gets what it should hold."""
        if not self.held_back:
            return []
        self.held_back = False
        return self._push_whole() if self._ready else []

    def acked(self, ack: ScheduleAck) -> list[Effect]:
        """The host says what is in force."""
        effects: list[Effect] = [self._applied(ack)]
        if self._told is None or ack.version != self._told[0]:
            return effects  # of an earlier push; the one on its way will be acked too
        self._on_way = False
        if ack.digest != self._told[1].digest:
            return effects + self._mismatched(ack)
        log.log(_level(ack.version), "acked", extra={"host": self.name, "version": ack.version, "digest": ack.digest})
        return effects + self._push()

    def _applied(self, told: Hello | ScheduleAck) -> Acked:
        """Take in what the host says that it holds. A hello that tells nothing of what is left out keeps what was told
        of the same set: its agent is yet to work that out, and acks once it has."""
        version = told.applied_version if isinstance(told, Hello) else told.version
        known = (self.applied_version, self.applied_digest) == (version, told.digest)
        self.applied_version, self.applied_digest = version, told.digest
        if told.left_out is None and known:
            return Acked(version, told.digest)
        reasons = {it.schedule_id: it.reason for it in told.left_out or ()}
        left_out = NotInForce(reasons, max(told.left_out_count, len(reasons)))
        if left_out == self.left_out:
            return Acked(version, told.digest)
        self.left_out = left_out
        for key, reason in list(reasons.items())[:NAMED]:
            facts = {"host": self.name, "schedule": key, "reason": reason, "left_out": left_out.count}
            log.warning("host left a schedule out", extra=facts)
        return Acked(version, told.digest, left_out)

    def resync(self, message: ScheduleResync) -> list[Effect]:
        """The host cannot apply the diff that it was sent."""
        if self._on_way and self._resync:  # it is on its way
            return []
        log.warning("host asks for its whole set", extra={"host": self.name, "has": message.have})
        effects = self._push_whole()
        self._resync = True
        return effects

    def _mismatched(self, ack: ScheduleAck) -> list[Effect]:
        extra = {"host": self.name, "version": ack.version, "digest": ack.digest}
        if self._resent == ack.version:  # it had the whole set and still differs: the next change tries again
            log.warning("host holds another set than it was sent", extra=extra)
            return []
        log.warning("digests differ: sending the whole set", extra=extra)
        self._resent = ack.version
        return self._push_whole()

    def _push(self) -> list[Effect]:
        if not self._ready or self._on_way or self._told is None or self._told[0] == self.desired.version:
            return []
        (base, old), to = self._told, self.desired
        return self._tell(pushes.change(base, to.version, old, to.held, to.since))

    def _push_whole(self) -> list[Effect]:
        return self._tell(pushes.whole(self.desired.version, self.desired.held, self.desired.since))

    def _tell(self, push: Push) -> list[Effect]:
        self._told, self._on_way, self._resync = (push.version, push.new), True, False
        facts = {"version": push.version, "schedules": len(push.new)}
        log.log(_level(push.version), "pushed", extra={"host": self.name, **facts})
        return [push]

    # Messages.

    def received(self, messages: Sequence[tuple[FromAgent, str]], now: datetime) -> list[Effect]:
        """One frame of the session, each message with the id of its envelope: what to store and to answer."""
        effects: list[Effect] = []
        fires: list[tuple[ScheduleFire, str]] = []
        taken: list[str] = []
        ends: list[JobFinished] = []
        told: list[JobProgress | JobLog] = []
        for message, answers in messages:
            match message:
                case ScheduleFire() if self.held_back:
                    pass  # of another store: its agent keeps it until something is declared here
                case ScheduleFire():
                    fires.append((message, answers))
                case ScheduleAck():
                    effects += self.acked(message)
                case ScheduleResync():
                    effects += self.resync(message)
                case JobAccepted(job_id):
                    taken.append(job_id)
                case JobFinished():
                    ends.append(message)
                case JobProgress() | JobLog():
                    told.append(message)
                case AgentClock(theirs):
                    self._clock_shows(theirs, now)
        if fires:
            effects.append(Fired(fires))
        if taken:
            effects.append(Accepted(taken))
        if told:
            effects.append(Told(told))
        if ends:
            effects.append(Ended(ends))
        if self.in_force_since is None and self.in_sync:
            self.in_force_since = now
        return effects

    def finished(self, ends: Sequence[JobFinished]) -> list[Effect]:
        """Ends are stored: the host may forget them."""
        return [Send([JobConfirmed(end.job_id) for end in ends])]


def _level(version: int) -> int:
    """How much a push matters to people: version 0 is the empty set of a host that nothing was ever declared for."""
    return logging.INFO if version else logging.DEBUG
