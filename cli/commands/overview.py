"""The command that asks whether everything is backed up."""

import click

from cli import options


@click.command()
@click.option("-n", "--namespace", metavar="NAMESPACE", help="Only what this namespace declares, and its hosts.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@options.access
def status(access: options.Access, namespace: str | None, output: str) -> None:
    """Say whether everything is backed up.

    Below that is what is wrong, what runs now, what is due next, and what was added to repositories in the last days.
    The exit code is 1 when anything is wrong (red), or when the server does not answer.
    """
    from cli import status

    status.show(access, namespace, output)
