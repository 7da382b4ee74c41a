"""Agents reach their server through the proxy that the environment names, and directly where it says so."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import serve
from websockets.typing import Subprotocol

from agent.enrolment import enrol
from agent.link import Dialler, Link
from agent.proxies import proxy_for
from agent.restic.environment import restic_environment
from wire.messages import PROTOCOL, Repository

NAMES = [f"{name}_proxy" for name in ("https", "http", "all", "no")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy in the environment."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@asynccontextmanager
async def proxying(port: int | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy, by its URL and what it was asked for. A tunnel leads to this port, whatever host was named."""
    asked = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split("\r\n")[0].rsplit(" ", 1)[0])
        if head.startswith("CONNECT"):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            there, to = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(pump(reader, to), pump(there, writer), return_exceptions=True)
            finally:
                to.transport.abort()
        else:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve_one, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


class Heard:
    """A listener that knows when it is connected."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def connected(self) -> None:
        self.event.set()

    def received(self, messages: Any) -> None:
        pass

    def disconnected(self) -> None:
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_the_link_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    protocols, heard = [Subprotocol(PROTOCOL)], Heard()
    async with (
        serve(lambda socket: socket.wait_closed(), "127.0.0.1", 0, subprotocols=protocols) as server,
        proxying(server.sockets[0].getsockname()[1]) as (url, asked),
    ):
        monkeypatch.setenv(name, url)
        link = Link(Dialler("ws://server.invalid:8700/agents", "t"), heard, random.Random(1))
        running = asyncio.create_task(link.run())
        await asyncio.wait_for(heard.event.wait(), 20)
        running.cancel()
        await asyncio.wait([running])
    assert asked == ["CONNECT server.invalid:8700"]


@pytest.mark.anyio
async def test_a_host_is_enrolled_through_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with proxying() as (url, asked):
        monkeypatch.setenv("HTTP_PROXY", url)
        await asyncio.to_thread(enrol, "http://server.invalid:8700", "token", "node-1", tmp_path)
    assert asked == ["POST http://server.invalid:8700/api/v1/enrol"]


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://a.example/", "http://secure:3128"),
        ("wss://a.example:8700/", "http://secure:3128"),
        ("ws://a.example/", "http://plain:3128"),
        ("wss://in.example.org/", None),
        ("wss://127.0.0.1:8700/", None),
        ("wss://localhost/", None),
        ("wss://[::1]:8700/", None),
    ],
)
def test_the_proxy_is_that_of_the_scheme_but_for_what_no_proxy_names(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "secure:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://plain:3128")
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert proxy_for(url) == proxy


def test_restic_has_the_same_proxies(tmp_path: Path) -> None:
    repository = Repository("r", "ns/main", "rest:https://h/b", "hush")
    host = {"ALL_PROXY": "socks5://p:1080", "https_proxy": "http://p:3128", "NO_PROXY": "x"}
    env = restic_environment(repository, host, tmp_path)
    proxies = {name: value for name, value in env.items() if name.lower().endswith("_proxy")}
    assert proxies == {"https_proxy": "http://p:3128", "HTTP_PROXY": "socks5://p:1080", "NO_PROXY": "x"}
