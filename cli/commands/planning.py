"""The command `plan`."""

from pathlib import Path
from typing import Any

import click

from cli import options


class ExitsLikeTerraform(click.Command):
    """A command whose exit code 2 says that there are changes, so that a wrong option must have another one."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the options."""
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            raise _failed(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _failed(error) from None


def _failed(error: click.UsageError) -> click.UsageError:
    vars(error)["exit_code"] = 1
    return error


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(cls=ExitsLikeTerraform)
@click.argument("folder", metavar="[DIR]", required=False, type=_FOLDER)
@click.option(
    "-f",
    "--filename",
    "files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="Plan what `kubectl apply -f FILE` would do; a file, a folder, or - for stdin; repeatable.",
)
@click.option(
    "--prune", is_flag=True, help="With -f: also plan to delete what the files no longer declare; needs --owner."
)
@click.option(
    "--owner",
    metavar="NAME",
    help="Whose objects are planned: the value of their label app.kubernetes.io/managed-by.",
    show_default="lamplighter-folder; with -f, that of each object",
)
@options.allow_empty
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    show_default=True,
    help="How to show the plan; markdown is for a comment on a pull request.",
)
@options.access
def plan(
    access: options.Access,
    folder: Path | None,
    files: tuple[Path, ...],
    prune: bool,
    owner: str | None,
    allow_empty: bool,
    output: str,
) -> None:
    """Show what applying manifests would change, without doing so.

    \b
    lamplighter plan DIR        what a server that follows the folder DIR would do, deletions included
    lamplighter plan -f FILE    what applying FILE would do

    The exit code is 0 when nothing would change, 2 when something would, and 1 when something would be refused, or the
    plan could not be made.
    """
    from cli import planning

    if (folder is None) == (not files):
        raise click.UsageError("give a folder, or files with -f")
    if prune and (folder is not None or not owner):
        raise click.UsageError("--prune: for -f with --owner, whose objects may go; a folder is always planned so")
    if folder is not None:
        wanted = planning.of_folder(folder, owner, allow_empty=allow_empty)
    else:
        wanted = planning.of_files(files, owner, prune=prune, allow_empty=allow_empty)
    planning.plan(access, wanted, output)
