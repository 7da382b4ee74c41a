"""The `lamplighter` command. Each command imports its part only when it runs."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli import logs, options, terminal

EPILOG = """
\b
First steps:
  lamplighter up examples/quickstart    a server, its agent and your schedules, all on this machine
  lamplighter get schedules             what is declared, and whether every host holds it
  lamplighter get jobs                  what ran, and how it ended
  lamplighter get problems              all that is wrong
  lamplighter logs JOB                  what restic said
  lamplighter restore REPOSITORY ...    what was backed up, brought back

COMMAND --help tells each option, and the environment variable that sets it as well.
"""


EXTRAS = {"up": "all", "server": "server", "agent": "agent", "controller": "controller", "keys": "server,controller"}
"""What a command needs of the extras in pyproject.toml; those that are not here need `cli`."""


class InOrder(click.Group):
    """Lists its commands as they stand here, what is needed first before the rest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in order."""
        return list(self.commands)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the group's own options. The messages of errors are made safe."""
        with terminal.safe_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. The messages of errors are made safe."""
        with terminal.safe_errors():
            try:
                return super().invoke(ctx)
            except ModuleNotFoundError as error:
                raise _not_installed(error, ctx.invoked_subcommand or "") from None


@click.group(
    cls=InOrder, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="lamplighter")
def main() -> None:
    """Backs up what lives on your machines: schedules are declared, and each due run happens once on each host.

    A server holds what every host should do, agents do it with restic, and `get` shows which host did not.
    """
    sys.excepthook = terminal.excepthook


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.data_dir
@options.listen
@options.host
@options.allow_empty
@options.restic
@options.allow_hooks
@options.allow_unconfined
@options.grants
@options.schemes
@options.keep_jobs
@options.keep_jobs_days
@options.metrics_listen
@options.log_format
@options.log_level
def up(
    folder: Path,
    data_dir: Path,
    listen: str,
    host: str,
    allow_empty: bool,
    restic: str,
    allow_hooks: tuple[str, ...],
    allow_unconfined: bool,
    metrics_listen: str,
    log_format: str,
    log_level: str,
    **settings: Any,
) -> None:
    """Run all of it here, on the resources in DIR.

    That is a server, an agent for this machine, and what keeps them following DIR, in one process. DIR holds
    Schedules, Repositories and Hosts as YAML, the same that `kubectl apply` takes. Edit, add or delete a file, and the
    fleet follows; a file that is wrong says what is wrong in it and leaves the rest running.
    """
    from cli import up as parts
    from cli.agent import Local
    from server.app import Config

    logs.setup(log_format, log_level)
    address, local = options.address(listen), Local(restic, allow_hooks=allow_hooks, allow_unconfined=allow_unconfined)
    config = Config(data_dir, *address, **settings)
    follow = partial(parts.up, folder, config, host, local, allow_empty=allow_empty, metrics_listen=metrics_listen)
    _run(follow)


@main.command()
@options.data_dir
@options.listen
@options.option("--database", default="", help="SQLAlchemy URL of the store.", show_default="SQLite in the data folder")
@options.option("--tls-cert", type=options.FILE, help="Certificate chain (PEM), for TLS; read again when it changes.")
@options.option("--tls-key", type=options.FILE, help="The certificate's key (PEM).", show_default="in the same file")
@options.option(
    "--vault-key-file",
    type=options.FILE,
    help="File with the keys that encrypt credentials in the store.",
    show_default="vault-key in the data folder, which is made when missing",
)
@options.option(
    "--auth",
    type=click.Choice(["file", "kubernetes"]),
    default="file",
    help="Who tells callers and agents apart: tokens in the data folder, or the cluster.",
)
@options.option(
    "--agent-service-account",
    metavar="NAMESPACE/NAME",
    default="",
    show_default=False,
    help="Service account of the agents' pods; needed with --auth kubernetes.",
)
@options.option(
    "--kubernetes-api", metavar="URL", help="API server that is asked who calls.", show_default="this cluster"
)
@options.grants
@options.schemes
@options.keep_jobs
@options.keep_jobs_days
@options.option("--kubernetes-token-file", type=options.FILE, help="Token with which the server asks --kubernetes-api.")
@options.option("--kubernetes-ca-file", type=options.FILE, help="Authorities that vouch for --kubernetes-api (PEM).")
@options.metrics_listen
@options.log_format
@options.log_level
def server(
    data_dir: Path,
    listen: str,
    kubernetes_api: str | None,
    kubernetes_token_file: Path | None,
    kubernetes_ca_file: Path | None,
    vault_key_file: Path | None,
    metrics_listen: str,
    log_format: str,
    log_level: str,
    **settings: Any,
) -> None:
    """Run the server alone.

    It keeps the store, serves the REST API and speaks with the agents. The data folder gets `admin-token` for
    people and scripts, and `agent-token` for agents. With --auth kubernetes the cluster knows them instead: agents
    by their service account and node, callers by what RBAC lets them do.
    """
    from cli import up as parts
    from server.app import Config

    if settings["auth"] == "file":
        known = ("agent_service_account", "kubernetes_api", "kubernetes_token_file", "kubernetes_ca_file")
        options.refuse_given("only with --auth kubernetes", *known)
    if kubernetes_api is None:
        options.refuse_given("only with --kubernetes-api", "kubernetes_token_file", "kubernetes_ca_file")
    if settings["tls_cert"] is None:
        options.refuse_given("only with --tls-cert", "tls_key")
    logs.setup(log_format, log_level)
    host, port = options.address(listen)
    cluster = parts.cluster(kubernetes_api, kubernetes_token_file, kubernetes_ca_file)
    config = Config(data_dir, host, port, vault_key=vault_key_file, cluster=cluster, **settings)
    _run(lambda stop: parts.server(config, metrics_listen, stop))


@main.command()
@options.access
@options.host
@options.restic
@options.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="The host's file system, as a pod has it mounted; the data folder must be in it too.",
)
@options.allow_hooks
@options.allow_unconfined
@options.option(
    "--enrol",
    metavar="TOKEN",
    default="",
    show_default=False,
    help="Token of `lamplighter enrol`, by which this host gets a key of its own, once.",
)
@options.option("--enrol-token-file", type=options.FILE, help="File with the token for --enrol.")
@options.metrics_listen
@options.log_format
@options.log_level
def agent(
    access: options.Access,
    host: str,
    restic: str,
    enrol: str,
    enrol_token_file: Path | None,
    root: Path,
    allow_hooks: tuple[str, ...],
    allow_unconfined: bool,
    metrics_listen: str,
    log_format: str,
    log_level: str,
) -> None:
    """Run the agent alone, for one host.

    It keeps its cron and its journal in the data folder, and goes on while the server cannot be reached. A token of
    `lamplighter enrol` gives it a key of its own, the file `host-key` in the data folder. It uses that key from then
    on, also where --token-file names another token. To enrol again, delete the file.
    """
    from cli import agent as parts

    logs.setup(log_format, log_level)
    if enrol and enrol_token_file is not None:
        options.refuse_given("--enrol gives a token already: leave one of them out", "enrol_token_file")
    if enrol_token_file is not None:
        enrol = options.read_token(enrol_token_file, "make one with `lamplighter enrol HOST`, where the server is")
    server, data_dir, token_file, ca_file = access
    if enrol:
        parts.enrol(server, enrol, host, data_dir, ca_file)
    path = parts.own_key(data_dir, token_file) or token_file or data_dir / "agent-token"
    token = options.token_reader(path, options.ENROL_OR_NAME)
    how = parts.Local(restic, root, allow_hooks, allow_unconfined)
    _run(lambda stop: parts.agent(server, token, data_dir, host, how, stop, ca_file, metrics_listen))


@main.command()
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@options.option("--namespace", "namespaces", multiple=True, help="Follow this namespace only; may be given again.")
@options.option("--host-namespace", default="lamplighter-system", help="The namespace in which Hosts count.")
@click.option(
    "--lease/--no-lease",
    envvar="LAMPLIGHTER_LEASE",
    show_envvar=True,
    default=True,
    help="Whether to work only while no other replica does.",
)
@options.allow_empty
@options.access
@options.metrics_listen
@options.log_format
@options.log_level
def controller(
    access: options.Access,
    folder: Path | None,
    allow_empty: bool,
    namespaces: tuple[str, ...],
    host_namespace: str,
    lease: bool,
    metrics_listen: str,
    log_format: str,
    log_level: str,
) -> None:
    """Run the controller alone, on a cluster or DIR.

    It makes what a server holds equal to the resources there, and goes on doing so. The cluster is that of the
    pod's service account, or of KUBECONFIG.
    """
    from cli import controller as parts

    logs.setup(log_format, log_level)
    token = options.token_reader(access.token_file or access.data_dir / "admin-token")
    client = (access.server, token, access.ca_file)
    if folder is not None:
        options.refuse_given("for a cluster, not for DIR", "namespaces", "host_namespace", "lease")
        _run(partial(parts.folder, folder, client, allow_empty=allow_empty, metrics_listen=metrics_listen))
    else:
        options.refuse_given("for DIR, not for a cluster", "allow_empty")
        follow = partial(parts.cluster, client, host_namespace, namespaces, lease=lease, metrics_listen=metrics_listen)
        _run(follow)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--secret", required=True, help="The Secret that holds the keys; it must exist, and may be empty.")
@click.option(
    "--config-map",
    default="",
    help="The ConfigMap that tells others the CA's certificate; it must exist, and may be empty.",
)
@click.option("--tls-name", "names", multiple=True, help="A name or address of the server; may be given again.")
@click.option(
    "--vault-key/--no-vault-key", default=True, help="Whether to make the key that encrypts credentials in the store."
)
@options.log_format
@options.log_level
def keys(
    folder: Path, secret: str, config_map: str, names: tuple[str, ...], vault_key: bool, log_format: str, log_level: str
) -> None:
    """Make a server's keys in its cluster.

    The chart runs this in the server's pod before each start of the server. Keys that are missing are made and kept in
    --secret, in the pod's namespace; those that the server reads are written to DIR. With --tls-name, a CA and a
    certificate are made, too.
    """
    from cli import keys as parts

    logs.setup(log_format, log_level)
    if names and not config_map:
        raise click.UsageError("--tls-name needs --config-map: others must know the CA")
    if not names:
        options.refuse_given("only with --tls-name", "config_map")
    _run(lambda _: parts.make(secret, config_map, names, folder, vault=vault_key))


_LISTS = ("hosts", "schedules", "repositories", "jobs", "problems", "audit")


@main.command()
@click.argument("what", metavar="WHAT", type=click.Choice(_LISTS))
@click.option("--host", help="Jobs of this host only.")
@click.option("--schedule", metavar="[NAMESPACE/]NAME", help="Jobs of this schedule only; its uid if it was deleted.")
@click.option("--status", metavar="STATUS", help="Jobs of this status only: pending, running, succeeded, failed …")
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
    """Show what there is, what ran, and who holds what.

    \b
      hosts         who is connected, and whether it holds the schedules that it should (DESIRED, APPLIED)
      schedules     what is declared, on how many hosts, how it goes there, when it was last due and is next
      repositories  where snapshots go, and when one was last verified
      jobs          what ran, and the snapshot it made or the error it met
      problems      all that is wrong; the exit code is 1 when anything is
      audit         who changed what
    """
    from cli import ask

    filters = {"host": host, "schedule": schedule, "status": status}
    given = [f"--{name}" for name, value in (filters | {"limit": limit}).items() if value is not None]
    if what != "jobs" and (wrong := [it for it in given if it != "--limit" or what != "audit"]):
        takers = "jobs and audit" if wrong == ["--limit"] else "jobs"
        raise click.UsageError(f"{' and '.join(wrong)}: not for {what}, only for {takers}")
    if what == "problems":
        ask.problems(access, output)
    else:
        ask.get(access, what, filters, limit or 50, output)


@main.command()
@click.argument("schedule", metavar="[NAMESPACE/]NAME")
@click.option("--host", "hosts", multiple=True, help="Only on this host; may be given again.")
@options.access
def run(access: options.Access, schedule: str, hosts: tuple[str, ...]) -> None:
    """Run a schedule now, once, on all of its hosts.

    A host that is offline runs it when it is back. Follow the jobs with `lamplighter get jobs`.
    """
    from cli import ask

    ask.run(access, schedule, hosts)


@main.command()
@click.argument("job")
@options.access
def cancel(access: options.Access, job: str) -> None:
    """Cancel a job.

    A host that is online tells restic to stop. The first digits of the job's id are enough."""
    from cli import ask

    ask.cancel(access, job)


@main.command(name="logs")
@click.argument("job")
@options.access
def job_logs(access: options.Access, job: str) -> None:
    """Show what restic said in a job, and its end.

    The first digits of the job's id are enough."""
    from cli import ask

    ask.job_logs(access, job)


@main.command()
@click.argument("repository", metavar="[NAMESPACE/]REPOSITORY")
@click.option("--host", "source", metavar="SOURCE", required=True, help="The host that was backed up.")
@click.option("--to", "host", metavar="HOST", help="The host that gets the files.", show_default="SOURCE")
@click.option(
    "--snapshot", metavar="ID", help="The snapshot, by the first digits of its id.", show_default="the newest"
)
@click.option("--before", metavar="TIME", help="The newest snapshot that is not later than this: 2026-03-29T02:00.")
@click.option("--path", "paths", metavar="P", multiple=True, help="Only this file or folder; may be given again.")
@click.option("--target", metavar="DIR", required=True, help="The folder on the host to put the files below.")
@click.option("--overwrite", is_flag=True, help="Also where DIR is not empty: files in it may be replaced.")
@click.option(
    "--setuid-and-devices",
    "special",
    is_flag=True,
    help="Restore setuid and setgid bits, file capabilities and devices, too.",
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
    """Restore files of a host, there or elsewhere.

    Each file is put below DIR by its whole path: /etc/hosts becomes DIR/etc/hosts. This waits until it is done; the
    exit code is 1 when it failed. A host that is offline does it when it is back.
    """
    from cli import restoring

    given = {"host": host, "snapshot": snapshot, "before": before and restoring.when(before), "paths": list(paths)}
    spec = {"sourceHost": source, "target": target, "overwrite": overwrite, "setuidAndDevices": special}
    restoring.restore(access, repository, spec | {name: it for name, it in given.items() if it})


@main.command()
@click.argument("repository", metavar="[NAMESPACE/]REPOSITORY")
@click.option("--host", help="Snapshots of this host only; needed where the URL holds {host}.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="How many to show, newest first.", show_default="all")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@options.access
def snapshots(access: options.Access, repository: str, host: str | None, limit: int | None, output: str) -> None:
    """List the snapshots in a repository.

    A connected host lists them: the one of --host, or where it is offline another that uses the repository.
    """
    from cli import restoring

    restoring.snapshots(access, repository, host, limit, output)


@main.command()
@click.argument("repository", metavar="[NAMESPACE/]REPOSITORY")
@click.argument("snapshot")
@click.argument("path", default="/")
@click.option("--host", help="The host that was backed up; needed where the URL holds {host}.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@options.access
def ls(access: options.Access, repository: str, snapshot: str, path: str, host: str | None, output: str) -> None:
    """List what a folder of a snapshot holds.

    SNAPSHOT is the first digits of its id, or latest.
    """
    from cli import restoring

    restoring.files(access, repository, snapshot, path, host, output)


@main.command()
@click.argument("what", metavar="host", type=click.Choice(["host"]))
@click.argument("name")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="A label; may be given again.")
@options.access
def create(access: options.Access, what: str, name: str, labels: tuple[str, ...]) -> None:
    """Make a host known: create host NAME.

    Schedules select it by its labels. To enrol its agent, `lamplighter enrol NAME`. Beside a cluster, declare a Host
    there instead.
    """
    from cli import ask

    ask.create_host(access, name, labels)


@main.command()
@click.argument("what", metavar="host", type=click.Choice(["host"]))
@click.argument("name")
@options.access
def delete(access: options.Access, what: str, name: str) -> None:
    """Forget a host: delete host NAME.

    Stop its agent first. The host's key is valid no more; its jobs stay in the history.
    """
    from cli import ask

    ask.delete_host(access, name)


@main.command()
@click.argument("host")
@click.option(
    "--expires-in",
    metavar="SECONDS",
    type=click.IntRange(60, 7 * 24 * 3600),
    default=3600,
    show_default=True,
    help="How many seconds the token is valid.",
)
@options.access
def enrol(access: options.Access, host: str, expires_in: int) -> None:
    """Make a token for the agent of a HOST.

    With it, once, the agent gets a key of its own. The host must be known first: `lamplighter create host`, or declare
    a Host.
    """
    from cli import ask

    ask.enrol(access, host, expires_in)


@main.command()
@click.argument("host")
@options.access
def revoke(access: options.Access, host: str) -> None:
    """Take the key of a HOST away.

    Its agent is cut off, until it is enrolled again.
    """
    from cli import ask

    ask.revoke(access, host)


def _not_installed(error: ModuleNotFoundError, command: str) -> click.ClickException:
    """The error that names the extra by which what a command needs is installed."""
    package = (error.name or "").partition(".")[0]
    extra = "postgresql" if package == "psycopg" else EXTRAS.get(command, "cli")
    remedy = f"install Lamplighter with the extra `{extra}`, as in pip install '….whl[{extra}]'"
    return click.ClickException(f"`lamplighter {command}` needs the Python package {package}: {remedy}")


def _run(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run until the work ends, or until SIGINT or SIGTERM asks it to; a second signal ends at once."""

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _asked, stop, number)
        await work(stop)

    try:
        asyncio.run(supervised())
    except Exception as raised:
        error = _user_error(raised)
        if error is None:
            raise
        raise click.ClickException(str(error)) from None


def _asked(stop: asyncio.Event, number: int) -> None:
    if stop.is_set():
        sys.exit(128 + number)
    stop.set()


def _user_error(error: BaseException) -> BaseException | None:
    """The error that tells a person what to mend, where it is just that; None for a defect of ours."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, click.ClickException):
        return error
    known = {"ServerError", "JournalError", "StoreError", "VaultError", "ControllerError", "KeysError"}
    return error if known & {kind.__name__ for kind in type(error).__mro__} else None
