"""Carries out `delete`."""

from collections.abc import Sequence

import click

from cli.client import Client, NotFoundError
from cli.lists import missing
from cli.options import Access
from cli.terminal import note, say
from cli.types import HOST, Target, in_namespace

OWNER_LABEL = "app.kubernetes.io/managed-by"
"""The label of an object that names the controller which declares it."""


def delete(access: Access, targets: Sequence[Target]) -> None:
    """Delete objects. Raises click.exceptions.Exit, with code 1, where one was not deleted."""
    client = Client(access)
    failed = False
    for type_, names in targets:
        for name in names:
            try:
                _delete(client, Target(type_, [in_namespace(type_, name, access.namespace or "default")]))
            except click.ClickException as error:
                note(f"Error: {error.format_message()}")
                failed = True
    if failed:
        raise click.exceptions.Exit(1)


def _delete(client: Client, target: Target) -> None:
    type_, [name] = target
    try:
        labels = _labels(client, target)
        client.request("DELETE", type_.path(name))
    except NotFoundError as error:
        raise missing(client, type_, name, error) from None
    say(f"{type_.singular} {name} is deleted")
    if owner := labels.get(OWNER_LABEL):
        note(f"Warning: {owner} declares it, and creates it again: delete it there (its file, or with kubectl)")


def _labels(client: Client, target: Target) -> dict[str, str]:
    item = client.request("GET", target.type.path(target.names[0]))
    found: dict[str, str] = item["labels"] if target.type is HOST else item["metadata"]["labels"]
    return found
