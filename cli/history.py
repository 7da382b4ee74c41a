"""Carries out `events`: what happened, from the audit log and the jobs, the newest last."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from cli.client import Client, ForbiddenError, Item
from cli.lists import ScheduleNames, full_name_of, one
from cli.options import Access
from cli.rows import STYLES, moment, outcome, schedule_of, short_ids
from cli.terminal import note, print_table, say_json, say_yaml
from cli.types import ALERT, HOST, JOB, REPOSITORY, Target, Type, narrowed
from cli.watching import watch

NORMAL, WARNING = "Normal", "Warning"
TYPES = (NORMAL, WARNING)
"""The types of events, as Kubernetes' own have them."""
EXAMINED = 2000
"""Maximum lines of the audit log, and maximum jobs, that are searched for those of a namespace or a Repository."""
_WELL = ("pending", "running", "succeeded")
_COLUMNS = ("TIME", "TYPE", "REASON", "OBJECT", "MESSAGE")


class Event(NamedTuple):
    """What happened to an object (TYPE/NAME), at a time of REST. `reason`: in one word."""

    at: str
    type: str
    reason: str
    object: str
    message: str


def job_events(job: Item, short: str, schedule: str) -> Iterator[Event]:
    """What happened to a job until now: it was recorded and waits, or began, and ended. `schedule`: what caused it."""
    named, what = f"job/{short}", f"{job['kind']} of {schedule} on {job['host']}"
    began = job["started_at"] or job["accepted_at"]
    if began is not None:
        yield Event(began, NORMAL, "Started", named, what)
    elif job["finished_at"] is None:
        yield Event(job["created_at"], NORMAL, "Waiting", named, f"{what}: {outcome(job)}".removesuffix(": "))
    if job["finished_at"] is not None:
        reason = "".join(word.capitalize() for word in job["status"].split("_"))
        end = outcome(job)
        type_ = NORMAL if job["status"] in _WELL else WARNING
        yield Event(job["finished_at"], type_, reason, named, f"{what}: {end}" if end else what)


def audit_event(line: Item) -> Event:
    """What an audit line says was done."""
    action = str(line["action"])
    reason = {"run": "Run"}.get(action, f"{action}d" if action.endswith("e") else f"{action}ed").capitalize()
    named = f"{line['object_kind'].lower()}/{line['object_name']}"
    return Event(line["at"], NORMAL, reason, named, f"by {line['actor_kind']} {line['actor_id']}")


def events(
    access: Access, about: Target | None, types: Collection[str], limit: int, output: str, *, is_watched: bool
) -> None:
    """Show the newest `limit` events of these types, of all objects or about one; if watched, also what comes then."""
    client = Client(access)
    reader = _Reader(client, about, access.namespace, limit)
    is_first = True

    def look() -> None:
        nonlocal is_first
        found = [it for it in reader.new() if it.type in types][-limit:]
        _say(found, output, is_first=is_first, is_watched=is_watched)
        is_first = is_first and not found

    if is_watched:
        watch(client, frozenset(), access.namespace, look)
    else:
        look()
        if is_first and output == "table":
            note("no events")


def _say(found: Sequence[Event], output: str, *, is_first: bool, is_watched: bool) -> None:
    shown = [it._asdict() for it in found]
    if output in ("json", "yaml"):
        say_it = say_json if output == "json" else say_yaml
        for it in shown if is_watched else [{"items": shown}]:
            say_it(it)
    elif found:
        rows = [[moment(it.at), *it[1:4], " ".join(it.message.split())] for it in found]
        print_table(_COLUMNS, rows, STYLES, only=range(-1 if is_first else 0, len(rows)))


class _Reader:
    """Reads the newest events, at least `limit` where there are as many."""

    def __init__(self, client: Client, about: Target | None, namespace: str, limit: int) -> None:
        self._schedules = ScheduleNames(client, namespace)
        self._jobs, self._lines = _sources(client, about, namespace, limit)
        self._before: frozenset[Event] = frozenset()
        self._is_refused = False

    def new(self) -> list[Event]:
        """The events that were not there the last time, in order."""
        jobs = list(self._jobs())
        short, names = short_ids(jobs), self._schedules.of(jobs)
        found = [it for job in jobs for it in job_events(job, short[job["id"]], schedule_of(job, names))]
        found += [audit_event(line) for line in self._allowed()]
        before, self._before = self._before, frozenset(found)
        return sorted((it for it in found if it not in before), key=lambda it: datetime.fromisoformat(it.at))

    def _allowed(self) -> list[Item]:
        """The lines of the audit log; none, with a note, where the caller may not read it."""
        try:
            return [] if self._is_refused else list(self._lines())
        except ForbiddenError as error:
            self._is_refused = True
            note(f"without what people changed: {error.format_message()}")
            return []


Source = Callable[[], Iterable[Item]]


def _sources(client: Client, about: Target | None, namespace: str, limit: int) -> tuple[Source, Source]:
    """What reads the jobs, and what reads the lines of the audit log, that events are made of."""
    if about is None:
        lines = (
            (lambda: _in_namespace(client, namespace, limit)) if namespace else lambda: client.items("/audit", limit)
        )
        return lambda: client.items("/jobs", limit, **narrowed(namespace)), lines
    type_, [name] = about.type, about.names
    item = one(client, type_, name, namespace)
    named = full_name_of(item)
    query = {"object_kind": type_.kind, "object_name": named}

    def lines_about() -> Iterable[Item]:
        return client.items("/audit", limit, **query)

    return _jobs_about(client, type_, item, named, limit), lines_about


def _jobs_about(client: Client, type_: Type, item: Item, named: str, limit: int) -> Source:
    if type_ is JOB:
        return lambda: [client.request("GET", JOB.path(item["id"]))]
    if type_ is ALERT:
        return list
    if type_ is REPOSITORY:
        return lambda: jobs_of_repository(client, item, limit)
    filters: Mapping[str, str] = {"host": named} if type_ is HOST else {"schedule": named}
    return lambda: client.items("/jobs", limit, **filters)


def jobs_of_repository(client: Client, repository: Item, limit: int) -> Iterator[Item]:
    """The newest jobs that use a Repository, of the newest EXAMINED jobs of its namespace."""
    metadata = repository["metadata"]
    jobs = client.items("/jobs", EXAMINED, namespace=metadata["namespace"])
    its = (job for job in jobs if str(job["command"].get("repository", "")).partition("/")[0] == metadata["uid"])
    return islice(its, limit)


def _in_namespace(client: Client, namespace: str, limit: int) -> Iterator[Item]:
    """The newest lines of the audit log about objects in a namespace, of the newest EXAMINED lines."""
    lines = client.items("/audit", EXAMINED)
    return islice((it for it in lines if it["object_name"].startswith(f"{namespace}/")), limit)
