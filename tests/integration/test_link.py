"""The link calls until it is answered, sends in order, and says why a connection ended, over a real socket."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from agent import link as links
from agent.link import Dialler, Link, backoff
from wire import codec
from wire.messages import PROTOCOL, CommandCancel, FromServer, JobConfirmed, JobLog, RepoCredentials

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls again after hundredths of a second."""
    monkeypatch.setattr(links, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(links, "LONGEST_DELAY_S", 0.05)


class Server:
    """A server that keeps what it hears, by connection, and does with each connection what `handle` says."""

    def __init__(self) -> None:
        self.sockets: asyncio.Queue[Any] = asyncio.Queue()
        self.requests: list[Request] = []
        self.refusal: tuple[int, str] | None = None
        self.retry_after: list[str] = []

    async def next(self) -> Any:
        return await asyncio.wait_for(self.sockets.get(), 10)

    async def _handle(self, socket: ServerConnection) -> None:
        await self.sockets.put(socket)
        await socket.wait_closed()

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        if self.refusal is None:
            return None
        answer = connection.respond(*self.refusal)
        for value in self.retry_after:
            answer.headers["Retry-After"] = value
        return answer

    @asynccontextmanager
    async def listening(self, port: int = 0, **settings: Any) -> AsyncIterator[Self]:
        async with serve(
            self._handle,
            "127.0.0.1",
            port,
            subprotocols=[Subprotocol(PROTOCOL)],
            process_request=self._request,
            **settings,
        ) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self


class Agent:
    """Who listens: keeps what it is told, and says hello."""

    def __init__(self) -> None:
        self.link: Link
        self.told: list[Any] = []
        self.news = asyncio.Event()
        self.hello = JobLog("hello", ["x"])

    def connected(self) -> None:
        self._hear("connected")
        self.link.send([self.hello])

    def received(self, messages: Any) -> None:
        for message in messages:
            self._hear(message)

    def disconnected(self) -> None:
        self._hear("lost")

    def _hear(self, what: Any) -> None:
        self.told.append(what)
        self.news.set()

    async def until(self, *told: object) -> None:
        """Wait until that is what was told last."""
        async with asyncio.timeout(10):
            while tuple(self.told[-len(told) :]) != told:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def calling(port: int, token: str = "") -> AsyncIterator[Agent]:
    agent = Agent()
    agent.link = Link(Dialler(f"ws://127.0.0.1:{port}/agent", token), agent, random.Random(1))
    running = asyncio.create_task(agent.link.run())
    try:
        yield agent
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().listening() as listening:
        yield listening


@pytest.fixture
async def agent(server: Server) -> AsyncIterator[Agent]:
    async with calling(server.port, "t0ken") as made:
        yield made


async def frames(socket: ServerConnection, count: int) -> list[Any]:
    return [codec.from_agent.read(await asyncio.wait_for(socket.recv(), 10)) for _ in range(count)]


# Calling.


async def test_it_says_who_calls_and_speaks_first(server: Server, agent: Agent) -> None:
    socket = await server.next()
    assert await frames(socket, 1) == [[(agent.hello, "")]]
    assert socket.subprotocol == PROTOCOL
    [request] = server.requests
    assert (request.path, request.headers["Authorization"]) == ("/agent", "Bearer t0ken")
    assert "Sec-WebSocket-Extensions" not in request.headers


async def test_it_calls_until_a_server_is_there(caplog: pytest.LogCaptureFixture) -> None:
    async with Server().listening() as was:
        port = was.port
    async with calling(port) as agent:
        while len(caplog.records) < 3:
            await asyncio.sleep(0.01)
        assert agent.told == []
        async with Server().listening(port) as server:
            await frames(await server.next(), 1)
    record = caplog.records[0]
    assert (record.getMessage(), vars(record)["url"]) == ("not connected", f"ws://127.0.0.1:{port}/agent")
    assert "Connect call failed" in vars(record)["reason"]


async def test_a_refusal_is_logged_in_the_servers_words(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.refusal = (401, "the token is not known\n")
    async with calling(server.port):
        while not caplog.records:
            await asyncio.sleep(0.01)
    assert vars(caplog.records[0])["reason"] == "the server answered 401: the token is not known"


@pytest.mark.parametrize("code", [1001, 1013, 4002])
async def test_a_close_is_logged_in_the_servers_words(
    server: Server, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    async with calling(server.port):
        await (await server.next()).close(code, "try again later")
        while not (logged := [it for it in caplog.records if it.getMessage() == "not connected"]):
            await asyncio.sleep(0.01)
    assert vars(logged[0])["reason"] == "closed by the server: try again later"


def test_waits_grow_to_a_limit_and_differ() -> None:
    rng = random.Random(1)
    for failures in (1, 2, 3, 8, 1000):
        limit = min(links.LONGEST_DELAY_S, links.FIRST_DELAY_S * 2 ** (failures - 1))
        delays = [backoff(failures, rng) for _ in range(1000)]
        assert 0.1 * limit <= min(delays) < 0.2 * limit
        assert 0.9 * limit < max(delays) <= limit


async def test_a_connection_that_did_not_last_makes_the_next_wait_longer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def at_once(failures: int, rng: random.Random) -> int:
        asked.append(failures)
        return 0

    monkeypatch.setattr(links, "backoff", at_once)
    async with calling(server.port):
        for _ in range(3):
            await (await server.next()).close()
        last = await server.next()
        assert asked == [1, 2, 3]
        monkeypatch.setattr(links, "STEADY_S", 0)
        await last.close()
        await (await server.next()).close()
        await server.next()
        assert asked == [1, 2, 3, 1, 1]


async def test_a_server_that_sends_its_agents_away_makes_none_of_them_wait_longer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(failures: int, rng: random.Random) -> float:
        asked.append(failures)
        return 0.0

    monkeypatch.setattr(links, "backoff", counted)
    async with calling(server.port):
        for code in (1011, 1011, 1012, 1012, 1011):
            await (await server.next()).close(code, "bye")
        await server.next()
    assert asked == [1, 2, 1, 1, 2]


NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("1", 1),
        ("3600", 3600),
        ("3601", 3600),
        ("9" * 5000, 3600),
        ("-5", 0),
        ("1.5", 0),
        ("nan", 0),
        ("\u0663", 0),
        ("", 0),
        ("soon", 0),
        ("Sat, 28 Nov 2026 12:00:30 GMT", 30),
        ("Sat, 28 Nov 2026 12:00:30 -0000", 30),
        ("Sat, 28 Nov 2026 11:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("Sat, 28 Nov 2026 12:00:30 +9999999", 0),
    ],
)
def test_a_wait_that_is_asked_for_is_at_most_an_hour(value: str, seconds: float) -> None:
    assert links.asked_wait(value, NOON) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9 :+a-zA-Z-]{0,40}"))
def test_whatever_is_in_the_header_the_wait_is_bounded(value: str) -> None:
    assert 0 <= links.asked_wait(value, NOON) <= 3600


@pytest.mark.parametrize(
    ("code", "reason", "seconds"),
    [
        (1013, "this host connects too often: try again in 2.5 s", 2.5),
        (1013, f"try again in {'9' * 400} s", 3600),
        (1013, "try again later", 0),
        (1013, "try again in -5 s", 0),
        (1013, None, 0),
        (1011, "try again in 5 s", 0),
        (None, None, 0),
    ],
)
def test_a_close_frame_may_ask_for_a_wait(code: int | None, reason: str | None, seconds: float) -> None:
    assert links.asked_wait_of_close(code, reason) == seconds


async def waits(caplog: pytest.LogCaptureFixture, count: int) -> list[float]:
    """The seconds of the next waits, of which none is waited for."""
    async with asyncio.timeout(10):
        while len(logged := [it for it in caplog.records if it.getMessage() == "not connected"]) < count:
            await asyncio.sleep(0.01)
    return [vars(it)["retry_s"] for it in logged[:count]]


@pytest.mark.parametrize(
    ("status", "retry_after", "least"),
    [(503, ["2"], 2), (429, ["2"], 2), (401, ["2"], 0), (503, [], 0), (503, ["2", "3"], 0), (503, ["9" * 30], 3600)],
)
async def test_a_server_that_is_busy_is_called_again_when_it_says_and_by_each_agent_at_a_time_of_its_own(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    retry_after: list[str],
    least: float,
) -> None:
    monkeypatch.setattr(links, "backoff", lambda failures, rng: 0.25)
    server.refusal, server.retry_after = (status, "busy"), retry_after
    async with calling(server.port):
        assert await waits(caplog, 1) == [round(least + 0.25, 1)]


async def test_a_server_that_closes_as_it_is_busy_is_called_again_when_it_says(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "backoff", lambda failures, rng: 0.25)
    async with calling(server.port):
        await (await server.next()).close(1013, "this host connects too often: try again in 7.5 s")
        assert await waits(caplog, 1) == [round(7.75, 1)]


# Talking.


async def test_frames_keep_their_order_and_their_messages(server: Server, agent: Agent) -> None:
    socket = await server.next()
    await agent.until("connected")
    for number in range(500):
        agent.link.send([JobLog(f"j{number}", []), JobLog(f"k{number}", [])])
    heard = await frames(socket, 501)
    assert [[message.job_id for message, _ in frame] for frame in heard[1:]] == [[f"j{n}", f"k{n}"] for n in range(500)]


async def test_messages_are_handed_on_in_order_whatever_frames_they_come_in(server: Server, agent: Agent) -> None:
    socket = await server.next()
    messages: list[FromServer] = [CommandCancel("j1"), JobConfirmed("j2"), RepoCredentials([])]
    await socket.send(codec.encode(messages[:2]))
    await socket.send(codec.encode(messages[2:]).encode())
    await agent.until("connected", *messages)


async def test_a_type_that_is_not_known_is_left_unread(server: Server, agent: Agent) -> None:
    socket = await server.next()
    await socket.send(
        '[{"type": "of.tomorrow", "payload": [1]}, {"type": "job.confirmed", "payload": {"job_id": "j1"}}]'
    )
    await agent.until("connected", JobConfirmed("j1"))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("{", "frame: Input data was truncated"),
        ('{"type": "job.confirmed"}', "job.confirmed: Object missing required field `job_id`"),
        ('{"type": "schedule.refused", "payload": {"schedule_id": "s", "scheduled_at": "2026-01-01T00:00:00Z",'
         f' "reason": "{"é" * 200}"}}}}', f"schedule.refused: Invalid enum value '{'é' * 42}"),
    ],
)  # fmt: skip
async def test_a_malformed_frame_ends_the_connection_with_its_reason_and_the_next_one_begins(
    server: Server, agent: Agent, frame: str, reason: str
) -> None:
    socket = await server.next()
    await socket.send(frame)
    with pytest.raises(ConnectionClosed):
        await frames(socket, 2)
    assert (socket.close_code, socket.close_reason) == (1007, reason)
    await server.next()
    await agent.until("connected", "lost", "connected")


async def test_a_server_that_closes_or_vanishes_is_called_again_and_each_connection_ends_once(
    server: Server, agent: Agent
) -> None:
    await (await server.next()).close(1001, "going away")
    (await server.next()).transport.abort()
    await server.next()
    await agent.until(*["connected", "lost"] * 2, "connected")


async def test_what_is_said_without_a_connection_is_dropped(server: Server, agent: Agent) -> None:
    first = await server.next()
    first.transport.abort()
    await agent.until("connected", "lost")
    agent.link.send([JobLog("j1", [])])
    second = await server.next()
    assert await frames(second, 1) == [[(agent.hello, "")]]
    agent.link.send([JobLog("j2", [])])
    assert await frames(second, 1) == [[(JobLog("j2", []), "")]]


async def test_a_server_that_does_not_answer_pings_is_called_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "PING_S", 0.05)
    async with calling(server.port) as agent:
        silent = await server.next()
        silent.transport.pause_reading()
        await agent.until("connected", "lost", "connected")
        silent.transport.abort()


async def test_a_server_that_reads_no_pings_for_now_is_kept_while_it_sends_its_own(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does one whose store is slow."""
    monkeypatch.setattr(links, "PING_S", 0.2)
    async with calling(server.port) as agent:
        busy = await server.next()
        busy.transport.pause_reading()
        for _ in range(20):
            await busy.ping()
            await asyncio.sleep(0.05)
        assert agent.told == ["connected"]
        busy.transport.abort()


async def test_a_server_that_does_not_read_costs_no_more_than_what_may_be_unsent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(links, "MAX_UNSENT", 1 << 20)
    async with Server().listening(max_queue=1) as server, calling(server.port) as agent:
        socket = await server.next()
        await frames(socket, 1)
        socket.transport.pause_reading()
        while "lost" not in agent.told:
            agent.link.send([JobLog("j1", ["x" * 4096])])
            await asyncio.sleep(0)
        await agent.until("connected", "lost", "connected")
        assert "server reads too slowly: connection given up" in caplog.text
        socket.transport.abort()


async def test_a_listener_that_fails_ends_the_link_and_is_seen(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent()
    agent.link = Link(Dialler(f"ws://127.0.0.1:{server.port}/agent", ""), agent, random.Random(1))
    monkeypatch.setattr(agent, "received", lambda messages: 1 / 0)
    running = asyncio.create_task(agent.link.run())
    await (await server.next()).send(codec.encode([JobConfirmed("j1")]))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(running, 10)
    assert agent.told == ["connected", "lost"]


async def test_an_agent_that_stops_takes_leave(server: Server) -> None:
    async with calling(server.port):
        socket = await server.next()
        await frames(socket, 1)
    await asyncio.wait_for(socket.wait_closed(), 10)
    assert (socket.close_code, socket.close_reason) == (1001, "the agent stops")
