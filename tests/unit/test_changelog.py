"""Promise 3, with several servers: those with the same revision hold the same sets, in whichever order they change.

Each server has all its parts, and a store on one real SQLite in memory. A test says what other servers do between the
plan of a change and its commit, and whether the answer of that commit is lost.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from server.access.agents import digest
from server.access.identity import Files
from server.access.vault import Vault
from server.agents.session import Send
from server.app import Parts, assemble
from server.changes.change import Entry, read_entry
from server.errors import ApiException, Conflict, NotFound, PreconditionFailed, Unavailable
from server.events import DeclarationChanged, Event
from server.fleet.pushes import Push
from server.resources.versions import Condition, unconditional
from server.store import changelog
from server.store.audit import list_audit
from server.store.engine import Store, StoreLostError
from server.store.enrolments import host_of_key
from server.store.hosts import get_host, set_desired
from server.store.jobs import get_job
from server.store.tables import CHANGE_LOG, Actor
from tests.simulation.database import _image
from wire.messages import Hello

pytestmark = pytest.mark.anyio

ME = Actor("user", "me")
VAULT_KEY = Vault.new_key()
Act = Callable[["Server"], Awaitable[object]]


class Database:
    """A database that servers share, and the one clock of all servers."""

    def __init__(self) -> None:
        self.engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        with self.engine.connect() as conn:
            driver: Any = conn.connection.driver_connection
            driver.deserialize(_image())
            driver.execute("PRAGMA foreign_keys=ON")
        self.ids = 0
        self.now = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
        self.seen: dict[tuple[str, int], Any] = {}  # what servers of a release hold, by revision

    def new_id(self) -> str:
        self.ids += 1
        return f"id{self.ids}"

    def clock(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def read(self, function: Callable[..., Any], *args: Any) -> Any:
        with self.engine.begin() as conn:
            return function(conn, *args)

    @property
    def log(self) -> list[Entry]:
        with self.engine.begin() as conn:
            bodies = conn.exec_driver_sql("SELECT body FROM change_log ORDER BY revision").scalars()
            return [read_entry(body) for body in bodies]

    @property
    def audited(self) -> list[str]:
        rows = self.read(list_audit, None, 1000)
        return [f"{row['action']} {row['object_kind']} {row['object_name']}" for row in reversed(rows)]


class SharedStore:
    """One server's store. `meanwhile`: what others do before the next write; `loses`: whether its answer is lost."""

    is_shared = True

    def __init__(self, database: Database) -> None:
        self.server = database.new_id()
        self.database = database
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self.loses = False

    async def write(self, function: Callable[..., Any], item: Any) -> Any:
        if (act := self.meanwhile) is not None:
            self.meanwhile = None
            await act()
        (result,) = self.database.read(function, [item])
        if self.loses:
            self.loses = False
            raise Unavailable("the connection was lost")
        return result

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.database.read(function, *args)

    def submit(self, function: Callable[..., Any], item: Any, host: str = "") -> "asyncio.Future[Any]":
        future = asyncio.get_running_loop().create_future()
        future.set_result(self.database.read(function, [item])[0])
        return future


class Server:
    """A server. `release`: which fields of a schedule its entries are made of."""

    def __init__(self, database: Database, release: str = "this") -> None:
        self.database, self.release = database, release
        self.store = SharedStore(database)
        self.parts: Parts = assemble(
            cast(Store, self.store), Vault([VAULT_KEY]), database.clock, database.new_id, Files("admin", "agent")
        )
        self.services, self.pipeline = self.parts.services, self.parts.pipeline
        self.delivered: list[tuple[str, Any]] = []
        self.events: list[Event] = []
        self.parts.events.subscribe(self.events.append)
        hub: Any = self.services.hub
        hub.deliver = lambda host, effects: self.delivered.extend((host, effect) for effect in effects)
        if release != "this":
            catalog: Any = self.parts.catalog
            place = catalog.place
            catalog.place = lambda row, *of: place(row._replace(spec={**row.spec, "cron": "@daily"}), *of)

    async def start(self) -> "Server":
        await self.parts.loader.load(cast(Store, self.store), Vault([VAULT_KEY]))
        return self

    @property
    def versions(self) -> dict[str, int]:
        return {name: host.version for name, host in self.services.placement.hosts.items()}

    @property
    def digests(self) -> dict[str, str]:
        return {name: host.digest for name, host in self.services.placement.hosts.items()}

    @property
    def state(self) -> Any:
        """All that it knows of what is declared."""
        hosts = self.services.placement.hosts
        return {
            "schedules": dict(self.parts.catalog.schedules),
            "repositories": dict(self.parts.catalog.repositories),
            "placed": dict(self.services.placement.schedules),
            "hosts": {name: (it.labels, it.since, it.created_at, it.version, it.digest) for name, it in hosts.items()},
            "sessions": sorted(session.name for session in self.services.hub.sessions()),
        }

    def check(self) -> None:
        """It holds what every server of its release held at its revision."""
        held = self.database.seen.setdefault((self.release, self.pipeline.revision), self.state)
        assert held == self.state
        versions = {
            name: host[3] for name, host in self.database.seen[self.release, self.pipeline.revision]["hosts"].items()
        }
        for (_, revision), other in self.database.seen.items():
            if revision == self.pipeline.revision:
                assert {name: host[3] for name, host in other["hosts"].items()} == versions

    # What people, controllers and agents do.

    async def repository(self, name: str = "main", url: str = "/backup", condition: Condition = unconditional) -> Any:
        metadata, credentials = {"namespace": "ns", "name": name}, {"password": "open sesame"}
        manifest = {"metadata": metadata, "spec": {"url": url}, "credentials": credentials}
        return await self.services.repositories.put(ME, manifest, condition)

    async def schedule(
        self, name: str = "etc", role: str = "", cron: str = "0 2 * * *", repository: str = "main"
    ) -> Any:
        spec = {"kind": "backup", "cron": cron, "backup": {"paths": ["/etc"]}, "repositoryRef": {"name": repository}}
        spec |= {"hostSelector": {"matchLabels": {"role": role}} if role else {}}
        return await self.services.schedules.put(ME, {"metadata": {"namespace": "ns", "name": name}, "spec": spec})

    async def host(self, name: str, role: str = "") -> Any:
        return await self.services.hosts.put(ME, name, {"role": role} if role else {})

    async def enrol(self, name: str, key: str) -> None:
        token, _ = await self.services.enrolments.offer(ME, name)
        await self.services.enrolments.exchange(token, name, digest(key))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Any servers, in any order.

NAMES, ROLES = st.sampled_from("abc"), st.sampled_from(["", "db", "web"])
ACTS: st.SearchStrategy[Act] = st.one_of(
    st.builds(lambda name, url: lambda it: it.repository(name, url), NAMES, st.sampled_from(["/one", "/two/{host}"])),
    st.builds(
        lambda name, role, cron, repository: lambda it: it.schedule(name, role, cron, repository),
        NAMES,
        ROLES,
        st.sampled_from(["0 2 * * *", "*/5 * * * *"]),
        NAMES,
    ),
    st.builds(lambda name, role: lambda it: it.host(name, role), NAMES, ROLES),
    st.builds(lambda name: lambda it: it.services.hosts.session(name), NAMES),
    st.builds(lambda name: lambda it: it.services.schedules.delete(ME, "ns", name), NAMES),
    st.builds(lambda name: lambda it: it.services.repositories.delete(ME, "ns", name), NAMES),
    st.builds(lambda name: lambda it: it.services.hosts.delete(ME, name), NAMES),
    st.builds(lambda name, key: lambda it: it.enrol(name, key), NAMES, NAMES),
    st.builds(lambda name: lambda it: it.services.enrolments.revoke(ME, name), NAMES),
    st.just(lambda it: it.pipeline.follow()),
)


class Step(NamedTuple):
    """A server acts. `meanwhile`: what others do between its plan and its commit; `loses`: see `SharedStore`."""

    server: int
    act: Act
    meanwhile: Sequence[tuple[int, Act]] = ()
    loses: bool = False


OTHERS = st.lists(st.tuples(st.integers(0, 3), ACTS), max_size=2)
STEPS = st.lists(st.builds(Step, st.integers(0, 3), ACTS, OTHERS, st.booleans()), max_size=8)


@settings(max_examples=30)
@given(STEPS, st.lists(st.sampled_from(["this", "another"]), min_size=2, max_size=4))
def test_servers_with_the_same_revision_hold_the_same(steps: Sequence[Step], releases: Sequence[str]) -> None:
    async def play() -> None:
        database = Database()
        servers = [await Server(database, release).start() for release in releases]

        async def act(at: int, what: Act) -> None:
            server = servers[at % len(servers)]
            with suppress(ApiException):
                await what(server)
            for each in servers:
                each.check()

        for step in steps:
            server = servers[step.server % len(servers)]

            async def others(step: Step = step) -> None:
                for at, what in step.meanwhile:
                    if at % len(servers) != step.server % len(servers):
                        await act(at, what)

            server.store.meanwhile, server.store.loses = others, step.loses
            await act(step.server, step.act)
            server.store.meanwhile, server.store.loses = None, False
        for server in servers:
            await server.pipeline.follow()
            server.check()
        assert len({server.pipeline.revision for server in servers}) == 1
        assert len(database.audited) == sum(max(1, len(it.hosts)) for it in database.log)  # none was stored twice
        again = await Server(database).start()
        assert again.state == servers[0].state or set(releases) != {"this"}

    asyncio.run(play())


# One server after the other.


@pytest.fixture
async def two() -> tuple[Server, Server]:
    """Two servers of one database, with a schedule of hosts that are databases, of which there is one."""
    database = Database()
    first, second = await Server(database).start(), await Server(database).start()
    await first.repository()
    await first.schedule("db", "db")
    await first.host("d", "db")
    await second.pipeline.follow()
    first.delivered, second.delivered = [], []
    second.events.clear()
    return first, second


async def test_a_server_that_follows_pushes_to_the_hosts_that_it_has(two: tuple[Server, Server]) -> None:
    first, second = two
    session = await second.services.hosts.session("d")
    session.hello(1, Hello("d", applied_version=1, digest=session.desired.digest))
    session.registered()
    await first.schedule("db", "db", "*/5 * * * *")
    await second.pipeline.follow()
    [(host, push)] = second.delivered
    assert isinstance(push, Push)
    assert (host, push.base, push.version) == ("d", 1, 2)


async def test_a_host_that_kept_the_schedules_of_another_store_gets_the_first_one_that_is_declared_elsewhere() -> None:
    database = Database()
    first, second = await Server(database).start(), await Server(database).start()
    session = await second.services.hosts.session("w")
    session.hello(1, Hello("w", applied_version=7, digest="of another store"), empty=True)
    session.registered()
    await first.repository()
    await first.schedule("db", "db")
    await second.pipeline.follow()
    assert [host for host, push in second.delivered if isinstance(push, Push)] == ["w"]


async def test_what_another_server_changed_is_published(two: tuple[Server, Server]) -> None:
    first, second = two
    schedule_id = first.parts.catalog.schedules["ns", "db"].id
    await first.services.hosts.delete(ME, "d")
    await first.services.schedules.delete(ME, "ns", "db")
    await second.pipeline.follow()
    host, schedule = (event for event in second.events if isinstance(event, DeclarationChanged))
    assert (list(host.deleted_hosts), list(schedule.deleted_schedules)) == (["d"], [schedule_id])


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.services.enrolments.revoke(ME, "d"),
        lambda it: it.enrol("d", "another key"),
        lambda it: it.services.hosts.delete(ME, "d"),
    ],
    ids=["revoked", "replaced", "deleted"],
)
async def test_a_host_whose_key_is_no_longer_valid_is_disconnected_by_the_server_that_has_it(
    two: tuple[Server, Server], change: Act
) -> None:
    first, second = two
    await first.enrol("d", "key")
    await second.pipeline.follow()
    closed: list[str] = []
    hub: Any = second.services.hub
    hub.disconnect = closed.append
    await change(first)
    await second.pipeline.follow()
    assert closed == ["d"]


async def test_a_token_that_enrolled_a_host_on_one_server_enrols_no_other_key_on_another(
    two: tuple[Server, Server],
) -> None:
    first, second = two
    token, _ = await first.services.enrolments.offer(ME, "d")
    second.store.meanwhile = lambda: first.services.enrolments.exchange(token, "d", digest("theirs"))
    with pytest.raises(ApiException, match="does not enrol"):
        await second.services.enrolments.exchange(token, "d", digest("mine"))
    assert first.database.read(host_of_key, digest("theirs")) == "d"
    assert first.database.read(host_of_key, digest("mine")) is None


async def test_credentials_are_sealed_in_the_log(two: tuple[Server, Server]) -> None:
    entries = two[0].database.read(changelog.after, 0).entries
    bodies = " ".join(body for _, body in entries)
    assert "credentials" in bodies
    assert "open sesame" not in bodies


# Changes at once.


async def test_of_two_servers_that_create_one_name_at_once_the_second_changes_what_the_first_created(
    two: tuple[Server, Server],
) -> None:
    first, second = two
    second.store.meanwhile = lambda: first.schedule("new", cron="@daily")
    row, is_new = await second.schedule("new", cron="@weekly")
    assert (is_new, row["generation"]) == (False, 2)
    await first.pipeline.follow()
    assert first.state == second.state
    assert first.database.audited[-2:] == ["create Schedule ns/new", "update Schedule ns/new"]


async def test_a_condition_is_compared_with_what_other_servers_left(two: tuple[Server, Server]) -> None:
    first, second = two

    def must_be_new(version: str | None) -> None:
        if version is not None:
            raise PreconditionFailed("it exists")

    second.store.meanwhile = lambda: first.repository("new")
    with pytest.raises(PreconditionFailed):
        await second.repository("new", condition=must_be_new)


@pytest.mark.parametrize(
    ("theirs", "ours", "error"),
    [
        (
            lambda it: it.services.schedules.delete(ME, "ns", "db"),
            lambda it: it.services.schedules.delete(ME, "ns", "db"),
            NotFound,
        ),
        (lambda it: it.services.hosts.delete(ME, "d"), lambda it: it.services.hosts.delete(ME, "d"), NotFound),
        (lambda it: it.services.hosts.delete(ME, "d"), lambda it: it.services.enrolments.offer(ME, "d"), NotFound),
        (lambda it: it.schedule("more"), lambda it: it.services.repositories.delete(ME, "ns", "main"), Conflict),
    ],
    ids=["schedule", "host", "enrolment", "repository"],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_another_server_made_impossible_is_refused(
    two: tuple[Server, Server], theirs: Act, ours: Act, error: type[ApiException], at_once: bool
) -> None:
    first, second = two
    if ours is not theirs and error is Conflict:
        await first.services.schedules.delete(ME, "ns", "db")
        await second.pipeline.follow()
    if at_once:
        second.store.meanwhile = lambda: theirs(first)
    else:
        await theirs(first)
    with pytest.raises(error):
        await ours(second)
    assert first.state == second.state


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda it: it.repository("new"), lambda it: it.schedule("more", repository="new")),
        (lambda it: it.repository("main", "/elsewhere"), lambda it: it.repository("main")),
        (lambda it: it.host("d", "web"), lambda it: it.host("d", "db")),
    ],
    ids=["needed", "repository", "host"],
)
async def test_an_answer_that_stores_nothing_is_not_given_on_an_old_state(
    two: tuple[Server, Server], theirs: Act, ours: Act
) -> None:
    first, second = two
    await theirs(first)
    head = first.pipeline.revision
    await ours(second)
    assert second.pipeline.revision == head + 1


async def test_who_asks_one_server_sees_what_another_changed_before(two: tuple[Server, Server]) -> None:
    first, second = two
    await first.schedule("new")
    await second.services.catch_up()
    assert await second.services.runs.run_now(ME, "ns", "new", None)


async def test_jobs_of_a_host_go_on_where_its_deletion_comes_too_late(two: tuple[Server, Server]) -> None:
    first, second = two
    [job] = await first.services.runs.run_now(ME, "ns", "db", None)

    def only_db(version: str | None) -> None:
        if second.services.placement.hosts["d"].labels != {"role": "db"}:
            raise PreconditionFailed("it has other labels")

    second.store.meanwhile = lambda: first.host("d", "web")
    with pytest.raises(PreconditionFailed):
        await second.services.hosts.delete(ME, "d", only_db)
    assert first.database.read(get_job, job["id"])["status"] == "pending"
    await second.services.hosts.delete(ME, "d")
    assert first.database.read(get_job, job["id"])["status"] == "cancelled"


async def test_newcomers_are_created_together_beside_another_servers_changes(two: tuple[Server, Server]) -> None:
    first, second = two
    second.store.meanwhile = lambda: first.services.hosts.session("n1")
    names = [f"n{at}" for at in range(5)]
    await asyncio.gather(*(second.services.hosts.session(name) for name in names))
    await first.pipeline.follow()
    assert first.state == second.state
    assert sorted(first.versions) == ["d", *names]


async def test_an_agent_with_a_later_version_is_not_sent_an_older_set(two: tuple[Server, Server]) -> None:
    first, second = two
    await first.schedule("db", "db", "*/5 * * * *")
    session = await second.services.hosts.session("d", applied_version=2)
    assert session.desired.version == 2


# What is lost.


@pytest.mark.parametrize("follows", [True, False])
async def test_a_change_whose_answer_was_lost_is_in_force_once(two: tuple[Server, Server], follows: bool) -> None:
    first, second = two
    first.store.loses = True
    with pytest.raises(Unavailable):
        await first.schedule("db", "db", "*/5 * * * *")
    if follows:
        await first.pipeline.follow()
    await first.schedule("db", "db", "*/5 * * * *")
    await second.pipeline.follow()
    assert first.versions == second.versions == {"d": 2}
    assert first.state == second.state
    assert first.database.audited.count("update Schedule ns/db") == 1


UNREADABLE: dict[str, Callable[[dict[str, Any]], object]] = {
    "of another type": lambda entry: {**entry, "versions": {"d": "one"}},
    "about what is not there": lambda entry: {**entry, "deleted_schedules": [["ns", "no"]]},
    "a row that lacks columns": lambda entry: {**entry, "hosts": [{"name": "w"}]},
    "a kind of a later release": lambda entry: json.loads(json.dumps(entry).replace('"backup"', '"clone"')),
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("change", UNREADABLE)
async def test_a_change_that_cannot_be_read_is_told_with_its_number(two: tuple[Server, Server], change: str) -> None:
    """Who asks is told to try again; and the server ends, and starts anew from the rows."""
    first, second = two
    await first.schedule("new", "db")
    [*_, (revision, body)] = first.database.read(changelog.after, 0).entries
    written = json.dumps(UNREADABLE[change](json.loads(body)))
    with first.database.engine.begin() as conn:
        conn.execute(sa.update(CHANGE_LOG).where(CHANGE_LOG.c.revision == revision).values(body=written))
    told = f"change {revision} in the log cannot be put in force here: "
    with pytest.raises(Unavailable, match=told):
        await second.pipeline.catch_up()
    with pytest.raises(StoreLostError, match=told):
        await second.pipeline.follow()


@pytest.mark.parametrize("loss", ["trimmed", "restored"])
async def test_a_server_that_cannot_follow_the_log_says_that_it_lost_the_store(
    two: tuple[Server, Server], loss: str
) -> None:
    first, second = two
    await first.host("w")
    await first.host("x")
    if loss == "trimmed":
        first.database.read(changelog.trim, first.pipeline.revision - 1)
    else:
        with first.database.engine.begin() as conn:
            conn.exec_driver_sql("UPDATE change_head SET revision = 1")
            conn.exec_driver_sql("DELETE FROM change_log WHERE revision > 1")
    with pytest.raises(Unavailable):
        await second.host("y")
    with pytest.raises(StoreLostError):
        await second.pipeline.follow()


async def test_a_trimmed_log_keeps_what_was_not_followed(two: tuple[Server, Server]) -> None:
    first, second = two
    await first.host("w")
    first.database.read(changelog.trim, second.pipeline.revision)
    await second.pipeline.follow()
    assert first.state == second.state
    assert len(first.database.read(changelog.after, 0).entries) == 1


# Starts, and releases beside each other.


async def test_a_server_starts_at_a_revision_and_goes_on_from_there(two: tuple[Server, Server]) -> None:
    first, _ = two
    first.database.read(changelog.trim, first.pipeline.revision)
    third = await Server(first.database).start()
    assert (third.pipeline.revision, third.state) == (first.pipeline.revision, first.state)
    await first.host("w", "db")
    await third.pipeline.follow()
    assert third.state == first.state


async def test_servers_of_different_releases_give_hosts_the_same_versions_and_sets_of_their_own(
    two: tuple[Server, Server],
) -> None:
    first, second = two
    other = await Server(first.database, "another").start()
    for server in two:
        await server.pipeline.follow()
    assert first.versions == second.versions == other.versions == {"d": 2}
    await other.host("w", "db")
    await first.schedule("db", "db", "*/5 * * * *")  # the other release makes the same set of it as before
    for server in (*two, other):
        await server.pipeline.follow()
    assert first.versions == second.versions == other.versions == {"d": 3, "w": 2}
    assert first.digests == second.digests != other.digests


async def test_a_set_that_only_this_release_makes_otherwise_is_pushed_with_the_version_that_the_host_has(
    two: tuple[Server, Server],
) -> None:
    first, _ = two
    other = await Server(first.database, "another").start()
    await first.pipeline.follow()
    session = await first.services.hosts.session("d")
    session.hello(1, Hello("d", applied_version=2, digest=session.desired.digest))
    session.registered()
    first.delivered = []
    await other.schedule("db", "db", "*/5 * * * *")
    await first.pipeline.follow()
    [push] = [it for _, it in first.delivered if not isinstance(it, Send)]
    assert (push.base, push.version, push.new) == (2, first.versions["d"], session.desired.entries)


async def test_servers_that_start_at_once_give_hosts_one_new_version(two: tuple[Server, Server]) -> None:
    database = two[0].database
    database.read(set_desired, [[("d", 1, "of another release")]])
    third, fourth = Server(database), Server(database)
    fourth.store.meanwhile = third.start
    await fourth.start()
    await third.pipeline.follow()
    assert third.versions == fourth.versions == {"d": 2}
    assert database.read(get_host, "d")["desired_version"] == 2


def test_an_entry_of_a_later_release_is_read() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    body = '{"at":"2026-01-01T00:00:00Z","hosts":[{"name":"d","new":1}],"new":{}}'
    assert read_entry(body) == Entry(now, hosts=[{"name": "d", "new": 1}])
