"""What `get` shows of each item: the columns of each list, and an item as a row of cells."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cli.client import Item
from cli.logs import SHORT_ID, local_time

HELD_BY_HOST = ("HOST", "SNAPSHOTS", "NEWEST", "COUNTED")
"""The columns of the hosts that have snapshots in a repository."""


def _schedule(item: Item, _: Mapping[str, str]) -> list[str]:
    metadata, spec, status = item["metadata"], item["spec"], item["status"]
    next_ = status.get("nextScheduleTime")
    hosts = [str(status[count]) for count in ("hosts", "hostsInSync", "hostsFailed", "hostsOverdue")]
    oldest = _ago(status.get("oldestSuccessTime")) if not status["hostsWithoutSuccess"] else "never"
    due = [_ago(status.get("lastScheduleTime")), oldest, f"in {_span(-_since(next_))}" if next_ else "disabled"]
    return [metadata["namespace"], metadata["name"], spec["kind"], crons_of(spec), *hosts, *due, _problems(status)]


def _host(item: Item, _: Mapping[str, str]) -> list[str]:
    versions = [str(item["desired_version"]), str(item["applied_version"])]
    connected = _yes(item["connected"])
    if (drain := item.get("drain")) is not None:  # as kubectl shows a node that is cordoned
        connected += ",drained" if drain["done"] else ",draining"
    in_sync = [connected, *versions, _yes(item["in_sync"])]
    seen = _ago(item["last_seen"]) if item["last_seen"] else "never"
    in_sync.append(str(item["schedules"]))
    return [item["name"], *in_sync, item["agent_version"] or "-", seen, _problems(item)]


def _repository(item: Item, _: Mapping[str, str]) -> list[str]:
    metadata, status = item["metadata"], item["status"]
    held = status.get("snapshots", {})
    times = [_age(metadata["creationTimestamp"]), _ago(status.get("lastVerified"))]
    contents = [str(held.get("count", "-")), _ago(held.get("newest"))]
    return [metadata["namespace"], metadata["name"], item["spec"]["url"], *contents, *times, _problems(status)]


def _problems(item: Item) -> str:
    """An item's problems in one line; "-" when there are none."""
    return "; ".join(f"{it['reason']}: {' '.join(it['message'].split())}" for it in item["problems"]) or "-"


def _job(item: Item, names: Mapping[str, str]) -> list[str]:
    what = [names[item["id"]], item["host"], schedule_of(item, names), item["kind"], item["status"]]
    took = "-"
    if (began := _began(item)) is not None:
        end = datetime.fromisoformat(item["finished_at"]) if item["finished_at"] else datetime.now(UTC)
        took = _span((end - datetime.fromisoformat(began)).total_seconds())
    return [*what, moment(item["scheduled_at"]), moment(began), took, outcome(item) or "-"]


def _audit(item: Item, _: Mapping[str, str]) -> list[str]:
    actor = f"{item['actor_kind']}/{item['actor_id']}"
    return [moment(item["at"]), actor, item["action"], item["object_kind"], item["object_name"]]


def _controller(item: Item, _: Mapping[str, str]) -> list[str]:
    return [item["name"], _ago(item["last_seen"]), _problems(item)]


def _alert(item: Item, _: Mapping[str, str]) -> list[str]:
    metadata, status = item["metadata"], item["status"]
    counts = [item["spec"].get("severity", "-"), str(status["firing"]), str(status["waiting"])]
    times = [_ago(status.get("lastDeliveryTime")), _age(metadata["creationTimestamp"])]
    return [metadata["namespace"], metadata["name"], *counts, *times, _problems(status)]


def _problem(item: Item, _: Mapping[str, str]) -> list[str]:
    return [item["kind"], item["name"], item["reason"], " ".join(item["message"].split())]


def _wide_schedule(item: Item) -> list[str]:
    metadata, spec = item["metadata"], item["spec"]
    enabled = _yes(spec.get("enabled", True) and not spec.get("suspend", False))
    zone, repository = spec.get("timeZone", "UTC"), spec["repositoryRef"]["name"]
    if source := (spec.get("copy") or {}).get("fromRepositoryRef"):
        repository = f"{source['name']} → {repository}"
    return [enabled, zone, repository, _age(metadata["creationTimestamp"]), labels(metadata["labels"])]


def _wide_host(item: Item) -> list[str]:
    skew = item["clock_skew_seconds"]
    clock = "-" if skew is None else f"{skew:+.1f}s"
    return [clock, _age(item["created_at"]), labels(item["labels"])]


def _wide_job(item: Item) -> list[str]:
    added = size(item["bytes_added"]) if item["bytes_added"] is not None else "-"
    return [f"{item['actor_kind']}/{item['actor_id']}", str(item["attempt"]), added, item["id"]]


class Table(NamedTuple):
    """How a list is shown. `row`: an item's cells, given names by id. `optional`: columns that a narrow terminal leaves
    out, in this order. `wide`: more columns of a wide table, before the last one, and `more` their cells."""

    columns: Sequence[str]
    row: Callable[[Item, Mapping[str, str]], list[str]]
    optional: Sequence[str] = ()
    wide: Sequence[str] = ()
    more: Callable[[Item], list[str]] = lambda _: []

    def widened(self) -> "Table":
        """The wide table."""
        *columns, last = self.columns

        def row(item: Item, names: Mapping[str, str]) -> list[str]:
            *cells, end = self.row(item, names)
            return [*cells, *self.more(item), end]

        return Table((*columns, *self.wide, last), row)


TABLES: Mapping[str, Table] = {
    "schedules": Table(
        (
            *("NAMESPACE", "NAME", "KIND", "CRON", "HOSTS", "INSYNC", "FAILED", "OVERDUE"),
            *("LAST", "OLDEST-SUCCESS", "NEXT", "PROBLEM"),
        ),
        _schedule,
        ("KIND", "CRON", "INSYNC", "NEXT"),
        ("ENABLED", "ZONE", "REPOSITORY", "AGE", "LABELS"),
        _wide_schedule,
    ),
    "hosts": Table(
        ("NAME", "CONNECTED", "DESIRED", "APPLIED", "INSYNC", "SCHEDULES", "AGENT", "LAST-SEEN", "PROBLEM"),
        _host,
        ("AGENT", "APPLIED", "DESIRED"),
        ("CLOCK", "AGE", "LABELS"),
        _wide_host,
    ),
    "repositories": Table(
        ("NAMESPACE", "NAME", "URL", "SNAPSHOTS", "NEWEST", "AGE", "VERIFIED", "PROBLEM"),
        _repository,
        ("AGE",),
        ("LABELS",),
        lambda item: [labels(item["metadata"]["labels"])],
    ),
    "jobs": Table(
        ("JOB", "HOST", "SCHEDULE", "KIND", "STATUS", "DUE", "STARTED", "DURATION", "SNAPSHOT/ERROR"),
        _job,
        ("DUE", "KIND", "STARTED"),
        ("CAUSE", "ATTEMPT", "ADDED", "ID"),
        _wide_job,
    ),
    "audit": Table(("TIME", "ACTOR", "ACTION", "KIND", "OBJECT"), _audit, ("ACTION",)),
    "alerts": Table(
        ("NAMESPACE", "NAME", "SEVERITY", "FIRING", "WAITING", "LAST-MESSAGE", "AGE", "PROBLEM"),
        _alert,
        ("AGE", "WAITING"),
        ("LABELS",),
        lambda item: [labels(item["metadata"]["labels"])],
    ),
    "problems": Table(("KIND", "NAME", "REASON", "MESSAGE"), _problem),
    "controllers": Table(("NAME", "REPORTED", "PROBLEM"), _controller),
}
STYLES = {
    "succeeded": "green",
    "yes": "green",
    "running": "cyan",
    "pending": "cyan",
    "warning": "yellow",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "failed": "red",
    "timed_out": "red",
    "no": "red",
    "Warning": "yellow",
}


def crons_of(spec: Mapping[str, Any]) -> str:
    """When a Schedule is due, in one line: its expression, or those of `crons`."""
    return str(spec.get("cron") or "; ".join(spec["crons"]))


def schedule_of(job: Item, names: Mapping[str, str]) -> str:
    """The name of a job's Schedule, given names by uid; "-" where it has none."""
    uid = job["scheduled_id"] or "-"
    return str(job["actor_id"]) if job["actor_kind"] == "schedule" else names.get(uid, uid[:SHORT_ID])


def short_ids(jobs: Sequence[Item]) -> Mapping[str, str]:
    """The shortest first digits, SHORT_ID at least, that tell these jobs apart, by whole id."""
    ids = {str(job["id"]) for job in jobs}
    size = SHORT_ID
    while len({id_[:size] for id_ in ids}) < len(ids):
        size += 1
    return {id_: id_[:size] for id_ in ids}


def outcome(job: Item) -> str:
    """A job's snapshot or error. Of an unfinished job: what it waits for, or since when it runs and its problem."""
    if job["waits_for"]:
        return f"waits for {job['waits_for']}".replace("waits for retry", "retry")
    if job["status"] == "running":
        since = f"since {moment(_began(job))}"
        return f"{since}; {job['problem']}" if job["problem"] else since
    snapshot = (job["snapshot_id"] or "")[:SHORT_ID]
    error = " ".join((job["error"] or "").split())
    return f"{snapshot} ({error})" if snapshot and error else snapshot or error


def _began(job: Item) -> str | None:
    """When a job began: by its host's report at the end, until then when the host accepted it."""
    began: str | None = job["started_at"] or job["accepted_at"]
    return began


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def labels(its: Mapping[str, str]) -> str:
    """Labels as kubectl shows them; "<none>" where there are none."""
    return ",".join(f"{key}={value}" for key, value in sorted(its.items())) or "<none>"


def size(count: int | None) -> str:
    """Bytes in their largest unit, as restic writes them."""
    left, unit = float(count or 0), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if left < 1024:
            break
        left, unit = left / 1024, larger
    return f"{left:.0f} B" if unit == "B" else f"{left:.3g} {unit}"


def moment(time: str | None) -> str:
    """A time of REST (RFC 3339) for people, in the local zone; "-" for None."""
    return local_time(datetime.fromisoformat(time)) if time else "-"


def held_by_host(item: Item) -> list[str]:
    """The row of a host that has snapshots in a repository, in the columns of HELD_BY_HOST."""
    return [item["host"], str(item["count"]), *(ago(item[at]) if at in item else "-" for at in ("newest", "asOf"))]


def _ago(time: str | None) -> str:
    return f"{_age(time)} ago" if time else "-"


def ago(time: str) -> str:
    """How long a time of REST is ago, or from now."""
    left = -_since(time)
    return f"in {_span(left)}" if left > 0 else f"{_span(-left)} ago"


def _age(time: str) -> str:
    return _span(_since(time))


def _since(time: str) -> float:
    """Seconds from a time of REST until now."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


def _span(seconds: float) -> str:
    """A duration in its largest unit or two, as kubectl writes ages: 45s, 3m20s, 5h, 12d."""
    left = max(0, round(seconds))
    for size, unit, below, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if left >= size:
            whole, rest = divmod(left, size)
            few = f"{rest // below}{part}" if whole < 10 and rest >= below else ""
            return f"{whole}{unit}{few}"
    return f"{left}s"
