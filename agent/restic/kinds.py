"""The steps of each kind of job."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from uuid import uuid4

import msgspec

from agent.restic import hooks, snapshots, verify
from agent.restic.job import NO_SUMMARY, Job
from agent.restic.outcome import CREATION_WAITS, named_paths
from agent.restic.output import MAX_TEXT, Summary, clipped
from agent.restic.snapshots import LinkCheck, SnapshotError
from agent.restic.verify import Sample
from agent.sandbox.confine import SPECIAL, STAGE, Launch
from wire.messages import Restore, Verify

NOT_THERE = (
    "the repository existed before and is missing now: check that its disk is mounted. spec.init does not replace it; "
    "to start with a new one, delete the Repository and declare it again"
)

_NO_SOURCE = "there is no repository: check its spec.url, and run a Schedule of kind backup with it first"
"""Only a backup or a copy into a repository creates it."""

_COMMAND_FAILED = "command failed"
"""What restic says where the command of --stdin-from-command failed (internal/fs/fs_reader_command.go of 0.17)."""


async def backup(job: Job, creating: asyncio.Lock) -> None:
    """Back up files and folders.

    The job fails if restic succeeds without reporting a snapshot, since the program may not be restic; but it may skip
    a snapshot in which nothing would have changed. The job warns of a snapshot without files, since a volume may not be
    mounted.
    """
    await run_command(job, creating)
    args, made = job.command.args, job.summary
    skipped = "--skip-if-unchanged" in args and made is not NO_SUMMARY and not made.snapshot_id
    succeeded = job.status() in ("succeeded", "warning")
    if succeeded and skipped:
        job.reporter.log("nothing has changed since the last snapshot, so there is no new one")
    if not made.snapshot_id and not skipped and "--json" in args and succeeded:
        job.fail("restic succeeded but reported no snapshot: check that the program is an unmodified restic")
    elif (made.snapshot_id or skipped) and not made.files_processed:
        paths = args[args.index("--") + 1 :] if "--" in args else []
        where = named_paths(paths, len(paths))
        job.warn(
            f"no file was found in {where}: check that its volume is mounted, and that spec.backup.excludes "
            "does not match all"
        )


async def back_up_output(job: Job, creating: asyncio.Lock, env: Mapping[str, str]) -> None:
    """Back up what a program of the host prints: if it fails, restic makes no snapshot.

    `env`: the program's environment. See `agent.sandbox.stream`.
    """
    program, version = job.command.stdin_command, await restic_version(job)
    if not snapshots.has_stdin_from_command(version):
        job.fail(
            f"{version or 'this restic'} does not know spec.backup.command: install restic 0.17 or newer on this host"
        )
        return
    codes: list[int | None] = []
    args = [*job.command.args, "--", "cat", *map(str, job.stream)]
    feeding = asyncio.create_task(job.feed(program, env, codes.append))
    try:
        await run_args(job, creating, args, Launch(private=[str(job.folder("stream"))]))
    finally:
        feeding.cancel()  # it is over, or restic failed before it read
        await asyncio.wait([feeding])
    failed, made = codes[0] if codes else None, job.summary
    if job.outcome is not None and _COMMAND_FAILED in job.outcome.error and failed:
        job.fail(hooks.command_failure(program, failed), "CommandFailed")
    elif made.snapshot_id and not made.files_processed:
        job.fail(f"spec.backup.command printed nothing, so snapshot {made.snapshot_id[:8]} is empty", "CommandFailed")


async def copy(job: Job, creating: asyncio.Lock) -> None:
    """Copy the snapshots of another repository that this one lacks.

    The other one is opened alone first, since restic does not say which of the two it could not open.
    """
    with job.at_source():
        opened = await job.restic(["cat", "config"], lambda line: None)
    if opened.end == "succeeded":
        await run_args(job, creating, job.command.args, Launch())
    else:
        error = _NO_SOURCE if opened.end == "no_repository" else opened.error
        job.fail(f"the Repository that is copied from: {error}", opened.reason)


async def restic_version(job: Job) -> str:
    """What restic says of its version, such as `restic 0.18.0`; empty if it is not restic."""
    lines: list[bytes] = []
    await job.restic(["version"], lines.append)
    return " ".join(b"".join(lines).decode(errors="replace").split()[:2])


async def run_command(job: Job, creating: asyncio.Lock) -> None:
    """Run the command, which may read the paths after `--`. See `run_args`."""
    args = job.command.args
    await run_args(job, creating, args, Launch(paths=args[args.index("--") + 1 :] if "--" in args else ()))


async def run_args(job: Job, creating: asyncio.Lock, args: Sequence[str], reads: Launch) -> None:
    """Run restic. If the repository is missing and may be created, run `restic init`, and the command again.

    A repository that existed before is not created again: its disk may not be mounted.
    `reads`: what restic may reach of the host. `creating`: the lock of this repository's creation. Two concurrent
    `restic init` leave a repository that neither can open, so this host creates one at a time. While another host
    creates the repository, the command is tried again.
    """
    command, was_there = job.command, job.was_opened
    ended = await job.restic(args, wanted=reads, may_lack=command.init is not None and not was_there)
    if command.init is None or ended.end not in ("no_repository", "damaged"):
        return
    if ended.end == "no_repository" and was_there:
        job.fail(NOT_THERE, "NoRepository")
        return
    if ended.end == "no_repository":
        job.reporter.log("there is no repository yet: creating it, and then trying again")
        async with creating:
            job.conclude(None)
            created = await job.restic(command.init, wanted=Launch(create=True))
        if created.end not in ("succeeded", "repository_exists"):
            return
        if created.end == "succeeded":
            job.mark_created()
    for wait in CREATION_WAITS:
        job.conclude(None)
        await job.pause(wait)
        ended = await job.restic(args, wanted=reads)
        if ended.end not in ("no_repository", "damaged"):
            return


async def check_restore(job: Job, wanted: Verify, rng: random.Random) -> None:
    """Verify: restore some files of a snapshot into a scratch folder, and compare them."""
    sample, links = Sample(wanted.files, wanted.max_bytes, rng), LinkCheck()
    look, *of = job.command.args
    listed = await job.restic([look, *job.lock_options, *of], links.before(sample.take))
    if listed.end not in ("succeeded", "no_snapshot"):
        return
    if job.command.within:
        links.check()
    snapshot, files = sample.snapshot, sample.picked()
    if snapshot is None:
        remedy = "run a Schedule of kind backup, or copy, into this Repository first"
        raise SnapshotError(f"there is no snapshot of this host: {remedy}")
    if not files:
        problem = f"snapshot {snapshot.id[:8]} holds no file of at most {wanted.max_bytes} bytes"
        raise SnapshotError(f"{problem}: raise spec.verify.maxBytes, or check what is backed up")
    target = str(job.folder("restored"))
    args = snapshots.restore_args(
        snapshot.id, target, [node.path for node in files], sparse=False, options=job.lock_options
    )
    restored = await job.restic(args, wanted=Launch(private=[target], restores=True))
    job.conclude(None)  # the comparison decides the outcome
    copies = await job.digests([f"{target}{node.path}" for node in files])
    sources = await job.digests([node.path for node in files])
    found = verify.compare(files, copies, sources)
    job.reporter.log(
        f"restored {len(files)} of {sample.files} files of snapshot {snapshot.id[:8]}: "
        f"{len(found.differences)} differ; {found.compared} were also compared with their unchanged source"
    )
    job.summarise(Summary(snapshot.id, len(files), sum(node.size for node in files), 0))
    job.conclude(restored)
    if found.differences:
        for difference in found.differences:
            job.reporter.log(clipped(difference))
        job.fail(f"restored files differ: {verify.named(found.differences)}", "VerificationFailed")


async def restore(job: Job, wanted: Restore) -> None:
    """Restore a snapshot, or parts of it, below a folder."""
    lines: list[bytes] = []
    host = [f"--host={wanted.source_host}"] if wanted.source_host else []
    place = Launch(target=wanted.target, vacant=not wanted.overwrite)
    listing = await job.restic(["snapshots", "--json", *job.lock_options, *host], lines.append, place)
    if listing.end != "succeeded":
        return
    snapshot = snapshots.choose(snapshots.read_list(b"".join(lines)), wanted)
    job.reporter.log(
        f"restoring snapshot {snapshot.id[:8]} of {snapshot.hostname}, {snapshot.time:%Y-%m-%d %H:%M:%S %Z}"
    )
    tally, links = snapshots.Tally(wanted.paths), LinkCheck()
    deep = ["--recursive"] if wanted.paths else []
    args = ["ls", "--json", *job.lock_options, *deep, "--", snapshot.id, *wanted.paths]
    if (await job.restic(args, links.before(tally.take))).end != "succeeded":
        return
    if job.command.within:
        links.check()
    if tally.missing:
        raise SnapshotError(f"snapshot {snapshot.id[:8]} does not hold {', '.join(tally.missing)}: list its files")
    sparse = snapshots.has_sparse(await restic_version(job))
    args = snapshots.restore_args(snapshot.id, STAGE, wanted.paths, sparse=sparse, options=job.lock_options)
    special = wanted.setuid_and_devices and not job.command.within
    place = place._replace(
        overwrite=wanted.overwrite,
        stage=f".lamplighter-restore-{uuid4().hex}",
        parts=wanted.paths or snapshot.paths,
        chosen=bool(wanted.paths),
        special=special,
        restores=True,
    )
    async with job.restoring(place):
        done = await job.restic(args, wanted=place, expected=None if special else tally.devices)
    if tally.devices and not special:
        job.reporter.log(f"left out: {len(tally.devices)} devices: {SPECIAL}")
    summary = Summary(snapshot.id, tally.files, tally.bytes, 0) if done.end == "succeeded" else job.summary
    job.summarise(msgspec.structs.replace(summary, snapshot_id=snapshot.id))


async def list_contents(job: Job) -> None:
    """List snapshots, or files of one: each is a line of JSON in the job's log."""
    job.reporter.allow_listing()
    count = 0

    def log_line(line: bytes) -> None:
        nonlocal count
        for text in snapshots.listed(line):
            count += 1
            for piece in snapshots.pieces(job.redact(text), MAX_TEXT):
                job.reporter.log(piece)

    ended = await job.restic(job.command.args, log_line)
    if ended.end == "no_snapshot" or (ended.end == "succeeded" and not count and job.command.kind == "ls"):
        raise SnapshotError("there is no such snapshot: list the snapshots, and give the id of one")
    job.conclude(ended)
