"""A session: what the server knows of one host's agent, as a state machine without I/O.

Messages go in, and effects come out: messages to write, pushes, and what to store. The session knows which version of
its set the host should hold and which it was sent. At most one push is unacked. A newer push waits for that ack, so
that pushes do not pile up for a slow host. What becomes of fires is decided in `jobs`.

Each hello begins a session. Messages of an older session are dropped; their agent sends them again.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec
from msgspec import Struct

import cron
from server.fleet import pushes
from server.fleet.placement import HostState
from server.fleet.pushes import Push
from server.resources import restic
from server.store.rows import Row
from wire.entries import EMPTY, EntrySet
from wire.messages import (
    AgentClock,
    CommandRun,
    FromAgent,
    FromServer,
    Hello,
    JobAccepted,
    JobConfirmed,
    JobCounted,
    JobFinished,
    JobLog,
    JobProgress,
    JobReport,
    ScheduleAck,
    ScheduleFire,
    ScheduleResync,
)

log = logging.getLogger(__name__)

MAX_SKEW_S = 60.0
"""Seconds by which a host's clock may differ from the server's before it is a problem."""
DUPLICATE = timedelta(minutes=3)
"""How long a host has the DuplicateAgent problem after a refusal. A refused agent tries again at least each minute."""
MAX_NAMED = 3
"""How many schedules a message names before it only counts them."""


class Send(Struct, frozen=True):
    """Write these messages to the session's connection as one frame. `answers`: the ids of the envelopes answered."""

    messages: Sequence[FromServer]
    answers: Sequence[str] = ()


class Fired(Struct, frozen=True):
    """Record or refuse these fires, each with the id of its envelope."""

    fires: Sequence[tuple[ScheduleFire, str]]


class Acked(Struct, frozen=True):
    """Store what the host holds. `left_out`: the entries that it left out, None when they have not changed."""

    version: int
    digest: str
    left_out: "LeftOutEntries | None" = None


class Accepted(Struct, frozen=True):
    """Store that the host accepted these jobs."""

    job_ids: Sequence[str]


class Ended(Struct, frozen=True):
    """Store the ends of these attempts; the first end of an attempt counts. Then call `Session.finished`."""

    ends: Sequence[JobFinished]


class Stops(Struct, frozen=True):
    """Store that the agent begins nothing more, as it is about to end."""


class Reported(Struct, frozen=True):
    """Take progress, log lines and counts of running jobs."""

    messages: Sequence[JobReport]


class HostProblem(Struct, frozen=True):
    """A problem of a host. `reason`: one word for programs. `message`: what is wrong and what to do, for people."""

    reason: Literal["EntriesLeftOut", "DuplicateAgent", "ClockSkew", "StoreEmpty"]
    message: str


class LeftOutEntries(Struct, frozen=True):
    """Entries that a host holds and could not put in force.

    `reasons`: why, by schedule id. `count`: how many there are. An agent that has many sends the reasons of some only.
    """

    reasons: Mapping[str, str] = {}
    count: int = 0


NONE_LEFT_OUT = LeftOutEntries()


class HelloFacts(Struct, frozen=True, omit_defaults=True):
    """What a host's last hello said of its agent, and what was found or known then. See the fields of `Session`."""

    agent_version: str = ""
    capabilities: Sequence[str] = ()
    allowed_hooks: Sequence[str] | None = None
    clock_skew_s: float | None = None
    held_back: bool = False
    left_out: LeftOutEntries = NONE_LEFT_OUT
    restic_version: str = ""
    max_jobs: int | None = None


Effect = Send | Push | Fired | Acked | Accepted | Ended | Stops | Reported


class Session:
    """What the server knows of one host's agent.

    - `desired`: the host's desired state, which `Placement` changes.
    - `applied_version`, `applied_digest`, `left_out`: what the host last said that it holds, and left out of it.
    - `agent_version`, `capabilities`: from the agent's hello.
    - `allowed_hooks`: the programs that the agent runs as hooks; None when it did not say.
    - `restic_version`: of the host's restic; empty when the agent did not say.
    - `clock_skew_s`: seconds by which the agent's clock is ahead of the server's; None when it did not say.
    - `duplicate_at`: when a second agent of this host was last refused.
    - `held_back`: whether pushes are held back, as nothing is declared here and the agent has another store's set.
    - `in_force_since`: since when the host is known to be in sync with the desired set; None while it is not.
    - `max_jobs`: how many jobs the agent is to run at once, by its own option; None for any number.
    - `session`: the number of the current session; None while the host is disconnected.
    """

    __slots__ = (
        "_applied",
        "_resent_version",
        "_resync_sent",
        "_sent",
        "_unacked",
        "_writable",
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
        "left_out",
        "max_jobs",
        "restic_version",
        "session",
    )

    def __init__(
        self,
        desired: HostState,
        applied_version: int = 0,
        applied_digest: str = "",
        left_out: LeftOutEntries = NONE_LEFT_OUT,
    ) -> None:
        self.desired = desired
        self.applied_version = applied_version
        self.applied_digest = applied_digest
        self.agent_version = ""
        self.capabilities: frozenset[str] = frozenset()
        self.allowed_hooks: frozenset[str] | None = None
        self.restic_version = ""
        self.left_out = left_out
        self.clock_skew_s: float | None = None
        self.duplicate_at: datetime | None = None
        self.held_back = False
        self.max_jobs: int | None = None
        self.session: int | None = None
        self.in_force_since: datetime | None = None
        self._applied: EntrySet | None = None  # the last one that was known
        self._writable = False  # whether the first push was written, so that further ones may follow
        self._sent: tuple[int, EntrySet] | None = None  # version and set of the last push, or of the hello if in sync
        self._unacked = False  # whether that push awaits its ack
        self._resync_sent = False  # whether that push answers a schedule.resync
        self._resent_version = -1  # the version that was sent whole again because digests differed
        self._applied = self.applied

    @property
    def name(self) -> str:
        """The host's name."""
        return self.desired.name

    @property
    def holds_desired(self) -> bool:
        """Whether the host last said that it holds the desired version, with the desired digest."""
        return self.applied_version == self.desired.version and self.applied_digest == self.desired.digest

    @property
    def in_sync(self) -> bool:
        """Whether the host holds the desired set and has put every entry in force."""
        return self.holds_desired and not self.left_out.count

    @property
    def applied(self) -> EntrySet | None:
        """The set that the host last said that it holds. None: it has the digest of no set that is known here, such as
        one from before the server started."""
        holds = self.applied_digest or EMPTY.digest
        sent = None if self._sent is None else self._sent[1]
        at_hand = (EMPTY, self.desired.entries, sent, self._applied)
        return next((it for it in at_hand if it is not None and it.digest == holds), None)

    @property
    def was_heard(self) -> bool:
        """Whether a hello of the host was heard, here or on another server, since this server started."""
        return bool(self.agent_version or self.capabilities) or self.clock_skew_s is not None

    @property
    def may_have_problems(self) -> bool:
        """Whether `problems` has to be asked: it says nothing for most hosts."""
        skewed = self.clock_skew_s is not None and abs(self.clock_skew_s) > MAX_SKEW_S
        return skewed or self.held_back or self.duplicate_at is not None or self.left_out.count > 0

    def problems(self, now: datetime, names: Mapping[str, str], *, within: bool = False) -> list[HostProblem]:
        """The problems of this host's agent. `names`: of schedules by id. `within`: whether to tell of no others."""
        found = []
        reasons = {key: why for key, why in self.left_out.reasons.items() if not within or key in names}
        if count := len(reasons) if within else self.left_out.count:
            named = [f"{names.get(key, key)} ({why})" for key, why in list(reasons.items())[:MAX_NAMED]]
            more = f" and {count - len(named)} more" if count > len(named) else ""
            found.append(HostProblem("EntriesLeftOut", f"its agent cannot put in force: {', '.join(named)}{more}"))
        if self.is_duplicate(now):
            error = "a second agent of this name tries to connect: stop it, or give it a name of its own"
            found.append(HostProblem("DuplicateAgent", error))
        if (skew := self.clock_skew_s) is not None and abs(skew) > MAX_SKEW_S:
            way = "ahead of" if skew > 0 else "behind"
            error = f"its clock is {abs(skew):.0f} s {way} the server's: have both follow a time server"
            found.append(HostProblem("ClockSkew", error))
        if self.held_back:
            error = "its agent holds schedules, and nothing is declared here: did the server start on the wrong store?"
            found.append(HostProblem("StoreEmpty", error))
        return found

    def refuse_duplicate(self, now: datetime) -> bool:
        """Note that a second agent of this host was refused. Returns whether that is a new problem."""
        known, self.duplicate_at = self.is_duplicate(now), now
        return not known

    def is_duplicate(self, now: datetime) -> bool:
        """Whether a second agent of this host was refused within `DUPLICATE`."""
        return self.duplicate_at is not None and abs(now - self.duplicate_at) < DUPLICATE

    def missing_capabilities(self, command: CommandRun) -> str:
        """Why a command needs another agent: this one lacks capabilities; empty when it lacks none.

        An agent that names no capabilities is taken to have all.
        """
        missing = sorted(needed(command) - self.capabilities) if self.capabilities else []
        if not missing:
            return ""
        version = f" {self.agent_version}" if self.agent_version else ""
        what = " and ".join(_FIELDS.get(it, it) for it in missing)
        return f"agent{version} does not run {what}: update the agent"

    def obstacle(self, command: CommandRun) -> str:
        """Why the host cannot run a command as it is meant, and the remedy, without the host's name; empty if it can.

        Its agent may be too old, or its restic. A restic whose version the agent does not tell is taken to have all.
        """
        too_old = restic.unknown(self.restic_version, [*command.options, *command.args])
        return self.missing_capabilities(command) or too_old

    # What another server heard.

    @property
    def hello_facts(self) -> HelloFacts:
        """What the last hello said, for other servers."""
        hooks = None if self.allowed_hooks is None else sorted(self.allowed_hooks)
        return HelloFacts(
            self.agent_version,
            sorted(self.capabilities),
            hooks,
            self.clock_skew_s,
            self.held_back,
            self.left_out,
            self.restic_version,
            self.max_jobs,
        )

    def adopt_hello(self, facts: HelloFacts) -> None:
        """The host said hello to another server."""
        self.agent_version = facts.agent_version
        self.capabilities = frozenset(map(sys.intern, facts.capabilities))
        self.allowed_hooks = None if facts.allowed_hooks is None else frozenset(map(sys.intern, facts.allowed_hooks))
        self.restic_version = sys.intern(facts.restic_version)
        self.clock_skew_s = facts.clock_skew_s
        self.held_back = facts.held_back
        self.left_out = facts.left_out
        self.max_jobs = facts.max_jobs

    def adopt_ack(self, version: int, digest: str) -> None:
        """The host said to another server what it holds."""
        self.applied_version, self.applied_digest = version, digest
        self._applied = self.applied or self._applied
        if self.in_force_since is not None and not self.in_sync:
            self.in_force_since = None

    def adopt_row(self, row: Row | None) -> None:
        """Take over what the host's row says that it holds. None: it was deleted."""
        if row is not None:
            self.adopt_ack(row["applied_version"], row["applied_digest"])
            self.adopt_left_out(msgspec.convert(row["left_out"] or {}, LeftOutEntries))

    def adopt_duplicate(self, at: datetime) -> None:
        """A second agent of this host tried to connect to another server."""
        self.duplicate_at = at if self.duplicate_at is None else max(self.duplicate_at, at)

    def adopt_left_out(self, left_out: LeftOutEntries) -> None:
        """The host told another server what it left out of its set."""
        self.left_out = left_out

    # The connection.

    def hello(self, session: int, hello: Hello, now: datetime | None = None, *, empty: bool = False) -> list[Effect]:
        """Begin a session. The effects are written to its connection before anything else.

        `now`: the server's time; None leaves the agent's clock unchecked. `empty`: whether nothing is declared here. An
        agent that then says hello with a set keeps it until something is declared.
        """
        self.session = session
        self._writable = False
        self._resent_version = -1
        self.agent_version = hello.agent_version
        self.capabilities = frozenset(map(sys.intern, hello.capabilities))
        self.allowed_hooks = None if hello.allowed_hooks is None else frozenset(map(sys.intern, hello.allowed_hooks))
        self.restic_version = sys.intern(hello.restic_version)
        self.max_jobs = hello.max_jobs
        self.clock_skew_s = None
        if hello.now is not None and now is not None:
            self._check_clock(hello.now, now)
        facts = {"agent": hello.agent_version, "desired": self.desired.version, "applied": hello.applied_version}
        log.info("host connected", extra={"host": self.name, **facts})
        effects: list[Effect] = [self._set_applied(hello)]
        self.held_back = empty and self.desired.version == 0 and hello.digest not in ("", EMPTY.digest)
        if self.held_back:
            log.warning("agent holds schedules, and nothing is declared here: it keeps them", extra={"host": self.name})
            self._sent = None
        elif self.holds_desired and self.desired.version > 0:
            self._sent, self._unacked = (self.desired.version, self.desired.entries), False
        else:
            self.in_force_since = None
            effects += self._push_whole()
        return effects

    def _check_clock(self, theirs: datetime, ours: datetime) -> None:
        """Compare the agent's clock with the server's, and log when it becomes a problem."""
        was_wrong = abs(self.clock_skew_s or 0) > MAX_SKEW_S
        self.clock_skew_s = (theirs - ours).total_seconds()
        if abs(self.clock_skew_s) > MAX_SKEW_S and not was_wrong:
            log.warning("host's clock is wrong", extra={"host": self.name, "ahead_s": round(self.clock_skew_s)})

    def registered(self) -> list[Effect]:
        """The first push was written and the hub has the connection. Push what has changed since."""
        self._writable = True
        return self._push_whole() if self._sent is None and not self.held_back else self._push()

    def disconnected(self, session: int) -> None:
        """A session's connection has ended. Nothing happens when a newer session has begun."""
        if self.session == session:
            self.session = None
            self._writable = False

    # The desired set.

    def desired_changed(self) -> list[Effect]:
        """The desired set has changed: push it, or leave that to the next ack or hello."""
        self.in_force_since = None
        return self.resume_pushes() or self._push()

    def resume_pushes(self) -> list[Effect]:
        """Something is declared here now: end `held_back`, and push the desired set."""
        if not self.held_back:
            return []
        self.held_back = False
        return self._push_whole() if self._writable else []

    def acked(self, ack: ScheduleAck) -> list[Effect]:
        """The host sent an ack. When its digest is wrong, the whole set is sent again, once for each version."""
        effects: list[Effect] = [self._set_applied(ack)]
        if self._sent is None or ack.version != self._sent[0]:
            return effects  # an ack of an earlier push: that of the last one will follow
        self._unacked = False
        facts = {"host": self.name, "version": ack.version, "digest": ack.digest}
        if ack.digest == self._sent[1].digest:
            log.log(_level(ack.version), "acked", extra=facts)
            return effects + self._push()
        if self._resent_version == ack.version:  # the whole set did not help: the next change will try again
            log.warning("host holds another set than it was sent", extra=facts)
            return effects
        log.warning("digests differ: sending the whole set", extra=facts)
        self._resent_version = ack.version
        return effects + self._push_whole()

    def _set_applied(self, message: Hello | ScheduleAck) -> Acked:
        """Take over what the host says that it holds.

        A hello may not know yet what is left out. If its set is the known one, what is known of it stays.
        """
        version = message.applied_version if isinstance(message, Hello) else message.version
        is_known = (self.applied_version, self.applied_digest) == (version, message.digest)
        self.applied_version, self.applied_digest = version, message.digest
        self._applied = self.applied or self._applied
        if message.left_out is None and is_known:
            return Acked(version, message.digest)
        reasons = {it.schedule_id: self._too_old_for(it.schedule_id) or it.reason for it in message.left_out or ()}
        left_out = LeftOutEntries(reasons, max(message.left_out_count, len(reasons)))
        if left_out == self.left_out:
            return Acked(version, message.digest)
        self.left_out = left_out
        for key, reason in list(reasons.items())[:MAX_NAMED]:
            facts = {"host": self.name, "schedule": key, "reason": reason, "left_out": left_out.count}
            log.warning("host left a schedule out", extra=facts)
        return Acked(version, message.digest, left_out)

    def _too_old_for(self, schedule_id: str) -> str:
        """Why an agent that lacks a capability leaves an entry out; empty where no capability is the reason."""
        entry = self.desired.entry(schedule_id)
        several = entry is not None and cron.is_several(entry.cron)
        if not (several and self.capabilities) or "crons" in self.capabilities:
            return ""
        return f"it has several crons, which agent {self.agent_version} does not know: update the agent of {self.name}"

    def resync(self, message: ScheduleResync) -> list[Effect]:
        """The host cannot apply a diff: send the whole set, unless it is on its way already."""
        if self._unacked and self._resync_sent:
            return []
        log.warning("host asks for its whole set", extra={"host": self.name, "has": message.have})
        effects = self._push_whole()
        self._resync_sent = True
        return effects

    def _push(self) -> list[Effect]:
        """Push the difference to the desired set, if there is one and no push is unacked.

        The set may change without its version, where the server that changed it has another release.
        """
        to = self.desired
        if not self._writable or self._unacked or self._sent is None or self._sent == (to.version, to.entries):
            return []
        base, old = self._sent
        return self._send(pushes.change(base, to.version, old, to.entries, to.since))

    def _push_whole(self) -> list[Effect]:
        return self._send(pushes.whole(self.desired.version, self.desired.entries, self.desired.since))

    def _send(self, push: Push) -> list[Effect]:
        self._sent, self._unacked, self._resync_sent = (push.version, push.new), True, False
        facts = {"version": push.version, "schedules": len(push.new)}
        log.log(_level(push.version), "pushed", extra={"host": self.name, **facts})
        return [push]

    # Messages.

    def received(self, messages: Sequence[tuple[FromAgent, str]], now: datetime) -> list[Effect]:
        """The messages of one frame, each with the id of its envelope. Returns what to store and what to write."""
        effects: list[Effect] = []
        fires: list[tuple[ScheduleFire, str]] = []
        accepted: list[str] = []
        ends: list[JobFinished] = []
        reports: list[JobReport] = []
        for message, envelope_id in messages:
            match message:
                case ScheduleFire() if self.held_back:
                    pass  # a schedule of another store: the agent repeats the fire until something is declared here
                case ScheduleFire() if self.desired.drains:
                    pass  # the agent keeps it, and fires for all that it missed with its hello when that is over
                case ScheduleFire():
                    fires.append((message, envelope_id))
                case ScheduleAck():
                    effects += self.acked(message)
                case ScheduleResync():
                    effects += self.resync(message)
                case JobAccepted(job_id):
                    accepted.append(job_id)
                case JobFinished():
                    ends.append(message)
                case JobProgress() | JobLog() | JobCounted():
                    reports.append(message)
                case AgentClock(theirs, stops):
                    self._check_clock(theirs, now)
                    effects += [Stops()] if stops else []
        if fires:
            effects.append(Fired(fires))
        if accepted:
            effects.append(Accepted(accepted))
        if reports:
            effects.append(Reported(reports))
        if ends:
            effects.append(Ended(ends))
        if self.in_force_since is None and self.in_sync:
            self.in_force_since = now
        return effects

    def finished(self, ends: Sequence[JobFinished]) -> list[Effect]:
        """These ends are stored: confirm them, so that the agent may delete them."""
        return [Send([JobConfirmed(end.job_id) for end in ends])]


def needed(command: CommandRun) -> set[str]:
    """The capabilities that an agent needs for a command."""
    parts = {
        "hooks": command.hooks is not None,
        "command": bool(command.stdin_command),
        "options": bool(command.options),
        "priority": bool(command.nice or command.io_class),
        "unchanged": "--skip-if-unchanged" in command.args,
        "stop-after": command.stop_after_s is not None,
    }
    return {command.kind, *(name for name, is_needed in parts.items() if is_needed)}


_FIELDS = {
    "stop-after": "spec.stopAtEnd",
    "options": "the Repository's compression, packSize, limits and cleanupCache",
    "priority": "spec.nice and spec.ioClass",
    "unchanged": "spec.backup.skipIfUnchanged",
}
"""What fields of a spec need a capability that is not named after them."""


def _level(version: int) -> int:
    """The log level of pushes and acks. Version 0 is the empty set of a host that nothing was ever declared for."""
    return logging.INFO if version else logging.DEBUG
