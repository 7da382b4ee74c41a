"""server/transport/connections.py relies only on what uvicorn, h11 and websockets really do."""

import asyncio
import inspect
import json
import logging
import re
import socket
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from pathlib import Path

import h11
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from listener.accept import Listener
from server.app import Running
from server.transport import connections as transport


@pytest.mark.parametrize(
    ("base", "derived"),
    [
        (H11Protocol, transport._Http),
        (WebSocketsSansIOProtocol, transport._Protocol),
        (uvicorn.Server, transport._Uvicorn),
    ],
)
def test_what_is_replaced_is_there_and_takes_the_same(base: type, derived: type) -> None:
    ours = {
        "abort",
        "close",
        "take_frames",
        "keep",
        "write",
        "answers_ping",
        "__init__",
        "_await_request",
        "_cancel_deadline",
        "_end_probe",
        "_drop_if_silent",
        "_may_live",
    }
    for name, function in vars(derived).items():
        if inspect.isfunction(function) and name not in ours:
            replaced = inspect.signature(getattr(base, name)).parameters
            assert list(replaced) == list(inspect.signature(function).parameters), name


@pytest.mark.parametrize(
    ("attribute", "where"),
    [
        *((it, H11Protocol.__init__) for it in ("conn", "loop", "transport", "ws_protocol_class")),
        *((it, WebSocketsSansIOProtocol.__init__) for it in (
            "conn", "loop", "transport", "queue", "frames", "curr_msg_data_type", "writable", "handshake_initiated",
            "handshake_complete", "close_sent", "close_timer", "read_paused", "pong_timer", "ping_sent_at",
        )),
        ("send_keepalive_ping", WebSocketsSansIOProtocol.schedule_ping),
        ("pong_timer.cancel", WebSocketsSansIOProtocol.handle_pong),
        ("scope", WebSocketsSansIOProtocol.handle_connect),
        ("ws_protocol_class", H11Protocol.handle_websocket_upgrade),
        ("servers", uvicorn.Server.shutdown),
        ("should_exit", uvicorn.Server.on_tick),
        ("server_state", uvicorn.Server.__init__),
    ],
)  # fmt: skip
def test_attributes_that_are_leant_on_are_there(
    attribute: str, where: Callable[..., None] | Callable[..., Awaitable[None]] | Callable[..., Awaitable[bool]]
) -> None:
    assert f"self.{attribute}" in inspect.getsource(where)


def test_states_and_methods_of_h11_and_websockets_that_are_leant_on_are_there() -> None:
    assert h11.Connection(h11.SERVER).their_state is h11.IDLE
    assert isinstance(h11.SEND_BODY, type)
    protocol = ServerProtocol()
    assert protocol.state is State.CONNECTING
    assert protocol.close_sent is None
    assert {"send_text", "send_close", "data_to_send"} <= set(dir(protocol))


@pytest.mark.parametrize("package", ["h11", "uvicorn", "websockets"])
def test_versions_that_are_leant_on_have_both_bounds_and_hold_for_what_is_installed(package: str) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    (wanted,) = [it for it in project["optional-dependencies"]["server"] if re.match(rf"{package}\b", it)]
    bounds = re.fullmatch(rf"{package}>=([0-9.]+),<([0-9.]+)", wanted)
    assert bounds is not None
    low, high = bounds.groups()

    def number(version: str) -> list[int]:
        return [int(it) for it in version.split(".")]

    assert number(low) <= number(metadata.version(package)) < number(high)


# Over a real socket.


@pytest.fixture(autouse=True)
def untroubled(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a guest does is an error of the server."""
    yield
    told = [it for when in ("setup", "call") for it in caplog.get_records(when) if it.name != "websockets.client"]
    assert [it.getMessage() for it in told if it.levelno >= logging.ERROR] == []


LATE = [
    (Opcode.TEXT, b"\xff\xfe"),
    (Opcode.TEXT, b"late"),
    (Opcode.TEXT, json.dumps({"type": "hello", "payload": {"host": "late"}}).encode()),
    (Opcode.BINARY, b"late"),
    (Opcode.PING, b"late"),
    (Opcode.PONG, b"late"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("opcode", "data"), LATE)
@pytest.mark.parametrize("first", ["{}", '{"type": "schedule.ack", "payload": {}}'])
async def test_whatever_comes_after_a_close_is_discarded(
    server: Running, first: str, opcode: Opcode, data: bytes
) -> None:
    """The server closes; before the client answers that, it says more, as one whose frames cross the close does."""
    async with websocket(
        f"ws://127.0.0.1:{server.port}/agent",
        subprotocols=[Subprotocol("lamplighter.v1")],
        additional_headers={"authorization": f"Bearer {server.agent_token}"},
        compression=None,
        proxy=None,
    ) as socket:
        frames = b"".join(Frame(it, said).serialize(mask=True) for it, said in [
            (Opcode.TEXT, first.encode()), *[(opcode, data)] * 3, (Opcode.TEXT, b"\xff"), (opcode, data)
        ])  # fmt: skip
        socket.transport.write(frames)
        with suppress(ConnectionClosed):
            await socket.recv()
    assert socket.close_code == 1007


# Pings.

PING_S = 0.3


@asynccontextmanager
async def connected(endpoint: Callable[[WebSocket], Awaitable[None]]) -> AsyncIterator[ClientConnection]:
    """A client of a server whose only endpoint this is."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    async with (
        transport.serving(app, Listener(listening, 10)),
        websocket(f"ws://127.0.0.1:{listening.getsockname()[1]}", proxy=None, ping_interval=None) as client,
    ):
        yield client


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PING_S", PING_S)
    monkeypatch.setattr(transport, "LATE_S", PING_S / 3)


@pytest.mark.anyio
@pytest.mark.usefixtures("impatient")
async def test_a_connection_whose_input_waits_for_the_store_is_kept_without_pongs() -> None:
    """While the application takes no frames, nothing is read, and so no pong: that is no fault of the agent."""
    stored, got = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def slow(websocket: WebSocket) -> None:
        await websocket.accept()
        await stored.wait()
        got.set_result([await websocket.receive_text() for _ in range(2)])

    async with connected(slow) as client:
        for text in ("one", "two"):
            await client.send(text)
        await asyncio.sleep(5 * PING_S)
        stored.set()
        assert await got == ["one", "two"]


@pytest.mark.anyio
@pytest.mark.usefixtures("impatient")
async def test_a_client_that_says_something_is_kept_without_pongs_and_a_silent_one_is_not() -> None:
    ended = asyncio.Event()

    async def endless(websocket: WebSocket) -> None:
        await websocket.accept()
        with suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()
        ended.set()

    async with connected(endless) as client:
        client.transport.pause_reading()  # it hears no pings
        for _ in range(30):
            await client.send("something")
            await asyncio.sleep(PING_S / 6)
        assert not ended.is_set()
        async with asyncio.timeout(60):
            await ended.wait()
        client.transport.resume_reading()
