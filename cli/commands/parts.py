"""The commands that run a part until it is asked to stop (`up`, `server`, `agent`, `controller`), and `keys`."""

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli import logs, options
from cli.terminal import say


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.data_dir
@options.listen
@options.host
@options.allow_empty
@options.restic
@options.allow_hooks
@options.allow_unconfined
@options.max_jobs
@options.grants
@options.schemes
@options.keep_jobs
@options.keep_jobs_days
@options.heartbeat_url_file
@options.heartbeat_seconds
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
    max_jobs: int | None,
    metrics_listen: str,
    log_format: str,
    log_level: str,
    **settings: Any,
) -> None:
    """Run everything on this machine, from the resources in DIR.

    One process runs a server, an agent for this machine, and a controller of DIR. DIR holds Schedules, Repositories and
    Hosts as YAML files, in the form that `kubectl apply` takes. Edit, add or delete a file while this runs, and the
    hosts follow. A mistake in a file is logged with the file, the line and the remedy; everything else keeps running.
    """
    with importing():
        from cli import up as parts
        from cli.agent import Local
        from server.app import Config

    logs.setup(log_format, log_level)
    address = options.address(listen)
    local = Local(restic, allow_hooks=allow_hooks, allow_unconfined=allow_unconfined, max_jobs=max_jobs)
    config = Config(data_dir, *address, **settings)
    follow = partial(parts.up, folder, config, host, local, allow_empty=allow_empty, metrics_listen=metrics_listen)
    _run(follow)


@click.command()
@options.data_dir
@options.listen
@options.option("--database", default="", help="SQLAlchemy URL of the store.", show_default="SQLite in the data folder")
@options.option(
    "--database-direct",
    metavar="URL",
    default="",
    show_default="--database",
    help="The same database past a connection pooler, for the one connection of each server that none may share.",
)
@options.option(
    "--replica-name", default="", show_default="this machine's name", help="How other servers' logs call this one."
)
@options.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    show_default="10 with PostgreSQL, 0 with SQLite",
    help="Seconds over which a server that stops sends its agents to the others.",
)
@options.option(
    "--tls-cert", type=options.FILE, help="Certificate chain for TLS (PEM); reloaded when the file changes."
)
@options.option("--tls-key", type=options.FILE, help="The certificate's key (PEM).", show_default="in the same file")
@options.option(
    "--vault-key-file",
    type=options.FILE,
    help="File with the keys that encrypt credentials in the store, one on each line.",
    show_default="vault-key in the data folder, created when missing",
)
@options.option(
    "--proxy-auth-secret-file",
    "proxy_auth_secret",
    type=options.FILE,
    help="File with the secret by which a proxy that signs people in to the pages proves itself. See docs/pages.md.",
)
@options.option(
    "--auth",
    type=click.Choice(["file", "kubernetes"]),
    default="file",
    help="How callers and agents are identified: by tokens in the data folder, or by the cluster.",
)
@options.option(
    "--agent-service-account",
    metavar="NAMESPACE/NAME",
    default="",
    show_default=False,
    help="Service account of the agents' pods; required with --auth kubernetes.",
)
@options.option(
    "--kubernetes-api", metavar="URL", help="API server that identifies callers.", show_default="this cluster"
)
@options.grants
@options.schemes
@options.keep_jobs
@options.keep_jobs_days
@options.heartbeat_url_file
@options.heartbeat_seconds
@options.option("--kubernetes-token-file", type=options.FILE, help="The server's own token for --kubernetes-api.")
@options.option("--kubernetes-ca-file", type=options.FILE, help="CA certificates for --kubernetes-api (PEM).")
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
    """Run only the server.

    The server keeps the store, serves the REST API and pushes schedules to agents. It creates two files in the data
    folder: `admin-token` for people and scripts, and `agent-token` for agents. With --auth kubernetes it uses neither:
    the cluster identifies agents by service account and node, and RBAC decides what callers may do.
    """
    if settings["auth"] == "file":
        known = ("agent_service_account", "kubernetes_api", "kubernetes_token_file", "kubernetes_ca_file")
        options.refuse_given("only with --auth kubernetes", *known)
    if kubernetes_api is None:
        options.refuse_given("only with --kubernetes-api", "kubernetes_token_file", "kubernetes_ca_file")
    if settings["tls_cert"] is None:
        options.refuse_given("only with --tls-cert", "tls_key")

    with importing():
        from cli import up as parts
        from server.app import Config

    logs.setup(log_format, log_level)
    host, port = options.address(listen)
    cluster = parts.cluster(kubernetes_api, kubernetes_token_file, kubernetes_ca_file)
    config = Config(data_dir, host, port, vault_key=vault_key_file, cluster=cluster, **settings)
    _run(lambda stop: parts.server(config, metrics_listen, stop))


@click.command()
@options.access
@options.host
@options.restic
@options.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="Where the host's root folder is mounted, in a pod; the data folder must be below it.",
)
@options.allow_hooks
@options.allow_unconfined
@options.max_jobs
@options.option(
    "--drain-seconds",
    "drain_s",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds for which an agent that is asked to stop begins nothing new and waits for running jobs.",
)
@options.option(
    "--enrol",
    metavar="TOKEN",
    default="",
    show_default=False,
    help="One-time token from `lamplighter enrol`; the agent registers its own key with it.",
)
@options.option("--enrol-token-file", type=options.FILE, help="File that holds the token for --enrol.")
@click.option(
    "--once",
    is_flag=True,
    help="Check this host, and end: ask the server what the host is to hold, and look whether each job would find "
    "restic, its repository, its programs and its paths. The exit code is 1 if anything is wrong.",
)
@options.metrics_listen
@options.log_format
@options.log_level
def agent(
    access: options.Access,
    host: str,
    restic: str,
    enrol: str,
    enrol_token_file: Path | None,
    once: bool,
    root: Path,
    allow_hooks: tuple[str, ...],
    allow_unconfined: bool,
    max_jobs: int | None,
    drain_s: float,
    metrics_listen: str,
    log_format: str,
    log_level: str,
) -> None:
    """Run only the agent, for one host.

    The agent keeps its schedules and its journal in the data folder, and keeps running while the server cannot be
    reached. With a token from `lamplighter enrol` it creates a key of its own, the file `host-key` in the data folder,
    and from then on uses that key and ignores --token-file. To enrol again, delete the file.

    With --once it runs no job and writes to no repository, also while an agent of this host runs. Enrol a new host
    with it, and start the agent when all is well.
    """
    if enrol and enrol_token_file is not None:
        options.refuse_given("--enrol gives a token already: use one of the two", "enrol_token_file")

    from cli import agent as parts

    logs.setup(log_format, log_level)
    if enrol_token_file is not None:
        enrol = options.read_token(enrol_token_file, "make one with `lamplighter enrol HOST`, where the server is")
    server, data_dir, token_file, ca_file, *_ = access
    if enrol:
        parts.enrol(server, enrol, host, data_dir, ca_file)
    path = parts.own_key(data_dir, token_file) or token_file or data_dir / "agent-token"
    token = options.token_reader(path, options.ENROL_OR_NAME)
    how = parts.Local(restic, root, allow_hooks, allow_unconfined, max_jobs, drain_s)
    if once:
        asyncio.run(parts.once(server, token, data_dir, host, how, ca_file))
        return
    _run(lambda stop: parts.agent(server, token, data_dir, host, how, stop, ca_file, metrics_listen))


@click.command()
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@options.option("--namespace", "namespaces", multiple=True, help="Follow only this namespace; repeatable.")
@options.option(
    "--host-namespace",
    default="lamplighter-system",
    help="The namespace of Host resources; those elsewhere are ignored.",
)
@click.option(
    "--lease/--no-lease",
    envvar="LAMPLIGHTER_LEASE",
    show_envvar=True,
    default=True,
    help="Whether to work only while holding the Lease, so that one replica works at a time.",
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
    """Run only the controller, on a cluster or on DIR.

    The controller keeps the server equal to the resources in the cluster or in DIR. In a pod it uses the pod's service
    account, elsewhere KUBECONFIG.
    """
    if folder is not None:
        options.refuse_given("for a cluster, not for DIR", "namespaces", "host_namespace", "lease")
    else:
        options.refuse_given("for DIR, not for a cluster", "allow_empty")

    with importing():
        from cli import controller as parts

    logs.setup(log_format, log_level)
    token = options.token_reader(access.token_file or access.data_dir / "admin-token")
    client = (access.server, token, access.ca_file)
    if folder is not None:
        _run(partial(parts.folder, folder, client, allow_empty=allow_empty, metrics_listen=metrics_listen))
    else:
        follow = partial(parts.cluster, client, host_namespace, namespaces, lease=lease, metrics_listen=metrics_listen)
        _run(follow)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--secret", default="", help="The Secret for the keys; it must exist and may be empty.")
@click.option(
    "--config-map",
    default="",
    help="The ConfigMap for the CA's certificate, for agents and the controller; it must exist and may be empty.",
)
@click.option("--tls-name", "names", multiple=True, help="A DNS name or address of the server; repeatable.")
@click.option(
    "--self-signed",
    is_flag=True,
    help="For a server outside a cluster: create a CA and a certificate in DIR. It is for localhost too.",
)
@click.option(
    "--vault-key/--no-vault-key", default=True, help="Whether to create the key that encrypts credentials in the store."
)
@options.log_format
@options.log_level
def keys(
    folder: Path,
    secret: str,
    config_map: str,
    names: tuple[str, ...],
    self_signed: bool,
    vault_key: bool,
    log_format: str,
    log_level: str,
) -> None:
    """Create a server's missing keys: in its cluster, or a CA and a certificate in DIR.

    The chart runs this in the server's pod before each start of the server. It stores new keys in --secret, in the
    pod's namespace, and writes to DIR those that the server reads. With --tls-name it also creates a CA and a
    certificate.

    With --self-signed it writes to DIR, for each --tls-name: tls.crt and tls.key, which the server gets as --tls-cert
    and --tls-key, and ca.crt, which agents get as --ca-file. Run it again to renew the certificate, or to change its
    names: ca.crt stays.
    """
    if self_signed:
        options.refuse_given("not with --self-signed", "secret", "config_map", "vault_key")
        logs.setup(log_format, log_level)
        _write_own_authority(folder, names)
        return
    if not secret:
        raise click.UsageError("give --secret for a server in a cluster, or --self-signed")
    if names and not config_map:
        raise click.UsageError("--tls-name also needs --config-map, where agents find the CA's certificate")
    if not names:
        options.refuse_given("only with --tls-name", "config_map")

    from cli import keys as parts

    logs.setup(log_format, log_level)
    _run(lambda _: parts.make(secret, config_map, names, folder, vault=vault_key))


def _write_own_authority(folder: Path, names: tuple[str, ...]) -> None:
    """Carry out `keys --self-signed`. Raises click.ClickException, with the remedy."""
    from server.access.keys import CERT, KeysError, own_authority
    from server.app import utc_now

    if not names:
        raise click.UsageError("--self-signed also needs --tls-name, the name by which agents reach the server")
    try:
        made = own_authority(folder, names, utc_now())
    except (KeysError, OSError) as error:
        raise click.ClickException(f"{folder}: {error}") from None
    say(f"made: {', '.join(str(folder / name) for name in made)}" if made else f"{folder / CERT} serves still")


@contextmanager
def importing() -> Iterator[None]:
    """Import a part without Python's garbage collector, which would traverse all modules again and again.

    That is a fifth of the time that a server takes to begin.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _run(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run until the work ends, or until SIGINT or SIGTERM asks it to; a second signal exits at once.

    Raises click.ClickException if the work fails for a reason that a person can correct.
    """

    async def supervised() -> None:
        stop = asyncio.Event()

        def on_signal(number: int) -> None:
            if stop.is_set():
                sys.exit(128 + number)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
        await work(stop)

    try:
        asyncio.run(supervised())
    except Exception as raised:
        error = _user_error(raised)
        if error is None:
            raise
        raise click.ClickException(str(error)) from None


def _user_error(error: BaseException) -> BaseException | None:
    """The error that tells a person what to correct; None if it is a defect of Lamplighter."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, click.ClickException):
        return error
    known = {"ServerError", "JournalError", "StoreError", "VaultError", "ControllerError", "KeysError"}
    return error if known & {kind.__name__ for kind in type(error).__mro__} else None
