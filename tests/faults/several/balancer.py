"""A balancer of TCP connections before servers that are ready: to the one with the fewest, as HAProxy's leastconn, or
in turn, which is near to what a Service of Kubernetes does."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import httpx

PROBE_S = 0.5
"""Seconds between two questions whether a server is ready."""
ANSWER_S = 2.0


class Balancer:
    """Listens on `port`, and passes each connection to one of the servers on `ports` that is ready.

    `in_turn`: the next one; otherwise the one with the fewest connections.
    """

    def __init__(self, port: int, ports: Sequence[int], *, in_turn: bool = False) -> None:
        self.port = port
        self._ports = ports
        self._in_turn = in_turn
        self._counts = dict.fromkeys(ports, 0)
        self._ready: list[int] = []
        self._turn = 0
        self._open: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=4096)
        try:
            async with server, asyncio.TaskGroup() as tasks:
                for port in self._ports:
                    tasks.create_task(self._probe(port))
        finally:
            for task in self._open:
                task.cancel()

    async def _probe(self, port: int) -> None:
        async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
            while True:
                ready = False
                with suppress(httpx.HTTPError):
                    ready = (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success
                if ready is not (port in self._ready):
                    self._ready = sorted({*self._ready, port} if ready else {*self._ready} - {port})
                await asyncio.sleep(PROBE_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._carry(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(len(self._ready)):
            port = self._next()
            with suppress(OSError):
                back, forth = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            return
        self._counts[port] += 1
        ways = [asyncio.create_task(_pass(reader, forth)), asyncio.create_task(_pass(back, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._counts[port] -= 1
            for way in ways:
                way.cancel()
            forth.close()

    def _next(self) -> int:
        self._turn += 1
        order = [*self._ready[self._turn % len(self._ready) :], *self._ready[: self._turn % len(self._ready)]]
        return order[0] if self._in_turn else min(order, key=self._counts.__getitem__)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
