"""Every change is audited, stored whole or not at all, and raises a host's version only where its set changes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from server.access.identity import Files
from server.access.vault import Vault
from server.app import Parts, assemble
from server.errors import ApiException, Conflict, Invalid, NotFound
from server.resources.manifests import Credentials
from server.store import tables as models
from server.store.audit import list_audit
from server.store.engine import Store
from server.store.futures import stored
from server.store.hosts import get_host, set_desired
from server.store.jobs import get_job
from server.store.queue import of_host
from server.store.rows import Row
from server.store.tables import Actor
from tests.integration.conftest import join
from wire.messages import CommandCancel

pytestmark = pytest.mark.anyio

ME = Actor("user", "me")
DB, WEB = {"role": "db"}, {"role": "web"}


class World:
    """A control plane on a store, a clock that is set by hand, and what was delivered to hosts."""

    def __init__(self, store: Store, vault: Vault) -> None:
        self.store, self.vault = store, vault
        self.now = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
        self.online: set[str] = set()
        self.delivered: list[Any] = []
        self._ids = 0
        self.parts = self.fresh()
        self.services = self.parts.services

    def fresh(self) -> Parts:
        parts = assemble(self.store, self.vault, lambda: self.now, self.new_id, Files("admin", "agent"))
        hub: Any = parts.services.hub
        hub.is_connected = self.online.__contains__
        hub.deliver = lambda host, effects: self.delivered.extend((host, effect) for effect in effects)
        return parts

    def new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids}"

    async def repository(self, name: str = "main", url: str = "/backup", **others: Any) -> tuple[Row, bool]:
        manifest = {"metadata": {"namespace": "ns", "name": name}, "spec": {"url": url}, **others}
        return await self.services.repositories.put(ME, manifest)

    async def schedule(
        self,
        name: str = "etc",
        repository: str = "main",
        role: str | None = None,
        labels: dict[str, str] | None = None,
        **spec: Any,
    ) -> tuple[Row, bool]:
        selector = {"matchLabels": {"role": role}} if role else {}
        base: dict[str, Any] = {
            "kind": "backup",
            "cron": "0 2 * * *",
            "backup": {"paths": ["/etc"]},
            "hostSelector": selector,
        }
        spec = base | {"repositoryRef": {"name": repository}} | spec
        metadata = {"namespace": "ns", "name": name, "labels": labels or {}}
        return await self.services.schedules.put(ME, {"metadata": metadata, "spec": spec})

    async def hosts(self, **labels: Any) -> None:
        for name, given in labels.items():
            await self.services.hosts.put(ME, name, given)

    def versions(self) -> dict[str, Any]:
        return {name: host.version for name, host in self.services.placement.hosts.items()}

    async def audit(self) -> list[Any]:
        rows = await self.store.read(list_audit, None, 100)
        return [(row["actor_id"], row["action"], row["object_kind"], row["object_name"]) for row in reversed(rows)]


def state(parts: Parts) -> dict[str, Any]:
    """All that a control plane knows."""
    placement = parts.services.placement
    return {
        "schedules": dict(parts.catalog.schedules),
        "repositories": dict(parts.catalog.repositories),
        "targets": dict(placement.schedules),
        "placed": {name: (it.labels, it.since, it.entries.digest) for name, it in placement.hosts.items()},
        "hosts": {name: (it.version, it.entries.digest, it.since) for name, it in placement.hosts.items()},
    }


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = Store.open(tmp_path / "lamplighter.db")
    world = World(store, Vault([Vault.new_key()]))
    await join(world.parts)
    yield world
    world.services.dispatcher.close()
    await store.close()


@pytest.fixture
async def fleet(world: World) -> World:
    """Two hosts, a schedule for each of them, each schedule with a repository of its own."""
    await world.repository("main", credentials={"password": "secret"})
    await world.repository("other")
    await world.schedule("db", "main", "db")
    await world.schedule("web", "other", "web")
    await world.hosts(d=DB, w=WEB)
    return world


# What is stored.


async def test_every_change_is_audited_with_who_made_it(fleet: World) -> None:
    services = fleet.services
    await services.hosts.put(ME, "d", WEB)
    [job] = await services.runs.run_now(ME, "ns", "web", ["w"])
    await services.runs.cancel(ME, job["id"])
    await services.schedules.delete(ME, "ns", "db")
    await services.repositories.delete(ME, "ns", "main")
    await services.hosts.delete(ME, "d")
    await services.hosts.session("new")
    assert await fleet.audit() == [
        ("me", "create", "Repository", "ns/main"),
        ("me", "create", "Repository", "ns/other"),
        ("me", "create", "Schedule", "ns/db"),
        ("me", "create", "Schedule", "ns/web"),
        ("me", "create", "Host", "d"),
        ("me", "create", "Host", "w"),
        ("me", "update", "Host", "d"),
        ("me", "run", "Schedule", "ns/web"),
        ("me", "cancel", "Job", job["id"]),
        ("me", "delete", "Schedule", "ns/db"),
        ("me", "delete", "Repository", "ns/main"),
        ("me", "delete", "Host", "d"),
        ("new", "create", "Host", "new"),
    ]


async def test_a_change_of_nothing_is_not_audited(fleet: World) -> None:
    before = await fleet.audit()
    await fleet.schedule("db", "main", "db")
    await fleet.repository("main", credentials={"password": "secret"})
    await fleet.hosts(d=DB)
    assert await fleet.audit() == before


async def test_a_repository_that_is_put_opens_its_credentials_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, unseal = [], world.vault.unseal

    def counted(sealed: str) -> Credentials:
        opened.append(sealed)
        return unseal(sealed)

    monkeypatch.setattr(world.vault, "unseal", counted)
    await world.repository(credentials={"password": "secret"})
    assert len(opened) == 1


async def test_the_audit_log_holds_no_credentials(fleet: World) -> None:
    await fleet.repository("main", credentials={"password": "correct horse"})
    rows = await fleet.store.read(list_audit, None, 100)
    assert rows[0]["detail"]["credentials"] == "changed"
    assert "correct horse" not in str(rows)


async def test_a_restart_knows_the_same_digests_and_versions(fleet: World) -> None:
    await fleet.schedule("db", "main", "db", cron="*/5 * * * *")
    await fleet.hosts(w=DB)
    again = fleet.fresh()
    await again.loader.load(fleet.store, fleet.vault)
    assert state(again) == state(fleet.parts)


async def test_a_set_that_a_new_release_makes_differently_gets_a_new_version(fleet: World) -> None:
    await fleet.store.write(set_desired, [("d", 1, "of another release")])
    for _ in range(2):  # only once
        again = fleet.fresh()
        await again.loader.load(fleet.store, fleet.vault)
        assert {name: host.version for name, host in again.services.placement.hosts.items()} == {"d": 2, "w": 1}


CHANGES: dict[str, Callable[[World], Awaitable[object]]] = {
    "new schedule": lambda world: world.schedule("all", "main"),
    "changed schedule": lambda world: world.schedule("db", "main", "db", cron="*/5 * * * *"),
    "deleted schedule": lambda world: world.services.schedules.delete(ME, "ns", "db"),
    "changed repository": lambda world: world.repository("main", "/elsewhere"),
    "new host": lambda world: world.hosts(new=DB),
    "relabelled host": lambda world: world.hosts(d=WEB),
    "deleted host": lambda world: world.services.hosts.delete(ME, "d"),
    "host that says hello": lambda world: world.services.hosts.session("new"),
    "run now": lambda world: world.services.runs.run_now(ME, "ns", "db", None),
    "enrolment token": lambda world: world.services.enrolments.offer(ME, "d"),
}


BROKEN = """CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN RAISE integrity_constraint_violation USING MESSAGE = ''broken''; END'"""


def break_tables(conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
    """Have changes of these tables fail."""
    does = "BEGIN SELECT RAISE(ABORT, 'broken'); END"
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql(BROKEN)
        does = "FOR EACH ROW EXECUTE FUNCTION broken()"
    events = ("hosts", "INSERT"), ("hosts", "UPDATE"), ("hosts", "DELETE"), ("jobs", "INSERT")
    for table, event in (*events, ("enrolments", "INSERT")):
        conn.exec_driver_sql(f"CREATE TRIGGER {table}_{event} BEFORE {event} ON {table} {does}")
    return [None] * len(items)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_change_that_cannot_be_stored_whole_changes_nothing(
    fleet: World, change: Callable[[World], Awaitable[object]]
) -> None:
    before, audited, fleet.delivered = state(fleet.parts), await fleet.audit(), []
    await fleet.store.write(break_tables, None)
    with pytest.raises(sa.exc.IntegrityError, match="broken"):
        await change(fleet)
    assert (state(fleet.parts), fleet.delivered) == (before, [])
    again = fleet.fresh()
    await again.loader.load(fleet.store, fleet.vault)
    assert (state(again), await fleet.audit()) == (before, audited)


# Versions.


@pytest.mark.parametrize(
    ("change", "grown"),
    [
        (lambda world: world.schedule("db", "main", "db"), ""),
        (lambda world: world.schedule("db", "main", "db", labels={"team": "a"}), ""),
        (lambda world: world.repository("main", credentials={"password": "secret"}), ""),
        (lambda world: world.repository("unused"), ""),
        (lambda world: world.hosts(d=DB), ""),
        (lambda world: world.hosts(d=DB | {"more": "labels"}), ""),
        (lambda world: world.services.runs.run_now(ME, "ns", "db", None), ""),
        (lambda world: world.schedule("nobody", "main", "none"), ""),
        (lambda world: world.schedule("db", "main", "db", cron="*/5 * * * *"), "d"),
        (lambda world: world.schedule("db", "main", "db", backup={"paths": ["/srv"]}), "d"),
        (lambda world: world.schedule("db", "other", "db"), "d"),
        (lambda world: world.schedule("db", "main", "web"), "dw"),
        (lambda world: world.schedule("all", "main"), "dw"),
        (lambda world: world.services.schedules.delete(ME, "ns", "db"), "d"),
        (lambda world: world.hosts(d=WEB), "d"),
        (lambda world: world.hosts(d={}), "d"),
        (lambda world: world.repository("main", "/elsewhere", credentials={"password": "secret"}), "d"),
        (lambda world: world.repository("main", credentials={"password": "another"}), "d"),
        (lambda world: world.repository("other", "/elsewhere"), "w"),
    ],
)
async def test_a_version_grows_by_one_where_the_set_changes_and_only_there(
    fleet: World, change: Callable[..., Any], grown: str
) -> None:
    assert fleet.versions() == {"d": 1, "w": 1}
    before = {name: host.entries.digest for name, host in fleet.services.placement.hosts.items()}
    await change(fleet)
    assert fleet.versions() == {name: 1 + (name in grown) for name in "dw"}
    hosts = fleet.services.placement.hosts
    assert {name for name, host in hosts.items() if host.entries.digest != before[name]} == set(grown)
    for name, host in hosts.items():
        stored = await fleet.store.read(get_host, name)
        assert stored is not None
        assert (stored["desired_version"], stored["desired_digest"]) == (host.version, host.entries.digest)


async def test_changes_that_come_at_once_are_counted_one_by_one(fleet: World) -> None:
    await asyncio.gather(*(fleet.schedule(f"s{n}", "main") for n in range(20)), fleet.hosts(d=WEB))
    assert fleet.versions() == {"d": 22, "w": 21}
    again = fleet.fresh()
    await again.loader.load(fleet.store, fleet.vault)
    assert state(again) == state(fleet.parts)


async def test_a_host_that_is_relabelled_begins_anew_where_its_set_changes(fleet: World) -> None:
    began = fleet.now
    fleet.now += timedelta(days=1)
    await fleet.hosts(d=DB | {"more": "labels"}, w=DB)
    again = fleet.fresh()
    await again.loader.load(fleet.store, fleet.vault)
    for parts in (fleet.parts, again):
        hosts = parts.services.placement.hosts
        assert {name: host.since for name, host in hosts.items()} == {
            "d": began,
            "w": fleet.now,
        }


@pytest.mark.parametrize(
    ("spec", "anew"),
    [
        ({"cron": "0 3 * * *"}, True),
        ({"timeZone": "Europe/Berlin"}, True),
        ({"spreadSeconds": 60}, True),
        ({"backup": {"paths": ["/srv"]}}, False),
        ({"timeoutSeconds": 60}, False),
    ],
)
async def test_a_schedule_begins_anew_where_it_changes_when_it_is_due(
    fleet: World, spec: dict[str, Any], anew: bool
) -> None:
    began = fleet.now
    fleet.now += timedelta(days=1)
    await fleet.schedule("db", "main", "db", **spec)
    assert fleet.parts.catalog.schedules["ns", "db"].since == (fleet.now if anew else began)


# Hosts.


async def test_a_host_that_nobody_declared_is_made_known_once(fleet: World) -> None:
    await fleet.schedule("all", "main")
    first, second = await asyncio.gather(fleet.services.hosts.session("new"), fleet.services.hosts.session("new"))
    assert (first is second, first.desired.version, len(first.desired.entries)) == (True, 1, 1)
    assert [line for line in await fleet.audit() if line[3] == "new"] == [("new", "create", "Host", "new")]


async def test_a_deleted_host_is_forgotten_and_its_jobs_stay_and_are_over(fleet: World) -> None:
    [job] = await fleet.services.runs.run_now(ME, "ns", "db", None)
    await fleet.services.hosts.delete(ME, "d")
    assert "d" not in fleet.versions()
    assert await fleet.store.read(get_host, "d") is None
    ended = await fleet.store.read(get_job, job["id"])
    assert ended is not None
    assert (ended["status"], ended["error"]) == ("cancelled", "its host was deleted")
    with pytest.raises(NotFound):
        await fleet.services.hosts.delete(ME, "d")


async def test_a_host_that_is_connected_is_not_deleted(fleet: World) -> None:
    fleet.online.add("d")
    with pytest.raises(Conflict, match="stop its agent first"):
        await fleet.services.hosts.delete(ME, "d")


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "-dash", "a..b", "x" * 254])
async def test_a_host_is_named_as_kubernetes_names_nodes(world: World, name: str) -> None:
    with pytest.raises(Invalid):
        await world.services.hosts.put(ME, name, {})


# Jobs.


async def test_run_now_runs_on_the_hosts_that_are_asked_for_and_selected(fleet: World) -> None:
    await fleet.schedule("all", "main")
    assert [job["host"] for job in await fleet.services.runs.run_now(ME, "ns", "all", None)] == ["d", "w"]
    assert [job["host"] for job in await fleet.services.runs.run_now(ME, "ns", "all", ["w"])] == ["w"]
    with pytest.raises(Invalid, match="not allowed") as refused:
        await fleet.services.runs.run_now(ME, "ns", "db", ["d", "w"])
    assert refused.value.errors[0]["detail"] == "ns/db does not select w"


async def test_a_job_of_a_host_that_is_online_is_cancelled_by_its_agent(fleet: World) -> None:
    await stored(fleet.services.dispatcher.connected("d", ()))
    [job] = await fleet.services.runs.run_now(ME, "ns", "db", None)
    assert (await fleet.services.runs.cancel(ME, job["id"]))["status"] == "pending"
    host, sent = fleet.delivered[-1]
    assert (host, list(sent.messages)) == ("d", [CommandCancel(job["id"], "cancelled by me")])


async def test_a_job_of_a_host_that_is_offline_is_over_at_once(fleet: World) -> None:
    [job] = await fleet.services.runs.run_now(ME, "ns", "db", None)
    assert (await fleet.services.runs.cancel(ME, job["id"]))["status"] == "cancelled"
    assert await fleet.store.read(of_host, "d") == []
    with pytest.raises(ApiException, match="has ended already"):
        await fleet.services.runs.cancel(ME, job["id"])


@pytest.mark.parametrize(("field", "value"), [("cron", "0 22-2 * * *"), ("timeZone", "posix/Europe/Berlin")])
async def test_what_an_older_release_stored_and_this_one_does_not_read_is_never_due_but_overdue(
    fleet: World, field: str, value: str
) -> None:
    def store_as_it_was(conn: sa.Connection, items: Sequence[Any]) -> list[Any]:
        spec = {**fleet.parts.catalog.schedules["ns", "db"].spec, field: value}
        conn.execute(sa.update(models.SCHEDULES).where(models.SCHEDULES.c.name == "db").values(spec=spec))
        return [None] * len(items)

    await fleet.store.write(store_as_it_was, None)
    parts = fleet.fresh()
    services = parts.services
    await parts.loader.load(fleet.store, fleet.vault)
    assert {
        row.name: services.placement.next_due(row.id, services.clock()) is None
        for row in parts.catalog.schedules.values()
    } == {
        "db": True,
        "web": False,
    }
    assert {it.schedule: it.overdue for it in services.coverage.expected()} == {"db": [], "web": []}
    fleet.now += timedelta(days=3)
    assert {it.schedule: it.overdue for it in services.coverage.expected()} == {"db": ["d"], "web": ["w"]}
