"""What is found of a fleet: in the server's database and answers, in the agents' journals, and what restic did."""

import json
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

import httpx

from agent.core.state import replay
from agent.journal import read
from tests.faults.checks import FORGOTTEN, MINUTE, Evidence, Held, Job, Kept, Row, Run, due_times
from tests.faults.fleet import DUE, KEPT, Fleet
from tests.faults.plan import HOSTS

DEADLINES = {"strict": 90.0}
_JOBS = """SELECT id, scheduled_id, actor_id, host, kind, scheduled_at, missed, status, attempt, created_at,
    coalesce(snapshot_id, '') FROM jobs"""
_HOSTS = "SELECT name, desired_version, desired_digest, applied_version, applied_digest FROM hosts"


def held(journal: Path) -> Held:
    """What a journal says."""
    records, _, lost = read(journal.read_bytes())
    memory = replay(records)
    left = (*memory.fires.values(), *memory.running.values(), *memory.ends.values())
    return Held(memory.version, memory.digest, tuple(map(str, left)), lost)


def jobs(database: Path) -> list[Job]:
    """All jobs that a database holds."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return [_job(*row) for row in db.execute(_JOBS)]


def with_lost(found: Sequence[Job], lost: Mapping[str, Job]) -> list[Job]:
    """Jobs, with those that an older database has lost, whose due times were dealt with. Nobody knows how a lost one
    ended that had no end.

    A job that is there again, also as another one of its due time, may have had more attempts than the older database
    knew, and no attempt of it ran twice.
    """
    attempts: Counter[tuple[str, str, datetime | str]] = Counter()
    for job in lost.values():
        attempts[_run(job)] = max(attempts[_run(job)], job.attempt)
    again = [job._replace(attempt=max(job.attempt, attempts[_run(job)])) for job in found]
    known = {_run(job) for job in found}
    gone = [job for job in lost.values() if _run(job) not in known]
    unknown = {"pending": FORGOTTEN, "running": "interrupted"}
    return again + [job._replace(status=unknown.get(job.status, job.status)) for job in gone]


def _run(job: Job) -> tuple[str, str, datetime | str]:
    """What is to run once: a due time of a schedule on a host; of what has none, the job."""
    return job.schedule_id, job.host, job.due or job.id


def hosts(database: Path) -> dict[str, Row]:
    """All hosts that a database holds."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return {name: Row((version, digest), (at, has)) for name, version, digest, at, has in db.execute(_HOSTS)}


def _job(job_id: str, schedule_id: str, actor: str, host: str, kind: str, due: str | None, *rest: object) -> Job:
    missed, status, attempt, created_at, snapshot = rest
    at = None if due is None else datetime.fromisoformat(due)
    name, created = actor.rpartition("/")[2], datetime.fromisoformat(str(created_at))
    return Job(job_id, schedule_id, name, host, kind, at, missed, status, attempt, created, snapshot)  # type: ignore[arg-type]


def kept(fleet: Fleet, until: datetime) -> list[Kept]:
    """What was never changed, on each of the hosts. Of what has a deadline, the last due time at least is to run."""
    known = fleet.schedules.keys()
    since: dict[str, tuple[int, datetime]] = {name: (minutes, fleet.begin) for name, minutes in KEPT.items()}
    since |= dict.fromkeys(DEADLINES.keys() & known, (1, until - MINUTE))
    return [
        Kept(fleet.schedules[name], name, host, minutes, begin)
        for name, (minutes, begin) in since.items()
        for host in HOSTS
    ]


async def unsettled(fleet: Fleet, until: datetime) -> list[str]:
    """What is yet to come about before a fleet is quiet."""
    try:
        waits = [f"{part.name} does not run" for part in fleet.parts.values() if part.pid is None]
        for host in HOSTS:
            answer = (await fleet.ask("GET", f"/hosts/{host}")).json()
            waits += [f"{host} is not {what}" for what in ("connected", "in_sync") if not answer[what]]
            waits += [f"{host} has {what}" for what in held(fleet.journal(host)).open]
        waits += [f"{host} is out of sync" for host, row in hosts(fleet.database).items() if row.desired != row.applied]
        found = jobs(fleet.database)
    except (OSError, sqlite3.Error, httpx.HTTPError, TimeoutError) as error:
        return [f"{type(error).__name__}: {error}"]
    waits += [
        f"job {job.id} of {job.schedule} is {job.status}" for job in found if job.status in ("pending", "running")
    ]
    has = {(job.schedule_id, job.host, job.due) for job in found}
    for it in kept(fleet, until):
        due = due_times(it, until)[-1:]
        waits += [
            f"{it.schedule} on {it.host}, due {at}, has no job"
            for at in due
            if (it.schedule_id, it.host, at) not in has
        ]
    return waits


def evidence(fleet: Fleet, until: datetime, waits: Sequence[str], *, last: bool) -> Evidence:
    """All that there is to find. `last`: also what takes long, which is looked at when a fleet's time is over."""
    problems = [f"not quiet in time: {what}" for what in waits]
    problems += [death for part in fleet.parts.values() for death in part.deaths]
    problems += unsound(fleet.database)
    overlaps = fleet.folder / "overlaps"
    if overlaps.exists():
        problems += [f"ran beside the run before it: {line}" for line in overlaps.read_text().splitlines()]
    if last and fleet.setup.real:
        problems += [wrong for host in ("", *HOSTS) for wrong in _damaged(fleet, host)]
    journals = {host: held(fleet.journal(host)) for host in HOSTS}
    found = with_lost(jobs(fleet.database), fleet.lost)
    return Evidence(
        until,
        found,
        kept(fleet, until),
        hosts(fleet.database),
        journals,
        _runs(fleet, last=last),
        DEADLINES,
        DUE,
        problems,
    )


def unsound(database: Path) -> list[str]:
    """What is wrong with a database (SQLite: PRAGMA integrity_check, foreign_key_check)."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
            said = [row[0] for row in db.execute("PRAGMA integrity_check")]
            said += [f"{row} refers to nothing" for row in db.execute("PRAGMA foreign_key_check")]
    except sqlite3.DatabaseError as error:
        said = [str(error)]
    return [f"the database is damaged: {what}" for what in said if what != "ok"]


def _damaged(fleet: Fleet, host: str) -> list[str]:
    try:
        fleet.restic("check", "--read-data", "--no-lock", host=host)  # what was killed left its lock
    except subprocess.CalledProcessError as error:
        return [f"repository {host or 'shared'} is damaged: {error.output.strip()}"]
    return []


def _runs(fleet: Fleet, *, last: bool) -> list[Run] | None:
    if not fleet.setup.real:
        path = fleet.folder / "runs"
        return [Run(*line.split()) for line in path.read_text().splitlines()] if path.exists() else []
    if not last:
        return None
    snapshots = [
        it for host in ("", *HOSTS) for it in json.loads(fleet.restic("snapshots", "--json", "--no-lock", host=host))
    ]
    return [Run(it["hostname"], it["tags"][0].rpartition("/")[2], it["id"]) for it in snapshots]
