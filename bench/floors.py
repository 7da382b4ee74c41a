"""Floors: bare WebSocket servers on Lamplighter's stack that do only the unavoidable work, and their clients.

`python -m bench.floors KIND PORT FILE` serves one:

- `echo` commits each frame as a row, together with all that came meanwhile, and then sends it back.
- `cast` sends a frame on /all to every client, and answers when each has answered.
- `keep` accepts connections and keeps them.
- `clock` answers each frame with the time at which it was read.
"""

import asyncio
import json
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from bench.servers import Process, free_port
from wire import codec
from wire.messages import ScheduleRefused

Receive = Callable[[], Awaitable[dict[str, Any]]]
Sender = Callable[[dict[str, Any]], Awaitable[None]]


class Committer:
    """Commits rows in a thread; each commit takes all that gathered during the last (WAL, synchronous=FULL)."""

    def __init__(self, path: Path) -> None:
        self._waiting: SimpleQueue[tuple[str, asyncio.Future[None]]] = SimpleQueue()
        threading.Thread(target=self._run, args=(path,), daemon=True).start()

    async def commit(self, row: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put((row, future))
        await future

    def _run(self, path: Path) -> None:
        database = sqlite3.connect(path, isolation_level=None)
        for statement in ("journal_mode=WAL", "synchronous=FULL"):
            database.execute(f"PRAGMA {statement}")
        database.execute("CREATE TABLE frames (frame TEXT)")
        while True:
            gathered = [self._waiting.get()]
            while True:
                try:
                    gathered.append(self._waiting.get_nowait())
                except Empty:
                    break
            rows = json.dumps([row for row, _ in gathered])
            database.execute("INSERT INTO frames SELECT value FROM json_each(?)", (rows,))
            gathered[0][1].get_loop().call_soon_threadsafe(_resolve, [future for _, future in gathered])


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def echo(file: str) -> Any:
    committer = Committer(Path(file))

    async def app(scope: dict[str, Any], receive: Receive, send: Sender) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while "text" in (message := await receive()):
            await committer.commit(message["text"])
            await send({"type": "websocket.send", "text": message["text"]})

    return app


def cast(_: str) -> Any:
    everyone: list[tuple[Receive, Sender]] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Sender) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if scope["path"] != "/all":
            everyone.append((receive, send))
            await asyncio.Event().wait()
        while "text" in (message := await receive()):
            for _, tell in everyone:
                await tell({"type": "websocket.send", "text": message["text"]})
            for hear, _ in everyone:
                await hear()
            await send({"type": "websocket.send", "text": "all"})

    return app


def keep(_: str) -> Any:
    async def app(scope: dict[str, Any], receive: Receive, send: Sender) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    return app


def clock(_: str) -> Any:
    async def app(scope: dict[str, Any], receive: Receive, send: Sender) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while "text" in await receive():
            answer = ScheduleRefused("-", datetime.now(UTC), "Duplicate")
            await send({"type": "websocket.send", "text": codec.encode([answer])})

    return app


def main(kind: str, port: str, file: str) -> None:
    loop = {"echo": echo, "cast": cast, "keep": keep, "clock": clock}[kind](file)

    async def app(scope: dict[str, Any], receive: Receive, send: Sender) -> None:
        if scope["type"] == "websocket":
            await loop(scope, receive, send)
        else:  # a probe for readiness
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})

    uvicorn.run(
        app,
        port=int(port),
        loop="asyncio",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        log_level="error",
        access_log=False,
        backlog=4096,
    )


@asynccontextmanager
async def serving(kind: str) -> AsyncIterator[Process]:
    """A bare server in its own process, while entered."""
    with TemporaryDirectory(prefix="lamplighter-bench-") as folder:
        port = free_port()
        argv = (sys.executable, "-m", "bench.floors", kind, str(port), f"{folder}/frames.db")
        process = await Process.start(argv, port)
        try:
            yield process
        finally:
            await process.stop(9)


async def dial(port: int, path: str = "/") -> ClientConnection:
    """Open a bare connection in the way that an agent does."""
    return await connect(f"ws://127.0.0.1:{port}{path}", compression=None, max_size=None, proxy=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
