"""Promise 3: after any changes, lost links and restarts, each agent's set equals the server's."""

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from agent.core.effects import Apply, Effect, Persist, Send
from agent.core.machine import Core
from agent.core.pushes import build
from agent.core.state import replay
from server.agents.session import Session
from server.fleet import pushes
from server.fleet.placement import HostState, PlacedSchedule, Placement, Plan, encoded_entry
from server.fleet.pushes import Push
from server.resources.manifests import schedule_spec
from wire.messages import Hello, ScheduleDiff, ScheduleSet

NAMES, IDS, TIERS = ("host-0", "host-1"), ("a", "b", "c"), ("db", "web")
names, ids, tiers = map(st.sampled_from, (NAMES, IDS, TIERS))


class Link:
    """A connection's two streams. `greeted`: whether the server has heard the hello."""

    def __init__(self) -> None:
        self.up: deque[Any] = deque()
        self.down: deque[Any] = deque()
        self.greeted = False


class Convergence(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.now = datetime(2026, 3, 5, tzinfo=UTC)
        self.sessions = 0
        self.labels = {name: {"tier": "db"} for name in NAMES}
        self.since = dict.fromkeys(NAMES, self.now)
        self.versions = dict.fromkeys(NAMES, 0)
        self.schedules: dict[str, PlacedSchedule] = {}
        self.hosts: dict[str, Session] = {}
        self.links: dict[str, Link] = {}
        self.cores: dict[str, Core] = {}
        self.applying: dict[str, ScheduleSet | ScheduleDiff | None] = {}
        self.disks: dict[str, list[Any]] = {name: [] for name in NAMES}
        self.restart_server()
        for name in NAMES:
            self.restart_agent(name, lost=0)

    # What people change.

    @rule(schedule_id=ids, tier=tiers, enabled=st.booleans())
    def put(self, schedule_id: str, tier: str, enabled: bool) -> None:
        self.now += timedelta(seconds=1)
        spec = schedule_spec(
            {
                "kind": "unlock",
                "cron": "0 * * * *",
                "timeZone": "UTC",
                "enabled": enabled,
                "hostSelector": {"matchLabels": {"tier": tier}},
                "repositoryRef": {"name": "main"},
                "concurrencyPolicy": "Forbid",
                "missedRunPolicy": "RunOnce",
                "spreadSeconds": 0,
                "retry": {"limit": 0, "backoffSeconds": 60},
            }
        )
        entry = encoded_entry(schedule_id, schedule_id, spec, self.now, str(self.now))
        self.schedules[schedule_id] = PlacedSchedule(schedule_id, schedule_id, spec, "main", init=False, entry=entry)
        self.change(self.fleet.plan([self.schedules[schedule_id]]))

    @rule(schedule_id=ids)
    def delete(self, schedule_id: str) -> None:
        self.schedules.pop(schedule_id, None)
        self.change(self.fleet.plan(remove=[schedule_id]))

    @rule(name=names, tier=tiers)
    def relabel(self, name: str, tier: str) -> None:
        self.now += timedelta(seconds=1)
        self.labels[name] = {"tier": tier}
        plan = self.fleet.plan_host(name, self.labels[name], self.now)
        moved = self.fleet.desired(plan)
        self.fleet.commit(plan)
        self.since[name] = self.fleet.hosts[name].since
        if moved:
            self.push(name)

    def change(self, plan: Plan) -> None:
        self.fleet.commit(plan)
        for name in plan.sets:
            self.push(name)

    def push(self, name: str) -> None:
        self.versions[name] += 1
        self.say(name, self.hosts[name].desired_changed())

    # What goes wrong.

    @rule(name=names)
    def disconnect(self, name: str) -> None:
        if self.links.pop(name, None) is not None:
            if (session := self.hosts[name].session) is not None:
                self.hosts[name].disconnected(session)
            self.do(name, self.cores[name].connection_lost())

    @rule()
    def restart_server(self) -> None:
        for name in list(self.links):
            self.disconnect(name)
        self.fleet = Placement()
        self.fleet.put(self.schedules.values())
        for name, labels in self.labels.items():
            held = self.fleet.match(labels)
            state = HostState(name, labels, self.since[name], self.versions[name], held)
            self.fleet.commit(Plan(put_hosts=[state]))
            self.hosts[name] = Session(self.fleet.hosts[name])

    @rule(name=names, lost=st.integers(0, 3))
    def restart_agent(self, name: str, lost: int) -> None:
        """The last records may be lost with the process, as with a journal that was torn."""
        if name in self.links:
            self.disconnect(name)
        self.disks[name] = self.disks[name][: max(0, len(self.disks[name]) - lost)]
        self.applying.pop(name, None)
        self.cores[name] = Core(name, replay(self.disks[name]))
        self.do(name, self.cores[name].started(self.now))

    @rule(name=names)
    def compact(self, name: str) -> None:
        """The journal is written anew with what its agent remembers."""
        self.disks[name] = list(self.cores[name].state.records())

    # What crosses the wire, one step at a time.

    @rule(name=names)
    def connect(self, name: str) -> None:
        if name not in self.links:
            self.links[name] = Link()
            self.do(name, self.cores[name].connection_made(self.now))

    @rule(name=names)
    def server_hears(self, name: str) -> None:
        if (link := self.links.get(name)) is None or not link.up:
            return
        host, messages = self.hosts[name], link.up.popleft()
        if isinstance(messages[0], Hello):
            self.sessions += 1
            link.greeted = True
            self.say(name, host.hello(self.sessions, messages[0]))
            self.say(name, host.registered())
        else:
            framed = [(message, "") for message in messages]
            self.say(name, host.received(framed, self.now))

    @rule(name=names)
    def agent_hears(self, name: str) -> None:
        if (link := self.links.get(name)) is not None and link.down:
            self.do(name, self.cores[name].message_received(link.down.popleft(), self.now))

    @rule(name=names)
    def agent_applies(self, name: str) -> None:
        if name in self.applying:
            result = build(self.cores[name].state, self.applying.pop(name), name, self.now)
            self.do(name, self.cores[name].applied(result, self.now))

    def do(self, name: str, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(messages):
                    if name in self.links:
                        self.links[name].up.append(messages)
                case Persist(records, then):
                    self.disks[name] += records
                    self.do(name, then)
                case Apply(push):
                    self.applying[name] = push

    def say(self, name: str, effects: Any) -> None:
        if (link := self.links.get(name)) is not None and link.greeted:
            link.down += [pushes.message(effect) for effect in effects if isinstance(effect, Push)]

    # What must come of it.

    @rule()
    def converge(self) -> None:
        for name in NAMES:
            self.connect(name)
            link = self.links[name]
            while link.up or link.down or name in self.applying:
                self.server_hears(name)
                self.agent_hears(name)
                self.agent_applies(name)
            desired, agent = self.fleet.hosts[name], self.cores[name].state
            wanted = {key for key, it in self.schedules.items() if it.spec.host_selector.match_labels == desired.labels}
            assert set(desired.entries.items) == wanted
            assert agent.entries.items == desired.entries.items
            assert (agent.version, agent.digest) == (self.versions[name], desired.entries.digest)
            assert self.hosts[name].in_sync
            assert set(agent.cursors) == wanted

    def teardown(self) -> None:
        self.converge()


def test_every_agent_comes_to_hold_what_the_server_wants() -> None:
    run_state_machine_as_test(Convergence, settings=settings(max_examples=100, stateful_step_count=40))
