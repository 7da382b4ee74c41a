"""What a restore, or a look into a repository, asks of a host: checked, granted, made a job, its answer awaited.

A repository whose URL holds {host} is, here, that of the host that was backed up, whoever restores from it or looks.
What hosts list is kept in memory, as long as it takes to read it page by page, and in no log.
"""

import asyncio
import hashlib
import posixpath
import re
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Struct

from server import commands, records, resources
from server.control import Control
from server.grants import Grant, Grants, path_errors
from server.host import NewJob
from server.models import Actor
from server.problems import BadGateway, Conflict, FieldError, Forbidden, Invalid, NoAnswer, NotFound, Unavailable
from server.records import AuditRow, RepositoryRow, Row
from server.selectors import is_dns_name
from server.specs import RepositorySpec, RestoreSpec
from server.store import Store
from server.urls import folder_of
from wire.messages import CommandRun, JobFinished, Restore

LOOK_S = 30.0
"""Seconds that a host has to list what is in a repository."""
MAX_LOOKS = 16
"""Looks that are under way at once: each has a host run restic."""
KEPT = 32
"""Lists that are kept for whoever reads their next pages; the oldest makes way."""


MAX_PATH = 4096
"""Characters of a path that is looked at."""
_SNAPSHOT = re.compile("latest|[0-9a-f]{4,64}")


class Snapshot(Struct, frozen=True):
    """A snapshot as it is listed."""

    id: str
    time: datetime
    host: str
    paths: list[str]
    tags: list[str]


class File(Struct, frozen=True):
    """A file, a folder or whatever else a snapshot holds. `mode`: permissions as chmod(1) writes them, `0644`."""

    path: str
    type: str
    size: int
    mode: str
    uid: int
    gid: int
    mtime: str


class Question(NamedTuple):
    """What is asked of a repository. `host`: whose snapshots, "" for anyone's; `snapshot`: "" for a list of them."""

    namespace: str
    name: str
    host: str = ""
    snapshot: str = ""
    path: str = "/"


class Listing(NamedTuple):
    """What a host listed. `of`: the question; `truncated`: it was more than is told."""

    of: Question
    items: Sequence[Snapshot | File]
    truncated: bool


class Page(Struct, frozen=True):
    """A part of a listing. `after`: the listing's id and where the next part begins, None where there is none."""

    items: Sequence[Snapshot | File]
    truncated: bool
    after: tuple[str, int] | None


class Restores:
    """Restores and looks, on a control plane. `grants`: as the control plane has them."""

    def __init__(
        self,
        control: Control,
        store: Store,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
        grants: Grants | None = None,
    ) -> None:
        self._control = control
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._grants = grants or Grants()
        self._asking = asyncio.Lock()
        self._looks = 0
        self._kept: OrderedDict[str, Listing] = OrderedDict()

    # Restores.

    async def restore(self, actor: Actor, manifest: Mapping[str, Any]) -> Row:
        """Restore, once, what a Restore says; one of the same name is the same restore. Answers its job.

        Raises Invalid, also for a repository or a host that is not there, Forbidden, and Conflict for a name that was
        used for another restore.
        """
        spec = resources.parse_restore(manifest)
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        async with self._asking:  # so that nobody asks for what is being recorded
            job = await self._find(namespace, name)
            if job is None:
                job = await self._record(actor, namespace, name, spec)
            elif not _is_same(job, spec):
                raise Conflict(f"restore {name} was asked for before, and was another: give this one a name of its own")
        return job

    async def get(self, namespace: str, name: str) -> Row:
        """The job of a restore. Raises NotFound."""
        job = await self._find(namespace, name)
        if job is None:
            raise NotFound(f"there is no restore {name!r} in namespace {namespace!r}")
        return job

    async def _find(self, namespace: str, name: str) -> Row | None:
        found = await self._store.read(records.get_jobs, [_job_id(namespace, name), _earlier_job_id(namespace, name)])
        return found[0] if found else None

    async def _record(self, actor: Actor, namespace: str, name: str, spec: RestoreSpec) -> Row:
        try:
            row, where = self._repository(namespace, spec.repository_ref.name)
        except NotFound as error:
            raise _invalid("spec.repositoryRef.name", error.detail) from None
        host = spec.host or spec.source_host
        grant = self._grants.of(namespace)
        self._check(row, path_errors(grant, namespace, [spec.target], "spec.target"))
        if spec.setuid_and_devices and not grant.everywhere:
            detail = "needs a grant of the whole host: leave it out; the cluster's operator can change the grant"
            raise Forbidden(
                f"namespace {namespace} may not have this", [{"field": "spec.setuidAndDevices", "detail": detail}]
            )
        member = self._control.fleet.members.get(host)
        if member is None:
            raise _invalid("spec.host", f"there is no host {host!r}: name one that is there, or start its agent")
        if not grant.selects(member.labels):
            detail = f"{host} is not granted to namespace {namespace}; the cluster's operator can change that"
            raise Forbidden(f"namespace {namespace} may not reach this", [{"field": "spec.host", "detail": detail}])
        command = CommandRun(
            _job_id(namespace, name),
            "restore",
            [],
            commands.repository_id(row.id, where, spec.source_host, host),
            restore=_wanted(spec),
            within=list(grant.within),
            host_identity=grant.host_identity,
        )
        now = self._clock()
        asked = {"restore": name, "host": host, **msgspec.to_builtins(_wanted(spec))}
        audit = AuditRow(now, *actor, "restore", "Repository", f"{namespace}/{row.name}", asked)
        await self._control.record([_new_job(host, command, actor, now)], audit)
        return await self.get(namespace, name)

    # Looks.

    async def look(self, actor: Actor, question: Question, limit: int, after: tuple[str, int] | None) -> Page:
        """A part of what a host answers; the parts that follow are of the same answer while it is kept.

        Raises Invalid, Forbidden, NotFound, NoAnswer when no host can be asked or none answers in time, BadGateway when
        the repository cannot be read.
        """
        question = question._replace(path=posixpath.normpath("/" + question.path.lstrip("/")))
        if after is None:
            listing_id, begin = self._new_id(), 0
            listing = await self._ask(actor, question, listing_id)
        else:
            listing_id, begin = after
            found = self._kept.get(listing_id)
            if found is None or found.of != question:
                raise Conflict("that list is not kept any more: ask for its first page again")
            listing = found
        items, rest = listing.items[begin : begin + limit], len(listing.items) - begin - limit
        if rest > 0:
            self._kept[listing_id] = listing
            self._kept.move_to_end(listing_id)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.pop(listing_id, None)
        return Page(items, listing.truncated, (listing_id, begin + limit) if rest > 0 else None)

    async def _ask(self, actor: Actor, question: Question, job_id: str) -> Listing:
        """Have a host list what is asked for."""
        row, where = self._repository(question.namespace, question.name)
        if question.host and not is_dns_name(question.host):
            raise _invalid("host", "must be the name of a host")
        if question.snapshot and not _SNAPSHOT.fullmatch(question.snapshot):
            raise _invalid("snapshot", "must be latest, or 4 to 64 of the digits that a snapshot's id begins with")
        if len(question.path) > MAX_PATH:
            raise _invalid("path", f"must be at most {MAX_PATH} characters long")
        if "{host}" in where.url and not question.host:
            raise _invalid("host", f"each host has its own {row.name}, for its URL holds {{host}}: name the host")
        grant = self._grants.of(question.namespace)
        self._check(row)
        host = self._looker(grant, row, where, question.host)
        args = _args(question)
        repository = commands.repository_id(row.id, where, question.host, host)
        kind = "ls" if question.snapshot else "snapshots"
        command = CommandRun(job_id, kind, args, repository, timeout_s=int(LOOK_S), lock_wait_s=0)
        command = msgspec.structs.replace(command, within=list(grant.within), host_identity=grant.host_identity)
        now = self._clock()
        detail = {"host": host, "of": question.host, "snapshot": question.snapshot, "path": question.path}
        audit = AuditRow(now, *actor, kind, "Repository", f"{row.namespace}/{row.name}", detail)
        end, lines = await self._answer(_new_job(host, command, actor, now), audit)
        if end.reason == "NoSnapshot":
            raise NotFound(end.error)
        if end.status not in ("succeeded", "warning"):
            raise BadGateway(f"{host} could not read {row.namespace}/{row.name}: {end.error or end.status}")
        return _files(question, lines) if question.snapshot else _snapshots(question, lines)

    async def _answer(self, job: NewJob, audit: AuditRow) -> tuple[JobFinished, Sequence[str]]:
        """Run a job whose log is what it was asked for. Raises NoAnswer, and Unavailable when too many run."""
        if self._looks >= MAX_LOOKS:
            raise Unavailable(f"{MAX_LOOKS} looks into repositories are under way: try again when one has ended")
        self._looks += 1
        try:
            return await self._heard(job, audit)
        finally:
            self._looks -= 1

    async def _heard(self, job: NewJob, audit: AuditRow) -> tuple[JobFinished, Sequence[str]]:
        job_id = job.command.job_id
        with self._control.jobs.listening(job_id) as heard:
            await self._control.record([job], audit)
            try:
                async with asyncio.timeout(LOOK_S):
                    return await heard.end, heard.lines
            except TimeoutError:
                with suppress(Conflict):  # it has ended just now
                    await self._control.cancel_job(Actor(job.actor_kind, job.actor_id), job_id)
        raise NoAnswer(f"{job.host} gave no answer within {LOOK_S:.0f} s: try again, or run restic there")

    def _looker(self, grant: Grant, row: RepositoryRow, where: RepositorySpec, source: str) -> str:
        """The host that is to look: the one whose snapshots they are, or one that uses the repository, or any other.

        A folder is looked for on a host that has it. Raises NoAnswer.
        """
        control, fleet = self._control, self._control.fleet
        able = {
            name
            for name, member in fleet.members.items()
            if control.is_connected(name) and grant.selects(member.labels)
        }
        if source in able:
            return source
        targets = (target for target in fleet.targets.values() if target.repository_id == row.id)
        using = {name for target in targets for name in fleet.matched(target, able)}
        if folder_of(where.url) is not None:
            able = set() if "{host}" in where.url else using
        if not able:
            who = source or "a host that uses it"
            raise NoAnswer(f"no host can look into {row.namespace}/{row.name} now: start the agent of {who}")
        return min(using or able)

    # What they share.

    def _repository(self, namespace: str, name: str) -> tuple[RepositoryRow, RepositorySpec]:
        row = self._control.repositories.get((namespace, name))
        if row is None:
            raise NotFound(f"there is no Repository {namespace}/{name}")
        return row, resources.repository_spec(row.spec)

    def _check(self, row: RepositoryRow, more: Iterable[FieldError] = ()) -> None:
        """Raises Forbidden for what is not granted, or was once and is not any more."""
        if wrong := [*more, *self._control.place(row).wrong]:
            raise Forbidden(f"namespace {row.namespace} may not reach this", wrong)


def _args(question: Question) -> list[str]:
    if not question.snapshot:
        return commands.snapshots_args(question.host)
    return commands.ls_args(question.host, question.snapshot, question.path)


def _job_id(namespace: str, name: str) -> str:
    """The id of a restore's job: ever the same, and nobody else's."""
    return records.lasting_job_id("restore", namespace, name)


def _earlier_job_id(namespace: str, name: str) -> str:
    """The id that a restore's job got before ids began with what tells them apart: a store may hold some still."""
    return f"{name}-{hashlib.blake2b(f'restore {namespace}'.encode(), digest_size=8).hexdigest()}"


def _new_job(host: str, command: CommandRun, actor: Actor, now: datetime) -> NewJob:
    return NewJob(host, command, *actor, 0, now, alone=False)


def _wanted(spec: RestoreSpec) -> Restore:
    return Restore(
        target=spec.target,
        snapshot=spec.snapshot,
        before=spec.before,
        source_host=spec.source_host,
        paths=list(spec.paths),
        overwrite=spec.overwrite,
        setuid_and_devices=spec.setuid_and_devices,
    )


def _is_same(job: Row, spec: RestoreSpec) -> bool:
    wanted = msgspec.json.decode(job["command"], type=CommandRun).restore
    return (job["host"], wanted) == (spec.host or spec.source_host, _wanted(spec))


# What hosts list: lines of JSON (agent/snapshots.py), the last of which may say that more is left out.


class _Line(Struct):
    """The fields of a snapshot's line, or of a file's."""

    id: str = ""
    time: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    hostname: str = ""
    paths: list[str] = []
    tags: list[str] | None = None
    path: str = ""
    type: str = ""
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: str = ""


_line = msgspec.json.Decoder(_Line)


def _read(lines: Iterable[str]) -> Iterator[_Line | None]:
    """Each line; None for one that is cut, or says that others are left out. One with + goes on with the one before."""
    whole: list[list[str]] = []
    for line in lines:
        if line.startswith("+") and whole:
            whole[-1].append(line[1:])
        else:
            whole.append([line])
    for line in map("".join, whole):
        try:
            yield _line.decode(line)
        except msgspec.DecodeError:
            yield None


def _snapshots(question: Question, lines: Sequence[str]) -> Listing:
    """Snapshots, newest first."""
    read = list(_read(lines))
    found = [Snapshot(it.id, it.time, it.hostname, it.paths, it.tags or []) for it in read if it and it.time]
    found.sort(key=lambda it: (it.time, it.id), reverse=True)
    return Listing(question, found, None in read)


def _files(question: Question, lines: Sequence[str]) -> Listing:
    """What a folder holds, by name; a file is there for itself. Raises NotFound for neither."""
    read = list(_read(lines))
    nodes = [it for it in read if it and it.path]
    if not nodes and question.path != "/":
        raise NotFound(f"snapshot {question.snapshot} holds no {question.path}")
    nodes = [it for it in nodes if (it.path, it.type) != (question.path, "dir")]
    found = [File(it.path, it.type, it.size, f"{_mode(it.mode):04o}", it.uid, it.gid, it.mtime) for it in nodes]
    found.sort(key=lambda it: it.path)
    return Listing(question, found, None in read)


def _mode(mode: int) -> int:
    """The permissions in a mode as Go has it (io/fs, FileMode), as chmod(2) takes them."""
    special = ((1 << 23, stat.S_ISUID), (1 << 22, stat.S_ISGID), (1 << 20, stat.S_ISVTX))
    return mode & 0o777 | sum(bit for flag, bit in special if mode & flag)


def _invalid(field: str, detail: str) -> Invalid:
    return Invalid("the request is not allowed", [{"field": field, "detail": detail}])
