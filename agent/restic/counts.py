"""Counts the snapshots in a repository by host, after a job that may have changed them.

restic reads every snapshot for it, most of them from its cache, but no index. A forget, a prune, a check and a copy do
far more than that, and are rare, so each is followed by a count. A backup, which the server counts by itself, is
followed by one only where this host has not counted for COUNT_DAYS.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from agent.restic.job import Job
from agent.restic.output import clipped
from wire.messages import HostSnapshots, JobCounted

FOLLOWED = frozenset({"forget", "prune", "check", "copy"})
"""The kinds that are followed by a count."""
COUNT_DAYS = 7
"""Days after which a backup is followed by a count, too."""
COUNT_S = 120.0
"""Seconds that a count may take: the job has a slot of its repository meanwhile."""
MAX_HOSTS = 10_000
MAX_BYTES = 512 << 10
"""Limits on one JobCounted: hosts, and bytes of JSON, far below a frame's limit."""
MAX_NAME = 253
"""Characters of a host's name on the wire."""


class _Snapshot(msgspec.Struct, gc=False):
    time: datetime
    hostname: str = ""


_lists = msgspec.json.Decoder(list[_Snapshot] | None)


def count(listed: bytes) -> list[HostSnapshots]:
    """The snapshots in the output of `snapshots --json`, by host; the host comes first whose newest is the oldest.

    Raises ValueError if it is no list of snapshots.
    """
    found: dict[str, tuple[int, int]] = {}
    for it in _lists.decode(listed) or ():
        name = it.hostname[:MAX_NAME]
        snapshots, newest = found.get(name, (0, 0))
        found[name] = (snapshots + 1, max(newest, int(it.time.timestamp())))
    its = [HostSnapshots(host, *known) for host, known in found.items()]
    return sorted(its, key=lambda it: (it.newest, it.host))


def told(job_id: str, at: datetime, hosts: Sequence[HostSnapshots], of: str) -> JobCounted:
    """What the server is told of a count that began `at`: of as many hosts, in order, as fit."""
    room, fits = MAX_BYTES, 0
    for it in hosts[:MAX_HOSTS]:
        room -= len(msgspec.json.encode(it)) + 1
        if room < 0:
            break
        fits += 1
    return JobCounted(job_id, at, list(hosts[:fits]), of, len(hosts) - fits)


async def follow(job: Job, clock: Callable[[], datetime]) -> None:
    """Count what a job that went well has left. Where that fails, the job's outcome stays."""
    kind, args = job.command.kind, job.command.args
    since = clock().timestamp() - COUNT_DAYS * 86400
    if kind not in FOLLOWED and not (kind == "backup" and job.summary.snapshot_id and job.counted_at < since):
        return
    options = args[: args.index("--")] if "--" in args else args
    of = [it for it in options if it.startswith("--host=")]
    at = clock()
    try:
        async with asyncio.timeout(COUNT_S):
            listed = await job.ask(["snapshots", "--json", "--no-lock", *of])
        hosts = count(listed)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError; msgspec's errors are ValueErrors
        why = str(error) or f"it took more than {COUNT_S:.0f} s"
        job.reporter.log(clipped(job.redact(f"the snapshots in the repository were not counted: {why}")))
        return
    job.reporter.counted(told(job.command.job_id, at, hosts, of[0].partition("=")[2] if of else ""))
    job.mark_counted()
