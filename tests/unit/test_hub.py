"""What a host's connection does once its WebSocket has gone."""

import asyncio
import weakref
from typing import Any

from server.agents.hub import Connection
from server.agents.session import Send, Session
from server.fleet.placement import HostState
from wire.entries import EMPTY
from wire.messages import JobConfirmed


class Peer:
    """A WebSocket."""

    received_at = 7.0

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, frame: str) -> int:
        self.written.append(frame)
        return 0


async def end(connection: Connection) -> None:
    """Ask a connection for all that it can do."""
    connection.send("frame")
    connection.write(Send([JobConfirmed("1")]))
    connection.refuse(1013, "busy")
    connection.close()
    assert connection.received_at == Peer.received_at
    assert not await connection.is_alive()


async def met() -> tuple[Peer, Connection]:
    """A WebSocket, which is freed once nobody holds it, and its connection. No task reads it."""
    peer: Any = Peer()
    session = Session(HostState("a", {}, None, 1, EMPTY))  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Connection] = loop.create_future()
    loop.call_soon(lambda: made.set_result(Connection(weakref.proxy(peer), session, 1, "")))
    return peer, await made


def test_what_is_said_to_a_connection_whose_websocket_has_gone_is_dropped() -> None:
    async def run() -> None:
        peer, connection = await met()
        connection.send("frame")
        assert peer.written == ["frame"]
        del peer
        await end(connection)

    asyncio.run(run())
