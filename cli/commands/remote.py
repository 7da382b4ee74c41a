"""The commands that ask a server for something special: jobs, restores and hosts."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli import completing, options
from cli.types import HOST, JOB, REPOSITORY, SCHEDULE, Type, untyped

F = TypeVar("F", bound=Callable[..., Any])


def _named(argument: str, type_: Type, metavar: str | None = None) -> Callable[[F], F]:
    """An argument that names an object, also as `get -o name` does."""

    def without_type(_ctx: click.Context, _parameter: click.Parameter, name: str) -> str:
        return untyped(type_, name)

    complete = completing.names(type_.plural)
    return click.argument(argument, metavar=metavar, callback=without_type, shell_complete=complete)


@click.command()
@click.option(
    "-f", "--follow", "is_followed", is_flag=True, help="Also show what changes, and how running jobs proceed."
)
@click.option("--host", help="Only jobs of this host.", shell_complete=completing.names("hosts"))
@options.of_schedule
@click.option("--status", metavar="STATUS", help="Only jobs with this status: pending, running, succeeded, failed …")
@options.limit
@options.output("table", "wide", "yaml", "json", "name")
@options.all_namespaces
@options.access
@options.namespaced
def jobs(
    access: options.Access,
    is_followed: bool,
    host: str | None,
    schedule: str | None,
    status: str | None,
    limit: int | None,
    output: str,
) -> None:
    """List jobs, the same as `get jobs`; with --follow, show them as they proceed.

    In a terminal, --follow shows each running job as a bar. To see a job's own output, use `logs --follow JOB`.
    """
    from cli import lists
    from cli.types import JOB, Target

    filters = {"host": host, "schedule": schedule, "status": status}
    chosen = {name: value for name, value in filters.items() if value is not None}
    asked = lists.Asked([Target(JOB)], access.namespace, "", chosen, limit or 50, output)
    if is_followed:
        lists.follow(access, asked, events=False, with_bars=True)
    else:
        lists.get(access, asked)


@click.command()
@_named("schedule", SCHEDULE, metavar="[NAMESPACE/]NAME")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Only on this host; repeatable.",
    shell_complete=completing.names("hosts"),
)
@options.access
@options.namespaced
def run(access: options.Access, schedule: str, hosts: tuple[str, ...]) -> None:
    """Run a schedule now, once, on all of its hosts.

    A host that is offline runs it when it reconnects. Follow the jobs with `lamplighter jobs --follow`.
    """
    from cli import jobs

    jobs.run(access, schedule, hosts)


@click.command()
@_named("schedule", SCHEDULE, metavar="[NAMESPACE/]NAME")
@options.access
@options.namespaced
def resume(access: options.Access, schedule: str) -> None:
    """Have a paused schedule go on.

    A schedule pauses when it fails on more hosts than its rollout.maxFailures allows. What waited begins, and hosts
    that fail are counted from zero again.
    """
    from cli import jobs

    jobs.resume(access, schedule)


@click.command()
@_named("job", JOB)
@options.access
@options.namespaced
def cancel(access: options.Access, job: str) -> None:
    """Cancel a job.

    JOB is the first digits of the job's id. If the job is running, its agent stops restic.
    """
    from cli import jobs

    jobs.cancel(access, job)


@click.command(name="logs")
@_named("job", JOB)
@click.option(
    "-f", "--follow", "is_followed", is_flag=True, help="Show the output as it comes, until the job has ended."
)
@options.access
@options.namespaced
def job_logs(access: options.Access, job: str, is_followed: bool) -> None:
    """Show restic's output in a job, and how the job ended.

    JOB is the first digits of the job's id.
    """
    from cli import jobs

    jobs.logs(access, job, is_followed=is_followed)


@click.command()
@_named("repository", REPOSITORY, metavar="[NAMESPACE/]REPOSITORY")
@click.option("--host", "source", metavar="SOURCE", required=True, help="The host that was backed up.")
@click.option("--to", "host", metavar="HOST", help="The host to restore onto.", show_default="SOURCE")
@click.option(
    "--snapshot",
    metavar="ID",
    help="The snapshot to restore, by the first digits of its id.",
    show_default="the newest",
)
@click.option("--before", metavar="TIME", help="Restore the newest snapshot up to this time, such as 2026-03-29T02:00.")
@click.option("--path", "paths", metavar="P", multiple=True, help="Restore only this file or folder; repeatable.")
@click.option("--target", metavar="DIR", required=True, help="The folder on the host to restore into.")
@click.option("--overwrite", is_flag=True, help="Restore even if DIR is not empty, and replace files in it.")
@click.option(
    "--setuid-and-devices",
    "special",
    is_flag=True,
    help="Also restore setuid and setgid bits, file capabilities and devices.",
)
@options.access
@options.namespaced
def restore(
    access: options.Access,
    repository: str,
    source: str,
    host: str | None,
    snapshot: str | None,
    before: str | None,
    paths: tuple[str, ...],
    target: str,
    overwrite: bool,
    special: bool,
) -> None:
    """Restore a host's files, onto the same host or another.

    Each file keeps its whole path below DIR: /etc/hosts becomes DIR/etc/hosts. The command waits for the end; its exit
    code is 1 when the restore failed. A host that is offline restores when it reconnects.
    """
    from cli import restoring

    given = {"host": host, "snapshot": snapshot, "before": before and restoring.when(before), "paths": list(paths)}
    spec = {"sourceHost": source, "target": target, "overwrite": overwrite, "setuidAndDevices": special}
    restoring.restore(access, repository, spec | {name: it for name, it in given.items() if it})


@click.command()
@_named("repository", REPOSITORY, metavar="[NAMESPACE/]REPOSITORY")
@click.option("--host", help="Only snapshots of this host; required where the repository's URL has {host}.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="How many snapshots to show, newest first.", show_default="all"
)
@click.option("--by-host", is_flag=True, help="How many each host has, and the newest, without reading the repository.")
@options.output("table", "yaml", "json")
@options.access
@options.namespaced
def snapshots(
    access: options.Access, repository: str, host: str | None, limit: int | None, by_host: bool, output: str
) -> None:
    """List the snapshots in a repository.

    The host of --host reads the repository; if it is offline, another host that uses the repository does.
    """
    from cli import restoring

    listed = restoring.by_host if by_host else restoring.snapshots
    listed(access, repository, host, limit, output)


@click.command()
@_named("repository", REPOSITORY, metavar="[NAMESPACE/]REPOSITORY")
@click.argument("snapshot")
@click.argument("path", default="/")
@click.option("--host", help="The host that was backed up; required where the repository's URL has {host}.")
@options.output("table", "yaml", "json")
@options.access
@options.namespaced
def ls(access: options.Access, repository: str, snapshot: str, path: str, host: str | None, output: str) -> None:
    """List the files in a folder of a snapshot.

    SNAPSHOT is the first digits of the snapshot's id, or `latest`.
    """
    from cli import restoring

    restoring.folder(access, repository, snapshot, path, host, output)


@click.command()
@click.argument("what", metavar="host", type=click.Choice(["host"]))
@click.argument("name")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="A label of the host; repeatable.")
@options.access
def create(access: options.Access, what: str, name: str, labels: tuple[str, ...]) -> None:
    """Create a host: create host NAME.

    Schedules select hosts by label. To enrol the host's agent, use `lamplighter enrol NAME`. If a controller follows a
    cluster, declare a Host there instead.
    """
    from cli import hosts

    hosts.create(access, name, labels)


@click.command()
@_named("host", HOST)
@click.option(
    "--expires-in",
    metavar="SECONDS",
    type=click.IntRange(60, 7 * 24 * 3600),
    default=3600,
    show_default=True,
    help="How long the token is valid, in seconds.",
)
@options.access
def enrol(access: options.Access, host: str, expires_in: int) -> None:
    """Create a one-time token for the agent of HOST.

    The agent registers a key of its own with it. Create the host first, with `lamplighter create host` or as a Host
    resource.
    """
    from cli import hosts

    hosts.enrol(access, host, expires_in)


@click.command()
@_named("host", HOST)
@options.access
def revoke(access: options.Access, host: str) -> None:
    """Revoke the key of HOST.

    Its agent is disconnected until it is enrolled again.
    """
    from cli import hosts

    hosts.revoke(access, host)


@click.command()
@click.argument("host", shell_complete=completing.names("hosts"))
@click.option("--wait/--no-wait", default=True, help="Whether to wait until nothing runs on the host; the default.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="Give up waiting after so many seconds. The host stays drained.",
)
@options.access
def drain(access: options.Access, host: str, wait: bool, timeout_s: float | None) -> None:
    """Have nothing new begin on HOST, and wait until what runs there has ended.

    Due times that pass meanwhile are made up for once, after `lamplighter undrain HOST`.
    """
    from cli import hosts

    hosts.drain(access, host, wait=wait, timeout_s=timeout_s)


@click.command()
@click.argument("host", shell_complete=completing.names("hosts"))
@options.access
def undrain(access: options.Access, host: str) -> None:
    """Have jobs begin on HOST again, after `drain`."""
    from cli import hosts

    hosts.undrain(access, host)
