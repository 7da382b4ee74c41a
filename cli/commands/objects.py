"""The commands on objects of any type: get, describe, events and delete."""

from collections.abc import Sequence

import click

from cli import completing, options


@click.command()
@click.argument("words", metavar="TYPE [NAME…]", nargs=-1, required=True, shell_complete=completing.typed("get"))
@click.option("--host", help="Only jobs of this host.", shell_complete=completing.names("hosts"))
@options.of_schedule
@click.option("--status", metavar="STATUS", help="Only jobs with this status: pending, running, succeeded, failed …")
@options.limit
@options.selector
@options.output("table", "wide", "yaml", "json", "name")
@click.option("-w", "--watch", "is_watched", is_flag=True, help="After the list, also show what changes.")
@click.option(
    "--output-watch-events", "with_events", is_flag=True, help="With --watch: say ADDED, MODIFIED or DELETED."
)
@options.all_namespaces
@options.access
@options.namespaced
def get(
    access: options.Access,
    words: tuple[str, ...],
    host: str | None,
    schedule: str | None,
    status: str | None,
    limit: int | None,
    labels: str | None,
    output: str,
    is_watched: bool,
    with_events: bool,
) -> None:
    """List objects, or show those named.

    \b
      hosts               which are connected, and whether each holds its schedules (DESIRED and APPLIED versions)
      schedules (sched)   what is declared, on how many hosts, how many of those failed, and when it is due
      repositories (repo) where snapshots go, how many there are, when last verified
      alerts (al)         who is told what is wrong, and whether messages arrive
      jobs                what ran, and its snapshot or its error
      problems            everything that is wrong; the exit code is 1 when there is a problem
      audit               who changed what
      controllers         what keeps controllers of folders from following them

    Give a type by its plural, its singular or its short name, several as TYPE,TYPE, and objects also as TYPE/NAME. A
    job's name is the first digits of its id.
    """
    from cli import lists
    from cli.types import targets

    wanted = targets(words)
    filters = {"host": host, "schedule": schedule, "status": status}
    given = [
        f"--{name}" for name, value in (filters | {"limit": limit, "selector": labels}).items() if value is not None
    ]
    for target in wanted:
        _refuse_useless(target.type.plural, given, bool(target.names))
    if output == "name" and any(not it.type.is_named for it in wanted):
        raise click.UsageError("--output name: only for what has names")
    if with_events and not is_watched:
        raise click.UsageError("--output-watch-events: only with --watch")
    chosen = {name: value for name, value in filters.items() if value is not None}
    asked = lists.Asked(wanted, access.namespace, labels or "", chosen, limit or 50, output)
    if not is_watched:
        lists.get(access, asked)
    elif len(wanted) == 1:
        lists.follow(access, asked, events=with_events)
    else:
        raise click.UsageError("--watch: of one type at a time")


_TAKERS = {"--limit": ("jobs", "audit"), "--selector": ("hosts", "schedules", "repositories", "alerts")}
"""The types that an option is for; the other options are for jobs."""


def _refuse_useless(plural: str, given: Sequence[str], is_named: bool) -> None:
    """Raise click.UsageError for options that mean nothing for this type, or where names are given."""
    takers = {name: _TAKERS.get(name, ("jobs",)) for name in given}
    if wrong := [name for name in given if plural not in takers[name]]:
        also = takers[wrong[0]] if len(wrong) == 1 else ("jobs",)
        raise click.UsageError(f"{' and '.join(wrong)}: not for {plural}, only for {' and '.join(also)}")
    if given and is_named:
        raise click.UsageError(f"{' and '.join(given)}: not with names")


@click.command()
@click.argument("words", metavar="TYPE [NAME…]", nargs=-1, required=True, shell_complete=completing.typed("describe"))
@options.access
@options.namespaced
def describe(access: options.Access, words: tuple[str, ...]) -> None:
    """Show everything that is known of objects.

    TYPE is hosts, schedules, repositories, alerts or jobs, by any of its names; give objects also as TYPE/NAME. Without
    a name, all objects of the type are shown; of jobs, the newest. A job's name is the first digits of its id.
    """
    from cli import describing
    from cli.types import DESCRIBED, targets

    describing.describe(access, targets(words, DESCRIBED))


@click.command()
@click.option(
    "--for", "about", metavar="TYPE/NAME", help="Only what happened to it.", shell_complete=completing.typed("events")
)
@click.option("--types", metavar="TYPE,…", help="Only events of these types: Normal, Warning.", show_default="both")
@options.limit
@options.output("table", "yaml", "json")
@click.option("-w", "--watch", "is_watched", is_flag=True, help="Also show what happens from now on.")
@options.all_namespaces
@options.access
@options.namespaced
def events(
    access: options.Access, about: str | None, types: str | None, limit: int | None, output: str, is_watched: bool
) -> None:
    """Show what happened, the newest last.

    Events come from the jobs, and from the audit log where you may read it.
    """
    from cli import history
    from cli.types import DESCRIBED, targets

    if about is not None and "/" not in about:
        raise click.UsageError("--for: give TYPE/NAME, for example host/web-1")
    wanted = types.split(",") if types else history.TYPES
    if unknown := [it for it in wanted if it not in history.TYPES]:
        raise click.UsageError(f"--types {unknown[0]}: the types are {' and '.join(history.TYPES)}")
    target = targets([about], DESCRIBED)[0] if about else None
    history.events(access, target, wanted, limit or 50, output, is_watched=is_watched)


@click.command()
@click.argument("words", metavar="TYPE NAME…", nargs=-1, required=True, shell_complete=completing.typed("delete"))
@options.access
@options.namespaced
def delete(access: options.Access, words: tuple[str, ...]) -> None:
    """Delete hosts, schedules, repositories or alerts.

    Jobs stay in the history, and snapshots in their repositories. Before you delete a host, stop its agent: its key is
    revoked. What a controller declares comes back: delete its file, or use kubectl. To end a job, use `cancel`.
    """
    from cli import deleting
    from cli.types import DELETED, targets

    wanted = targets(words, DELETED)
    if not all(it.names for it in wanted):
        raise click.UsageError("give the names of what to delete: delete TYPE NAME…")
    deleting.delete(access, wanted)
