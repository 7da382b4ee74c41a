"""Completes words of a command line: types, and names that the server has. It is quick, and silent where it fails."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from cli.options import Access

TIMEOUT_S = 2.0
"""Seconds that the server has for all of its answers; a shell waits for them."""
MAX_NAMES = 500
"""Maximum names that are offered."""
NEWEST = 50
"""Jobs that are offered."""

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def typed(command: str) -> Complete:
    """Complete TYPE and NAME, for the types that a command takes."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        known = types_of(command)
        given = ctx.params.get(parameter.name or "") or ()
        before = [given] if isinstance(given, str) else list(given)
        if before and "/" not in before[0]:
            return _names(ctx, before[0], incomplete)
        type_, slash, name = incomplete.partition("/")
        if slash:
            return _names(ctx, type_, name, f"{type_}/")
        return [CompletionItem(word) for word in known if word.startswith(incomplete)]

    return complete


def names(plural: str) -> Complete:
    """Complete the name of an object of this type."""

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _names(ctx, plural, incomplete)

    return complete


def namespaces(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a namespace that has Repositories."""
    found: dict[str, None] = {}
    with suppress(Exception):  # a shell that completes shows no error
        for item in _items(_access(ctx)._replace(namespace=""), "repositories"):
            found.setdefault(item["metadata"]["namespace"])
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def types_of(command: str) -> list[str]:
    """The plurals and short names of the types that a command takes, in the order of its help."""
    from cli import types

    taken = {"get": types.TYPES, "describe": types.DESCRIBED, "delete": types.DELETED, "events": types.DESCRIBED}
    return [word for it in taken[command] for word in (it.plural, *it.short)]


def _names(ctx: click.Context, type_name: str, incomplete: str, before: str = "") -> list[CompletionItem]:
    """The names of a type's objects that begin so, each with `before` in front; none where the server gives none."""
    found: list[CompletionItem] = []
    with suppress(Exception):  # a shell that completes shows no error
        for name, about in _found(ctx, type_name):
            if name.startswith(incomplete):
                found.append(CompletionItem(f"{before}{name}", help=about or None))
            if len(found) == MAX_NAMES:
                break
    return found


def _found(ctx: click.Context, type_name: str) -> Iterator[tuple[str, str]]:
    """The names of a type's objects, and a few words about them."""
    from cli.rows import short_ids
    from cli.types import JOB, one_type

    type_, access = one_type(type_name), _access(ctx)
    items = _items(access, type_.plural)
    if type_ is JOB:
        jobs = [job for job, _ in zip(items, range(NEWEST), strict=False)]
        short = short_ids(jobs)
        yield from ((short[job["id"]], f"{job['kind']} on {job['host']}, {job['status']}") for job in jobs)
    elif type_.is_named:
        here = access.namespace or "default"
        for item in items:
            metadata = item.get("metadata", item)
            namespace = metadata.get("namespace", here)
            yield metadata["name"] if namespace == here else f"{namespace}/{metadata['name']}", ""


def _access(ctx: click.Context) -> "Access":
    """How to reach the server, and the namespace of -n or --namespace."""
    from cli.options import access_of

    access = access_of(ctx)
    return access._replace(
        namespace=ctx.params.get("namespace") or ctx.params.get("short_namespace") or access.namespace
    )


def _items(access: "Access", plural: str) -> Iterator[Mapping[str, Any]]:
    """The items of a list, as far as they come within TIMEOUT_S."""
    from cli.client import Client

    client, until = Client(access, TIMEOUT_S), time.monotonic() + TIMEOUT_S
    query = {"namespace": access.namespace} if access.namespace and plural != "hosts" else {}
    for item in client.items(f"/{plural}", None, **query):
        if time.monotonic() > until:
            return
        yield item


def script(shell: str, program: str, variable: str) -> str:
    """The script that has a shell complete a program's words. Raises click.ClickException for an unknown shell."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise click.ClickException(f"there is no completion for {shell}: there is one for bash, zsh and fish")
    return made(click.Command(program), {}, program, variable).source()
