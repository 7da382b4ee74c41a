"""Finds everything that is wrong, for `get problems`."""

from collections.abc import Iterator
from typing import NamedTuple

import click

from cli.client import Client
from cli.rows import moment, short_ids
from cli.types import narrowed


class Problem(NamedTuple):
    """What is wrong with an object."""

    kind: str
    name: str
    reason: str
    message: str


def found_problems(client: Client, namespace: str = "") -> list[Problem]:
    """Everything that is wrong, in a namespace or altogether. Where the server stops answering, that is the last one.

    Raises click.ClickException where nothing was found until then.
    """
    found: list[Problem] = []
    try:
        found.extend(_problems(client, namespace))
    except click.ClickException as error:  # what was found until then is shown all the same
        if not found:
            raise
        found.append(Problem("Server", client.url, "NoAnswer", error.format_message()))
    return found


def _problems(client: Client, namespace: str) -> Iterator[Problem]:
    """Every problem of the server, Schedules, Repositories, Alerts, controllers, hosts and jobs, in this order.

    In a namespace: of the server, and of the namespace's Schedules, Repositories, Alerts and jobs.
    """
    its = narrowed(namespace)
    if why := client.refuses_writes():
        yield Problem("Server", client.url, "NotWriting", f"the server records nothing: {why}")
    for plural, kind in (("schedules", "Schedule"), ("repositories", "Repository"), ("alerts", "Alert")):
        for item in client.items(f"/{plural}", None, **its):
            name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            yield from (Problem(kind, name, it["reason"], it["message"]) for it in item["status"]["problems"])
    if not namespace:
        yield from _of_hosts(client)
    running = client.items("/jobs", None, status="running", **its)
    hanging = [job for job in running if job["problem"] and not job["scheduled_id"]]  # else its Schedule tells of it
    short = short_ids(hanging)
    for job in hanging:
        yield Problem("Job", short[job["id"]], "RunsHang", f"on {job['host']}: {job['problem']}")


def _of_hosts(client: Client) -> Iterator[Problem]:
    for plural, kind in (("controllers", "Controller"), ("hosts", "Host")):
        for item in client.items(f"/{plural}"):
            yield from (Problem(kind, item["name"], it["reason"], it["message"]) for it in item["problems"])
            if kind == "Host" and not item["connected"]:
                since = f"since {moment(item['last_seen'])}" if item["last_seen"] else "and never was"
                yield Problem(kind, item["name"], "NotConnected", f"its agent is not connected, {since}")
