"""Carries out `create host`, `enrol`, `revoke`, `drain` and `undrain`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic, sleep
from typing import Any
from urllib.parse import quote

import click

from cli.client import Client
from cli.logs import local_time
from cli.options import Access
from cli.terminal import is_shown, note, say

POLL_S = 1.0
"""Seconds between two looks at a host that is being drained."""


def create(access: Access, name: str, labels: Sequence[str]) -> None:
    """Create a host with labels, each KEY=VALUE. Raises click.ClickException where the host exists."""
    parsed = dict(label.split("=", 1) for label in labels if "=" in label)
    if len(parsed) != len(labels):
        raise click.UsageError("--label: give KEY=VALUE, each KEY once, for example --label role=db")
    client = Client(access)
    if any(host["name"] == name for host in client.items("/hosts")):
        raise click.ClickException(f"host {name} exists already: see `lamplighter get hosts`")
    host = client.request("PUT", _path(name), body={"labels": parsed})
    say(f"host {host['name']} is created: `lamplighter enrol {host['name']}` makes a token for its agent")


def enrol(access: Access, host: str, expires_in_s: int) -> None:
    """Show a new enrolment token on stdout, and on stderr the command that uses it."""
    offer = Client(access).request("POST", f"{_path(host)}/enrolments", body={"expires_in_s": expires_in_s})
    say(offer["token"])
    trust = " --ca-file ca.crt" if access.ca_file else ""
    use = f"--enrol {offer['token']}" if is_shown() else "--enrol-token-file FILE"
    until = local_time(datetime.fromisoformat(offer["expires_at"]))
    note(f"on {host}, once, before {until}:")
    note(f"  lamplighter agent --server {access.server}{trust} --host {host} {use}")


def revoke(access: Access, host: str) -> None:
    """Revoke a host's key."""
    Client(access).request("DELETE", f"{_path(host)}/key")
    say(f"the key of {host} is revoked, and its agent is disconnected")


def drain(access: Access, host: str, *, wait: bool, timeout_s: float | None) -> None:
    """Have nothing new begin on a host, and wait until nothing runs there, telling of what does.

    Raises click.ClickException when that takes longer than `timeout_s`.
    """
    client = Client(access)
    seen = client.request("PUT", f"{_path(host)}/drain")
    note(f"{host} begins nothing new, until `lamplighter undrain {host}`")
    until = None if timeout_s is None else monotonic() + timeout_s
    told = ""
    while (drained := seen["drain"]) is not None and wait and not drained["done"]:
        running = list(client.items("/jobs", host=host, status="running"))
        if (now := _waiting(seen, running)) != told:
            note(told := now)
        if until is not None and monotonic() >= until:
            raise click.ClickException(f"{_runs(seen)}: it stays drained, and they go on")
        sleep(POLL_S)
        seen = client.request("GET", _path(host))
    if drained is not None and drained["done"]:
        say(f"{host} is drained: nothing runs there")
    elif wait:
        raise click.ClickException(f"{host} is not drained any more: somebody else undrained it")


def _runs(host: Mapping[str, Any]) -> str:
    count = host["drain"]["jobs"]
    return f"{host['name']} still runs {count} job{'s' * (count != 1)}"


def _waiting(host: Mapping[str, Any], running: Sequence[Mapping[str, Any]]) -> str:
    """What is waited for. A host that is away tells how its jobs ended when it is back."""
    jobs = ", ".join(f"{it['kind']} of {it['schedule'] or it['actor_id']}{_done(it['progress'])}" for it in running)
    away = "" if host["connected"] else f"; {host['name']} is not connected, and tells their ends once it is back"
    return f"{_runs(host)}{jobs and ': ' + jobs}{away}"


def _done(progress: Mapping[str, Any] | None) -> str:
    fraction = (progress or {}).get("fraction")
    return f" ({fraction:.0%})" if fraction else ""


def undrain(access: Access, host: str) -> None:
    """Have jobs begin on a host again."""
    drained = Client(access).request("DELETE", f"{_path(host)}/drain")["drain"]
    if drained is not None and drained["reason"] == "Declared":
        raise click.ClickException(f"{host} stays drained, since its Host says so: set its spec.drain to false")
    say(f"{host} is not drained any more, and makes up for what it missed")


def _path(host: str) -> str:
    return f"/hosts/{quote(host, safe='')}"
