"""Options that several commands share. An environment variable sets each of them too."""

import functools
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from cli.completing import names, namespaces

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PREFIX = "LAMPLIGHTER_"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""The type of a file that must be there."""


def option(name: str, *parameter: str, **settings: Any) -> Decorator:
    """An option `--some-name` that LAMPLIGHTER_SOME_NAME also sets; `parameter` names the function's argument."""
    variable = PREFIX + name.removeprefix("--").replace("-", "_").upper()
    return click.option(
        name, *parameter, envvar=variable, show_envvar=True, **{"show_default": "default" in settings} | settings
    )


def this_host() -> str:
    """This machine's name as Kubernetes would write it (RFC 1123: lower case, no underscores)."""
    return socket.gethostname().lower().replace("_", "-")


def _schemes() -> tuple[str, ...]:
    """The default of --allow-scheme, from the server, which not every command has installed."""
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
    help="A program on this host that Schedules may run before and after a job, with any arguments; repeatable.",
)
allow_unconfined = option(
    "--allow-unconfined",
    is_flag=True,
    help="Run jobs of namespaces with granted paths even if the kernel cannot confine them (Landlock, Linux 5.13 or "
    "newer). A symbolic link can then lead such a job out of its paths.",
)
max_jobs = option(
    "--max-concurrent-jobs",
    "max_jobs",
    type=click.IntRange(min=1),
    show_default="any number",
    help="How many jobs run on this host at once, of all Schedules; others wait for their turn.",
)
grants = option(
    "--grants", type=FILE, help="File with what each namespace may reach (YAML).", show_default="everything"
)
host = option(
    "--host",
    default=this_host,
    show_default="this machine's name",
    help="The name of the host that this agent runs on.",
)
schemes = option(
    "--allow-scheme",
    "schemes",
    metavar="SCHEME",
    multiple=True,
    default=_schemes,
    show_default="all but rclone",
    help="A URL scheme that Repositories may use; repeatable. `rclone` lets authors of Repositories run programs.",
)
log_format = option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Format of log lines on stderr."
)
log_level = option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Least severe level that is logged.",
)
allow_empty = option(
    "--allow-empty",
    is_flag=True,
    help="Delete what DIR no longer declares, even if that is more than half of what the server has from it.",
)
metrics_listen = option(
    "--metrics-listen",
    metavar="ADDRESS:PORT",
    default="",
    show_default=False,
    help="Serve /metrics, /healthz and /readyz here, over HTTP.",
)
keep_jobs = option(
    "--keep-jobs",
    type=click.IntRange(min=1),
    default=100_000,
    help="How many jobs to keep, with logs. The last run and last success of each schedule and host always stay.",
)
keep_jobs_days = option(
    "--keep-jobs-days",
    type=click.IntRange(min=1, max=36500),
    default=90,
    help="How many days to keep jobs and the audit log.",
)
heartbeat_url_file = option(
    "--heartbeat-url-file",
    type=FILE,
    help="File with a URL that is called while everything is well, so that somebody notices when it is not any more.",
)
heartbeat_seconds = option(
    "--heartbeat-seconds", type=click.FloatRange(min=1), default=60.0, help="Seconds between two such calls."
)
server_url = option("--server", default="http://127.0.0.1:8700", help="The server's URL.")
token_file = option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="File with the token.",
    show_default="in the data folder",
)


ca_file = option(
    "--ca-file",
    type=FILE,
    help="CA certificates for the server (PEM), instead of the system's.",
)


class Cluster(NamedTuple):
    """What reaches the server of a cluster. `service`: NAMESPACE/NAME. `ca`: certificates in PEM, "" for the system's.

    `tls_name`: the name that the server's certificate must have.
    """

    service: str
    token: str
    ca: str
    tls_name: str


class Access(NamedTuple):
    """How to reach a server: its URL, the folder or file with the token, and the CA certificates to trust.

    `namespace`: what is asked for is in there; empty for all namespaces, and for `default` where one is needed.
    `cluster`: the token and the CA, where kubectl leads to the server.
    """

    server: str
    data_dir: Path
    token_file: Path | None
    ca_file: Path | None
    namespace: str = ""
    cluster: Cluster | None = None


def refuse_given(why: str, *parameters: str) -> None:
    """Raise click.UsageError, with the reason, if one of these was given on the command line without effect.

    An environment variable is not an error: it may be meant for another command.
    """
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if parameter.name in parameters and given:
            raise click.UsageError(f"{parameter.opts[0]}: {why}")


def access(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that calls a server; it gets them as `access`."""

    @server_url
    @data_dir
    @token_file
    @ca_file
    @functools.wraps(command)
    def asking(server: str, data_dir: Path, token_file: Path | None, ca_file: Path | None, **others: object) -> None:
        command(Access(checked_url(server), data_dir, token_file, ca_file), **others)

    return asking


def access_of(ctx: click.Context) -> Access:
    """How to reach the server that a command line names which is still typed. Raises click.ClickException.

    The context's own object, where it has one, is a function that knows it from the parameters.
    """
    if ctx.obj is not None:
        found: Access = ctx.obj(ctx.params)
        return found
    given = {name: ctx.params.get(name) for name in ("server", "data_dir", "token_file", "ca_file")}
    server, data_dir = given["server"] or "http://127.0.0.1:8700", given["data_dir"] or Path(".lamplighter")
    return Access(checked_url(server), data_dir, given["token_file"], given["ca_file"])


def namespaced(command: Callable[..., None]) -> Callable[..., None]:
    """Add -n and --namespace, to a command that gets `access`: it holds the namespace then.

    -n with a number was --limit before it was a namespace, and is so still where the command has that option.
    """

    @click.option("--namespace", callback=_namespace, help="Only in this namespace.", shell_complete=namespaces)
    @click.option(
        "-n",
        "short_namespace",
        metavar="NAMESPACE",
        callback=_namespace,
        help="The same as --namespace; a number is the same as --limit, as in earlier versions.",
        shell_complete=namespaces,
    )
    @functools.wraps(command)
    def within(access: Access, namespace: str | None, short_namespace: str | None, **others: object) -> None:
        if short_namespace and short_namespace.isdecimal() and "limit" in others:
            if int(short_namespace) < 1:
                raise click.BadParameter(f"-n {short_namespace}: give a number from 1 on, or a namespace")
            others["limit"] = others["limit"] or int(short_namespace)
            short_namespace = None
        chosen = namespace or short_namespace or access.namespace
        if others.pop("all_namespaces", False):
            chosen = ""
        command(access._replace(namespace=chosen), **others)

    return within


def _namespace(_ctx: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """A namespace, as Kubernetes names them (RFC 1123). Raises click.BadParameter."""
    if given is not None and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", given):
        wrong = f"{given!r} is not the name of a namespace: at most 63 lower case letters, digits and '-'"
        raise click.BadParameter(wrong, param=parameter)
    return given


all_namespaces = click.option(
    "-A", "--all-namespaces", is_flag=True, help="In all namespaces, which is so where none is given."
)
limit = click.option(
    "--limit",
    type=click.IntRange(min=1),
    show_default="50",
    help="How many jobs, audit lines or events to show, the newest.",
)
selector = click.option(
    "-l", "--selector", "labels", help="Only what has these labels: tier=db,env!=test,zone in (a,b),!spare."
)
of_schedule = click.option(
    "--schedule",
    metavar="[NAMESPACE/]NAME",
    help="Only jobs of this schedule; give its uid if it was deleted.",
    shell_complete=names("schedules"),
)


def output(*formats: str) -> Decorator:
    """The option -o with these formats, the first by default."""
    return click.option(
        "-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="How to show it."
    )


def asks_server(command: click.Command) -> bool:
    """Whether a command has the options of `access`."""
    return {"server", "token_file"} <= {it.name for it in command.params}


def checked_url(server: str) -> str:
    """A server's URL. Raises click.ClickException, with the remedy; its text has no user name and no password."""
    example = "give one like https://lamplighter.example.org:8700, or http://127.0.0.1:8700 on this machine"
    try:
        url = urlsplit(server)
        valid = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is none, or half an address
        valid = False
    if "@" in server:
        raise click.ClickException(f"--server holds a user name or a password: leave them out; {example}")
    if not valid or url.query or url.fragment:
        raise click.ClickException(f"--server {server or 'is empty'}: not a server's URL; {example}")
    if url.path.rstrip("/").endswith(("/api/v1", "/agent")):
        raise click.ClickException(f"--server {server}: leave out the path; {example}")
    return server


def address(listen_on: str, option: str = "--listen") -> tuple[str, int]:
    """The host and port in "host:port" ("[::1]:8700" for IPv6). Raises click.BadParameter, with the remedy."""
    name, colon, port = listen_on.rpartition(":")
    if not colon or not name or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{option} {listen_on!r} is not ADDRESS:PORT, for example 127.0.0.1:8700")
    return name.strip("[]"), int(port)


START_A_SERVER = "start a server, or give the --data-dir of a running one, or give --token-file"
"""The remedy where a server's token is missing."""
ENROL_OR_NAME = (
    "enrol this host with --enrol-token-file and a token of `lamplighter enrol`, or give the server's agent-token with "
    "--token-file, or its --data-dir"
)
"""The remedy where an agent has neither a key nor a token."""


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
    """A function that reads the token from its file at each call, because some tokens are replaced.

    Raises click.ClickException when there is no token now. The function raises OSError.
    """
    read_token(path, remedy)
    return lambda: path.read_text(encoding="ascii", errors="replace").strip()
