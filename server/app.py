"""The server: all its parts, built in one readable order, from start to a clean stop."""

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
from typing import Any, Literal, NamedTuple

from msgspec import Struct
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from listener.accept import Listener, ListenError, bind, connection_limit
from server.access import kubernetes, tokens
from server.access.agents import Agents
from server.access.identity import Files, Identity, Reviews
from server.access.vault import Vault
from server.agents.hub import Hub
from server.api import routing
from server.api.services import Services
from server.changes.enrolments import Enrolments
from server.changes.hosts import Hosts
from server.changes.listings import Listings
from server.changes.load import Loader
from server.changes.pipeline import Pipeline
from server.changes.repositories import Repositories
from server.changes.restores import Restores
from server.changes.runs import Runs
from server.changes.schedules import Schedules
from server.events import Events
from server.fleet.catalog import Catalog
from server.fleet.expected import ExpectedSince
from server.fleet.placement import Placement
from server.gateway.endpoint import Gateway
from server.gateway.last_seen import LastSeen
from server.jobs.credentials import HostCredentials
from server.jobs.dispatcher import Dispatcher
from server.jobs.lanes import Lanes
from server.jobs.outcomes import Outcomes
from server.jobs.reports import Reports
from server.jobs.repositories import RepositoryStates
from server.observe import clock as clock_set_back
from server.observe import history
from server.observe.controllers import Controllers
from server.observe.coverage import CoverageReader
from server.observe.history import HistoryRetention
from server.observe.metrics import Metrics
from server.observe.state import StateCollector
from server.observe.stream import ChangeStream
from server.resources.grants import Grants, GrantsError
from server.resources.urls import SCHEMES
from server.store.engine import Store
from server.store.ownership import probe
from server.transport import connections, tls

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
    are allowed. `keep_jobs`, `keep_jobs_days`: see `history.HistoryRetention`.
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
    keep_jobs: int = HistoryRetention().jobs
    keep_jobs_days: int = HistoryRetention().days
    schemes: tuple[str, ...] = SCHEMES


class ServerError(Exception):
    """The server cannot start; the message says why and what to do."""


class Parts(NamedTuple):
    """What a server is made of, before anything runs."""

    services: Services
    gateway: Gateway
    loader: Loader
    catalog: Catalog
    credentials: HostCredentials
    lanes: Lanes
    reports: Reports
    last_seen: LastSeen
    registry: CollectorRegistry
    events: Events


class Running(Struct, frozen=True):
    """A server that answers. `port`: the one that was bound. The tokens are empty where a cluster knows callers.

    `refuses`: why nothing can be stored now; empty when it can.
    """

    port: int
    admin_token: str
    agent_token: str
    parts: Parts
    refuses: Callable[[], Awaitable[str]]

    def __repr__(self) -> str:
        return f"Running(port={self.port})"


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def new_id() -> str:
    """32 hexadecimal digits that no other thing has (UUID version 4 without dashes)."""
    return uuid.UUID(bytes=secrets.token_bytes(16), version=4).hex


def assemble(
    store: Store,
    vault: Vault,
    clock: Callable[[], datetime],
    new_id: Callable[[], str],
    identity: Identity,
    grants: Grants | None = None,
    schemes: Sequence[str] = SCHEMES,
) -> Parts:
    """Build a server's parts, each from those before it. Nothing runs yet: see `Loader.load` and `serving`."""
    events, metrics, stream = Events(), Metrics(), ChangeStream()
    catalog, placement, expected_since = Catalog(vault, grants, schemes), Placement(), ExpectedSince()
    lanes, outcomes = Lanes(), Outcomes()
    repository_states = RepositoryStates(catalog, placement, lanes, events)
    credentials = HostCredentials(catalog, placement, lanes, vault)
    hub = Hub(credentials, events, clock)
    dispatcher = Dispatcher(store.submit, lanes, placement, hub, repository_states, events, clock)
    reports = Reports(store.submit, lanes, placement, repository_states, dispatcher, events, clock)
    coverage = CoverageReader(catalog, placement, expected_since, hub, lanes, outcomes, clock)
    last_seen = LastSeen(store, hub)
    controllers = Controllers(catalog, placement, clock)
    for part in (expected_since, outcomes, repository_states, dispatcher, reports, last_seen, metrics, stream):
        events.subscribe(part.on_event)
    health = repository_states.health
    metrics.registry.register(StateCollector(store, catalog, hub, lanes, health, coverage, controllers, clock))

    pipeline = Pipeline(store, catalog, placement, expected_since, hub, events, clock)
    hosts = Hosts(pipeline, store, placement, hub, dispatcher, clock)
    runs = Runs(pipeline, store, catalog, placement, lanes, dispatcher, clock, new_id)
    services = Services(
        schedules=Schedules(pipeline, catalog, placement, clock, new_id),
        repositories=Repositories(pipeline, catalog, placement, vault, clock, new_id),
        hosts=hosts,
        runs=runs,
        restores=Restores(runs, store, catalog, placement, clock),
        listings=Listings(runs, reports, catalog, placement, hub, clock, new_id),
        enrolments=Enrolments(pipeline, store, placement, clock),
        store=store,
        placement=placement,
        hub=hub,
        dispatcher=dispatcher,
        health=health,
        coverage=coverage,
        controllers=controllers,
        stream=stream,
        clock=clock,
    )
    gateway = Gateway(hub, hosts, reports, store, events, Agents(store, identity).host_of, clock, new_id)
    loader = Loader(catalog, placement, expected_since, hub, repository_states, outcomes, dispatcher, clock)
    return Parts(services, gateway, loader, catalog, credentials, lanes, reports, last_seen, metrics.registry, events)


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
            parts = assemble(store, vault, clock, new_id, identity, _grants(config), config.schemes)
            await parts.loader.load(store, vault)
            services, schedules = parts.services, len(parts.catalog.schedules)
            if services.placement.hosts:
                log.info("carrying on", extra={"hosts": len(services.placement.hosts), "schedules": schedules})
            app = application(parts.gateway, routing.routes(services, identity))
            async with (
                _running(history.follow(store, HistoryRetention(config.keep_jobs, config.keep_jobs_days), clock)),
                _running(parts.last_seen.follow()),
                _running(clock_set_back.follow(parts.events, clock)),
                _connected(services.hub),
                connections.serving(app, Listener(listening, connection_limit(), secure)),
                _while_ours(store),
            ):
                admin, agents = (identity.admin, identity.agents) if isinstance(identity, Files) else ("", "")
                try:
                    yield Running(listening.getsockname()[1], admin, agents, parts, partial(_refuses, store, clock))
                finally:
                    services.stream.end()
                    services.dispatcher.close()


@asynccontextmanager
async def _connected(hub: Hub) -> AsyncIterator[None]:
    """On leaving, what is still being sent to agents is given up."""
    try:
        yield
    finally:
        hub.disconnect_all()


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
    return await store.refuses(probe, clock())


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
    web = routing.application(routes)

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
