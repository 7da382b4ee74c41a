"""Carries out `create host`, `enrol` and `revoke`."""

from collections.abc import Sequence
from datetime import datetime
from urllib.parse import quote

import click

from cli.client import Client
from cli.logs import local_time
from cli.options import Access
from cli.terminal import is_shown, note, say


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


def _path(host: str) -> str:
    return f"/hosts/{quote(host, safe='')}"
