"""Carries out `get`: lists as tables for people, or as JSON for programs."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import click

from cli.client import Client, full_name
from cli.options import Access
from cli.rows import STYLES, TABLES, moment, short_ids
from cli.terminal import note, print_table, say_json

_UID = re.compile(r"[0-9a-f]{32}")
"""A Schedule's uid, which still names it after it was deleted."""


class Problem(NamedTuple):
    """What is wrong with an object."""

    kind: str
    name: str
    reason: str
    message: str


def get(access: Access, what: str, filters: Mapping[str, str | None], limit: int, output: str) -> None:
    """Show a list: the newest `limit` of jobs or audit lines, all of anything else."""
    client = Client(access)
    newest_first = what in ("jobs", "audit")
    given = dict(filters) if what == "jobs" else {}
    if (schedule := given.get("schedule")) is not None and not _UID.fullmatch(schedule):
        given["schedule"] = full_name(schedule)
    items = list(client.items(f"/{what}", limit + 1 if newest_first else None, **given))
    if newest_first and len(items) > limit:
        del items[limit:]
        note(f"only the newest {limit} are shown: give a larger --limit to see older ones")
    if output == "json":
        say_json({"items": items})
        return
    if not items:
        note(f"no {what}" + (" match" if any(given.values()) else ""))
        return
    names: dict[str, str] = {}
    if what == "jobs":
        names.update(short_ids(items))
        if any(job["actor_kind"] != "schedule" for job in items):  # such a job has its Schedule's uid alone
            metadata = (item["metadata"] for item in client.items("/schedules"))
            names.update((it["uid"], f"{it['namespace']}/{it['name']}") for it in metadata)
    table = TABLES[what]
    print_table(table.columns, [table.row(item, names) for item in items], STYLES, table.optional)


def problems(access: Access, output: str) -> None:
    """Show everything that is wrong. Raises click.exceptions.Exit, with code 1, where there is a problem."""
    found: list[Problem] = []
    client = Client(access)
    try:
        found.extend(_problems(client))
    except click.ClickException as error:  # what was found until then is shown all the same
        if not found:
            raise
        found.append(Problem("Server", client.url, "NoAnswer", error.format_message()))
    if output == "json":
        say_json({"items": [it._asdict() for it in found]})
    elif found:
        rows = [[*it[:3], " ".join(it.message.split())] for it in found]
        print_table(("KIND", "NAME", "REASON", "MESSAGE"), rows, {})
    else:
        note("no problems")
    if found:
        raise click.exceptions.Exit(1)


def _problems(client: Client) -> Iterator[Problem]:
    """Every problem of the server, Schedules, Repositories, controllers, hosts and jobs, in this order."""
    if why := client.refuses_writes():
        yield Problem("Server", client.url, "NotWriting", f"the server records nothing: {why}")
    for plural, kind in (("schedules", "Schedule"), ("repositories", "Repository")):
        for item in client.items(f"/{plural}"):
            name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            yield from (Problem(kind, name, it["reason"], it["message"]) for it in item["status"]["problems"])
    for plural, kind in (("controllers", "Controller"), ("hosts", "Host")):
        for item in client.items(f"/{plural}"):
            yield from (Problem(kind, item["name"], it["reason"], it["message"]) for it in item["problems"])
            if kind == "Host" and not item["connected"]:
                since = f"since {moment(item['last_seen'])}" if item["last_seen"] else "and never was"
                yield Problem(kind, item["name"], "NotConnected", f"its agent is not connected, {since}")
    running = client.items("/jobs", status="running")
    hanging = [job for job in running if job["problem"] and not job["scheduled_id"]]  # else its Schedule tells of it
    short = short_ids(hanging)
    for job in hanging:
        yield Problem("Job", short[job["id"]], "RunsHang", f"on {job['host']}: {job['problem']}")
