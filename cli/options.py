"""Options that several commands share. Each can also be given by an environment variable of its name."""

import functools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PREFIX = "LAMPLIGHTER_"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""The type of a file that must be there."""


def option(name: str, *parameter: str, **settings: Any) -> Decorator:
    """A flag `--some-name` with the environment variable LAMPLIGHTER_SOME_NAME, as `parameter` where that is named."""
    variable = PREFIX + name.removeprefix("--").replace("-", "_").upper()
    return click.option(
        name, *parameter, envvar=variable, show_envvar=True, **{"show_default": "default" in settings} | settings
    )


def this_host() -> str:
    """This machine's name as Kubernetes would write it (RFC 1123: lower case, no underscores)."""
    return socket.gethostname().lower().replace("_", "-")


def _schemes() -> tuple[str, ...]:
    """The kinds of URLs that are allowed unless told otherwise."""
    from server.resources.urls import SCHEMES

    return SCHEMES


data_dir = option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".lamplighter"),
    help="Folder for the store, the journal, keys and tokens.",
)
listen = option("--listen", default="127.0.0.1:8700", help="Address and port to serve on.")
restic = option("--restic", default="restic", help="The restic program to run.")
allow_hooks = option(
    "--allow-hook",
    "allow_hooks",
    metavar="PATH",
    multiple=True,
    help="A program of this host that Schedules may have run before and after a job, with arguments of their choice; "
    "may be given again.",
)
allow_unconfined = option(
    "--allow-unconfined",
    is_flag=True,
    help="Run jobs of namespaces that are granted a part of the host also where the kernel cannot hold them to it "
    "(Landlock: since Linux 5.13, unless turned off). Then a symbolic link may lead them out.",
)
grants = option("--grants", type=FILE, help="What namespaces may reach (YAML).", show_default="everything")
host = option("--host", default=this_host, show_default="this machine's name", help="The host that this agent is.")
schemes = option(
    "--allow-scheme",
    "schemes",
    metavar="SCHEME",
    multiple=True,
    default=_schemes,
    show_default="all but rclone",
    help="A kind of URL that Repositories may have; may be given again. With rclone, their authors can run programs.",
)
log_format = option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="How log lines are written to stderr."
)
log_level = option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="The least important lines that are written.",
)
allow_empty = option(
    "--allow-empty",
    is_flag=True,
    help="Delete what DIR declares no more, even where that is more than half of all that the server has of it.",
)
metrics_listen = option(
    "--metrics-listen",
    metavar="ADDRESS:PORT",
    default="",
    show_default=False,
    help="Serve /metrics, /healthz and /readyz there, over HTTP.",
)
keep_jobs = option(
    "--keep-jobs",
    type=click.IntRange(min=1),
    default=100_000,
    help="How many jobs are kept, with their logs; the last of a schedule on a host, and the last success, always are.",
)
keep_jobs_days = option(
    "--keep-jobs-days",
    type=click.IntRange(min=1, max=36500),
    default=90,
    help="For how many days jobs and the audit log are kept.",
)
server_url = option("--server", default="http://127.0.0.1:8700", help="The server's URL.")
token_file = option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="File with the token; found in the data folder when not given.",
)


ca_file = option(
    "--ca-file",
    type=FILE,
    help="Authorities that vouch for the server (PEM), instead of the system's.",
)


class Access(NamedTuple):
    """Where a server is, who vouches for it, and what proves who asks it."""

    server: str
    data_dir: Path
    token_file: Path | None
    ca_file: Path | None


def refuse_given(why: str, *parameters: str) -> None:
    """Raises click.UsageError where one of these was given on the command line, for it would mean nothing.

    From the environment it may come for another command.
    """
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if parameter.name in parameters and given:
            raise click.UsageError(f"{parameter.opts[0]}: {why}")


def access(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that speaks with a server; it gets them as `access`."""

    @server_url
    @data_dir
    @token_file
    @ca_file
    @functools.wraps(command)
    def asking(server: str, data_dir: Path, token_file: Path | None, ca_file: Path | None, **others: object) -> None:
        command(Access(checked_url(server), data_dir, token_file, ca_file), **others)

    return asking


def checked_url(server: str) -> str:
    """The URL of a server. Raises click.ClickException, with the remedy and without what may be a password."""
    example = "give one like https://lamplighter.example.org:8700, or http://127.0.0.1:8700 on this machine"
    try:
        url = urlsplit(server)
        valid = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is none, or half an address
        valid = False
    if "@" in server:
        raise click.ClickException(f"--server holds a user name or a password: leave them out; {example}")
    if not valid or url.query or url.fragment:
        raise click.ClickException(f"--server {server or 'is empty'}: this is no URL of a server; {example}")
    if url.path.rstrip("/").endswith(("/api/v1", "/agent")):
        raise click.ClickException(f"--server {server}: leave out the path; {example}")
    return server


def address(listen_on: str, option: str = "--listen") -> tuple[str, int]:
    """The host and port of "host:port" ("[::1]:8700" for IPv6). Raises click.BadParameter, with the remedy."""
    name, colon, port = listen_on.rpartition(":")
    if not colon or not name or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{option} {listen_on!r} is not ADDRESS:PORT, for example 127.0.0.1:8700")
    return name.strip("[]"), int(port)


START_A_SERVER = "start a server, give the --data-dir of one that was started elsewhere, or give --token-file"
"""What to do where a server's token is missing."""
ENROL_OR_NAME = (
    "enrol this host with --enrol-token-file and a token of `lamplighter enrol`, or give the server's agent-token with "
    "--token-file, or its --data-dir"
)
"""What to do where an agent has neither a key nor a token."""


def read_token(path: Path, remedy: str = START_A_SERVER) -> str:
    """The token in a file. Raises click.ClickException, with the remedy, when it cannot be read."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise click.ClickException(f"no token in {path} ({error.strerror}): {remedy}") from None
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not token:
        raise click.ClickException(f"{path} holds no token: {remedy}")
    return token


def token_reader(path: Path, remedy: str = START_A_SERVER) -> Callable[[], str]:
    """Reads the token in a file as it is then, for some are replaced.

    Raises click.ClickException at once when there is none; the reader raises OSError.
    """
    read_token(path, remedy)
    return lambda: path.read_text(encoding="ascii", errors="replace").strip()
