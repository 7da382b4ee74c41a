"""The server as a service: store, control plane, gateway and REST in one process, from start to a clean stop."""

import asyncio
import logging
import secrets
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from server import rest, tokens
from server.control import Control
from server.gateway import Gateway
from server.models import Actor
from server.store import Store
from server.vault import Vault
from wire import codec

log = logging.getLogger(__name__)

SHUTDOWN_S = 5
"""Seconds that open requests have to end when the server stops."""
PING_S = 20.0
"""Seconds between pings to each agent, and to wait for the pong."""


class Config(Struct, frozen=True):
    """How a server is set up. `data`: its folder; `database`: an SQLAlchemy URL, SQLite in the folder when empty."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 8700
    database: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None


class ServerError(Exception):
    """The server cannot start; the message says why and what to do."""


class Running(Struct, frozen=True):
    """A server that answers. `port`: the one that was bound."""

    port: int
    admin_token: str
    agent_token: str
    control: Control


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def new_id() -> str:
    """32 hexadecimal digits that no other thing has (UUID version 4 without dashes)."""
    return uuid.UUID(bytes=secrets.token_bytes(16), version=4).hex


@asynccontextmanager
async def serving(config: Config, clock: Callable[[], datetime] = utc_now) -> AsyncIterator[Running]:
    """Serve while entered; on leaving, requests end, connections close and the store is closed, in bounded time.

    Raises ServerError when the folder cannot be used or the address is taken.
    """
    with _bind(config.host, config.port) as listening:
        async with _opened(config) as (store, vault, admin, agents):
            control = Control(store, vault, clock, new_id)
            await control.load()
            facts = {"hosts": len(control.hosts), "schedules": len(control.schedules)}
            log.info("carrying on" if control.hosts else "starting with nothing stored", extra=facts)
            gateway = Gateway(control, store, lambda token: "" if tokens.same(token, agents) else None, clock, new_id)
            app = application(control, store, gateway, lambda token: _admin(token, admin))
            async with gateway.running(), _uvicorn(app, config, listening):
                yield Running(listening.getsockname()[1], admin, agents, control)


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[tuple[Store, Vault, str, str]]:
    """What a server keeps in its folder: store, vault, and the tokens of users and of agents."""
    try:
        config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        admin, agents = tokens.load(config.data / "admin-token"), tokens.load(config.data / "agent-token")
        vault = Vault.open(config.data / "vault-key")
        store = await asyncio.to_thread(Store.open, config.database or config.data / "lamplighter.db")
    except (OSError, ValueError) as error:
        raise ServerError(f"{config.data}: {error}") from error
    try:
        yield store, vault, admin, agents
    finally:
        await store.close()


def application(
    control: Control, store: Store, gateway: Gateway, authenticate: Callable[[str], Actor | None]
) -> Starlette:
    """Everything that is served, as one ASGI application."""
    agents = WebSocketRoute("/agent", gateway.endpoint)
    return Starlette(routes=[agents, *rest.routes(control, store, authenticate)])


class _Protocol(WebSocketsSansIOProtocol):
    """Lets a connection be given up at once: to close it would wait for a peer that may never read what is unsent."""

    def handle_connect(self, event: Request) -> None:
        """Hand `abort` to the application, in the connection's state."""
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["state"]["abort"] = self.transport.abort

    def keepalive_timeout(self) -> None:
        """No pong came."""
        self.transport.abort()


class _Uvicorn(uvicorn.Server):
    """Uvicorn as a part of our process, which has signal handlers of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@asynccontextmanager
async def _uvicorn(app: ASGIApp, config: Config, listening: socket.socket) -> AsyncIterator[None]:
    server = _Uvicorn(
        uvicorn.Config(
            app,
            http="h11",
            ws=_Protocol,
            ws_per_message_deflate=False,
            ws_max_size=codec.MAX_AGENT_FRAME,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
        )
    )
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(sockets=[listening]), name="uvicorn")
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.wait([serving])


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket, bound before anything else so that a taken port is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerError(f"--listen {host}:{port}: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(4096)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        hint = ": is another server running? Choose another with --listen" if error.errno == 98 else ""
        raise ServerError(f"--listen {host}:{port}: {error.strerror}{hint}") from error
    return listening


def _admin(token: str, admin: str) -> Actor | None:
    return Actor("user", "admin") if tokens.same(token, admin) else None
