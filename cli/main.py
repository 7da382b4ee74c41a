"""The `lamplighter` command. Each command imports its part only when it runs."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from cli import logs, options

EPILOG = """
\b
First steps:
  lamplighter up examples/quickstart    a server, its agent and your schedules, all on this machine
  lamplighter get schedules             what is declared, and whether every host holds it
  lamplighter get jobs                  what ran, and how it ended
  lamplighter logs JOB                  what restic said

Every option can be set by an environment variable, which its help names.
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lamplighter")
def main() -> None:
    """Backs up what lives on your machines: schedules are declared, and each due run happens once on each host.

    A server holds what every host should do, agents do it with restic, and `get` shows which host did not.
    """


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.data_dir
@options.listen
@options.host
@options.restic
@options.log_format
@options.log_level
def up(folder: Path, data_dir: Path, listen: str, host: str, restic: str, log_format: str, log_level: str) -> None:
    """Run everything on this machine: a server, an agent, and the resources in DIR.

    DIR holds Schedules and Repositories as YAML, the same that `kubectl apply` takes. Edit, add or delete a file, and
    the fleet follows; a file that is wrong says what is wrong in it and leaves the rest running.
    """
    from cli import up as parts

    logs.setup(log_format, log_level)
    address = options.address(listen)
    _run(lambda stop: parts.up(folder, data_dir, address, host, restic, stop))


@main.command()
@options.data_dir
@options.listen
@options.option("--database", default="", help="SQLAlchemy URL of the store.", show_default="SQLite in the data folder")
@options.option("--tls-cert", type=click.Path(exists=True, path_type=Path), help="Certificate chain (PEM), for TLS.")
@options.option("--tls-key", type=click.Path(exists=True, path_type=Path), help="The certificate's key (PEM).")
@options.log_format
@options.log_level
def server(
    data_dir: Path,
    listen: str,
    database: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    log_format: str,
    log_level: str,
) -> None:
    """Run the server alone: the store, the REST API and the agents' gateway.

    The data folder gets `admin-token` for people and scripts, and `agent-token` for agents.
    """
    from cli import up as parts

    logs.setup(log_format, log_level)
    host, port = options.address(listen)
    _run(lambda stop: parts.server(data_dir, host, port, database, (tls_cert, tls_key), stop))


@main.command()
@options.server_url
@options.data_dir
@options.token_file
@options.host
@options.restic
@options.log_format
@options.log_level
def agent(
    server: str, data_dir: Path, token_file: Path | None, host: str, restic: str, log_format: str, log_level: str
) -> None:
    """Run the agent alone, for one host.

    It keeps its cron and its journal in the data folder, and goes on while the server cannot be reached.
    """
    from cli import agent as parts

    logs.setup(log_format, log_level)
    token = options.read_token(token_file, data_dir / "agent-token")
    _run(lambda stop: parts.agent(server, token, data_dir, host, restic, stop))


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.server_url
@options.data_dir
@options.token_file
@options.log_format
@options.log_level
def controller(
    folder: Path, server: str, data_dir: Path, token_file: Path | None, log_format: str, log_level: str
) -> None:
    """Run the controller alone: make a server's desired state equal to the resources in DIR."""
    from cli import up as parts

    logs.setup(log_format, log_level)
    token = options.read_token(token_file, data_dir / "admin-token")
    _run(lambda stop: parts.controller(folder, server, token, stop))


@main.command()
@click.argument("what", metavar="WHAT", type=click.Choice(["hosts", "schedules", "repositories", "jobs", "audit"]))
@click.option("--host", help="Jobs of this host only.")
@click.option("--schedule", help="Jobs of this schedule only, as namespace/name.")
@click.option("--status", help="Jobs with this status only.")
@click.option("-n", "--limit", default=50, show_default=True, help="Jobs and audit lines that are shown, newest first.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@options.server_url
@options.data_dir
@options.token_file
def get(**arguments: object) -> None:
    """Show hosts, schedules, repositories, jobs or the audit log."""
    from cli import ask

    ask.get(**arguments)  # type: ignore[arg-type]


@main.command()
@click.argument("schedule", metavar="[NAMESPACE/]NAME")
@click.option("--host", "hosts", multiple=True, help="Only on this host; may be given again.")
@options.server_url
@options.data_dir
@options.token_file
def run(**arguments: object) -> None:
    """Run a schedule now, once, on every host that it selects."""
    from cli import ask

    ask.run(**arguments)  # type: ignore[arg-type]


@main.command()
@click.argument("job")
@options.server_url
@options.data_dir
@options.token_file
def cancel(**arguments: object) -> None:
    """Cancel a job. The first digits of its id are enough."""
    from cli import ask

    ask.cancel(**arguments)  # type: ignore[arg-type]


@main.command(name="logs")
@click.argument("job")
@options.server_url
@options.data_dir
@options.token_file
def job_logs(**arguments: object) -> None:
    """Show what restic said in a job. The first digits of its id are enough."""
    from cli import ask

    ask.job_logs(**arguments)  # type: ignore[arg-type]


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
    except* Exception as group:
        error = _user_error(group)
        if error is None:
            raise
        click.echo(f"lamplighter: {error}", err=True)
        sys.exit(1)


def _asked(stop: asyncio.Event, number: int) -> None:
    if stop.is_set():
        sys.exit(128 + number)
    stop.set()


def _user_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The error that tells a person what to mend, where the group holds just that; None for a defect of ours."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    known = ("ServerError", "JournalError", "StoreError", "VaultError", "ControllerError")
    return error if type(error).__name__ in known else None
