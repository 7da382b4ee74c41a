"""What repositories hold is told as restic lists it, after each job and to those who may know it: on both databases."""

import asyncio
import json
import os
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.restic.runner import Runner
from server.app import Running
from server.jobs import arguments as commands
from server.jobs.counts import Counts, note, taken, told_by_count, told_by_end
from server.observe.contents import Contents, contents
from server.resources.manifests import parse_schedule
from server.store import batch, counts, days, schedule_days
from server.store.engine import Store
from tests.conftest import NewRepository
from tests.integration.clock import due as due_at
from tests.integration.conftest import SQLITE, Connect, Declare, Until
from tests.restics import Program, programs
from wire.messages import CommandRun, HostSnapshots, JobCounted, JobFinished, JobReport, Repository

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("database", [SQLITE, "postgresql"], indirect=True)
PASSWORD = "correct horse battery"


# With real restics.


class Fleet:
    """Hosts with a repository, and what a server would know of it from what their jobs tell."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program = program
        self.data = folder / "data"
        self.data.mkdir()
        self.repository = Repository("r", "ns/main", str(folder / "repository"), PASSWORD)
        self._folder = folder
        self._known: Counts = {}
        self.counted: list[JobCounted] = []

    async def run(self, host: str, kind: str, **spec: Any) -> None:
        """Run a Schedule with this spec on a host."""
        if kind == "backup":
            spec["backup"] = {"paths": [str(self.data)]}
        manifest = {"kind": kind, "cron": "@daily", "repositoryRef": {"name": "main"}, **spec}
        its = parse_schedule({"metadata": {"name": "it"}, "spec": manifest}).spec
        args = commands.run_args(its, "ns/it", host, ["ns/it"])
        command = CommandRun("j", kind, args, "r", lock_wait_s=0, init=["init"])

        def hear(news: JobReport) -> None:
            if isinstance(news, JobCounted):
                self.counted.append(news)
                now = datetime.now(UTC)
                self._known = taken(self._known, told_by_count(host, command, news, now, per_host=False))

        runner = Runner(self.program.path, self._folder / host / "cache", lambda: datetime.now(UTC))
        end = await runner.run(command, self.repository, hear)
        assert end.status == "succeeded", end.error
        self._known = taken(self._known, told_by_end(host, command, end, per_host=False))

    def by_hand(self, host: str) -> None:
        self._restic("backup", f"--host={host}", str(self.data))

    @property
    def known(self) -> Contents:
        return contents(self._known.values(), lambda _: True)

    def is_known_rightly(self) -> bool:
        """Whether counts are those of restic's list, and times those of its snapshots to within seconds."""
        listed = json.loads(self._restic("snapshots", "--json")) or []
        newest: dict[str, datetime] = {}
        for it in listed:
            newest[it["hostname"]] = datetime.fromisoformat(it["time"])
        known = {it.host: it.newest for it in self.known.hosts if it.newest is not None}
        its = {it.host: it.count for it in self.known.hosts}
        near = all(abs(at - known[host]) < timedelta(seconds=10) for host, at in newest.items())
        return its == Counter(it["hostname"] for it in listed) and self.known.count == len(listed) and near

    def packed(self) -> int:
        return int(json.loads(self._restic("stats", "--mode=raw-data", "--json"))["total_size"])

    def _restic(self, *args: str) -> str:
        env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": self.repository.url, "RESTIC_PASSWORD": PASSWORD}
        argv = [self.program.path, "--no-cache", *args]
        return subprocess.run(argv, env=env, capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize("program", programs(), ids=str)
async def test_what_is_known_after_each_job_is_what_restic_lists(program: Program, tmp_path: Path) -> None:
    fleet = Fleet(program, tmp_path)
    for size, host in enumerate(("a", "b", "a")):
        (fleet.data / f"file-{size}").write_bytes(os.urandom(400_000))
        await fleet.run(host, "backup")
        assert fleet.is_known_rightly()
    assert [it.of for it in fleet.counted] == ["a", "b"]  # each host once; the server counts backups by itself
    assert fleet.known.size_bytes == pytest.approx(fleet.packed(), rel=0.01)  # a job created it, so that is known
    fleet.by_hand("b")
    assert fleet.known.count == 3
    assert fleet.known.as_of is not None
    as_of = fleet.known.as_of
    await fleet.run("a", "forget", retention={"keepLast": 1})
    assert {it.host: it.count for it in fleet.known.hosts} == {"a": 1, "b": 1}
    (fleet.data / "file-0").unlink()
    await fleet.run("b", "backup")
    await fleet.run("b", "forget", retention={"keepLast": 1, "allTags": True, "allHosts": True, "prune": True})
    assert fleet.is_known_rightly()
    assert fleet.known.as_of > as_of
    assert fleet.known.size_bytes == pytest.approx(fleet.packed(), rel=0.01)
    fleet.by_hand("c")
    await fleet.run("a", "check")
    assert fleet.is_known_rightly()


async def test_what_a_copy_brought_is_counted_where_it_went(tmp_path: Path) -> None:
    fleet = Fleet(programs()[-1], tmp_path)
    (fleet.data / "file").write_bytes(b"content")
    for host in ("a", "b"):
        await fleet.run(host, "backup")
    heard: list[JobReport] = []
    there = Repository("r2", "ns/far", str(tmp_path / "far"), PASSWORD)
    command = CommandRun("j", "copy", ["copy"], "r2", init=["init", "--copy-chunker-params"], from_repository="r")
    runner = Runner(fleet.program.path, tmp_path / "a" / "cache", lambda: datetime.now(UTC))
    end = await runner.run(command, there, heard.append, fleet.repository)
    [counted] = [it for it in heard if isinstance(it, JobCounted)]
    known = taken({}, told_by_count("a", command, counted, datetime.now(UTC), per_host=False))
    known = taken(known, told_by_end("a", command, end, per_host=False))
    found = contents(known.values(), lambda _: True)
    assert ({it.host: it.count for it in found.hosts}, found.size_bytes) == ({"a": 1, "b": 1}, None)


async def test_a_count_that_fails_takes_nothing_from_the_job(tmp_path: Path, new_repository: NewRepository) -> None:
    """restic that cannot list: the job has succeeded all the same, and the next one counts; then one after a week."""
    fleet = Fleet(programs()[0], tmp_path)
    new_repository(Path(fleet.repository.url), PASSWORD)
    (fleet.data / "file").touch()
    real, lists = fleet.program.path, tmp_path / "lists"
    program = tmp_path / "restic"
    program.write_text(f'#!/bin/sh\n[ "$1" = snapshots ] && [ ! -e {lists} ] && exit 1\nexec {real} "$@"\n')
    program.chmod(0o755)
    fleet.program = fleet.program._replace(path=str(program))
    await fleet.run("a", "backup")
    assert (fleet.known.count, fleet.known.as_of, fleet.counted) == (1, None, [])
    lists.touch()
    await fleet.run("a", "backup")
    assert (fleet.known.count, len(fleet.counted)) == (2, 1)
    assert fleet.known.as_of is not None
    await fleet.run("a", "backup")
    assert (fleet.known.count, len(fleet.counted)) == (3, 1)
    [mark] = (tmp_path / "a" / "opened").glob("*.counted")
    os.utime(mark, (0, 0))
    await fleet.run("a", "backup")
    assert (fleet.known.count, len(fleet.counted)) == (4, 2)


# With a server.


async def status(api: httpx.AsyncClient, name: str = "main") -> Any:
    answer = await api.get(f"/repositories/ns/{name}")
    answer.raise_for_status()
    listed = (await api.get("/repositories", params={"namespace": "ns"})).json()["items"]
    assert answer.json()["status"] == next(it["status"] for it in listed if it["metadata"]["name"] == name)
    return answer.json()["status"].get("snapshots")


async def put_repository(api: httpx.AsyncClient, url: str = "/backup/all", name: str = "main") -> None:
    wanted = {"spec": {"url": url}, "credentials": {"password": "open sesame"}}
    (await api.put(f"/repositories/ns/{name}", json=wanted)).raise_for_status()


@BOTH
async def test_each_job_of_a_host_is_counted_and_what_it_counts_replaces_that(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until, server: Running
) -> None:
    await put_repository(api)
    id_ = await declare("etc", cron="@hourly")
    begin = server.parts.services.clock().replace(minute=0, second=0, microsecond=0)
    due = [(begin + timedelta(hours=hour)).isoformat() for hour in range(1, 9)]
    assert await status(api) is None
    async with connect("node-1", capabilities=["backup"]) as agent:
        await agent.follow()

        async def backs_up(at: str, **more: Any) -> str:
            job = await agent.fires(id_, at)
            await agent.say("job.accepted", job_id=job)
            now = server.parts.services.clock().isoformat()
            for type_, payload in more.items():
                await agent.say(type_.replace("_", "."), job_id=job, at=now, **payload)
            end: dict[str, Any] = {"status": "succeeded", "snapshot_id": "ab" * 32, "bytes_added": 70, "started_at": at}
            await agent.say("job.finished", job_id=job, finished_at=now, done_at=now, **end)
            assert (await agent.hears("job.confirmed"))["job_id"] == job
            return now

        await backs_up(due[0])
        one = await status(api)
        assert (one["count"], one["hosts"][0]["host"], "asOf" in one, "sizeBytes" in one) == (1, "node-1", False, False)
        newest = int(begin.timestamp())
        counted = await backs_up(
            due[1], job_counted={"hosts": [["Old Name", 3, newest], ["node-1", 5, newest], ["web-9", 2, newest]]}
        )
        known = await status(api)
        assert (known["count"], known["asOf"][:19]) == (10, counted[:19])
        assert {it["host"]: it["count"] for it in known["hosts"]} == {"node-1": 5, "web-9": 2}
        await backs_up(due[2])
        assert (await status(api))["count"] == 11
        listed = (await api.get("/repositories/ns/main/hosts", params={"limit": 1})).json()
        assert [it["host"] for it in listed["items"]] == ["node-1"]
        rest = await api.get("/repositories/ns/main/hosts", params={"cursor": listed["next"]})
        assert ([it["host"] for it in rest.json()["items"]], rest.json()["next"]) == (["web-9"], None)
        one = (await api.get("/repositories/ns/main/hosts", params={"host": "web-9"})).json()["items"]
        assert [it["count"] for it in one] == [2]
        await put_repository(api, "/backup/elsewhere")
        assert await status(api) is None


async def test_no_number_that_a_host_tells_keeps_the_ends_of_others_from_the_store(db: Store) -> None:
    """Sums of what hosts tell end at a limit, in one transaction and over many: here beyond what a column holds."""
    at = datetime(2026, 3, 1, tzinfo=UTC)
    most = JobFinished("j", "succeeded", at, at, snapshot_id="ab", bytes_processed=2**53, bytes_added=2**53)
    command = CommandRun("j", "backup", [], "r")

    def end(conn: Any, items: Any) -> Any:
        ends = [most for _ in range(1_500)]
        days.count_ends(conn, (("a", "ns", it) for it in ends))
        schedule_days.count_schedule_ends(conn, (schedule_days.EndOf("r", "s", it, True) for it in ends))
        told = [it for end in ends for it in told_by_end("a", command, end, per_host=False)]
        note(conn, [told_by_count("a", command, said, at, per_host=False)[0], *told])
        return [None] * len(items)

    said = JobCounted("j", at, [HostSnapshots(f"NO HOST {number}", 2**53, 0) for number in range(1_500)])
    for _ in range(2):
        await db.write(end, None)
    [day] = await db.read(days.by_day, at.date(), "")
    [past] = await db.read(schedule_days.days_of_repository, "r", at.date())
    assert (day.succeeded, day.bytes_added, past.bytes_added, past.bytes_processed) == (3_000, *[batch.MOST] * 3)
    known = {it[:3]: it for it in await db.read(counts.counts_of, ["r"])}
    assert known["r", counts.SNAPSHOTS, ""].value == known["r", counts.BYTES, ""].since == batch.MOST


async def test_a_job_counts_once(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until, server: Running
) -> None:
    await put_repository(api)
    id_ = await declare("etc", cron="@hourly")
    async with connect("node-1", capabilities=["backup"]) as agent:
        await agent.follow()
        job = await agent.fires(id_, due_at(hour=0))
        await agent.say("job.accepted", job_id=job)
        for number in range(3):
            now = server.parts.services.clock().isoformat()
            await agent.say("job.counted", job_id=job, at=now, hosts=[["node-1", 5 + number, 0]])
        await agent.say("job.finished", job_id=job, status="failed", finished_at=now)
        assert (await agent.hears("job.confirmed"))["job_id"] == job
    assert (await status(api))["count"] == 5


@BOTH
async def test_a_list_that_somebody_asks_for_is_a_count(
    api: httpx.AsyncClient, declare: Declare, connect: Connect
) -> None:
    await put_repository(api)
    await declare()
    async with connect("node-1", capabilities=["backup", "snapshots"]) as agent:
        await agent.follow()
        asking = asyncio.ensure_future(api.get("/repositories/ns/main/snapshots"))
        job = (await agent.hears("command.run"))["job_id"]
        lines = [
            json.dumps({"id": "ab" * 32, "time": f"2026-03-0{day}T00:00:00Z", "hostname": host, "paths": ["/"]})
            for day, host in enumerate(("node-1", "node-1", "node-2"), 1)
        ]
        await agent.say("job.accepted", job_id=job)
        await agent.say("job.log", job_id=job, lines=lines)
        await agent.say("job.finished", job_id=job, status="succeeded", finished_at=agent.clock().isoformat())
        assert (await asking).status_code == 200
    known = await status(api)
    assert {it["host"]: (it["count"], it["newest"][:10]) for it in known["hosts"]} == {
        "node-1": (2, "2026-03-02"),
        "node-2": (1, "2026-03-03"),
    }


async def test_counts_are_read_put_and_deleted_by_their_keys(db: Store) -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    rows = [
        counts.CountRow(id_, what, host, 2**40, at, 1, None, at, None, at)
        for id_ in ("r1", "r2")
        for what in (counts.SNAPSHOTS, counts.BYTES)
        for host in ("", "a", "b")
    ]
    key = counts.CountKey("r1", counts.SNAPSHOTS, "a")
    await asyncio.gather(*[db.write(counts.put_counts, it._replace(value=0)) for it in rows])
    await asyncio.gather(*[db.write(counts.put_counts, it) for it in rows])
    assert sorted(await db.read(counts.counts_of, ["r1", "none"])) == sorted(it for it in rows if it[0] == "r1")
    assert await db.read(counts.counts_at, [key, key._replace(host="c")]) == [it for it in rows if it[:3] == tuple(key)]

    def set_back(conn: Any, items: Any) -> Any:
        counts.delete_counts(conn, items)
        counts.counts_set_back(conn, at - timedelta(hours=1))
        return [None] * len(items)

    await db.write(set_back, key)
    left = await db.read(counts.counts_of, ["r1"])
    assert key not in [counts.CountKey(*it[:3]) for it in left]
    assert {it.at for it in left} == {it.last_at for it in left} == {at - timedelta(hours=1)}
    await db.write(counts.forget_counts, "r1")
    assert (await db.read(counts.counts_of, ["r1"]), len(await db.read(counts.counts_of, ["r2"]))) == ([], 6)
