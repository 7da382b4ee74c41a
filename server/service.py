"""The server as a service: store, control plane, gateway and REST in one process, from start to a clean stop."""

import asyncio
import gc
import logging
import resource
import secrets
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from listener.accept import Listener, ListenError, bind, connection_limit
from server import history, kubernetes, records, rest, tls, tokens, transport
from server.control import Control
from server.enrolment import KEY_PREFIX, Enrolment
from server.gateway import Gateway
from server.grants import Grants, GrantsError
from server.history import Keep
from server.identity import Files, Identity, Reviews
from server.restores import Restores
from server.standing import Standing
from server.store import Store
from server.urls import SCHEMES
from server.vault import Vault

log = logging.getLogger(__name__)

GC_THRESHOLDS = (50_000, 5, 2)
"""Python's own are for small programs: each burst here would have it walk, several times, all that thousands of idle
connections hold. A full walk still comes with every half a million objects more, long before cycles fill the memory."""


class Config(Struct, frozen=True):
    """How a server is set up. `data`: its folder; `database`: an SQLAlchemy URL, SQLite in the folder when empty.

    `auth`: whether callers are known by the token files in the folder or by the reviews of a cluster, the one that this
    runs in unless `cluster` names another; there, `agent_service_account` is that of agents, NAMESPACE/NAME.
    `vault_key`: the file with the keys that seal credentials, in the folder when None. `grants`: the
    file that says what namespaces may reach, everything when None. `schemes`: the kinds of repositories' URLs that
    are allowed. `keep_jobs`, `keep_jobs_days`: see `history.Keep`.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8700
    database: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    auth: Literal["file", "kubernetes"] = "file"
    agent_service_account: str = ""
    cluster: kubernetes.Config | None = None
    vault_key: Path | None = None
    grants: Path | None = None
    keep_jobs: int = Keep().jobs
    keep_jobs_days: int = Keep().days
    schemes: tuple[str, ...] = SCHEMES


class ServerError(Exception):
    """The server cannot start; the message says why and what to do."""


class Running(Struct, frozen=True):
    """A server that answers. `port`: the one that was bound. The tokens are empty where a cluster knows callers.

    `refuses`: why nothing can be stored now; empty when it can.
    """

    port: int
    admin_token: str
    agent_token: str
    control: Control
    refuses: Callable[[], Awaitable[str]]

    def __repr__(self) -> str:
        return f"Running(port={self.port})"


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def new_id() -> str:
    """32 hexadecimal digits that no other thing has (UUID version 4 without dashes)."""
    return uuid.UUID(bytes=secrets.token_bytes(16), version=4).hex


@asynccontextmanager
async def serving(config: Config, clock: Callable[[], datetime] = utc_now) -> AsyncIterator[Running]:
    """Serve while entered; on leaving, requests end, connections close and the store is closed, in bounded time.

    Raises ServerError when the folder or the certificate cannot be used or the address is taken; StoreError when the
    store cannot be, or belongs to another server.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each agent
    secure = _tls_context(config)
    with _bound(config) as listening:
        async with _opened(config) as (store, vault), _identity(config) as identity:
            grants = _grants(config)
            control = Control(store, vault, clock, new_id, grants, config.schemes)
            await control.load()
            if control.hosts:
                log.info("carrying on", extra={"hosts": len(control.hosts), "schedules": len(control.schedules)})
            enrolment = Enrolment(store, clock)
            control.metrics.registry.register(Standing(control, store))
            gateway = Gateway(control, store, partial(_agent, identity, enrolment), clock, new_id)
            enrolment.ended = gateway.disconnect
            restores = Restores(control, store, clock, new_id, grants)
            app = application(gateway, rest.routes(control, store, enrolment, identity, restores))
            tidying = _running(history.follow(store, Keep(config.keep_jobs, config.keep_jobs_days), clock))
            async with (
                tidying,
                _running(control.follow_clock()),
                gateway.running(),
                transport.serving(app, Listener(listening, connection_limit(), secure)),
                _while_ours(store),
            ):
                admin, agents = (identity.admin, identity.agents) if isinstance(identity, Files) else ("", "")
                try:
                    yield Running(listening.getsockname()[1], admin, agents, control, partial(_refuses, store, clock))
                finally:
                    control.news.end()
                    control.jobs.close()


async def _agent(identity: Identity, enrolment: Enrolment, token: str) -> str:
    """The host that an agent's token is for: a key of its own, or whatever else makes an agent here."""
    return await (enrolment.host_of(token) if token.startswith(KEY_PREFIX) else identity.agent(token))


@asynccontextmanager
async def _identity(config: Config) -> AsyncIterator[Identity]:
    """How callers are known. Raises ServerError, with the remedy."""
    if config.auth == "file":
        yield _files(config.data)
        return
    if not all(config.agent_service_account.partition("/")):
        raise ServerError("--auth kubernetes needs --agent-service-account NAMESPACE/NAME")
    try:
        api = kubernetes.Client(config.cluster or kubernetes.in_cluster())
    except kubernetes.KubernetesError as error:
        raise ServerError(str(error)) from error
    async with api:
        yield Reviews(api, config.agent_service_account)


def _grants(config: Config) -> Grants:
    try:
        return Grants.load(config.grants) if config.grants is not None else Grants()
    except GrantsError as error:
        raise ServerError(f"--grants {error}") from error


def _files(data: Path) -> Files:
    try:
        return Files(tokens.load(data / "admin-token"), tokens.load(data / "agent-token"))
    except (OSError, ValueError) as error:
        raise ServerError(f"{data}: {error}") from error


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """While entered, something goes on beside."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _refuses(store: Store, clock: Callable[[], datetime]) -> str:
    return await store.refuses(records.probe, clock())


@asynccontextmanager
async def _while_ours(store: Store) -> AsyncIterator[None]:
    """While entered, to lose the store ends what is done. Raises StoreLostError, in a group, when it is lost."""
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(store.until_lost())
        try:
            yield
        finally:
            watching.cancel()


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[tuple[Store, Vault]]:
    """What a server keeps: its store and its vault."""
    try:
        config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        vault = Vault.open(config.vault_key or config.data / "vault-key")
        store = await asyncio.to_thread(Store.open, config.database or config.data / "lamplighter.db")
    except (OSError, ValueError) as error:
        raise ServerError(f"{config.data}: {error}") from error
    try:
        yield store, vault
    finally:
        await store.close()


def application(gateway: Gateway, routes: Sequence[BaseRoute]) -> ASGIApp:
    """Everything that is served, as one ASGI application: the agents' gateway and these routes.

    A connection of an agent does not pass through Starlette's layers, each of which would hold a frame of its own as
    long as the connection lives.
    """
    web = rest.application(routes)

    def app(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "websocket" and scope["path"] == "/agent":
            return gateway.endpoint(WebSocket(scope, receive, send))
        return web(scope, receive, send)

    return app


def _tls_context(config: Config) -> ssl.SSLContext | None:
    if config.tls_cert is None:
        return None
    try:
        return tls.server_context(config.tls_cert, config.tls_key)
    except OSError as error:
        raise ServerError(f"--tls-cert {config.tls_cert}: {error}: give a chain and its key in PEM") from error


def _bound(config: Config) -> socket.socket:
    """A listening socket, bound before anything else so that a taken port is told at once."""
    try:
        return bind(config.host, config.port, "--listen")
    except ListenError as error:
        raise ServerError(str(error)) from error
