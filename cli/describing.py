"""Carries out `describe`: everything that is known of one object, in sections as `kubectl describe` has them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import click

from cli import table
from cli.client import Client, ForbiddenError, Item, NotFoundError
from cli.history import jobs_of_repository
from cli.lists import ScheduleNames, full_name_of, one
from cli.options import Access
from cli.rows import HELD_BY_HOST, TABLES, ago, crons_of, held_by_host, labels, moment, short_ids, size
from cli.terminal import note, say, yaml_of
from cli.types import ALERT, HOST, JOB, REPOSITORY, SCHEDULE, Target, Type, narrowed

RECENT = 10
"""Jobs, lines of the audit log and lines of a job's log that are shown."""
INDENT = "  "

Facts = Sequence[tuple[str, object]]
Section = tuple[str, Sequence[str]]
"""A title, and the lines below it."""


class _Source(NamedTuple):
    """Where facts come from. `narrowed`: the query for those who may read one namespace alone."""

    client: Client
    names: ScheduleNames
    narrowed: Mapping[str, str]


def describe(access: Access, targets: Sequence[Target]) -> None:
    """Show everything that is known of objects; of all of a type, where no names are given.

    Raises click.exceptions.Exit, with code 1, where one is not there.
    """
    client = Client(access)
    source = _Source(client, ScheduleNames(client, access.namespace), narrowed(access.namespace))
    shown = False
    is_missing = False
    for target in targets:
        for found in _found(client, target, access.namespace):
            if isinstance(found, NotFoundError):
                note(f"Error: {found.format_message()}")
                is_missing = True
                continue
            if shown:
                say("")
            shown = True
            for line in _description(source, target.type, found):
                say(line)
    if is_missing:
        raise click.exceptions.Exit(1)
    if not shown:
        note(f"no {targets[0].type.plural}")


def _found(client: Client, target: Target, namespace: str) -> Iterator[Item | NotFoundError]:
    if not target.names:
        query = narrowed(namespace) if target.type is not HOST else {}
        yield from client.items(f"/{target.type.plural}", RECENT if target.type is JOB else None, **query)
    for name in target.names:
        try:
            yield one(client, target.type, name, namespace)
        except NotFoundError as error:
            yield error


def _description(source: _Source, type_: Type, item: Item) -> Iterator[str]:
    facts, sections = _DESCRIBED[type_](source, item)
    yield from fact_lines(facts)
    for title, lines in sections:
        yield f"{title}:"
        yield from (f"{INDENT}{line}" for line in lines or ["<none>"])


def fact_lines(facts: Facts) -> list[str]:
    """Facts with their values below each other. A fact without a value is "<none>", one that is None is left out."""
    known = [(name, "<none>" if value in ("", ()) else value) for name, value in facts if value is not None]
    width = max(len(name) for name, _ in known) + 1
    return [f"{name + ':':{width}}  {value}" for name, value in known]


def drained(drain: Item | None) -> str | None:
    """Whether a host is drained, why, and what runs there still; None where it is not."""
    if drain is None:
        return None
    whys = {"Declared": "its Host says so", "Asked": f"{drain['by']} asked for it", "AgentStops": "its agent stops"}
    left = "nothing runs" if drain["done"] else f"jobs that still run: {drain['jobs']}"
    return f"{left}; {whys.get(drain['reason'], drain['reason'])}"


def _host(source: _Source, host: Item) -> tuple[Facts, Iterable[Section]]:
    skew = host["clock_skew_seconds"]
    facts = [
        ("Name", host["name"]),
        ("Labels", labels(host["labels"])),
        ("Created", _time(host["created_at"])),
        ("Connected", "yes" if host["connected"] else "no"),
        ("Last seen", _time(host["last_seen"]) if host["last_seen"] else "never"),
        ("Agent", host["agent_version"] or "unknown"),
        ("restic", host["restic_version"] or "unknown"),
        ("Clock", None if skew is None else f"{abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"),
        ("Versions", f"desired {host['desired_version']}, applied {host['applied_version']}"),
        ("In sync", "yes" if host["in_sync"] else "no"),
        ("Schedules", host["schedules"]),
        ("Jobs at once", host.get("max_concurrent_jobs")),
        ("Drained", drained(host.get("drain"))),
    ]
    left_out = [(it["schedule"], it["reason"]) for it in host["left_out"]]
    return facts, [
        *([("Left out", _table(("SCHEDULE", "REASON"), left_out))] if left_out else []),
        ("Entries", _table(_ENTRIES, [_entry(it) for it in source.client.items(f"{HOST.path(host['name'])}/entries")])),
        _problems(host["problems"]),
        _jobs(source, source.client.items("/jobs", RECENT, host=host["name"], **source.narrowed)),
        *_changes(source, HOST, host["name"]),
    ]


def _schedule(source: _Source, schedule: Item) -> tuple[Facts, Iterable[Section]]:
    status, name = schedule["status"], full_name_of(schedule)
    counts = {"hostsInSync": "in sync", "hostsFailed": "failed", "hostsOverdue": "overdue"}
    counts |= {"hostsWithoutSuccess": "without a success", "hostsNotGranted": "not granted"}
    hosts = [f"{status['hosts']} selected", *(f"{status[key]} {word}" for key, word in counts.items() if status[key])]
    next_ = status.get("nextScheduleTime")
    facts = [
        *_metadata(schedule),
        ("Hosts", ", ".join(hosts)),
        *((word.capitalize(), ", ".join(status[key])) for key, word in _NAMED.items() if status[key]),
        ("Last due", _time(status["lastScheduleTime"]) if "lastScheduleTime" in status else "never"),
        ("Oldest success", _time(status["oldestSuccessTime"]) if "oldestSuccessTime" in status else "never"),
        ("Next due", _time(next_) if next_ else "never: it is disabled, or its time does not come"),
    ]
    return facts, [
        ("Spec", yaml_of(schedule["spec"]).splitlines()),
        ("Due within 24 hours", _due(source.client.request("GET", f"{SCHEDULE.path(name)}/due"))),
        _problems(status["problems"]),
        _jobs(source, source.client.items("/jobs", RECENT, schedule=name)),
        *_changes(source, SCHEDULE, name),
    ]


_NAMED = {"outOfSync": "out of sync", "failed": "failed", "overdue": "overdue"}
"""The fields of a Schedule's status that name hosts."""


def _repository(source: _Source, repository: Item) -> tuple[Facts, Iterable[Section]]:
    status, name = repository["status"], full_name_of(repository)
    using = source.client.items(f"{REPOSITORY.path(name)}/schedules")
    rows = [(full_name_of(it), it["spec"]["kind"], crons_of(it["spec"]), str(it["status"]["hosts"])) for it in using]
    lane = source.client.request("GET", f"{REPOSITORY.path(name)}/lane")
    facts = [
        *_metadata(repository),
        *_contents(status.get("snapshots", {})),
        ("Verified", _time(status["lastVerified"]) if "lastVerified" in status else "never"),
        ("Jobs now", f"{len(lane['running'])} use it, {lane['waits']} wait for it"),
    ]
    return facts, [
        ("Spec", yaml_of(repository["spec"]).splitlines()),
        _problems(status["problems"]),
        _held_by_host(status.get("snapshots", {})),
        ("Used by", _table(("SCHEDULE", "KIND", "CRON", "HOSTS"), rows)),
        _jobs(source, jobs_of_repository(source.client, repository, RECENT)),
        *_changes(source, REPOSITORY, name),
    ]


def _contents(held: Item) -> Facts:
    """What a repository holds, as far as that is known."""
    counted = _time(held["asOf"]) if "asOf" in held else "not on all hosts: there may be more than jobs have told of"
    return [
        ("Snapshots", held.get("count", "none that a job has told of")),
        ("Newest", _time(held["newest"]) if "newest" in held else None),
        ("Counted", counted if held else None),
        ("Size", size(held["sizeBytes"]) if "sizeBytes" in held else "known after the next prune"),
    ]


def _held_by_host(held: Item) -> Section:
    """The hosts whose newest snapshots are the oldest."""
    hosts = held.get("hosts", [])
    rows = [held_by_host(it) for it in hosts[:RECENT]]
    left = len(hosts) + held.get("hostsOmitted", 0) - len(rows)
    more = [f"and {left} more hosts"] if left else []
    return "Snapshots by host", [*_table(HELD_BY_HOST, rows), *more]


def _job(source: _Source, job: Item) -> tuple[Facts, Iterable[Section]]:
    if "attempts" not in job:
        job = source.client.request("GET", JOB.path(job["id"]))
    schedule = source.names.of([job]).get(job["scheduled_id"] or "", job["scheduled_id"])
    if job["actor_kind"] == "schedule":
        schedule = job["actor_id"]
    progress = job["progress"] or {}
    facts = [
        ("Job", job["id"]),
        ("Host", job["host"]),
        ("Kind", job["kind"]),
        ("Schedule", schedule),
        ("Caused by", f"{job['actor_kind']} {job['actor_id']}"),
        ("Status", job["status"]),
        ("Waits for", job["waits_for"]),
        ("Problem", job["problem"]),
        ("Due", job["scheduled_at"] and _time(job["scheduled_at"])),
        ("Missed before", job["missed"] or None),
        ("Recorded", _time(job["created_at"])),
        ("Started", (began := job["started_at"] or job["accepted_at"]) and _time(began)),
        ("Finished", job["finished_at"] and _time(job["finished_at"])),
        ("Progress", f"{progress['fraction']:.0%}" if "fraction" in progress else None),
        ("Exit code", job["exit_code"]),
        ("Snapshot", job["snapshot_id"]),
        ("Files", job["files_processed"]),
        ("Processed", None if job["bytes_processed"] is None else size(job["bytes_processed"])),
        ("Added", None if job["bytes_added"] is None else size(job["bytes_added"])),
        ("Reason", job["reason"] or None),
        ("Error", job["error"] and " ".join(job["error"].split())),
    ]
    attempts = [
        (str(it["attempt"]), it["status"], moment(it["started_at"]), moment(it["finished_at"]), _error(it))
        for it in job["attempts"]
    ]
    log = [
        str(line["line"]) for line in source.client.request("GET", f"{JOB.path(job['id'])}/log", last=RECENT)["items"]
    ]
    return facts, [
        ("Command", [" ".join(["restic", *job["command"].get("args", ())])]),
        ("Attempts", _table(("ATTEMPT", "STATUS", "STARTED", "FINISHED", "ERROR"), attempts)),
        (f"Log (the last {RECENT} lines)", log),
        *_changes(source, JOB, job["id"]),
    ]


def _alert(source: _Source, alert: Item) -> tuple[Facts, Iterable[Section]]:
    status = alert["status"]
    facts = [
        *_metadata(alert),
        ("Firing", f"{status['firing']} situations"),
        ("Messages", f"{status['waiting']} wait, {status['dropped']} were given up"),
        ("Last message", _time(status["lastDeliveryTime"]) if "lastDeliveryTime" in status else "never"),
    ]
    return facts, [
        ("Spec", yaml_of(alert["spec"]).splitlines()),
        _problems(status["problems"]),
        *_changes(source, ALERT, full_name_of(alert)),
    ]


_ENTRIES = ("SCHEDULE", "KIND", "STATE", "NEXT", "LAST-RUN", "WHY")


def _entry(entry: Item) -> Sequence[str]:
    """A Schedule as its host should hold it and holds it."""
    last, next_ = entry["lastRun"], entry["nextDue"]
    ended = f"{last['status']} {ago(last['finishedAt'])}" if last else "never"
    why = entry["reason"] or (last["why"] if last else "")
    return entry["schedule"], entry["kind"], entry["state"], ago(next_) if next_ else "-", ended, " ".join(why.split())


def _due(due: Item) -> Sequence[str]:
    """The next due times of a Schedule, and the herd that they make."""
    times, most = [_time(it) for it in due["times"][:RECENT]], due["most"]
    left = len(due["times"]) - len(times)
    herd = [f"at most {most['hosts']} hosts in one minute, {moment(most['at'])}"] if most and due["hosts"] > 1 else []
    return [*times, *([f"and {left} more"] if left else []), *herd]


_DESCRIBED: Mapping[Type, Callable[[_Source, Item], tuple[Facts, Iterable[Section]]]] = {
    HOST: _host,
    SCHEDULE: _schedule,
    REPOSITORY: _repository,
    ALERT: _alert,
    JOB: _job,
}


def _metadata(item: Item) -> Facts:
    metadata = item["metadata"]
    return [
        ("Name", metadata["name"]),
        ("Namespace", metadata["namespace"]),
        ("Labels", labels(metadata["labels"])),
        ("Created", _time(metadata["creationTimestamp"])),
        ("Generation", metadata["generation"]),
    ]


def _problems(problems: Sequence[Mapping[str, str]]) -> Section:
    rows = [(it["reason"], " ".join(it["message"].split())) for it in problems]
    return "Problems", _table(("REASON", "MESSAGE"), rows)


def _jobs(source: _Source, jobs: Iterable[Item]) -> Section:
    found = list(jobs)
    shown = TABLES["jobs"]
    names = {**source.names.of(found), **short_ids(found)}
    return "Recent jobs", _table(shown.columns, [shown.row(job, names) for job in found])


def _changes(source: _Source, type_: Type, name: str) -> Iterator[Section]:
    """The newest lines of the audit log about an object; nothing where the caller may not read it."""
    try:
        lines = list(islice(source.client.items("/audit", RECENT, object_kind=type_.kind, object_name=name), RECENT))
    except ForbiddenError:
        return
    rows = [(moment(it["at"]), f"{it['actor_kind']}/{it['actor_id']}", it["action"], _detail(it)) for it in lines]
    yield "Changes", _table(("TIME", "ACTOR", "ACTION", "DETAIL"), rows)


def _detail(line: Item) -> str:
    """What an audit line says beside its object; of a spec and other nested values the name alone."""
    return " ".join(key if isinstance(it, dict) else f"{key}={_words(it)}" for key, it in line["detail"].items())


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _error(attempt: Item) -> str:
    return " ".join((attempt["error"] or "").split()) or "-"


def _time(time: str) -> str:
    return f"{moment(time)} ({ago(time)})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Sequence[str]:
    return table.lines(columns, rows) if rows else ()
