"""The server: builds all parts, each from those before it, and runs them from start to a clean stop."""

import asyncio
import gc
import logging
import os
import random
import resource
import secrets
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
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
from server.access.proxy import ProxyUsers
from server.access.sessions import Sessions
from server.access.vault import Vault
from server.agents.hub import Hub
from server.api import routing
from server.api.middleware import nowhere as problem_nowhere
from server.api.services import Services
from server.changes.alerts import Alerts
from server.changes.enrolments import Enrolments
from server.changes.hosts import Hosts
from server.changes.listings import Listings
from server.changes.load import Loader
from server.changes.pipeline import Pipeline
from server.changes.plan import Plans
from server.changes.previews import Previews
from server.changes.repositories import Repositories
from server.changes.restores import Restores
from server.changes.runs import Runs
from server.changes.schedules import Schedules
from server.errors import Unavailable
from server.events import Events
from server.fleet.catalog import Catalog
from server.fleet.expected import ExpectedSince
from server.fleet.placement import Placement
from server.gateway.endpoint import Gateway
from server.gateway.last_seen import LastSeen
from server.jobs.active import ActiveAttempts
from server.jobs.credentials import HostCredentials
from server.jobs.dispatcher import Dispatcher
from server.jobs.expected import Expectations
from server.jobs.limits import Limits
from server.jobs.outcomes import Outcomes
from server.jobs.progress import ProgressWriter
from server.jobs.queue import JobQueue
from server.jobs.reports import Reports
from server.jobs.repositories import RepositoryStates
from server.notify import heartbeat
from server.notify.gather import Gatherer
from server.notify.notifier import Notifier
from server.notify.pinger import Pinger
from server.notify.services import Services as NotificationServices
from server.observe import clock as clock_set_back
from server.observe import history, otel
from server.observe.contents import ContentsReader
from server.observe.controllers import Controllers
from server.observe.coverage import CoverageReader
from server.observe.history import HistoryRetention
from server.observe.host_days import HostDays
from server.observe.metrics import Metrics
from server.observe.state import StateCollector
from server.observe.stream import ChangeStream
from server.observe.survey import Surveyor
from server.replicas.agents import Balance, drain
from server.replicas.follower import Follower
from server.replicas.leader import Leader
from server.replicas.members import Followed, Members
from server.replicas.news import NewsFollower
from server.replicas.sharing import sharing
from server.resources.grants import Grants, GrantsError
from server.resources.urls import SCHEMES
from server.store import ownership
from server.store.engine import Store
from server.store.ownership import probe
from server.transport import connections, tls
from server.web.site import Site

log = logging.getLogger(__name__)

GC_THRESHOLDS = (50_000, 5, 2)
"""Thresholds of Python's garbage collector. With its defaults, each burst of requests would make it traverse the
objects of thousands of idle connections several times. With these, it still traverses all objects after each further
half a million, long before cycles fill the memory."""
LOAD_AGAIN_S = 0.5
"""Seconds until a server loads again whose database went away meanwhile."""
DRAIN_S = 10.0
"""Seconds over which a server that stops sends its agents to others, unless the configuration says otherwise."""


class Config(Struct, frozen=True):
    """The configuration of a server. `data`: its folder; `database`: an SQLAlchemy URL, empty for SQLite in the folder.

    `auth`: "file" authenticates callers by the token files in the folder; "kubernetes" by a cluster, which is `cluster`
    or else the one that the server runs in, and in which agents have the service account `agent_service_account`
    (NAMESPACE/NAME). `vault_key`: the file with the keys that seal credentials; None for one in the folder. `grants`:
    the file that says what namespaces may reach; None for everything. `schemes`: the allowed schemes of Repositories'
    URLs. `keep_jobs`, `keep_jobs_days`: see `history.HistoryRetention`. `database_direct`: the URL of the same database
    past a connection pooler. `replica_name`: how other servers' logs call this one; empty for the machine's name.
    `drain_seconds`: over how many seconds a server that stops sends its agents to the others; None for `DRAIN_S` where
    there may be others. `proxy_auth_secret`: the file with the secret of a proxy that signs people in to the pages.
    `heartbeat_url_file`: the file with the URL that is called every `heartbeat_seconds` while all is well.
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
    database_direct: str = ""
    replica_name: str = ""
    drain_seconds: float | None = None
    proxy_auth_secret: Path | None = None
    heartbeat_url_file: Path | None = None
    heartbeat_seconds: float = 60.0


class ServerError(Exception):
    """The server cannot start. The message says why, and what to do."""


class Parts(NamedTuple):
    """The parts of a server, before anything runs."""

    services: Services
    gateway: Gateway
    loader: Loader
    catalog: Catalog
    credentials: HostCredentials
    queue: JobQueue
    active: ActiveAttempts
    reports: Reports
    last_seen: LastSeen
    registry: CollectorRegistry
    events: Events
    pipeline: Pipeline
    leader: Leader
    members: Members
    follower: Follower
    balance: Balance
    news: NewsFollower
    alerts: Alerts
    notifications: NotificationServices
    notifier: Notifier


class Running(Struct, frozen=True):
    """A server that is ready. `port`: the bound one. The tokens are empty if a cluster authenticates callers.

    `refuses`: returns why nothing can be stored now; empty when it can. `offer_link`: makes a link that signs the
    administrator in to the pages; returns its code, and when it expires.
    """

    port: int
    admin_token: str
    agent_token: str
    parts: Parts
    refuses: Callable[[], Awaitable[str]]
    offer_link: Callable[[], Awaitable[tuple[str, datetime]]]

    def __repr__(self) -> str:
        return f"Running(port={self.port})"


def utc_now() -> datetime:
    """The time of the wall clock."""
    return datetime.now(UTC)


def new_id() -> str:
    """A random UUID (version 4) as 32 hexadecimal digits."""
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
    active, outcomes = ActiveAttempts(), Outcomes()
    repository_states = RepositoryStates(catalog, placement, events)
    credentials = HostCredentials(catalog, placement, active, vault)
    hub = Hub(credentials, events, clock)
    limits = Limits(catalog, placement, hub.session, events)
    queue = JobQueue(
        store.server,
        repository_states.limit,
        placement.schedule_of,
        repository_states.url,
        repository_states.namespace,
        limits.gates_of,
        backups_into=placement.backups_into,
        is_shared=store.is_shared,
    )
    dispatcher = Dispatcher(store.submit, queue, active, hub, repository_states, events, clock)
    reports = Reports(store.submit, queue, active, placement, repository_states, dispatcher, events, clock)
    coverage = CoverageReader(catalog, placement, expected_since, hub, store, outcomes, clock)
    last_seen = LastSeen(store, hub)
    controllers = Controllers(catalog, placement, store, clock)
    host_days = HostDays(store, repository_states.namespace, clock)
    health = repository_states.health
    surveyor = Surveyor(catalog, placement, hub, store, health, coverage, controllers, active, host_days, clock)
    for part in (expected_since, outcomes, repository_states, limits, reports, stream, host_days, surveyor):
        events.subscribe(part.on_event)
    for counting in (dispatcher, last_seen, metrics):
        events.subscribe(counting.on_event, own_only=True)
    leader = Leader(leads=not store.is_shared)
    metrics.registry.register(StateCollector(store, catalog, hub, health, coverage, controllers, leader.leads, clock))

    pipeline = Pipeline(store, catalog, placement, expected_since, hub, events, clock)
    hosts = Hosts(pipeline, store, placement, hub, dispatcher, clock)
    expectations = Expectations(placement, credentials)
    gateway = Gateway(hub, hosts, reports, store, events, Agents(store, identity).host_of, clock, new_id, expectations)
    news = NewsFollower(store, hub, gateway, dispatcher, reports, repository_states, controllers, events, clock)
    members = Members(store, lambda: Followed(pipeline.revision, news.position), leader.leads, news.bury, clock)
    runs = Runs(store, catalog, placement, dispatcher, clock, new_id)
    restores = Restores(runs, store, catalog, placement, clock)
    listings = Listings(runs, reports, store, catalog, placement, hub, clock, new_id)
    notifications = NotificationServices()
    alerts = Alerts(store, catalog, vault, notifications.unknown, events, clock, new_id)
    gatherer = Gatherer(surveyor, catalog, health, coverage, controllers, clock)
    pinger = Pinger(store, catalog, surveyor, outcomes, clock)
    notifier = Notifier(store, alerts, gatherer, notifications, pinger, events, clock, random.SystemRandom())
    events.subscribe(notifier.on_event)
    services = Services(
        schedules=Schedules(pipeline, catalog, placement, clock, new_id),
        repositories=Repositories(pipeline, catalog, placement, vault, clock, new_id),
        hosts=hosts,
        runs=runs,
        restores=restores,
        listings=listings,
        previews=Previews(restores, listings),
        enrolments=Enrolments(pipeline, store, placement, clock),
        alerts=alerts,
        plans=Plans(store, catalog, placement, hub, dispatcher, vault, notifications.unknown, clock, new_id),
        store=store,
        placement=placement,
        hub=hub,
        dispatcher=dispatcher,
        active=active,
        repository_name=repository_states.name,
        repository_limit=repository_states.limit,
        limits=limits,
        health=health,
        coverage=coverage,
        contents=ContentsReader(catalog, placement, store),
        controllers=controllers,
        surveyor=surveyor,
        stream=stream,
        stopping=members.stopping,
        authorize=identity.authorize,
        catch_up=pipeline.catch_up,
        sessions=Sessions(store, vault, clock),
        clock=clock,
    )
    loader = Loader(catalog, placement, expected_since, hub, repository_states, outcomes, dispatcher, pipeline, clock)
    return Parts(
        services,
        gateway,
        loader,
        catalog,
        credentials,
        queue,
        active,
        reports,
        last_seen,
        metrics.registry,
        events,
        pipeline,
        leader,
        members,
        Follower([pipeline.follow, news.follow]),
        Balance(store, hub, members, random.SystemRandom()),
        news,
        alerts,
        notifications,
        notifier,
    )


@asynccontextmanager
async def serving(config: Config, clock: Callable[[], datetime] = utc_now) -> AsyncIterator[Running]:
    """Serve while entered. On leaving, end requests, close connections and the store, in bounded time.

    Raises ServerError when the configuration cannot be used or the address is in use; StoreError when the store cannot
    be used, or another server has it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each agent has a connection
    tls_context, proxy_users = _tls_context(config), _proxy_users(config)
    with _collecting_rarely(), _bound(config) as listening:
        async with _identity(config) as identity, AsyncExitStack() as stack:
            store, parts = await _loaded(config, identity, clock, stack)
            services, schedules = parts.services, len(parts.catalog.schedules)
            if services.placement.hosts:
                log.info("carrying on", extra={"hosts": len(services.placement.hosts), "schedules": schedules})
            keep = HistoryRetention(config.keep_jobs, config.keep_jobs_days)
            site = Site(services, identity, proxy_users)
            app = application(parts.gateway, [*routing.routes(services, identity), *site.routes()], site.nowhere)
            app = await stack.enter_async_context(_traced(app, parts, clock))
            async with (
                _running(parts.leader.while_leading(partial(history.follow, store, keep, clock))),
                _running(parts.leader.while_leading(parts.notifier.follow)),
                _running(parts.leader.while_leading(partial(_heartbeat, config, services.surveyor))),
                _running(parts.last_seen.follow()),
                _running(ProgressWriter(store, parts.active).follow()),
                _running(clock_set_back.follow(parts.events, clock)),
                _disconnecting(services.hub),
                connections.serving(app, Listener(listening, connection_limit(), tls_context)),
                _while_owned(store),
                sharing(store, parts.members, parts.leader, parts.follower, parts.balance, services.dispatcher, clock),
            ):
                admin, agents = (identity.admin, identity.agents) if isinstance(identity, Files) else ("", "")
                try:
                    port = listening.getsockname()[1]
                    offer_link = partial(services.sessions.offer_link, admin)
                    yield Running(port, admin, agents, parts, lambda: store.refuses(probe, clock()), offer_link)
                    await drain(services.hub, parts.members, _drain_seconds(config, store))
                finally:
                    services.stream.end()
                    services.dispatcher.close()


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Python's garbage collector as a server needs it. On leaving, it collects what was loaded, too."""
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.unfreeze()


async def _loaded(
    config: Config, identity: Identity, clock: Callable[[], datetime], stack: AsyncExitStack
) -> tuple[Store, Parts]:
    """Open the store and load what is in it, until `stack` ends; from the beginning, where the database goes away
    meanwhile, for ownership.START_S seconds. Raises ServerError, StoreError."""
    until = time.monotonic() + ownership.START_S
    while True:
        async with AsyncExitStack() as trying:
            try:
                store, vault = await trying.enter_async_context(_opened(config))
                parts = assemble(store, vault, clock, new_id, identity, _grants(config), config.schemes)
                await trying.enter_async_context(parts.members.joined(config.replica_name or socket.gethostname()))
                await parts.news.begin()
                await parts.loader.load(store, vault)
                await parts.news.load()
                await parts.alerts.renew()
                trying.callback(parts.notifications.close)
            except Unavailable as error:
                if time.monotonic() > until:
                    raise ServerError(str(error)) from error
                log.warning("the server loads again", extra={"reason": error})
            else:
                stack.push_async_callback(trying.pop_all().aclose)
                return store, parts
        await asyncio.sleep(LOAD_AGAIN_S)


async def _heartbeat(config: Config, surveyor: Surveyor) -> None:
    """Call the URL of the heartbeat while nothing is red, if there is one, until cancelled."""

    async def trouble() -> str:
        overview = await surveyor.overview()
        return overview.sentence if overview.answer == "no" else ""

    if config.heartbeat_url_file is not None:
        await heartbeat.follow(config.heartbeat_url_file, config.heartbeat_seconds, trouble)
    else:
        await asyncio.Event().wait()


@asynccontextmanager
async def _disconnecting(hub: Hub) -> AsyncIterator[None]:
    """On leaving, close agents' connections at once, whatever is still unsent."""
    try:
        yield
    finally:
        hub.disconnect_all()


@asynccontextmanager
async def _traced(app: ASGIApp, parts: Parts, clock: Callable[[], datetime]) -> AsyncIterator[ASGIApp]:
    """The application, with traces where OTEL_* variables ask for them. On leaving, the last ones are sent.

    Raises ServerError.
    """
    try:
        is_asked = otel.makes_traces(os.environ)
        if is_asked:
            from server.observe import traces  # noqa: PLC0415 - few servers need it
    except ValueError as error:
        raise ServerError(str(error)) from error
    except ModuleNotFoundError as error:
        raise ServerError(f"OTEL_* variables ask for traces: install lamplighter[otel] ({error})") from error
    if not is_asked:
        yield app
        return
    services = parts.services
    hosts = services.placement.hosts

    def version_of(host: str) -> int:
        return hosts[host].version

    def was_sent(job_id: str) -> bool:
        return parts.active.get(job_id) is not None

    made = traces.configured(services.store.server, version_of, was_sent, clock)
    parts.events.subscribe(made.on_event, own_only=True)
    try:
        yield made.of_requests(app)
    finally:
        await asyncio.to_thread(made.close)


@asynccontextmanager
async def _identity(config: Config) -> AsyncIterator[Identity]:
    """What authenticates callers. Raises ServerError."""
    if config.auth == "file":
        try:
            files = Files(tokens.load(config.data / "admin-token"), tokens.load(config.data / "agent-token"))
        except (OSError, ValueError) as error:
            raise ServerError(f"{config.data}: {error}") from error
        yield files
        return
    if not all(config.agent_service_account.partition("/")):
        raise ServerError("--auth kubernetes needs --agent-service-account NAMESPACE/NAME")
    try:
        api = kubernetes.Client(config.cluster or kubernetes.in_cluster())
    except kubernetes.KubernetesError as error:
        raise ServerError(str(error)) from error
    async with api:
        yield Reviews(api, config.agent_service_account)


def _proxy_users(config: Config) -> ProxyUsers | None:
    try:
        return None if config.proxy_auth_secret is None else ProxyUsers.load(config.proxy_auth_secret)
    except (OSError, ValueError) as error:
        raise ServerError(f"--proxy-auth-secret-file {config.proxy_auth_secret}: {error}") from error


def _drain_seconds(config: Config, store: Store) -> float:
    if config.drain_seconds is not None:
        return config.drain_seconds
    return DRAIN_S if store.is_shared else 0.0


def _grants(config: Config) -> Grants:
    try:
        return Grants.load(config.grants) if config.grants is not None else Grants()
    except GrantsError as error:
        raise ServerError(f"--grants {error}") from error


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a task while entered."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def _while_owned(store: Store) -> AsyncIterator[None]:
    """Cancel what runs inside when the store is lost. Raises StoreLostError, in a group, in that case."""
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(store.until_lost())
        try:
            yield
        finally:
            watching.cancel()


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[tuple[Store, Vault]]:
    """Open the store and the vault; on leaving, close the store. Raises ServerError, StoreError."""
    try:
        config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        vault = Vault.open(config.vault_key or config.data / "vault-key")
        location = config.database or config.data / "lamplighter.db"
        store = await asyncio.to_thread(Store.open, location, direct=config.database_direct)
    except (OSError, ValueError) as error:
        raise ServerError(f"{config.data}: {error}") from error
    try:
        yield store, vault
    finally:
        await store.close()


def application(gateway: Gateway, routes: Sequence[BaseRoute], nowhere: routing.Nowhere = problem_nowhere) -> ASGIApp:
    """The ASGI application: the agents' gateway and these routes. `nowhere`: answers other paths.

    Agents' connections bypass Starlette's layers, each of which would hold a stack frame while a connection is open.
    """
    web = routing.application(routes, nowhere)

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
    """A listening socket. It is bound before anything else, so that a port in use is reported at once."""
    try:
        return bind(config.host, config.port, "--listen")
    except ListenError as error:
        raise ServerError(str(error)) from error
