"""Carries out `run`, `cancel` and `logs`."""

from collections.abc import Sequence

import click

from cli.client import Client, Item, full_name
from cli.logs import SHORT_ID
from cli.options import Access
from cli.rows import outcome, short_ids
from cli.terminal import note, say

MAX_CANDIDATES = 5
"""Jobs that an error names when the digits given fit several."""


def run(access: Access, schedule: str, hosts: Sequence[str]) -> None:
    """Run a schedule now, on `hosts` or, when that is empty, on all of its hosts."""
    body = {"hosts": list(hosts)} if hosts else {}
    jobs = Client(access).request("POST", f"/schedules/{full_name(schedule)}/run", body=body)["items"]
    if not jobs:
        raise click.ClickException(f"{full_name(schedule)} selects no host: see `lamplighter get hosts`")
    short = short_ids(jobs)
    for job in jobs:
        say(f"job {short[job['id']]} on {job['host']}")


def cancel(access: Access, digits: str) -> None:
    """Cancel the job whose id begins with `digits`."""
    client = Client(access)
    job = client.request("POST", f"/jobs/{find(client, digits)['id']}/cancel")
    ended = job["status"] == "cancelled"
    say(f"job {job['id'][:SHORT_ID]} on {job['host']} {'is cancelled' if ended else 'is being cancelled'}")


def logs(access: Access, digits: str) -> None:
    """Show restic's output on stdout, and how the job ended on stderr."""
    client = Client(access)
    job = find(client, digits)
    for line in client.items(f"/jobs/{job['id']}/log"):
        say(line["line"])
    result = outcome(job)
    note(f"job {job['id'][:SHORT_ID]} on {job['host']}: {job['status']}{result and f', {result}'}")


def find(client: Client, digits: str) -> Item:
    """The one job whose id begins with `digits`. Raises click.ClickException where there is none, or several."""
    if not digits.strip():
        raise click.ClickException("JOB is empty: give the first digits of a job's id")
    found = list(client.items("/jobs", limit=MAX_CANDIDATES + 1, id=digits.lower()))
    if not found:
        raise click.ClickException(f"no job begins with {digits}: `lamplighter get jobs` lists them")
    if len(found) > 1:
        short = short_ids(found)
        named = [f"{short[job['id']]} ({job['kind']} on {job['host']}, {job['status']})" for job in found]
        listed = ", ".join(named[:MAX_CANDIDATES]) + (" and others" if len(named) > MAX_CANDIDATES else "")
        raise click.ClickException(f"several jobs begin with {digits}: give more digits, as of {listed}")
    return found[0]
