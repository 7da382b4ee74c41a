"""What every change goes through: audited, stored whole or not at all, and a new version just where a set changes."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from server import models, records
from server.control import Control
from server.models import Actor
from server.problems import Conflict, Invalid, NotFound, Problem
from server.store import Store
from server.vault import Vault
from wire.messages import CommandCancel

pytestmark = pytest.mark.anyio

ME = Actor("user", "me")
DB, WEB = {"role": "db"}, {"role": "web"}


class World:
    """A control plane on a store, a clock that is set by hand, and what was delivered to hosts."""

    def __init__(self, store, vault):
        self.store, self.vault = store, vault
        self.now = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
        self.online, self.delivered = set(), []
        self._ids = 0
        self.control = self.fresh()

    def fresh(self):
        control = Control(self.store, self.vault, lambda: self.now, self.new_id)
        control.is_connected = self.online.__contains__
        control.deliver = lambda host, effects: self.delivered.extend((host, effect) for effect in effects)
        control.jobs.deliver = control.deliver
        return control

    def new_id(self):
        self._ids += 1
        return f"id{self._ids}"

    async def repository(self, name="main", url="/backup", **others):
        manifest = {"metadata": {"namespace": "ns", "name": name}, "spec": {"url": url}, **others}
        return await self.control.put_repository(ME, manifest)

    async def schedule(self, name="etc", repository="main", role=None, labels=None, **spec):
        selector = {"matchLabels": {"role": role}} if role else {}
        base = {"kind": "backup", "cron": "0 2 * * *", "backup": {"paths": ["/etc"]}, "hostSelector": selector}
        spec = base | {"repositoryRef": {"name": repository}} | spec
        metadata = {"namespace": "ns", "name": name, "labels": labels or {}}
        return await self.control.put_schedule(ME, {"metadata": metadata, "spec": spec})

    async def hosts(self, **labels):
        for name, given in labels.items():
            await self.control.put_host(ME, name, given)

    def versions(self):
        return {name: host.version for name, host in self.control.hosts.items()}

    async def audit(self):
        rows = await self.store.read(records.list_audit, None, 100)
        return [(row["actor_id"], row["action"], row["object_kind"], row["object_name"]) for row in reversed(rows)]


def state(control):
    """All that a control plane knows."""
    return {
        "schedules": dict(control.schedules),
        "repositories": dict(control.repositories),
        "targets": dict(control.fleet.targets),
        "members": {name: (it.labels, it.since, it.held.digest) for name, it in control.fleet.members.items()},
        "hosts": {name: (it.version, it.held.digest, it.since) for name, it in control.hosts.items()},
    }


@pytest.fixture
async def world(tmp_path):
    store = Store.open(tmp_path / "lamplighter.db")
    yield World(store, Vault([Vault.new_key()]))
    await store.close()


@pytest.fixture
async def fleet(world):
    """Two hosts, a schedule for each of them, each schedule with a repository of its own."""
    await world.repository("main", credentials={"password": "secret"})
    await world.repository("other")
    await world.schedule("db", "main", "db")
    await world.schedule("web", "other", "web")
    await world.hosts(d=DB, w=WEB)
    return world


# What is stored.


async def test_every_change_is_audited_with_who_made_it(fleet):
    control = fleet.control
    await control.put_host(ME, "d", WEB)
    [job] = await control.run_now(ME, "ns", "web", ["w"])
    await control.cancel_job(ME, job["id"])
    await control.delete_schedule(ME, "ns", "db")
    await control.delete_repository(ME, "ns", "main")
    await control.delete_host(ME, "d")
    await control.host("new")
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


async def test_a_change_of_nothing_is_not_audited(fleet):
    before = await fleet.audit()
    await fleet.schedule("db", "main", "db")
    await fleet.repository("main", credentials={"password": "secret"})
    await fleet.hosts(d=DB)
    assert await fleet.audit() == before


async def test_the_audit_log_holds_no_credentials(fleet):
    await fleet.repository("main", credentials={"password": "correct horse"})
    rows = await fleet.store.read(records.list_audit, None, 100)
    assert rows[0]["detail"]["credentials"] == "changed"
    assert "correct horse" not in str(rows)


async def test_a_restart_knows_the_same_digests_and_versions(fleet):
    await fleet.schedule("db", "main", "db", cron="*/5 * * * *")
    await fleet.hosts(w=DB)
    again = fleet.fresh()
    await again.load()
    assert state(again) == state(fleet.control)


async def test_a_set_that_a_new_release_makes_differently_gets_a_new_version(fleet):
    await fleet.store.write(records.set_desired, [("d", 1, "of another release")])
    for _ in range(2):  # only once
        again = fleet.fresh()
        await again.load()
        assert {name: host.version for name, host in again.hosts.items()} == {"d": 2, "w": 1}


CHANGES = {
    "new schedule": lambda world: world.schedule("all", "main"),
    "changed schedule": lambda world: world.schedule("db", "main", "db", cron="*/5 * * * *"),
    "deleted schedule": lambda world: world.control.delete_schedule(ME, "ns", "db"),
    "changed repository": lambda world: world.repository("main", "/elsewhere"),
    "new host": lambda world: world.hosts(new=DB),
    "relabelled host": lambda world: world.hosts(d=WEB),
    "deleted host": lambda world: world.control.delete_host(ME, "d"),
    "host that says hello": lambda world: world.control.host("new"),
    "run now": lambda world: world.control.run_now(ME, "ns", "db", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_change_that_cannot_be_stored_whole_changes_nothing(fleet, change):
    def break_tables(conn, items):
        for table, event in (("hosts", "INSERT"), ("hosts", "UPDATE"), ("hosts", "DELETE"), ("jobs", "INSERT")):
            conn.exec_driver_sql(
                f"CREATE TRIGGER {table}_{event} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, 'broken'); END"
            )
        return [None] * len(items)

    before, audited, fleet.delivered = state(fleet.control), await fleet.audit(), []
    await fleet.store.write(break_tables, None)
    with pytest.raises(sa.exc.IntegrityError, match="broken"):
        await change(fleet)
    assert (state(fleet.control), fleet.delivered) == (before, [])
    again = fleet.fresh()
    await again.load()
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
        (lambda world: world.control.run_now(ME, "ns", "db", None), ""),
        (lambda world: world.schedule("nobody", "main", "none"), ""),
        (lambda world: world.schedule("db", "main", "db", cron="*/5 * * * *"), "d"),
        (lambda world: world.schedule("db", "main", "db", backup={"paths": ["/srv"]}), "d"),
        (lambda world: world.schedule("db", "other", "db"), "d"),
        (lambda world: world.schedule("db", "main", "web"), "dw"),
        (lambda world: world.schedule("all", "main"), "dw"),
        (lambda world: world.control.delete_schedule(ME, "ns", "db"), "d"),
        (lambda world: world.hosts(d=WEB), "d"),
        (lambda world: world.hosts(d={}), "d"),
        (lambda world: world.repository("main", "/elsewhere", credentials={"password": "secret"}), "d"),
        (lambda world: world.repository("main", credentials={"password": "another"}), "d"),
        (lambda world: world.repository("other", "/elsewhere"), "w"),
    ],
)
async def test_a_version_grows_by_one_where_the_set_changes_and_only_there(fleet, change, grown):
    assert fleet.versions() == {"d": 1, "w": 1}
    before = {name: host.held.digest for name, host in fleet.control.hosts.items()}
    await change(fleet)
    assert fleet.versions() == {name: 1 + (name in grown) for name in "dw"}
    assert {name for name, host in fleet.control.hosts.items() if host.held.digest != before[name]} == set(grown)
    for name, host in fleet.control.hosts.items():
        stored = await fleet.store.read(records.get_host, name)
        assert (stored["desired_version"], stored["desired_digest"]) == (host.version, host.held.digest)


async def test_changes_that_come_at_once_are_counted_one_by_one(fleet):
    await asyncio.gather(*(fleet.schedule(f"s{n}", "main") for n in range(20)), fleet.hosts(d=WEB))
    assert fleet.versions() == {"d": 22, "w": 21}
    again = fleet.fresh()
    await again.load()
    assert state(again) == state(fleet.control)


async def test_a_host_that_is_relabelled_begins_anew_where_its_set_changes(fleet):
    began = fleet.now
    fleet.now += timedelta(days=1)
    await fleet.hosts(d=DB | {"more": "labels"}, w=DB)
    again = fleet.fresh()
    await again.load()
    for control in (fleet.control, again):
        assert {name: host.since for name, host in control.hosts.items()} == {"d": began, "w": fleet.now}


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
async def test_a_schedule_begins_anew_where_it_changes_when_it_is_due(fleet, spec, anew):
    began = fleet.now
    fleet.now += timedelta(days=1)
    await fleet.schedule("db", "main", "db", **spec)
    assert fleet.control.schedules["ns", "db"].since == (fleet.now if anew else began)


# Hosts.


async def test_a_host_that_nobody_declared_is_made_known_once(fleet):
    await fleet.schedule("all", "main")
    first, second = await asyncio.gather(fleet.control.host("new"), fleet.control.host("new"))
    assert (first is second, first.version, len(first.held)) == (True, 1, 1)
    assert [line for line in await fleet.audit() if line[3] == "new"] == [("new", "create", "Host", "new")]


async def test_a_deleted_host_is_forgotten_and_its_jobs_stay_and_are_over(fleet):
    [job] = await fleet.control.run_now(ME, "ns", "db", None)
    await fleet.control.delete_host(ME, "d")
    assert "d" not in fleet.versions()
    assert await fleet.store.read(records.get_host, "d") is None
    ended = await fleet.store.read(records.get_job, job["id"])
    assert (ended["status"], ended["error"]) == ("cancelled", "its host was deleted")
    with pytest.raises(NotFound):
        await fleet.control.delete_host(ME, "d")


async def test_a_host_that_is_connected_is_not_deleted(fleet):
    fleet.online.add("d")
    with pytest.raises(Conflict, match="stop its agent first"):
        await fleet.control.delete_host(ME, "d")


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "-dash", "a..b", "x" * 254])
async def test_a_host_is_named_as_kubernetes_names_nodes(world, name):
    with pytest.raises(Invalid):
        await world.control.put_host(ME, name, {})


# Jobs.


async def test_run_now_runs_on_the_hosts_that_are_asked_for_and_selected(fleet):
    await fleet.schedule("all", "main")
    assert [job["host"] for job in await fleet.control.run_now(ME, "ns", "all", None)] == ["d", "w"]
    assert [job["host"] for job in await fleet.control.run_now(ME, "ns", "all", ["w"])] == ["w"]
    with pytest.raises(Invalid, match="not allowed") as refused:
        await fleet.control.run_now(ME, "ns", "db", ["d", "w"])
    assert refused.value.errors[0]["detail"] == "ns/db does not select w"


async def test_a_job_of_a_host_that_is_online_is_cancelled_by_its_agent(fleet):
    fleet.control.jobs.arrived("d", ())
    [job] = await fleet.control.run_now(ME, "ns", "db", None)
    assert (await fleet.control.cancel_job(ME, job["id"]))["status"] == "pending"
    host, sent = fleet.delivered[-1]
    assert (host, list(sent.messages)) == ("d", [CommandCancel(job["id"], "cancelled by me")])


async def test_a_job_of_a_host_that_is_offline_is_over_at_once(fleet):
    [job] = await fleet.control.run_now(ME, "ns", "db", None)
    assert (await fleet.control.cancel_job(ME, job["id"]))["status"] == "cancelled"
    assert fleet.control.jobs.queue.of_host("d") == []
    with pytest.raises(Problem, match="has ended already"):
        await fleet.control.cancel_job(ME, job["id"])


@pytest.mark.parametrize(("field", "value"), [("cron", "0 22-2 * * *"), ("timeZone", "posix/Europe/Berlin")])
async def test_what_an_older_release_stored_and_this_one_does_not_read_is_never_due_but_overdue(fleet, field, value):
    def store_as_it_was(conn, items):
        spec = {**fleet.control.schedules["ns", "db"].spec, field: value}
        conn.execute(sa.update(models.SCHEDULES).where(models.SCHEDULES.c.name == "db").values(spec=spec))
        return [None] * len(items)

    await fleet.store.write(store_as_it_was, None)
    control = fleet.fresh()
    await control.load()
    assert {row.name: control.next_due(row.id) is None for row in control.schedules.values()} == {
        "db": True,
        "web": False,
    }
    assert {it.schedule: it.overdue for it in control.expected()} == {"db": [], "web": []}
    fleet.now += timedelta(days=3)
    assert {it.schedule: it.overdue for it in control.expected()} == {"db": ["d"], "web": ["w"]}
