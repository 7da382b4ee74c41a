"""The commands that ask a server: lists, jobs, restores and hosts."""

import click

from cli import options

LISTS = ("hosts", "schedules", "repositories", "jobs", "problems", "audit")
"""What `get` can list."""


@click.command()
@click.argument("what", metavar="WHAT", type=click.Choice(LISTS))
@click.option("--host", help="Only jobs of this host.")
@click.option(
    "--schedule", metavar="[NAMESPACE/]NAME", help="Only jobs of this schedule; give its uid if it was deleted."
)
@click.option("--status", metavar="STATUS", help="Only jobs with this status: pending, running, succeeded, failed …")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    show_default="50",
    help="How many jobs or audit lines to show, newest first.",
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@options.access
def get(
    access: options.Access,
    what: str,
    host: str | None,
    schedule: str | None,
    status: str | None,
    limit: int | None,
    output: str,
) -> None:
    """List resources, jobs, problems or the audit log.

    \b
      hosts         which are connected, and whether each holds its schedules (DESIRED and APPLIED versions)
      schedules     what is declared, on how many hosts, how many of those failed, and when it is due
      repositories  where snapshots go, and when each was last verified
      jobs          what ran, and its snapshot or its error
      problems      everything that is wrong; the exit code is 1 when there is a problem
      audit         who changed what
    """
    from cli import lists

    filters = {"host": host, "schedule": schedule, "status": status}
    given = [f"--{name}" for name, value in (filters | {"limit": limit}).items() if value is not None]
    if what != "jobs" and (wrong := [it for it in given if it != "--limit" or what != "audit"]):
        takers = "jobs and audit" if wrong == ["--limit"] else "jobs"
        raise click.UsageError(f"{' and '.join(wrong)}: not for {what}, only for {takers}")
    if what == "problems":
        lists.problems(access, output)
    else:
        lists.get(access, what, filters, limit or 50, output)


@click.command()
@click.argument("schedule", metavar="[NAMESPACE/]NAME")
@click.option("--host", "hosts", multiple=True, help="Only on this host; repeatable.")
@options.access
def run(access: options.Access, schedule: str, hosts: tuple[str, ...]) -> None:
    """Run a schedule now, once, on all of its hosts.

    A host that is offline runs it when it reconnects. Follow the jobs with `lamplighter get jobs`.
    """
    from cli import jobs

    jobs.run(access, schedule, hosts)


@click.command()
@click.argument("job")
@options.access
def cancel(access: options.Access, job: str) -> None:
    """Cancel a job.

    JOB is the first digits of the job's id. If the job is running, its agent stops restic.
    """
    from cli import jobs

    jobs.cancel(access, job)


@click.command(name="logs")
@click.argument("job")
@options.access
def job_logs(access: options.Access, job: str) -> None:
    """Show restic's output in a job, and how the job ended.

    JOB is the first digits of the job's id.
    """
    from cli import jobs

    jobs.logs(access, job)


@click.command()
@click.argument("repository", metavar="[NAMESPACE/]REPOSITORY")
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
@click.argument("repository", metavar="[NAMESPACE/]REPOSITORY")
@click.option("--host", help="Only snapshots of this host; required where the repository's URL has {host}.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), help="How many snapshots to show, newest first.", show_default="all"
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@options.access
def snapshots(access: options.Access, repository: str, host: str | None, limit: int | None, output: str) -> None:
    """List the snapshots in a repository.

    The host of --host reads the repository; if it is offline, another host that uses the repository does.
    """
    from cli import restoring

    restoring.snapshots(access, repository, host, limit, output)


@click.command()
@click.argument("repository", metavar="[NAMESPACE/]REPOSITORY")
@click.argument("snapshot")
@click.argument("path", default="/")
@click.option("--host", help="The host that was backed up; required where the repository's URL has {host}.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@options.access
def ls(access: options.Access, repository: str, snapshot: str, path: str, host: str | None, output: str) -> None:
    """List the files in a folder of a snapshot.

    SNAPSHOT is the first digits of the snapshot's id, or `latest`.
    """
    from cli import restoring

    restoring.files(access, repository, snapshot, path, host, output)


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
@click.argument("what", metavar="host", type=click.Choice(["host"]))
@click.argument("name")
@options.access
def delete(access: options.Access, what: str, name: str) -> None:
    """Delete a host: delete host NAME.

    Stop its agent first. This revokes the host's key; its jobs stay in the history.
    """
    from cli import hosts

    hosts.delete(access, name)


@click.command()
@click.argument("host")
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
@click.argument("host")
@options.access
def revoke(access: options.Access, host: str) -> None:
    """Revoke the key of HOST.

    Its agent is disconnected until it is enrolled again.
    """
    from cli import hosts

    hosts.revoke(access, host)
