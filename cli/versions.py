"""Carries out `version`: the versions of this program and of the server."""

import click

from cli.client import Client
from cli.options import Access
from cli.terminal import note, say, say_json, say_yaml
from wire.version import __version__

MAX_SKEW = 1
"""How many minor versions the two may differ by: an upgrade goes from one minor version to the next."""


def version(access: Access | None, output: str) -> None:
    """Show the version of this program and, with `access`, of the server; warn where they are too different.

    Raises click.exceptions.Exit, with code 1, where the server gives no answer.
    """
    versions = {"client": __version__}
    failed = ""
    if access is not None:
        try:
            versions["server"] = Client(access).version()
        except click.ClickException as error:
            failed = error.format_message()
    if output in ("json", "yaml"):
        (say_json if output == "json" else say_yaml)({name: {"version": it} for name, it in versions.items()})
    else:
        for name, its in versions.items():
            say(f"{name.capitalize()} version: {its}")
    if why := skew(**versions) if len(versions) == 2 else "":
        note(f"Warning: {why}")
    if failed:
        note(f"Error: {failed}")
        raise click.exceptions.Exit(1)


def skew(client: str, server: str) -> str:
    """Why these versions are too different to work together, with the remedy; empty where they are not."""
    ours, theirs = _parts(client), _parts(server)
    if ours is None or theirs is None or (ours[0] == theirs[0] and abs(ours[1] - theirs[1]) <= MAX_SKEW):
        return ""
    older = "this program" if ours < theirs else "the server"
    return f"versions {client} and {server} differ by more than one minor version: upgrade {older}"


def _parts(version: str) -> tuple[int, int] | None:
    """The major and the minor version; None where the text does not begin with both."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
