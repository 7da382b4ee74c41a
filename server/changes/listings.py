"""Lists of snapshots and files. A host is asked for them by a job, and the job's log is the answer.

In a repository's URL, {host} stands for the host that was backed up, whichever host lists. Lists are kept in the store
for as long as their pages are read, on whichever server, and are not stored in the job's log.
"""

import asyncio
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Struct

from server.agents.hub import Hub
from server.changes.change import audit
from server.changes.runs import Runs
from server.errors import BadGateway, Conflict, Forbidden, Invalid, NoAnswer, NotFound, Unavailable
from server.fleet.catalog import Catalog, full_name
from server.fleet.placement import Placement
from server.jobs import arguments
from server.jobs.fires import NewJob
from server.jobs.reports import Reports
from server.resources.grants import Grant
from server.resources.manifests import repository_spec
from server.resources.restic import repository_options
from server.resources.selectors import is_dns_name
from server.resources.specs import RepositorySpec
from server.resources.urls import folder_of
from server.store.engine import Store
from server.store.futures import stored
from server.store.listings import KeptRow, drop_listings, keep_listings, kept_listing
from server.store.rows import AuditRow, RepositoryRow
from server.store.tables import Actor
from wire.messages import CommandRun, HostSnapshots, JobCounted, JobFinished

ANSWER_S = 30.0
"""Seconds that a host has to list what is in a repository."""
MAX_AT_ONCE = 16
"""Maximum concurrent requests to hosts: each runs restic."""
MAX_PATH = 4096
"""Maximum characters of a path to list."""
MAX_NAME = 255
"""Maximum characters of a name to find."""
_SNAPSHOT = re.compile("latest|[0-9a-f]{4,64}")


class Snapshot(Struct, frozen=True):
    """A snapshot in a list."""

    id: str
    time: datetime
    host: str
    paths: list[str]
    tags: list[str]


class File(Struct, frozen=True):
    """A file, folder or other node in a snapshot. `mode`: permissions as chmod(1) writes them, `0644`."""

    path: str
    type: str
    size: int
    mode: str
    uid: int
    gid: int
    mtime: str


class Question(NamedTuple):
    """What to list. `host`: whose snapshots, "" for every host's; `snapshot`: "" to list snapshots, not files.

    `path`: the folder or file. In place of it, `find`: the name of files to find, see `arguments.name_pattern`; or
    `below`: paths to list with all below them, all of the snapshot if there are none.
    """

    namespace: str
    name: str
    host: str = ""
    snapshot: str = ""
    path: str = "/"
    find: str = ""
    below: tuple[str, ...] | None = None

    @property
    def command(self) -> tuple[str, list[str]]:
        """The kind of the job that answers, and restic's arguments."""
        if not self.snapshot:
            return "snapshots", arguments.snapshots_args(self.host)
        if self.find:
            return "find", arguments.find_args(self.host, self.snapshot, arguments.name_pattern(self.find))
        if self.below is not None:
            return "ls", arguments.ls_below_args(self.snapshot, self.below)
        return "ls", arguments.ls_args(self.host, self.snapshot, self.path)


class Listing(NamedTuple):
    """What a host listed. `of`: the question; `truncated`: whether the list was cut."""

    of: Question
    items: Sequence[Snapshot | File]
    truncated: bool


class _Kept(Struct):
    """A listing as it is stored."""

    of: Question
    truncated: bool
    snapshots: list[Snapshot] = []
    files: list[File] = []


_kept = msgspec.json.Decoder(_Kept)


class Page(Struct, frozen=True):
    """A page of a listing. `after`: the listing's id and the index of the next page; None for the last page."""

    items: Sequence[Snapshot | File]
    truncated: bool
    after: tuple[str, int] | None


class Listings:
    """Asks hosts for lists, and pages through the answers."""

    def __init__(
        self,
        runs: Runs,
        reports: Reports,
        store: Store,
        catalog: Catalog,
        placement: Placement,
        hub: Hub,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._runs = runs
        self._reports = reports
        self._store = store
        self._catalog = catalog
        self._placement = placement
        self._hub = hub
        self._clock = clock
        self._new_id = new_id
        self._asking = 0

    async def page(self, actor: Actor, question: Question, limit: int, after: tuple[str, int] | None) -> Page:
        """A page of a host's answer. Pages after it are of the same answer, as long as that is kept.

        `after`: that of the page before, None for the first page. Raises Invalid, Forbidden, NotFound; Conflict when
        the answer is no longer kept; NoAnswer when no host can be asked or none answers within ANSWER_S; Unavailable
        when MAX_AT_ONCE are being asked; BadGateway when the repository cannot be read.
        """
        question = question._replace(path=posixpath.normpath("/" + question.path.lstrip("/")))
        if after is None:
            listing_id, begin = self._new_id(), 0
            listing = await self._ask(actor, question, listing_id)
            if question.find and not listing.items:  # restic says the same when there is no such snapshot
                await self._ask(actor, question._replace(find=""), self._new_id())
        else:
            listing_id, begin = after
            listing = await self._find(listing_id, question)
        items, rest = listing.items[begin : begin + limit], len(listing.items) - begin - limit
        if rest > 0 and after is None:
            await self._store.write(keep_listings, KeptRow(listing_id, self._clock(), _stored(listing)))
        elif rest <= 0 and after is not None:
            await self._store.write(drop_listings, listing_id)
        return Page(items, listing.truncated, (listing_id, begin + limit) if rest > 0 else None)

    async def whole(self, actor: Actor, question: Question) -> Listing:
        """All of a host's answer. Raises what `page` raises."""
        return await self._ask(actor, question, self._new_id())

    async def _find(self, listing_id: str, question: Question) -> Listing:
        """A listing that is kept. Raises Conflict."""
        body = await self._store.read(kept_listing, listing_id)
        kept = None if body is None else _kept.decode(body)
        if kept is None or kept.of != question:
            raise Conflict("this list is no longer kept: request its first page again")
        return Listing(question, kept.files if question.snapshot else kept.snapshots, kept.truncated)

    async def _ask(self, actor: Actor, question: Question, job_id: str) -> Listing:
        """Have a host answer a question."""
        row = self._catalog.repository(question.namespace, question.name)
        where = repository_spec(row.spec)
        if question.host and not is_dns_name(question.host):
            raise Invalid.field("host", "must be the name of a host")
        if question.snapshot and not _SNAPSHOT.fullmatch(question.snapshot):
            raise Invalid.field(
                "snapshot", "must be latest, or the first 4 to 64 hexadecimal digits of a snapshot's id"
            )
        if len(question.find) > MAX_NAME:
            raise Invalid.field("name", f"must be at most {MAX_NAME} characters long")
        if len(question.path) > MAX_PATH:
            raise Invalid.field("path", f"must be at most {MAX_PATH} characters long")
        if "{host}" in where.url and not question.host:
            raise Invalid.field(
                "host", f"is required, since the URL of {row.name} contains {{host}}: name the host that was backed up"
            )
        grant = self._catalog.grant(question.namespace)
        if wrong := self._catalog.in_force(row).errors:
            raise Forbidden(f"namespace {question.namespace} may not reach this", wrong)
        host = self._answering_host(grant, row, where, question.host)
        kind, args = question.command
        repository = arguments.repository_id(row.id, where, question.host, host)
        command = CommandRun(job_id, kind, args, repository, timeout_s=int(ANSWER_S), lock_wait_s=0)
        may = {"within": list(grant.within), "host_identity": grant.host_identity}
        command = msgspec.structs.replace(command, options=repository_options(where), **may)
        now = self._clock()
        what = {"path": question.path, "find": question.find or None, "below": question.below}
        told = {name: value for name, value in what.items() if value is not None}
        told |= {"host": host, "of": question.host, "snapshot": question.snapshot}
        line = audit(now, actor, kind, "Repository", full_name(row), **told)
        end, lines = await self._answer(NewJob(host, command, *actor, 0, now), line)
        if end.reason == "NoSnapshot":
            raise NotFound(end.error)
        if end.status not in ("succeeded", "warning"):
            raise BadGateway(f"{host} could not read {full_name(row)}: {end.error or end.status}")
        if question.snapshot:
            return _files(question, lines)
        listing = _snapshots(question, lines)
        await self._count(NewJob(host, command, *actor, 0, now), listing)
        return listing

    async def _count(self, job: NewJob, listing: Listing) -> None:
        """Take a list of snapshots for a count of them, but for a list that was cut."""
        if listing.truncated:
            return
        of = listing.of.host
        found: dict[str, tuple[int, int]] = {}
        for it in listing.items:
            if isinstance(it, Snapshot):
                count, newest = found.get(it.host, (0, 0))
                found[it.host] = (count + 1, max(newest, int(it.time.timestamp())))
        hosts = [HostSnapshots(name, *known) for name, known in found.items()]
        counted = JobCounted(job.command.job_id, job.created_at, hosts, of)
        with suppress(Unavailable):  # the list is there all the same
            await stored(self._reports.count(of or job.host, job.command, counted))

    async def _answer(self, job: NewJob, line: AuditRow) -> tuple[JobFinished, Sequence[str]]:
        """Run a job, and return its end and its log. Raises NoAnswer, Unavailable."""
        if self._asking >= MAX_AT_ONCE:
            raise Unavailable(f"{MAX_AT_ONCE} lists are being read from repositories: try again later")
        self._asking += 1
        try:
            return await self._heard(job, line)
        finally:
            self._asking -= 1

    async def _heard(self, job: NewJob, line: AuditRow) -> tuple[JobFinished, Sequence[str]]:
        job_id = job.command.job_id
        with self._reports.collect_output(job_id) as output:
            await self._runs.record([job], line)
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await output.end, output.lines
            except TimeoutError:
                with suppress(Conflict):  # it has just ended
                    await self._runs.cancel(Actor(job.actor_kind, job.actor_id), job_id)
        raise NoAnswer(f"{job.host} gave no answer within {ANSWER_S:.0f} s: try again, or run restic there")

    def _answering_host(self, grant: Grant, row: RepositoryRow, where: RepositorySpec, source: str) -> str:
        """The host to ask: the one whose snapshots they are, else one that uses the repository, else any other.

        For a repository in a folder, only a host that has the folder can answer. Raises NoAnswer.
        """
        placement = self._placement
        able = {
            name
            for name, state in placement.hosts.items()
            if self._hub.is_connected(name) and grant.selects(state.labels)
        }
        if source in able:
            return source
        schedules = (it for it in placement.schedules.values() if row.id in it.repository_ids)
        using = {name for schedule in schedules for name in placement.matched(schedule, able)}
        if folder_of(where.url) is not None:
            able = set() if "{host}" in where.url else using
        if not able:
            who = source or "a host that uses it"
            raise NoAnswer(f"no host can read {full_name(row)} now: start the agent of {who}")
        return min(using or able)


def _stored(listing: Listing) -> str:
    kept = _Kept(
        listing.of,
        listing.truncated,
        [it for it in listing.items if isinstance(it, Snapshot)],
        [it for it in listing.items if isinstance(it, File)],
    )
    return msgspec.json.encode(kept).decode()


# What hosts list: lines of JSON (agent/restic/snapshots.py). The last may say that further ones are left out.


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
    """Decode lines: None for one that was cut or says that others are left out. One with + continues the last."""
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
    """Files by path: those that were asked for, without the folder itself. Raises NotFound for a path that is none."""
    read = list(_read(lines))
    nodes = [it for it in read if it and it.path]
    if not nodes and question.path != "/":
        raise NotFound(f"snapshot {question.snapshot} holds no {question.path}")
    if question.find:
        pattern = arguments.name_pattern(question.find)
        nodes = [it for it in nodes if arguments.is_named(pattern, it.path)]
    elif question.below is None:
        nodes = [it for it in nodes if (it.path, it.type) != (question.path, "dir")]
    found = [File(it.path, it.type, it.size, f"{_mode(it.mode):04o}", it.uid, it.gid, it.mtime) for it in nodes]
    found.sort(key=lambda it: it.path)
    return Listing(question, found, None in read)


def _mode(mode: int) -> int:
    """The permissions of a Go mode (io/fs, FileMode) as chmod(2) takes them."""
    special = ((1 << 23, stat.S_ISUID), (1 << 22, stat.S_ISGID), (1 << 20, stat.S_ISVTX))
    return mode & 0o777 | sum(bit for flag, bit in special if mode & flag)
