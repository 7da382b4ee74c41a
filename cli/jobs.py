"""Carries out `run`, `resume`, `cancel`, `logs` and `jobs`."""

import time
from collections.abc import Iterator, Sequence

import click

from cli.client import Client, Item, NotFoundError
from cli.logs import SHORT_ID
from cli.options import Access
from cli.rows import outcome, short_ids, size
from cli.terminal import Bars, bars, note, say
from cli.types import full_name, narrowed

MAX_CANDIDATES = 5
"""Jobs that an error names when the digits given fit several."""
POLL_S = 0.5
"""Seconds between two looks at a job that is followed."""
_OPEN = ("pending", "running")


def run(access: Access, schedule: str, hosts: Sequence[str]) -> None:
    """Run a schedule now, on `hosts` or, when that is empty, on all of its hosts."""
    name = full_name(schedule, access.namespace or "default")
    body = {"hosts": list(hosts)} if hosts else {}
    jobs = Client(access).request("POST", f"/schedules/{name}/run", body=body)["items"]
    if not jobs:
        raise click.ClickException(f"{name} selects no host: see `lamplighter get hosts`")
    short = short_ids(jobs)
    for job in jobs:
        say(f"job {short[job['id']]} on {job['host']}")


def resume(access: Access, schedule: str) -> None:
    """Have a paused schedule go on."""
    name, client = full_name(schedule, access.namespace or "default"), Client(access)
    paused = client.request("GET", f"/schedules/{name}")["status"].get("paused")
    client.request("POST", f"/schedules/{name}/resume")
    say(f"{name} goes on, and what waited begins" if paused else f"{name} was not paused")


def cancel(access: Access, digits: str) -> None:
    """Cancel the job whose id begins with `digits`."""
    client = Client(access)
    job = client.request("POST", f"/jobs/{find(client, digits, access.namespace)['id']}/cancel")
    ended = job["status"] == "cancelled"
    say(f"job {job['id'][:SHORT_ID]} on {job['host']} {'is cancelled' if ended else 'is being cancelled'}")


def logs(access: Access, digits: str, *, is_followed: bool) -> None:
    """Show restic's output on stdout, and how the job ended on stderr. A job that is followed is shown to its end."""
    client = Client(access)
    job = find(client, digits, access.namespace)
    log = _Log(client, job["id"])
    if is_followed:
        job = _followed(client, job, log)
    else:
        for line in log.new():
            say(line)
    result = outcome(job)
    note(f"job {job['id'][:SHORT_ID]} on {job['host']}: {job['status']}{result and f', {result}'}")


def _followed(client: Client, job: Item, log: "_Log") -> Item:
    """Show a job's log as it grows, and in a terminal its progress, until the job has ended; return it then."""
    with bars() as shown:
        while True:
            job = client.request("GET", f"/jobs/{job['id']}")
            if lines := list(log.new()):  # read after the job: of one that has ended it is whole
                with shown.aside():
                    for line in lines:
                        say(line)
            if job["status"] not in _OPEN:
                return job
            show_progress(shown, job)
            time.sleep(POLL_S)


def show_progress(shown: Bars, job: Item) -> None:
    """Show an open job as a progress bar."""
    reported = job["progress"] or {}
    what = f"job {job['id'][:SHORT_ID]} on {job['host']}"
    doing = f"{what} waits for {job['waits_for']}" if job["waits_for"] else f"{what}: {job['kind']}"
    done = ""
    if reported:
        done = f"{files(reported.get('files_done'))}, {size(reported.get('bytes_done'))}"
    shown.show(job["id"], doing, done, reported.get("fraction", 0) if reported else None)


def files(count: int | None) -> str:
    """A number of files in words."""
    return f"{count or 0} file{'s' * (count != 1)}"


class _Log:
    """Reads a job's log, each line once."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self._path = f"/jobs/{job_id}/log"
        self._cursor: str | None = None
        self._last = 0

    def new(self) -> Iterator[str]:
        """The lines that came since the last time. The page that was the last one then is read again."""
        while True:
            page = self._client.request("GET", self._path, cursor=self._cursor)
            for line in page["items"]:
                if line["seq"] > self._last:
                    self._last = line["seq"]
                    yield line["line"]
            if page["next"] is None:
                return
            self._cursor = page["next"]


def find(client: Client, digits: str, namespace: str = "") -> Item:
    """The one job whose id begins with `digits`. Raises NotFoundError for none, click.ClickException for several."""
    if not digits.strip():
        raise click.ClickException("JOB is empty: give the first digits of a job's id")
    query = {"id": digits.lower(), **narrowed(namespace)}
    found = list(client.items("/jobs", limit=MAX_CANDIDATES + 1, **query))
    if not found:
        raise NotFoundError(f"no job begins with {digits}: `lamplighter get jobs` lists them")
    if len(found) > 1:
        short = short_ids(found)
        named = [f"{short[job['id']]} ({job['kind']} on {job['host']}, {job['status']})" for job in found]
        listed = ", ".join(named[:MAX_CANDIDATES]) + (" and others" if len(named) > MAX_CANDIDATES else "")
        raise click.ClickException(f"several jobs begin with {digits}: give more digits, as of {listed}")
    return found[0]
