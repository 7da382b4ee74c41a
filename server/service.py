"""The server as a service: store, control plane, gateway and REST in one process, from start to a clean stop."""

import asyncio
import gc
import logging
import resource
import secrets
import socket
import ssl
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h11
import uvicorn
from msgspec import Struct
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State

from server import history, kubernetes, rest, tls, tokens
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
from wire import codec

log = logging.getLogger(__name__)

GC_THRESHOLDS = (50_000, 5, 2)
"""Python's own are for small programs: each burst here would have it walk, several times, all that thousands of idle
connections hold. A full walk still comes with every half a million objects more, long before cycles fill the memory."""
SHUTDOWN_S = 5
"""Seconds that open requests have to end when the server stops."""
PING_S = 20.0
"""Seconds between pings to each agent, and to wait for the pong."""
REQUEST_S = 60.0
"""Seconds within which a request must have come, from its first byte on or from the connection's beginning."""
LINGER_S = 1.0
"""Seconds for which what still comes is read, and not heard, from who was told that the protocol was broken."""
STALLED_S = 60.0
"""Seconds after which the kernel gives up a connection whose other end takes nothing of what is to be sent."""


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
    """A server that answers. `port`: the one that was bound. The tokens are empty where a cluster knows callers."""

    port: int
    admin_token: str
    agent_token: str
    control: Control

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

    Raises ServerError when the folder or the certificate cannot be used or the address is taken.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each agent
    secure = _tls_context(config)
    with _bind(config.host, config.port) as listening:
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
            restores = Restores(control, store, clock, new_id, grants, config.schemes)
            app = application(gateway, rest.routes(control, store, enrolment, identity, restores))
            tidying = _running(history.follow(store, Keep(config.keep_jobs, config.keep_jobs_days), clock))
            async with tidying, gateway.running(), _uvicorn(app, secure, listening):
                admin, agents = (identity.admin, identity.agents) if isinstance(identity, Files) else ("", "")
                try:
                    yield Running(listening.getsockname()[1], admin, agents, control)
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


class _Http(H11Protocol):
    """A connection that is not kept for who does not say what it wants."""

    deadline: asyncio.TimerHandle | None = None
    upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Someone has come."""
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Some of a request came, or all of it."""
        super().data_received(data)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._forget()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """From here on this is a connection of another kind."""
        self._forget()
        self.upgraded = True
        super().handle_websocket_upgrade(event)

    def _await_request(self) -> None:
        """Have the wait for the rest of a request end in time, if there is one."""
        if self.upgraded or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(REQUEST_S, self.transport.close)

    def _forget(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class _Protocol(WebSocketsSansIOProtocol):
    """A connection that can be written to without a task to wait in, and given up without a peer to wait for."""

    probe: "tuple[bytes, asyncio.Future[bool]] | None" = None  # a ping that is not answered yet, with what it says

    def data_received(self, data: bytes) -> None:
        """The handshake came, whole, or something after it. A handshake that cannot be read is the end."""
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """A message came. Text that is none ends the connection (RFC 6455, section 8.1), which is no error of ours."""
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self.conn.send_close(1007, "frame: not UTF-8")
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Something broke the protocol: say what, and read on for a while, unheard.

        To close while more comes makes the kernel reset the connection, and lose what was said (RFC 1122, 4.2.2.13).
        """
        if not self.close_sent and (close := self.conn.close_sent) is not None:
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.resume_reading()
            self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def handle_ping(self) -> None:
        """Answer a ping, unless the other end reads no answers: they would pile up."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_connect(self, event: Request) -> None:
        """Hand this to the application, in the connection's state, as the gateway's `Peer`."""
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["state"]["peer"] = weakref.proxy(self)  # no cycle: what a connection held is freed with it

    async def send(self, message: Any) -> None:
        """Send what the application says. A denial ends the handshake too, or uvicorn would log that nothing did."""
        await super().send(message)
        self.handshake_complete = self.handshake_complete or self.close_sent

    def write(self, frame: str) -> int:
        """Send a text frame without waiting; how many bytes are unsent then. Nothing is sent once the end has begun."""
        if self.close_sent or self.conn.state is not State.OPEN or self.transport.is_closing():
            return 0
        self.conn.send_text(frame.encode())
        self.transport.write(b"".join(self.conn.data_to_send()))
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Give the connection up at once: to close it would wait for a peer that may never read what is unsent."""
        self.transport.abort()

    async def answers(self, within_s: float) -> bool:
        """Whether the other end answers a ping in that time. One of which we have yet to take what it said counts as
        one that does, since its pong may stand behind that."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return False
        if self.probe is None:
            self.probe = (secrets.token_bytes(8), self.loop.create_future())
            self.conn.send_ping(self.probe[0])
            self.transport.write(b"".join(self.conn.data_to_send()))
        _, answer = self.probe
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            return self.read_paused

    def handle_pong(self, event: Frame) -> None:
        """A pong came, perhaps to a ping of `answers`."""
        if self.probe is not None and bytes(event.data) == self.probe[0]:
            self._end_probe(answered=True)
        else:
            super().handle_pong(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._end_probe(answered=False)
        super().connection_lost(exc)

    def _end_probe(self, *, answered: bool) -> None:
        if self.probe is not None:
            self.probe[1].set_result(answered)
            self.probe = None

    def keepalive_timeout(self) -> None:
        """No pong came."""
        self.transport.abort()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Uvicorn(uvicorn.Server):
    """Uvicorn as a part of our process, which has signal handlers of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@asynccontextmanager
async def _uvicorn(app: ASGIApp, secure: ssl.SSLContext | None, listening: socket.socket) -> AsyncIterator[None]:
    server = _Uvicorn(
        uvicorn.Config(
            app,
            interface="asgi3",
            http=_Http,
            ws=_Protocol,
            ws_per_message_deflate=False,
            ws_max_size=codec.MAX_AGENT_FRAME,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            lifespan="off",
            proxy_headers=False,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            ssl_context_factory=None if secure is None else lambda *_: secure,
        )
    )
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(sockets=[listening]), name="uvicorn")
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.wait([serving])


def _tls_context(config: Config) -> ssl.SSLContext | None:
    if config.tls_cert is None:
        return None
    try:
        return tls.server_context(config.tls_cert, config.tls_key)
    except OSError as error:
        raise ServerError(f"--tls-cert {config.tls_cert}: {error}: give a chain and its key in PEM") from error


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket, bound before anything else so that a taken port is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerError(f"--listen {host}:{port}: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # For each connection that is accepted here (tcp(7)).
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S * 1000))
        listening.bind(address)
        listening.listen(4096)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        hint = ": is another server running? Choose another with --listen" if error.errno == 98 else ""
        raise ServerError(f"--listen {host}:{port}: {error.strerror}{hint}") from error
    return listening
