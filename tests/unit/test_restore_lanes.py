"""A restore waits in the lane of the repository that it reads; listing snapshots and files never waits."""

import json

import pytest

from agent.restic.output import MAX_TEXT
from agent.restic.snapshots import pieces
from server.changes import listings
from server.jobs import arguments as commands
from server.jobs.fires import NewJob
from server.jobs.kinds import ConcurrencyLimit
from server.resources.specs import RepositorySpec
from tests.jobqueue import NOON, Jobs, in_memory
from wire.messages import CommandRun

SHARED, EACH_ITS_OWN = RepositorySpec("/backup", init=False), RepositorySpec("/backup/{host}", init=False)


def job(job_id: str, kind: str, host: str, source: str = "", where: RepositorySpec = EACH_ITS_OWN) -> NewJob:
    command = CommandRun(job_id, kind, [], commands.repository_id("repo", where, source or host, host))
    return NewJob(host, command, "user", "me", 0, NOON)


def started(*its: NewJob, where: RepositorySpec = EACH_ITS_OWN) -> list[str]:
    """The ids of the jobs that may go, when these come one after the other."""
    jobs = Jobs(in_memory(), {"repo": ConcurrencyLimit(per_host="{host}" in where.url)})
    for host in ("a", "b"):
        jobs.connected(host)
    return [going for it in its for going in jobs.add(it)]


def test_a_restore_waits_for_who_prunes_the_repository_that_it_reads() -> None:
    assert started(job("prune", "prune", "a"), job("restore", "restore", "b", source="a")) == ["prune"]
    assert started(job("restore", "restore", "b", source="a"), job("prune", "prune", "a")) == ["restore"]


def test_a_restore_does_not_wait_for_who_prunes_another_hosts() -> None:
    assert started(job("prune", "prune", "b"), job("restore", "restore", "b", source="a")) == ["prune", "restore"]


def test_what_all_hosts_share_has_one_lane() -> None:
    prune, restore = job("prune", "prune", "b", where=SHARED), job("restore", "restore", "b", "a", SHARED)
    assert started(prune, restore, where=SHARED) == ["prune"]


def test_a_list_of_files_waits_for_no_job() -> None:
    assert started(job("prune", "prune", "a"), job("list", "ls", "a")) == ["prune", "list"]


@pytest.mark.parametrize("length", [1, 4000, 4096, 4097, 8191, 8192, 100_000])
def test_a_line_that_is_longer_than_the_wire_takes_comes_whole(length: int) -> None:
    text = json.dumps({"id": "a" * length, "time": "2026-01-02T03:04:05Z", "hostname": "h", "paths": ["/{+"] * 5})
    lines = pieces(text, MAX_TEXT)
    assert max(map(len, lines)) <= MAX_TEXT
    first, second = listings._read([*lines, *lines])
    assert first == second
    assert first is not None
    assert len(first.id) == length
