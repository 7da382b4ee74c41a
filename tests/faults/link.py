"""The way from an agent to a server, which a test has fail: a proxy that knows WebSocket frames (RFC 6455, 5.2)."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, Self

Side = Literal["agent", "server"]
TEXT = 0x81
"""The first byte of a text frame that is whole."""
Frame = Callable[[StreamReader], Awaitable[bytes]]


class Link:
    """A port that leads to a server's. `delay`: seconds that each frame takes; `up`: whether connections are taken.

    While `deaf`, all that is said is lost, and neither side learns it, as on a path that is gone. `twice`: to which
    sides each text frame goes twice.
    """

    port: int

    def __init__(self, to: int) -> None:
        self._to = to
        self.up = True
        self.delay = 0.0
        self.deaf = False
        self.twice: set[Side] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._open: set[dict[Side, StreamWriter]] = set()
        self._carrying: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.up = False
        self.cut()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def stall(self) -> None:
        """Have nothing pass, and nothing be lost, until `flow`."""
        self._flows.clear()

    def flow(self) -> None:
        """Have everything pass again."""
        self._flows.set()

    def cut(self, *sides: Side) -> None:
        """Break connections, on one side or both; the other side hears nothing of it while that is `deaf`."""
        for writers in list(self._open):
            for side in sides or ("agent", "server"):
                writers[side].transport.abort()

    async def _accepted(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        with suppress(OSError, asyncio.CancelledError):
            await self._carry(reader, writer)
        writer.transport.abort()
        self._carrying.discard(task)

    async def _carry(self, agent: StreamReader, agent_writer: StreamWriter) -> None:
        if not self.up:
            return
        server, server_writer = await asyncio.open_connection("127.0.0.1", self._to)
        writers = _Writers(agent=agent_writer, server=server_writer)
        self._open.add(writers)
        ways = (self._pass(agent, server_writer, "server"), self._pass(server, agent_writer, "agent"))
        try:
            await asyncio.gather(*ways)
        finally:
            self._open.discard(writers)
            server_writer.transport.abort()

    async def _pass(self, source: StreamReader, sink: StreamWriter, to: Side) -> None:
        """Hand on what one side says until it ends, then end the other one, unless that is not to know."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await source.readuntil(b"\r\n\r\n")
            await self._hand_on(head, sink, to)
            speaks_frames = b" 101 " in head.partition(b"\r\n")[0] or head.startswith(b"GET /agent ")
            while data := await (_frame(source) if speaks_frames else source.read(1 << 16)):
                await self._hand_on(data, sink, to)
                if data[0] == TEXT and to in self.twice:
                    await self._hand_on(data, sink, to)
        while self.deaf:  # the other side is to find out by itself
            await asyncio.sleep(0.02)
        sink.transport.abort()

    async def _hand_on(self, data: bytes, sink: StreamWriter, to: Side) -> None:
        await asyncio.sleep(self.delay)
        await self._flows.wait()
        if not self.deaf:
            sink.write(data)
            await sink.drain()


class _Writers(dict[Side, StreamWriter]):
    """Both ends of one connection."""

    __hash__ = object.__hash__  # type: ignore[assignment]


async def _frame(source: StreamReader) -> bytes:
    """A frame, head and all. Raises IncompleteReadError at the end."""
    head = await source.readexactly(2)
    size = head[1] & 0x7F
    if size >= 126:
        more = await source.readexactly(2 if size == 126 else 8)
        head, size = head + more, int.from_bytes(more)
    return head + await source.readexactly(size + (4 if head[1] & 0x80 else 0))
