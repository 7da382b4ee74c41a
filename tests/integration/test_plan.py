"""What a plan predicts is what applying then does: objects, hosts, versions, and every due time of the next day.

Real agents' cores run the sets of before and after through the day, in virtual time; a real server's parts apply.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import cron
from agent.core import pushes as agent_pushes
from agent.core.effects import Apply, Effect, Persist, Send
from agent.core.machine import Core
from agent.core.state import AgentState
from server.access.identity import Files, Permission
from server.access.vault import Vault
from server.agents.session import Session
from server.app import Parts, Running, assemble
from server.changes import forecast
from server.changes import plan as planning
from server.changes.forecast import Calendar
from server.changes.plan import Deletion, Plan
from server.errors import ApiException, Forbidden, Invalid, NotFound, Unavailable
from server.fleet import pushes
from server.fleet.placement import HostState, PlacedSchedule, Placement
from server.jobs import fires
from server.jobs.kinds import UNLIMITED
from server.resources.grants import Grant, Grants
from server.resources.specs import LabelSelector
from server.store.engine import Store
from server.store.hosts import host_hello
from server.store.load import load_all
from server.store.tables import Actor
from tests.integration.conftest import join
from wire.messages import ScheduleFire, ScheduleRefused

ME = Actor("user", "me")
GRANTS = Grants(namespaces={"b": Grant(LabelSelector({"pool": "a"}), ("/srv",))})
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
Run = tuple[str, str, datetime]
"""Schedule, host and due time."""


async def anything(_: Permission) -> None:
    """The administrator may do everything."""


class World:
    """A control plane on a store, with a clock that is set by hand and ids that come again after a plan."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = datetime(2026, 3, 27, 12, 0, 20, tzinfo=UTC)
        self.online: set[str] = set()
        self._ids = count()
        self.parts: Parts = assemble(
            store, Vault([Vault.new_key()]), lambda: self.now, self._new_id, Files("admin", "agent"), GRANTS
        )
        self.services = self.parts.services
        hub: Any = self.services.hub
        hub.is_connected = self.online.__contains__

    def _new_id(self) -> str:
        return f"id{next(self._ids)}"

    async def put(self, manifest: Mapping[str, Any]) -> None:
        """What a controller asks for."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        if kind == "Host":
            await self.services.hosts.put(ME, metadata["name"], metadata.get("labels", {}))
        elif kind == "Repository":
            await self.services.repositories.put(ME, manifest)
        else:
            await self.services.schedules.put(ME, manifest)

    async def delete(self, it: Deletion) -> None:
        """What a controller asks for."""
        if it.kind == "Host":
            await self.services.hosts.delete(ME, it.name)
        elif it.kind == "Repository":
            await self.services.repositories.delete(ME, it.namespace, it.name)
        else:
            await self.services.schedules.delete(ME, it.namespace, it.name)

    async def plan(self, puts: Sequence[Mapping[str, Any]], deletes: Sequence[Deletion] = ()) -> Plan:
        """A plan by the administrator. The ids that it gave to new objects are given again."""
        at = next(self._ids)
        self._ids = count(at)
        plan = await self.services.plans.plan(ME, puts, deletes, anything)
        self._ids = count(at)
        return plan

    async def apply(
        self, puts: Sequence[Mapping[str, Any]], deletes: Sequence[Deletion] = ()
    ) -> list[tuple[str, int, str]]:
        """Make requests one by one. Returns which were refused, and why."""
        refused = []
        kinds = ["Host", "Repository", "Schedule"]
        for index, manifest in sorted(enumerate(puts), key=lambda it: kinds.index(it[1]["kind"])):
            try:
                await self.put(manifest)
            except ApiException as error:
                refused.append(("put", index, str(error)))
        for index, deletion in sorted(enumerate(deletes), key=lambda it: -kinds.index(it[1].kind)):
            try:
                await self.delete(deletion)
            except ApiException as error:
                refused.append(("delete", index, str(error)))
        return refused

    def objects(self) -> dict[tuple[str, str, str], Any]:
        """All that is declared, with the values that people declare."""
        catalog = self.parts.catalog
        found: dict[tuple[str, str, str], Any] = {
            ("Host", "", name): dict(it.labels) for name, it in self.services.placement.hosts.items()
        }
        for kind, rows in (("Schedule", catalog.schedules), ("Repository", catalog.repositories)):
            for row in rows.values():
                found[kind, row.namespace, row.name] = (row.labels, row.spec, self._credentials(row))
        return found

    def _credentials(self, row: Any) -> Any:
        return self.parts.catalog.credentials(row) if hasattr(row, "credentials") else None


@asynccontextmanager
async def world_in(folder: Path, migrated: Path) -> AsyncIterator[World]:
    folder.mkdir()
    shutil.copy(migrated, folder)
    store = Store.open(folder / migrated.name)
    world = World(store)
    await join(world.parts)
    try:
        yield world
    finally:
        world.services.dispatcher.close()
        await store.close()


# Agents.


class Agent:
    """A real agent's core, whose effects are done at once. `fired`: the due times that it sent, or would send."""

    def __init__(self, host: str) -> None:
        self.core = Core(host, AgentState())
        self.fired: list[ScheduleFire] = []

    def do(self, effects: Sequence[Effect], now: datetime) -> None:
        for effect in effects:
            match effect:
                case Apply(push):
                    self.do(self.core.applied(agent_pushes.build(self.core.state, push, self.core.host, now), now), now)
                case Persist(_, then):
                    self.do(then, now)
                case Send(messages):
                    self.fired += [it for it in messages if isinstance(it, ScheduleFire)]

    def begin(self, now: datetime) -> None:
        self.do(self.core.started(now), now)

    def get(self, state: HostState, now: datetime) -> None:
        """The server pushes a host's whole set."""
        self.core.connection_made(now)
        push = pushes.message(pushes.whole(state.version, state.entries, state.since))
        self.do(self.core.frame_received([push], now), now)

    def run(self, until: datetime) -> None:
        """Time passes; a process that runs wakes whenever it is to."""
        while (at := self.core.wake_at) <= until:
            self.do(self.core.tick(at), at)

    def come_back(self, now: datetime) -> None:
        """A connection is made, and what was missed is said."""
        self.do(self.core.tick(now), now)
        self.fired = []
        self.do(self.core.connection_made(now), now)


class HostStory(NamedTuple):
    """What happened to a host's agent. `was`: connected, cut off, off, or never there. `gone_s`: for how long."""

    labels: Mapping[str, str]
    was: str
    gone_s: int


def history(host: HostStory, state: HostState, acked_at: datetime, now: datetime) -> tuple[Agent, datetime | None]:
    """An agent up to now, and when it was last seen; None when it never was."""
    agent = Agent(state.name)
    agent.begin(acked_at)
    if host.was == "never":
        return agent, None
    agent.get(state, acked_at)
    left = max(acked_at, now - timedelta(seconds=host.gone_s)) if host.was in ("cut", "off") else now
    agent.run(left)
    for fire in list(agent.core.state.fires.values()):  # the server answers what was said until then
        agent.core.message_received(_refusal(fire), left)
    agent.fired = []
    if host.was in ("cut", "off"):
        agent.core.connection_lost()
    if host.was == "cut":
        agent.run(now)
    return agent, left


def _refusal(fire: ScheduleFire) -> Any:

    return ScheduleRefused(fire.schedule_id, fire.scheduled_at, "Duplicate")


def lived(agent: Agent, host: HostStory, placement: Placement, now: datetime) -> tuple[set[Run], set[Run]]:
    """The runs of a host under what is placed there: those made up for now, and those of the coming day."""
    name = agent.core.host
    state = placement.hosts.get(name)
    if state is None:
        return set(), set()
    if host.was == "off":
        agent.begin(now)
    if host.was != "connected":
        agent.come_back(now)
    agent.get(state, now)
    made_up = set(_accepted(agent.fired, state, placement, now))
    agent.fired = []
    calendar = Calendar.after(now)
    agent.run(calendar.end - timedelta.resolution)
    coming = [it for it in agent.fired if it.scheduled_at >= calendar.begin]
    return made_up, {(placement.schedules[it.schedule_id].name, name, it.scheduled_at) for it in coming}


def _accepted(fired: Sequence[ScheduleFire], state: HostState, placement: Placement, now: datetime) -> Iterator[Run]:
    for fire in fired:
        if fires.refusal(fire, Session(state), placement.schedules, now) is None:
            yield placement.schedules[fire.schedule_id].name, state.name, fire.scheduled_at


# Stories.

LABELS = st.fixed_dictionaries({"role": st.sampled_from(["db", "web"]), "pool": st.sampled_from(["a", "b"])})
HOSTS = st.dictionaries(
    st.sampled_from(["h1", "h2", "h3", "h4"]),
    st.builds(
        HostStory, LABELS, st.sampled_from(["connected", "cut", "off", "never"]), st.sampled_from([90, 3600, 40_000])
    ),
    min_size=2,
)
NAMESPACES = st.sampled_from(["a", "a", "b"])
REPOSITORY_NAMES = st.sampled_from(["main", "each"])
SCHEDULE_NAMES = st.sampled_from(["s1", "s2"])


def manifest(kind: str, namespace: str, name: str, spec: Any, **others: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": spec, **others}


REPOSITORIES = st.builds(
    lambda namespace, name, limit, password: manifest(
        "Repository",
        namespace,
        name,
        {"url": "s3:h/{host}" if name == "each" else "s3:h/b", **({"maxConcurrentJobs": limit} if limit else {})},
        credentials={"password": password},
    ),
    NAMESPACES,
    REPOSITORY_NAMES,
    st.sampled_from([0, 1, 3]),
    st.sampled_from(["one", "two"]),
)
CRONS = st.sampled_from(["0 2 * * *", "30 2 * * *", "@hourly", "*/20 9-17 * * *", "15 */6 * * 1-5", "0 0 1 1 *"])
BAD_CRONS = st.sampled_from(["0 0 30 2 *", "61 * * * *"])


@st.composite
def schedules(draw: st.DrawFn, crons: st.SearchStrategy[str] = CRONS) -> dict[str, Any]:
    kind = draw(st.sampled_from(["backup", "backup", "check", "unlock"]))
    spec: dict[str, Any] = {
        "kind": kind,
        "cron": draw(crons),
        "timeZone": draw(st.sampled_from(["UTC", "Europe/Berlin"])),
        "enabled": draw(st.sampled_from([True, True, False])),
        "hostSelector": {"matchLabels": draw(st.sampled_from([{}, {}, {"role": "db"}, {"pool": "b"}]))},
        "repositoryRef": {"name": draw(REPOSITORY_NAMES)},
        "missedRunPolicy": draw(st.sampled_from(["RunOnce", "Skip"])),
        "spreadSeconds": draw(st.sampled_from([0, 0, 600, 7200])),
    }
    if draw(st.booleans()) and spec["cron"] in ("0 2 * * *", "@hourly"):
        spec["crons"] = [spec.pop("cron"), draw(crons)]
    if kind == "backup":
        spec["backup"] = {"paths": draw(st.sampled_from([["/srv"], ["/srv/x"], ["/etc"]]))}
    if draw(st.booleans()):
        spec["windows"] = [{"from": "22:00", "to": "06:00"}]
    if draw(st.booleans()):
        spec["startingDeadlineSeconds"] = draw(st.sampled_from([300, 7200]))
    return manifest("Schedule", draw(NAMESPACES), draw(SCHEDULE_NAMES), spec)


NEW_HOSTS = st.builds(
    lambda name, labels: {"kind": "Host", "metadata": {"name": name, "labels": labels}},
    st.sampled_from(["h1", "h2", "h3", "new"]),
    LABELS,
)


def same(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


PUTS = st.lists(
    st.one_of(schedules(), schedules(), schedules(st.one_of(CRONS, BAD_CRONS)), REPOSITORIES, NEW_HOSTS),
    min_size=1,
    max_size=5,
    unique_by=same,
)
EXISTING = st.lists(st.one_of(schedules(), schedules(), REPOSITORIES), min_size=2, max_size=6)
DELETES = st.lists(
    st.one_of(
        st.builds(Deletion, st.just("Schedule"), SCHEDULE_NAMES, NAMESPACES),
        st.builds(Deletion, st.just("Repository"), REPOSITORY_NAMES, NAMESPACES),
        st.builds(Deletion, st.just("Host"), st.sampled_from(["h1", "h4"])),
    ),
    max_size=3,
    unique_by=lambda it: (it.kind, it.namespace, it.name),
)
EDITS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(
            [
                {"missedRunPolicy": "RunOnce"},
                {"missedRunPolicy": "RunOnce", "startingDeadlineSeconds": 90_000},
                {"missedRunPolicy": "Skip"},
                {"enabled": False},
                {"spreadSeconds": 7200},
                {"cron": "@hourly"},
            ]
        ),
    ),
    max_size=3,
)
"""Changes of some of the schedules that exist, by their place."""
COPIES: Iterator[int] = count()


def edited(existing: Sequence[dict[str, Any]], edits: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The manifests of existing schedules, with other values in their specs."""
    chosen = [(existing[at % len(existing)], change) for at, change in edits]
    return [it | {"spec": it["spec"] | change} for it, change in chosen if it["kind"] == "Schedule"]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    hosts=HOSTS,
    existing=EXISTING,
    edits=EDITS,
    more=PUTS,
    deletes=DELETES,
    pause_s=st.sampled_from([30, 5000, 80_000]),
    known_s=st.sampled_from([30, 100_000]),
)
def test_what_a_plan_predicts_is_what_applying_then_does(
    tmp_path: Path,
    migrated: Path,
    hosts: dict[str, HostStory],
    existing: list[dict[str, Any]],
    edits: list[tuple[int, dict[str, Any]]],
    more: list[dict[str, Any]],
    deletes: list[Deletion],
    pause_s: int,
    known_s: int,
) -> None:
    puts = list({same(it): it for it in (*more, *edited(existing, edits))}.values())
    deletes = [it for it in deletes if (it.kind, it.namespace, it.name) not in set(map(same, puts))]

    async def story() -> None:
        async with world_in(tmp_path / str(next(COPIES)), migrated) as world:
            await _declare(world, hosts, existing, known_s)
            acked_at = world.now
            before = deepcopy_of(world.services.placement)
            world.now += timedelta(seconds=pause_s)
            seen = {name: history(it, before.hosts[name], acked_at, world.now)[1] for name, it in hosts.items()}
            await _seen(world, hosts, seen)
            objects, rows = world.objects(), await world.store.read(load_all, world.now)
            plan = await world.plan(puts, deletes)
            assert await world.store.read(load_all, world.now) == rows
            assert world.objects() == objects
            refused = await world.apply(puts, deletes)
            after = world.services.placement
            note(str(plan))
            assert [(it.request, it.index, said(it)) for it in plan.refused] == refused
            assert {(it.kind, it.namespace, it.name): it.action for it in plan.changes} == changed(
                objects, world.objects()
            )
            fleets = before, after
            _same_hosts(plan, *fleets)
            lives = [
                {
                    name: lived(history(it, before.hosts[name], acked_at, world.now)[0], it, side, world.now)
                    for name, it in hosts.items()
                }
                for side in fleets
            ]
            _same_due_times(plan, before, after, lives, world.now)
            _same_peaks(plan, before, after, world)

    asyncio.run(story())


async def _declare(world: World, hosts: Mapping[str, HostStory], existing: Sequence[Any], known_s: int) -> None:
    for name, it in hosts.items():
        await world.services.hosts.put(ME, name, it.labels)
    for namespace in ("a", "b"):
        await world.put(manifest("Repository", namespace, "main", {"url": "s3:h/b"}))
        await world.put(manifest("Repository", namespace, "each", {"url": "s3:h/{host}"}))
    for manifest_ in existing:
        world.now += MINUTE * 7
        await world.apply([manifest_])
    world.now += timedelta(seconds=known_s)


async def _seen(world: World, hosts: Mapping[str, HostStory], seen: Mapping[str, datetime | None]) -> None:
    """The server knows of the agents what it would know."""
    for name, at in seen.items():
        session = world.services.hub.session(name)
        assert session is not None
        if at is not None:
            session.applied_version, session.applied_digest = session.desired.version, session.desired.digest
            await world.store.write(host_hello, (name, 1, "1", "0.18.0", at))
        if hosts[name].was == "connected":
            world.online.add(name)


def deepcopy_of(placement: Placement) -> Placement:
    """What is placed, as it stands; the copy that plans make is not relied on."""
    copied = Placement()
    copied.put(placement.schedules.values())
    copied.hosts.update((name, deepcopy(it)) for name, it in placement.hosts.items())
    return copied


def said(refusal: Any) -> str:
    return "; ".join([refusal.detail, *(f"{it.field}: {it.detail}" for it in refusal.errors)])


def changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> dict[Any, str]:
    found = {key: "create" if key not in before else "update" for key in after if before.get(key) != after[key]}
    return found | {key: "delete" for key in before if key not in after}


def _same_hosts(plan: Plan, before: Placement, after: Placement) -> None:
    """Hosts that come and go with each schedule, and whose version grows, are those that the plan names."""
    grown = {name for name, it in after.hosts.items() if it.version != _version(before, name)}
    assert set(plan.hosts.first) == grown
    for it in plan.schedules:
        had, has = (_holders(side, f"{it.namespace}/{it.name}") for side in (before, after))
        assert (set(it.gained.first), set(it.lost.first)) == (has - had, had - has)
        assert (it.hosts_before, it.hosts_after) == (len(had), len(has))
    told = {f"{it.namespace}/{it.name}" for it in plan.schedules}
    names = {it.name for side in (before, after) for it in side.schedules.values()}
    for name in names - told:
        assert _holders(before, name) == _holders(after, name)


def _version(placement: Placement, host: str) -> int:
    return placement.hosts[host].version if host in placement.hosts else 0


def _holders(placement: Placement, name: str) -> set[str]:
    ids = [it.id for it in placement.schedules.values() if it.name == name]
    return {host for host, state in placement.hosts.items() if ids and state.holds(ids[0])}


def _same_due_times(
    plan: Plan,
    before: Placement,
    after: Placement,
    lives: Sequence[Mapping[str, tuple[set[Run], set[Run]]]],
    now: datetime,
) -> None:
    """Every due time of the coming day, and every missed run, is what agents' cores fire."""
    (made_up_before, runs_before), (made_up_after, runs_after) = (
        tuple(set().union(*(it[part] for it in side.values())) for part in (0, 1)) for side in lives
    )
    told = {f"{it.namespace}/{it.name}": it for it in plan.schedules}
    calendar = Calendar.after(now)
    for side, runs in ((before, runs_before), (after, runs_after)):
        hosts = set(lives[0])
        assert runs == {
            (it.name, host, at)
            for it in side.schedules.values()
            for host in _holders(side, it.name) & hosts
            for at in due_on(it, host, calendar)
        }
    others = {name for name in after.hosts if name not in lives[0]}  # declared just now: nobody has an agent there yet
    for name, it in told.items():
        new = [(name, host, at) for host in others for at in _due(after, name, host, calendar)]
        was, will = _of(runs_before, name), _of(runs_after, name) | set(new)
        due = it.due
        assert (due.before, due.after) == (len(was), len(will))
        assert (due.appearing, due.disappearing) == (len(will - was), len(was - will))
        assert {(name, run.host, run.due) for run in it.made_up.first} == _of(made_up_after - made_up_before, name)
        assert {(name, run.host, run.due) for run in it.dropped.first} == _of(made_up_before - made_up_after, name)
    assert {name for name, _, _ in runs_before ^ runs_after} <= told.keys()
    assert {name for name, _, _ in made_up_before ^ made_up_after} <= told.keys()


def _of(runs: set[Run], name: str) -> set[Run]:
    return {it for it in runs if it[0] == name}


def due_on(schedule: PlacedSchedule, host: str, calendar: Calendar) -> list[datetime]:
    """The due times of a schedule on a host that should hold it, in the calendar's day, one by one."""
    late = forecast.offset(schedule, host)
    times = (calendar.time(it + late) for it in calendar.named(schedule.spec))
    return [at for at in times if calendar.begin <= at < calendar.end]


def _due(placement: Placement, name: str, host: str, calendar: Calendar) -> list[datetime]:
    if host not in _holders(placement, name):
        return []
    found: list[PlacedSchedule] = [it for it in placement.schedules.values() if it.name == name]
    return due_on(found[0], host, calendar)


def _same_peaks(plan: Plan, before: Placement, after: Placement, world: World) -> None:
    """The worst minute of each repository is that of all due times, counted one by one."""
    calendar = Calendar.after(world.now)
    for it in plan.repositories:
        ids = {
            row.id
            for row in world.parts.catalog.repositories.values()
            if (row.namespace, row.name) == (it.namespace, it.name)
        }
        for side, load in ((before, it.before), (after, it.after)):
            if not ids:
                continue
            by_minute: Counter[tuple[str, datetime]] = Counter()
            for schedule in side.schedules.values():
                if schedule.repository_id in ids and schedule.spec.kind not in UNLIMITED:
                    for host in _holders(side, schedule.name):
                        for at in due_on(schedule, host, calendar):
                            by_minute[host if it.per_host else "", at.replace(second=0)] += 1
            most = max(by_minute.values(), default=0)
            assert (load.peak.jobs if load.peak else 0) == most
            if load.peak:
                assert by_minute[load.peak.host, load.peak.at] == most


# What a plan may see, and what it costs.


@pytest.fixture
async def world(tmp_path: Path, migrated: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path / "world", migrated) as world:
        yield world


def backup(name: str = "etc", namespace: str = "a", **spec: Any) -> dict[str, Any]:
    base = {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}, "backup": {"paths": ["/srv"]}}
    return manifest("Schedule", namespace, name, base | spec)


def repository(namespace: str = "a", **others: Any) -> dict[str, Any]:
    return manifest("Repository", namespace, "main", {"url": "s3:h/b"}, **others)


def labelled(name: str, **labels: str) -> dict[str, Any]:
    return {"kind": "Host", "metadata": {"name": name, "labels": labels}}


def kept_to(*namespaces: str, verbs: Sequence[str] = ("get", "create", "update", "delete")) -> Any:
    """The rights of a user of some namespaces, who may label hosts."""

    async def authorize(permission: Permission) -> None:
        if (permission.resource != "hosts" and permission.namespace not in namespaces) or permission.verb not in verbs:
            raise Forbidden(f"lacks the permission to {permission.verb}")

    return authorize


@pytest.mark.anyio
async def test_hosts_that_join_are_told_and_those_that_the_schedules_own_change_brings_in_are_not(world: World) -> None:
    await world.apply([repository(), backup(runOnJoin=True, hostSelector={"matchLabels": {"pool": "a"}})])
    new, moved = labelled("h1", pool="a"), labelled("h2", pool="b")
    await world.apply([moved])
    (told,) = (await world.plan([new, moved])).schedules
    assert (told.gained.first, told.joining.first) == (["h1"], ["h1"])
    other = backup(runOnJoin=True, hostSelector={"matchLabels": {"pool": "b"}})
    (told,) = (await world.plan([other])).schedules
    assert (told.gained.first, told.joining.first) == (["h2"], [])
    off = backup(hostSelector={"matchLabels": {"pool": "a"}})
    await world.apply([off])
    (told,) = (await world.plan([new])).schedules
    assert (told.gained.first, told.joining.first) == (["h1"], [])


@pytest.mark.anyio
async def test_manifests_of_one_plan_see_each_other(world: World) -> None:
    plan = await world.plan([backup(), labelled("h1"), repository(credentials={"password": "hush"})])
    assert [(it.action, it.kind) for it in plan.changes] == [
        ("create", "Host"),
        ("create", "Repository"),
        ("create", "Schedule"),
    ]
    assert (plan.refused, plan.hosts.first, plan.schedules[0].gained.first) == ([], ["h1"], ["h1"])
    assert b"hush" not in msgspec.json.encode(plan)
    assert [it.hidden for it in plan.changes[1].fields if it.field == "credentials"] == ["secret"]


@pytest.mark.anyio
async def test_a_manifest_that_changes_nothing_is_no_change(world: World) -> None:
    puts = [repository(credentials={"password": "hush"}), backup()]
    assert not await world.apply(puts)
    assert not (await world.plan(puts)).changes


@pytest.mark.anyio
async def test_a_repository_whose_secret_is_elsewhere_keeps_its_credentials(world: World) -> None:
    spec = {"url": "s3:h/b", "passwordSecretRef": {"name": "main"}}
    await world.apply([{**repository(credentials={"password": "hush"}), "spec": spec}])
    assert not (await world.plan([{**repository(), "spec": spec}])).changes
    (change,) = (await world.plan([repository(credentials={"password": "new"}) | {"spec": spec}])).changes
    assert [(it.field, it.hidden) for it in change.fields] == [("credentials", "secret")]


@pytest.mark.anyio
async def test_alerts_are_planned_too(world: World) -> None:
    spec = {"secretRef": {"name": "chat"}}
    credentials = {"urls": ["https://example.org/hush"]}
    alert = manifest("Alert", "a", "chat", spec)
    (change,) = (await world.plan([{**alert, "credentials": credentials}])).changes
    assert (change.action, [it.hidden for it in change.fields if it.field == "credentials"]) == ("create", ["secret"])
    with pytest.raises(NotFound):
        await world.services.alerts.delete(ME, "a", "chat")
    await world.services.alerts.put(ME, {**alert, "credentials": credentials})
    assert not (await world.plan([alert])).changes
    (change,) = (await world.plan([{**alert, "credentials": {"urls": ["https://example.org/new"]}}])).changes
    assert [(it.field, it.hidden) for it in change.fields] == [("credentials", "secret")]
    assert [it.action for it in (await world.plan([], [Deletion("Alert", "chat", "a")])).changes] == ["delete"]


@pytest.mark.anyio
async def test_what_is_given_twice_or_is_of_another_kind_is_refused(world: World) -> None:
    puts = [repository(), repository(), {"kind": "Run"}, {"kind": "Schedule", "metadata": {"name": "A_b"}, "spec": {}}]
    refused = (await world.plan(puts, [Deletion("Schedule", "no", "a"), Deletion("Repository", "main", "a")])).refused
    assert [(it.request, it.index, it.status) for it in refused] == [
        ("put", 1, 409),
        ("put", 3, 422),
        ("put", 2, 422),
        ("delete", 0, 404),
        ("delete", 1, 409),
    ]
    assert "metadata.name" in {error.field for error in refused[1].errors}


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["get", "create", "update"])
async def test_who_may_not_make_a_request_is_refused_it(world: World, verb: str) -> None:
    verbs = {"get", "create", "update", "delete"} - {verb}
    plan = await world.services.plans.plan(ME, [repository()], [], kept_to("a", verbs=sorted(verbs)))
    assert [(it.status, it.detail) for it in plan.refused] == [(403, f"lacks the permission to {verb}")]
    assert not plan.changes


@pytest.mark.anyio
async def test_nothing_of_other_namespaces_is_told(world: World) -> None:
    """A host that gets other labels changes schedules of all namespaces."""
    everyone = [it for namespace in ("a", "b") for it in (repository(namespace), backup("mine", namespace))]
    await world.apply([labelled("h1", pool="b"), *everyone])
    puts = [labelled("h1", pool="a"), labelled("h2", pool="a"), repository("b"), backup("theirs", "b")]
    plan = await world.services.plans.plan(ME, puts, [Deletion("Schedule", "mine", "b")], kept_to("a"))
    told: list[Any] = [*plan.schedules, *plan.repositories, *plan.changes]
    assert {it.namespace for it in told} == {"a", ""}
    assert [it.status for it in plan.refused] == [403, 403, 403]
    assert {it.namespace for it in (await world.plan(puts)).schedules} == {"a", "b"}


@pytest.mark.anyio
async def test_another_spread_moves_the_runs_of_the_hosts_whose_offset_it_changes(world: World) -> None:
    hosts = [f"h{at}" for at in range(8)]
    await world.apply([*map(labelled, hosts), repository(), backup()])
    (told,) = (await world.plan([backup(spreadSeconds=600)])).schedules
    (old,) = world.services.placement.schedules.values()
    moved = [host for host in hosts if cron.spread(host, old.id, 600)]
    assert moved
    due = told.due
    assert (due.before, due.after, due.appearing, due.disappearing) == (8, 8, len(moved), len(moved))


@pytest.mark.anyio
async def test_a_run_that_a_changed_policy_allows_is_made_up_for(world: World) -> None:
    await world.apply([labelled("h1"), repository(), backup(missedRunPolicy="Skip")])
    world.now += 2 * DAY
    (told,) = (await world.plan([backup(missedRunPolicy="RunOnce")])).schedules
    assert [(it.host, it.due.hour) for it in told.made_up.first] == [("h1", 2)]
    world.online.add("h1")
    (told,) = (await world.plan([backup(missedRunPolicy="RunOnce")])).schedules
    assert told.made_up.count == 0


@pytest.mark.anyio
async def test_a_plan_that_is_too_large_is_refused_and_lets_others_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.apply([repository(), *(labelled(f"h{at}", role="db") for at in range(40))])
    puts = [backup(f"s{at}", spreadSeconds=600) for at in range(60)]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    monkeypatch.setattr(planning, "STEP", 100)
    task = asyncio.create_task(others())
    told = await world.plan(puts)
    task.cancel()
    assert len(told.schedules) == 60
    assert turns > 60
    monkeypatch.setattr(planning, "MAX_WORK", 1000)
    with pytest.raises(Invalid, match="too much"):
        await world.plan(puts)
    monkeypatch.setattr(planning, "MAX_OF_CALLER", 2)
    answers = await asyncio.gather(*(world.plan([]) for _ in range(3)), return_exceptions=True)
    assert [type(it) for it in answers if isinstance(it, Exception)] == [Unavailable]


@pytest.mark.anyio
async def test_long_values_are_left_out_of_the_answer(world: World) -> None:
    paths = [f"/srv/{'x' * 200}/{at}" for at in range(100)]
    await world.apply([repository(), backup(backup={"paths": paths})])
    (change,) = (await world.plan([backup()])).changes
    assert [(it.field, it.hidden, it.before) for it in change.fields] == [("spec.backup.paths", "long", None)]


@pytest.mark.anyio
async def test_a_plan_over_rest_stores_nothing(api: httpx.AsyncClient, server: Running) -> None:
    store = server.parts.services.store
    rows = await store.read(load_all, datetime.now(UTC))
    body = {"put": [repository(credentials={"password": "hush"}), backup(cron="61 * * * *")]}
    answer = await api.post("/plan", json=body)
    assert answer.status_code == 200
    told = answer.json()
    assert [it["kind"] for it in told["changes"]] == ["Repository"]
    assert [error["field"] for error in told["refused"][0]["errors"]] == ["spec.cron"]
    assert (await store.read(load_all, datetime.now(UTC))) == rows
    assert not (await api.get("/audit")).json()["items"]
    assert (await api.post("/plan", json={"put": [1]})).status_code == 422
    assert (await api.post("/plan", json={"putt": []})).status_code == 422
