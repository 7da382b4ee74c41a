"""Asks a server, and shows what it answers: tables for people, JSON for programs."""

import re
import ssl
import string
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click
import httpx

from cli.logs import SHORT_ID, local_time
from cli.options import Access, read_token
from cli.reach import unreachable
from cli.terminal import note, print_table, say, say_json

TIMEOUT_S = 45.0
"""Seconds that the server has for one answer; it gives a host 30 to look into a repository."""
PAGE = 500
"""Items that are asked for at once."""
_UID = re.compile(r"[0-9a-f]{32}")
"""By which a Schedule that was deleted is named."""
_PART = frozenset(string.ascii_lowercase + string.digits + "-.")
"""The characters of names (RFC 1123)."""
MAX_CANDIDATES = 5
"""Jobs that are named where what was typed could mean several."""

Item = Mapping[str, Any]
"""What REST lists: a resource, or a record."""


class Server:
    """A server's REST API. Every method raises click.ClickException, which says what to do, when it says no."""

    def __init__(self, access: Access) -> None:
        self._access = access
        token = read_token(access.token_file or access.data_dir / "admin-token")
        try:
            base = httpx.URL(f"{access.server.rstrip('/')}/api/v1")
        except httpx.InvalidURL as error:
            raise click.ClickException(f"--server {access.server}: this is no URL of a server ({error})") from None
        local = base.host in ("127.0.0.1", "::1", "localhost")  # no proxy stands between this machine and itself
        headers = {"Authorization": f"Bearer {token}"}
        try:
            trusted = ssl.create_default_context(cafile=access.ca_file)
        except OSError as error:
            raise click.ClickException(f"--ca-file {access.ca_file} holds no certificate in PEM ({error})") from None
        self._http = httpx.Client(
            base_url=base, headers=headers, timeout=TIMEOUT_S, trust_env=not local, verify=trusted
        )

    def ask(self, method: str, path: str, /, *, body: object = None, **query: object) -> Any:
        """What the server answers to one request."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        try:
            answer = self._http.request(method, path, params=given, json=body)
        except (httpx.RequestError, httpx.UnsupportedProtocol) as error:
            why = unreachable(self._access.server, error, self._access.ca_file)
            raise click.ClickException(why) from None
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not answer.is_success or content is None:
            raise click.ClickException(self._no(answer.status_code, content))
        return content

    def refuses_writes(self) -> str:
        """Why the server cannot write what happens now, as its probe says; empty where it can."""
        try:
            answer = self._http.get(self._http.base_url.copy_with(path="/readyz"))
            return "" if answer.is_success else str(answer.json()["detail"])
        except (httpx.RequestError, ValueError, LookupError, TypeError) as error:
            return f"/readyz gives no answer ({error})"

    def items(self, path: str, limit: int | None = None, **query: object) -> Iterator[Item]:
        """What a list holds, page by page, up to `limit` items."""
        cursor = None
        while True:
            page = self.ask("GET", path, cursor=cursor, limit=min(limit or PAGE, PAGE), **query)
            yield from page["items"][:limit]
            limit = limit and limit - len(page["items"])
            cursor = page["next"]
            if cursor is None or limit == 0:
                return

    @property
    def url(self) -> str:
        """Where the server is, as it was given."""
        return self._access.server

    def job(self, digits: str) -> Item:
        """The one job whose id begins with these digits."""
        if not digits.strip():
            raise click.ClickException("the job is not named: give the first digits of its id")
        found = list(self.items("/jobs", limit=MAX_CANDIDATES + 1, id=digits.lower()))
        if not found:
            raise click.ClickException(f"no job begins with {digits}: `lamplighter get jobs` lists them")
        if len(found) > 1:
            raise click.ClickException(f"several jobs begin with {digits}: give more digits, as of {_told(found)}")
        return found[0]

    def _no(self, status: int, content: Any) -> str:
        """Why the server said no, in a line, with the remedy."""
        if status == httpx.codes.UNAUTHORIZED:
            asked = self._access.token_file or self._access.data_dir / "admin-token"
            return f"the server does not know the token in {asked}: give --token-file, or the --data-dir of that server"
        if not isinstance(content, dict) or "detail" not in content:
            return f"what answers at {self._access.server} is no Lamplighter server: say where it is with --server"
        errors = [f"{error['field']}: {error['detail']}" for error in content.get("errors", ())]
        return "; ".join(errors) or str(content["detail"])


def problems(access: Access, output: str) -> None:
    """Show everything that is wrong. Raises click.exceptions.Exit, with code 1, where there is anything."""
    found: list[tuple[str, str, str, str]] = []
    server = Server(access)
    try:
        found.extend(_found_wrong(server))
    except click.ClickException as error:  # what was found until then is told all the same
        if not found:
            raise
        found.append(("Server", server.url, "NoAnswer", error.format_message()))
    if output == "json":
        say_json({"items": [dict(zip(("kind", "name", "reason", "message"), it, strict=True)) for it in found]})
    elif found:
        print_table(("KIND", "NAME", "REASON", "MESSAGE"), [[*it[:3], " ".join(it[3].split())] for it in found], {})
    else:
        note("no problems")
    if found:
        raise click.exceptions.Exit(1)


def _found_wrong(server: Server) -> Iterator[tuple[str, str, str, str]]:
    """What is wrong with what: (kind, name, reason, message)."""
    if why := server.refuses_writes():
        yield "Server", server.url, "NotWriting", f"nothing that happens is recorded: {why}"
    for plural, kind in (("schedules", "Schedule"), ("repositories", "Repository")):
        for item in server.items(f"/{plural}"):
            name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            yield from ((kind, name, it["reason"], it["message"]) for it in item["status"]["problems"])
    for controller in server.items("/controllers"):
        yield from (("Controller", controller["name"], it["reason"], it["message"]) for it in controller["problems"])
    for host in server.items("/hosts"):
        yield from (("Host", host["name"], it["reason"], it["message"]) for it in host["problems"])
        if not host["connected"]:
            since = f"since {moment(host['last_seen'])}" if host["last_seen"] else "and never was"
            yield "Host", host["name"], "NotConnected", f"its agent is not connected, {since}"
    running = server.items("/jobs", status="running")
    hanging = [job for job in running if job["problem"] and not job["scheduled_id"]]  # else its Schedule has told of it
    short = _short_ids(hanging)
    for job in hanging:
        yield "Job", short[job["id"]], "RunsHang", f"on {job['host']}: {job['problem']}"


def get(access: Access, what: str, filters: Mapping[str, str | None], limit: int, output: str) -> None:
    """Show a list: what there is, in full, or the newest `limit` jobs or audit lines."""
    server = Server(access)
    newest_first = what in ("jobs", "audit")
    given = dict(filters) if what == "jobs" else {}
    if (schedule := given.get("schedule")) is not None and not _UID.fullmatch(schedule):
        given["schedule"] = full_name(schedule)
    items = list(server.items(f"/{what}", limit + 1 if newest_first else None, **given))
    if newest_first and len(items) > limit:
        del items[limit:]
        note(f"only the newest are shown: there are older {what}, for a --limit above {limit}")
    if output == "json":
        say_json({"items": items})
        return
    if not items:
        note(f"no {what}" + (" like that" if any(given.values()) else ""))
        return
    names = {**_names(server, items), **_short_ids(items)} if what == "jobs" else {}
    rows = [_ROWS[what](item, names) for item in items]
    print_table(_TABLES[what], rows, STYLES, _OPTIONAL.get(what, ()))


def run(access: Access, schedule: str, hosts: Sequence[str]) -> None:
    """Run a schedule now."""
    server = Server(access)
    body = {"hosts": list(hosts)} if hosts else {}
    jobs = server.ask("POST", f"/schedules/{full_name(schedule)}/run", body=body)["items"]
    if not jobs:
        raise click.ClickException(f"{full_name(schedule)} selects no host: see `lamplighter get hosts`")
    short = _short_ids(jobs)
    for job in jobs:
        say(f"job {short[job['id']]} on {job['host']}")


def cancel(access: Access, digits: str) -> None:
    """Have a job end."""
    server = Server(access)
    job = server.ask("POST", f"/jobs/{server.job(digits)['id']}/cancel")
    ended = job["status"] == "cancelled"
    say(f"job {job['id'][:SHORT_ID]} on {job['host']} {'is cancelled' if ended else 'is being cancelled'}")


def job_logs(access: Access, digits: str) -> None:
    """Show what restic said, on stdout, and how the job ended, on stderr."""
    server = Server(access)
    job = server.job(digits)
    for line in server.items(f"/jobs/{job['id']}/log"):
        say(line["line"])
    came = outcome(job)
    note(f"job {job['id'][:SHORT_ID]} on {job['host']}: {job['status']}{came and f', {came}'}")


def create_host(access: Access, name: str, labels: Sequence[str]) -> None:
    """Make a host known, with labels as KEY=VALUE. Raises click.ClickException where it is known already."""
    parsed = dict(label.split("=", 1) for label in labels if "=" in label)
    if len(parsed) != len(labels):
        raise click.UsageError("--label: give KEY=VALUE, each KEY once, for example --label role=db")
    server = Server(access)
    if any(host["name"] == name for host in server.items("/hosts")):
        raise click.ClickException(f"there is a host {name} already: see `lamplighter get hosts`")
    host = server.ask("PUT", f"/hosts/{quote(name, safe='')}", body={"labels": parsed})
    say(f"host {host['name']} is known: `lamplighter enrol {host['name']}` makes a token for its agent")


def delete_host(access: Access, name: str) -> None:
    """Forget a host."""
    Server(access).ask("DELETE", f"/hosts/{quote(name, safe='')}")
    say(f"host {name} is forgotten")


def enrol(access: Access, host: str, expires_in_s: int) -> None:
    """Show a new token to enrol a host with, on stdout, and how to use it, on stderr."""
    offer = Server(access).ask("POST", f"/hosts/{quote(host, safe='')}/enrolments", body={"expires_in_s": expires_in_s})
    say(offer["token"])
    trust = " --ca-file ca.crt" if access.ca_file else ""
    use = f"--enrol {offer['token']}" if sys.stdout.isatty() else "--enrol-token-file FILE"
    until = local_time(datetime.fromisoformat(offer["expires_at"]))
    note(f"on {host}, once, before {until}:")
    note(f"  lamplighter agent --server {access.server}{trust} --host {host} {use}")


def revoke(access: Access, host: str) -> None:
    """Have a host's key be good no more."""
    Server(access).ask("DELETE", f"/hosts/{quote(host, safe='')}/key")
    say(f"the key of {host} is revoked, and its agent is cut off")


# How items become rows.


def _schedule(item: Item, _: Mapping[str, str]) -> list[str]:
    metadata, spec, status = item["metadata"], item["spec"], item["status"]
    next_ = status.get("nextScheduleTime")
    hosts = [str(status[count]) for count in ("hosts", "hostsInSync", "hostsFailed", "hostsOverdue")]
    oldest = _ago(status.get("oldestSuccessTime")) if not status["hostsWithoutSuccess"] else "never"
    due = [_ago(status.get("lastScheduleTime")), oldest, _in(next_) if next_ else "disabled"]
    return [metadata["namespace"], metadata["name"], spec["kind"], spec["cron"], *hosts, *due, _problems(status)]


def _host(item: Item, _: Mapping[str, str]) -> list[str]:
    versions = [str(item["desired_version"]), str(item["applied_version"])]
    in_sync = [_yes(item["connected"]), *versions, _yes(item["in_sync"])]
    seen = _ago(item["last_seen"]) if item["last_seen"] else "never"
    in_sync.append(str(item["schedules"]))
    return [item["name"], *in_sync, item["agent_version"] or "-", seen, _problems(item)]


def _repository(item: Item, _: Mapping[str, str]) -> list[str]:
    metadata, status = item["metadata"], item["status"]
    times = [_age(metadata["creationTimestamp"]), _ago(status.get("lastVerified"))]
    return [metadata["namespace"], metadata["name"], item["spec"]["url"], *times, _problems(status)]


def _problems(item: Item) -> str:
    """What is wrong, in a line; "-" where nothing is."""
    return "; ".join(f"{it['reason']}: {' '.join(it['message'].split())}" for it in item["problems"]) or "-"


def _job(item: Item, names: Mapping[str, str]) -> list[str]:
    what = [names[item["id"]], item["host"], _schedule_name(item, names), item["kind"], item["status"]]
    times = [moment(item["scheduled_at"]), moment(_began(item)), _took(item)]
    return [*what, *times, outcome(item) or "-"]


def _audit(item: Item, _: Mapping[str, str]) -> list[str]:
    actor = f"{item['actor_kind']}/{item['actor_id']}"
    return [moment(item["at"]), actor, item["action"], item["object_kind"], item["object_name"]]


_TABLES: Mapping[str, Sequence[str]] = {
    "schedules": (
        *("NAMESPACE", "NAME", "KIND", "CRON", "HOSTS", "INSYNC", "FAILED", "OVERDUE"),
        *("LAST", "OLDEST-SUCCESS", "NEXT", "PROBLEM"),
    ),
    "hosts": ("NAME", "CONNECTED", "DESIRED", "APPLIED", "INSYNC", "SCHEDULES", "AGENT", "LAST-SEEN", "PROBLEM"),
    "repositories": ("NAMESPACE", "NAME", "URL", "AGE", "VERIFIED", "PROBLEM"),
    "jobs": ("JOB", "HOST", "SCHEDULE", "KIND", "STATUS", "DUE", "STARTED", "DURATION", "SNAPSHOT/ERROR"),
    "audit": ("TIME", "ACTOR", "ACTION", "KIND", "OBJECT"),
}
_ROWS: Mapping[str, Callable[[Item, Mapping[str, str]], list[str]]] = {
    "schedules": _schedule,
    "hosts": _host,
    "repositories": _repository,
    "jobs": _job,
    "audit": _audit,
}
_OPTIONAL: Mapping[str, Sequence[str]] = {
    "schedules": ("KIND", "CRON", "INSYNC", "NEXT"),
    "hosts": ("AGENT", "APPLIED", "DESIRED"),
    "repositories": ("AGE",),
    "jobs": ("DUE", "KIND", "STARTED"),
    "audit": ("ACTION",),
}
"""Which columns a narrow terminal does without, in this order."""
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
}


def _short_ids(jobs: Sequence[Item]) -> Mapping[str, str]:
    """The first digits of jobs' ids, by the whole id: as many of all as tell these jobs apart, SHORT_ID at least."""
    ids = {str(job["id"]) for job in jobs}
    size = SHORT_ID
    while len({id_[:size] for id_ in ids}) < len(ids):
        size += 1
    return {id_: id_[:size] for id_ in ids}


def _told(jobs: Sequence[Item]) -> str:
    """Which jobs what was typed could mean."""
    short = _short_ids(jobs)
    told = [f"{short[job['id']]} ({job['kind']} on {job['host']}, {job['status']})" for job in jobs]
    return ", ".join(told[:MAX_CANDIDATES]) + (" and others" if len(told) > MAX_CANDIDATES else "")


def _names(server: Server, jobs: Sequence[Item]) -> Mapping[str, str]:
    """Schedules' names by id, where jobs that were run by hand need them."""
    if all(job["actor_kind"] == "schedule" for job in jobs):
        return {}
    metadata = (item["metadata"] for item in server.items("/schedules"))
    return {it["uid"]: f"{it['namespace']}/{it['name']}" for it in metadata}


def _schedule_name(job: Item, names: Mapping[str, str]) -> str:
    if job["actor_kind"] == "schedule":
        return str(job["actor_id"])
    id_ = job["scheduled_id"] or "-"
    return names.get(id_, id_[:SHORT_ID])


def outcome(job: Item) -> str:
    """What came of a job: its snapshot, or what went wrong. Of one that is not over, what it waits for, or since when
    it runs and what is wrong with that."""
    if job["waits_for"]:
        return f"waits for {job['waits_for']}".replace("waits for retry", "retry")
    if job["status"] == "running":
        since = f"since {moment(_began(job))}"
        return f"{since}; {job['problem']}" if job["problem"] else since
    snapshot = (job["snapshot_id"] or "")[:SHORT_ID]
    error = " ".join((job["error"] or "").split())
    return f"{snapshot} ({error})" if snapshot and error else snapshot or error


def _began(job: Item) -> str | None:
    """When a job began: as its host says at the end, and until then when the host accepted it."""
    began: str | None = job["started_at"] or job["accepted_at"]
    return began


def _took(job: Item) -> str:
    if (began := _began(job)) is None:
        return "-"
    end = datetime.fromisoformat(job["finished_at"]) if job["finished_at"] else datetime.now(UTC)
    return _span((end - datetime.fromisoformat(began)).total_seconds())


def full_name(name: str) -> str:
    """A name with its namespace. Raises click.ClickException for what is none."""
    namespace, _, own = (name if "/" in name else f"default/{name}").partition("/")
    if not namespace or not own or not _PART.issuperset(namespace + own):
        raise click.ClickException(f"{name!r} is no name: give NAME (of namespace default) or NAMESPACE/NAME")
    return f"{namespace}/{own}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def moment(time: str | None) -> str:
    """A time for people, as REST tells it; "-" for none."""
    return local_time(datetime.fromisoformat(time)) if time else "-"


def _ago(time: str | None) -> str:
    return f"{_age(time)} ago" if time else "-"


def _age(time: str) -> str:
    return _span((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())


def _in(time: str) -> str:
    return "in " + _span((datetime.fromisoformat(time) - datetime.now(UTC)).total_seconds())


def _span(seconds: float) -> str:
    """A length of time in its largest unit or two, as kubectl writes ages: 45s, 3m20s, 5h, 12d."""
    left = max(0, round(seconds))
    for size, unit, below, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if left >= size:
            whole, rest = divmod(left, size)
            few = f"{rest // below}{part}" if whole < 10 and rest >= below else ""
            return f"{whole}{unit}{few}"
    return f"{left}s"
