"""Options that several commands share. Each can also be given by an environment variable of its name."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PREFIX = "LAMPLIGHTER_"


def option(name: str, **settings: Any) -> Decorator:
    """A flag `--some-name` with the environment variable LAMPLIGHTER_SOME_NAME."""
    variable = PREFIX + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, envvar=variable, show_envvar=True, **{"show_default": "default" in settings} | settings)


def this_host() -> str:
    """This machine's name as Kubernetes would write it (RFC 1123: lower case, no underscores)."""
    return socket.gethostname().lower().replace("_", "-")


data_dir = option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".lamplighter"),
    help="Folder for the store, the journal, keys and tokens.",
)
listen = option("--listen", default="127.0.0.1:8700", help="Address and port to serve on.")
restic = option("--restic", default="restic", help="The restic program to run.")
host = option("--host", default=this_host, show_default="this machine's name", help="The host that this agent is.")
log_format = option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="How log lines are written to stderr."
)
log_level = option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="The least important lines that are written.",
)
server_url = option("--server", default="http://127.0.0.1:8700", help="The server's URL.")
token_file = option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="File with the token; found in the data folder when not given.",
)


def address(listen_on: str) -> tuple[str, int]:
    """The host and port of "host:port" ("[::1]:8700" for IPv6). Raises click.BadParameter, with the remedy."""
    name, colon, port = listen_on.rpartition(":")
    if not colon or not name or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(
            f"{listen_on!r} is not ADDRESS:PORT, for example 127.0.0.1:8700", param_hint="--listen"
        )
    return name.strip("[]"), int(port)


def read_token(given: Path | None, default: Path) -> str:
    """The token in a file. Raises click.UsageError, with the remedy, when it cannot be read."""
    path = given or default
    try:
        return path.read_text().strip()
    except OSError as error:
        remedy = "give --token-file, or the server's --data-dir"
        raise click.UsageError(f"no token: {path}: {error.strerror}: {remedy}") from None
