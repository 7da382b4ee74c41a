"""Promise 9: hostile agents and strangers get a clear answer or are cut off, and nobody else notices."""

import asyncio
import copy
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websocket
from websockets.typing import Subprotocol

from listener import accept
from server.app import Config, serving
from server.store.engine import CONNECTIONS
from server.transport import connections as transport
from tests.integration.conftest import DataFolders
from tests.plain import NO_TLS

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")
LISTENS = "0A"
"""The state of a socket that waits for connections, as proc_pid_net(5) has it."""
EXAMPLES = 150 * int(os.environ.get("LAMPLIGHTER_FUZZ", "1"))
"""Of each property; `make faults` asks for many times as many."""
PATIENCE_S = 30
DUE = "2026-03-29T01:30:00Z"


class Server:
    """A server that answers, and what its guests need."""

    def __init__(self, port: int, agent_token: str, admin_token: str) -> None:
        self.port = port
        self.agent = {"authorization": f"Bearer {agent_token}"}
        self.admin = {"authorization": f"Bearer {admin_token}"}

    def connect(self, **options: Any) -> Any:
        return websocket(
            f"ws://127.0.0.1:{self.port}/agent",
            subprotocols=[Subprotocol("lamplighter.v1")],
            additional_headers=self.agent,
            compression=None,
            proxy=None,
            max_size=None,
            **options,
        )

    def raw(self, *sent: bytes) -> socket.socket:
        """A TCP connection on which these bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        for data in sent:
            connection.sendall(data)
        return connection

    def handshaken(self) -> socket.socket:
        """A TCP connection that is a WebSocket from here on."""
        connection = self.raw(UPGRADE + f"Authorization: {self.agent['authorization']}\r\n\r\n".encode())
        said = b""
        while not said.endswith(b"\r\n\r\n"):
            said += connection.recv(1)
        assert said.startswith(b"HTTP/1.1 101")
        return connection

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=self.admin, trust_env=False, verify=NO_TLS)

    def serves_others(self) -> Any:
        """Whether it is alive, and another agent is answered as ever."""
        with self.connect() as agent:
            agent.send(envelope("hello", host="well-behaved"))
            said = json.loads(agent.recv(PATIENCE_S))
            return self.get("/healthz").text == "ok\n" and said["type"] == "schedule.set"


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@contextmanager
def started(portal: BlockingPortal, folder: Path) -> Iterator[Server]:
    with portal.wrap_async_context_manager(serving(Config(folder, port=0))) as running:
        yield Server(running.port, running.agent_token, running.admin_token)


@pytest.fixture(scope="module")
def server(portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(portal, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(autouse=True)
def untroubled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing that a guest does is an error of the server."""
    caplog = request.getfixturevalue("caplog")
    yield
    records = [it for when in ("setup", "call") for it in caplog.get_records(when) if it.name != "websockets.client"]
    told = [it.getMessage() for it in records if it.levelno >= logging.ERROR]
    assert told == []


# What agents say.


def envelope(type_: str, **payload: Any) -> str:
    return json.dumps({"type": type_, "id": "", "payload": payload})


VALID: list[tuple[str, dict[str, Any]]] = [
    ("hello", {"host": "node-1", "agent_version": "1", "applied_version": 0, "digest": "", "running_jobs": ["j1"]}),
    ("schedule.ack", {"version": 0, "digest": "0" * 64}),
    ("schedule.resync", {"have": 0}),
    ("schedule.fire", {"schedule_id": "s1", "scheduled_at": DUE, "missed": 1}),
    ("job.accepted", {"job_id": "j1"}),
    ("job.progress", {"job_id": "j1", "fraction": 0.5, "files_done": 1, "bytes_total": 2}),
    ("job.log", {"job_id": "j1", "lines": ["a", "b"]}),
    ("job.finished", {"job_id": "j1", "status": "failed", "finished_at": DUE, "started_at": DUE, "exit_code": 1}),
]
DEEP = json.loads("[" * 900 + "]" * 900)
NASTY = [
    *(None, True, -1, 2**53, 2**63, 2**64, 10**400, -(2**63) - 1, 1e308, float("nan"), float("inf"), 0.1),
    *("", "\0", "\ud800", "\\u0000", "é" * 70, "x" * 1000, "x" * 1_000_000, "\u202e", "../../etc/passwd", "{}"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-03-29T01:30:00", "9" * 5000),
    *([], [[]] * 5000, ["x"] * 10_001, [None], {}, {"": {}}, dict.fromkeys(map(str, range(5000)), 0), DEEP),
]


class Frame(str):
    """A text that tells only its beginning of itself."""

    def __repr__(self) -> str:
        return f"{str(self[:200])!r} of {len(self)}"


@st.composite
def spoilt(draw: st.DrawFn) -> Frame | bytes:
    """A frame that was right before something was done to it."""
    type_, payload = draw(st.sampled_from(VALID))
    frame: dict[str, Any] = {"type": type_, "id": "", "payload": dict(payload)}
    for _ in range(draw(st.integers(0, 3))):
        inside = draw(st.sampled_from([frame, frame["payload"] if isinstance(frame.get("payload"), dict) else frame]))
        inside[draw(st.sampled_from([*inside, "type", "id", "more"]))] = copy.deepcopy(draw(st.sampled_from(NASTY)))
    text = json.dumps(draw(st.sampled_from([frame, [frame], [frame] * 3, {**frame, "type": "from.the.future"}])))
    match draw(st.sampled_from(["whole", "whole", "whole", "cut", "twice", "trailing", "duplicate keys", "binary"])):
        case "cut":
            return Frame(text[: draw(st.integers(0, len(text)))])
        case "twice":
            return Frame(text + text)
        case "trailing":
            return Frame(text + " \ufeff")
        case "duplicate keys":
            return Frame('{"type": "hello", ' + text[1:])
        case "binary":
            return text[:9000].encode()
    return Frame(text)


NUMBERS = itertools.count()
"""Each example is another host: one that connects too often is sent away for a while."""


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
@given(said_hello=st.booleans(), frames=st.lists(spoilt(), min_size=1, max_size=4))
@example(True, [envelope("schedule.fire", schedule_id="s1", scheduled_at="0001-01-01T00:00:00+23:59")])
@example(True, [envelope("schedule.ack", version=0, digest="f" * 64)] * 2)
@example(True, [envelope("job.log", job_id="j1", lines=["a\0b"])])
@example(True, [envelope("job.log", job_id="j1", lines=["a\\u0000b"])])
@example(True, [Frame(json.dumps({"type": "job.accepted", "id": "x" * 1_000_000, "payload": {"job_id": "j1"}}))])
def test_whatever_an_agent_says_is_tolerated_or_ends_its_connection_with_a_reason(
    server: Server, said_hello: bool, frames: list[Any]
) -> None:
    with server.connect() as agent:
        with suppress(ConnectionClosed):
            if said_hello:
                agent.send(envelope("hello", host=f"node-{next(NUMBERS)}"))
            for frame in frames:
                agent.send(frame)
            assert agent.ping(ack_on_close=True).wait(PATIENCE_S)
        if (code := agent.close_code) is not None:
            assert code in {1007, 1009, 1013, 4000}  # 1013: this host connects too often
            assert agent.close_reason


def test_after_all_that_others_are_served(server: Server) -> None:
    assert server.serves_others()


# What comes on a connection before it is one of an agent's, or is no message at all.

UPGRADE = (
    b"GET /agent HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: lamplighter.v1\r\n"
)


def answer(connection: socket.socket) -> bytes:
    """All that the server says until it closes."""
    said = b""
    with closing(connection):
        while data := connection.recv(1 << 16):
            said += data
    return said


@pytest.mark.parametrize(
    "request_",
    [
        UPGRADE + b"\r\n",
        UPGRADE + b"Authorization: Bearer wrong\r\n\r\n",
        UPGRADE + b"Authorization: Bearer \xff\xfe\r\n\r\n",
        UPGRADE.replace(b"Version: 13", b"Version: 7") + b"\r\n",
        UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short") + b"\r\n",
        UPGRADE.replace(b"GET", b"POST") + b"Content-Length: 0\r\n\r\n",
        UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n",
        UPGRADE.replace(b"/agent", b"/agent/%00/../x") + b"\r\n",
        UPGRADE + b"X: y\r\n" * 500 + b"\r\n",
        UPGRADE + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
        UPGRADE + b"Content-Length: 5\r\n\r\nhello",
        b"GET  /  HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
        b"A" * 100_000,
    ],
    ids=lambda value: value[:200].decode(errors="replace")[-40:],
)
def test_a_handshake_that_is_none_is_refused_and_the_connection_over(server: Server, request_: bytes) -> None:
    said = answer(server.raw(request_))
    assert said.startswith(b"HTTP/1.1 4"), said


def frame(opcode: int, data: bytes, *, fin: bool = True, masked: bool = True, length: int | None = None) -> bytes:
    """A WebSocket frame (RFC 6455, section 5.2) masked with zeros."""
    size = len(data) if length is None else length
    head = bytes([fin << 7 | opcode, masked << 7 | (size if size < 126 else 127)])
    return head + (size.to_bytes(8, "big") if size >= 126 else b"") + bytes(4) * masked + data


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(1, b"\xff\xfe"), 1007),
        (frame(1, b"{}", masked=False), 1002),
        (frame(3, b""), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(0, b"x"), 1002),
        (frame(1, b"{", fin=False) + frame(1, b"}"), 1002),
        (frame(1, b"", length=2**63 - 1), 1009),
        (frame(1, b"x" * 600_000, fin=False) + frame(0, b"x" * 600_000), 1009),
        (frame(8, b"\x00"), 1002),
        (frame(8, b"\x03\xe8\xff"), 1007),
        (frame(8, b"\x00\x00"), 1002),
        (frame(1, b"{}") * 1000, 1007),
    ],
)  # fmt: skip
def test_frames_that_are_none_end_the_connection_with_their_code(server: Server, sent: bytes, code: int) -> None:
    with closing(server.handshaken()) as connection:
        connection.sendall(sent)
        said = connection.recv(4)
    assert (said[0], int.from_bytes(said[2:4], "big")) == (0x88, code)


@pytest.mark.parametrize(
    "begun",
    [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", UPGRADE, b"POST /api/v1/enrol HTTP/1.1\r\nHost: a\r\n"
     b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET"],
    ids=["nothing", "a letter", "a header", "a handshake", "a body", "a second request"],
)  # fmt: skip
def test_a_request_that_is_never_finished_is_not_awaited(
    server: Server, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(transport, "REQUEST_S", 0.5)
    answer(server.raw(begun))  # comes back


def test_a_request_that_comes_by_the_letter_is_not_awaited_either(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "REQUEST_S", 0.5)
    with closing(server.raw(b"GET /healthz HTTP/1.1\r\nX: ")) as connection:
        connection.settimeout(0.01)
        with suppress(ConnectionResetError, BrokenPipeError):
            until(lambda: connection.send(b"x") and _ended(connection))


def _ended(connection: socket.socket) -> bool:
    """Whether the other end has closed."""
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


def test_a_connection_that_says_nothing_as_an_agent_is_not_awaited(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.gateway.endpoint.HELLO_S", 0)
    with server.connect() as agent, pytest.raises(ConnectionClosed):
        agent.recv(PATIENCE_S)
    assert agent.close_reason == "no hello within 0 s"


# What is there in number.


def tasks(portal: BlockingPortal) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return portal.call(count)


def until(condition: Callable[..., int | bool] | Callable[..., bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_thousand_connections_of_one_host_leave_one(server: Server, portal: BlockingPortal) -> None:
    before = tasks(portal)
    connections = [server.handshaken() for _ in range(1000)]
    for connection in connections:
        connection.sendall(frame(1, envelope("hello", host="node-1").encode()))
    until(lambda: tasks(portal) <= before + 2)
    assert server.get("/api/v1/hosts/node-1").json()["connected"]
    assert server.serves_others()
    for connection in connections:
        connection.close()
    until(lambda: tasks(portal) <= before)


def test_who_reads_nothing_is_given_up_by_the_kernel(
    portal: BlockingPortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "STALLED_S", 1)
    with started(portal, tmp_path) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(PATIENCE_S)
        with closing(connection), pytest.raises((ConnectionResetError, BrokenPipeError)):
            _ask_forever(connection)
        assert server.get("/healthz").is_success


def _ask_forever(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 100)


def test_pings_to_which_nobody_hears_the_answer_are_not_answered_without_bound(server: Server) -> None:
    with closing(server.handshaken()) as connection:
        connection.sendall(frame(1, envelope("hello", host="node-2").encode()))
        before, _ = _held(os.getpid())
        for _ in range(300):
            connection.sendall(frame(9, b"x" * 120) * 2000)
        assert server.serves_others()
        after, _ = _held(os.getpid())
    assert after - before < 20_000  # of 75,000 that were sent


@pytest.mark.slow
def test_thousands_of_hostile_connections_leave_no_trace_in_memory(tmp_path: Path, data_folders: DataFolders) -> None:
    log = tmp_path / "log"  # a file: a pipe that nobody reads fills, and the server waits for it
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [LAMPLIGHTER, "server", "--data-dir", "data", "--listen", "127.0.0.1:0", "--log-format", "json"],
            cwd=tmp_path,
            env=os.environ | data_folders.environment(tmp_path / "data"),
            stderr=stderr,
        )
    try:
        until(lambda: b"\n" in log.read_bytes())
        ready = json.loads(log.read_bytes().splitlines()[0])
        (data,) = tmp_path.glob("data")
        server = Server(int(ready["listen"].rpartition(":")[2]), *((data / f"{it}-token").read_text().strip()
                        for it in ("agent", "admin")))  # fmt: skip

        def rounds(count: int) -> None:
            for _ in range(count):
                _hostile(server)
                assert server.get("/healthz").text == "ok\n"  # who came before it was let in, and not only queued
                until(lambda: _connections(server.port) <= 2)

        rounds(30)  # what is allocated once is
        before, files = _held(process.pid)
        rounds(EXAMPLES)
        after, files_after = _held(process.pid)
        assert server.serves_others()
        assert after <= before * 1.25
        assert files_after <= files + CONNECTIONS  # to the database, opened as they are needed
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    said = log.read_bytes()
    assert process.returncode == 0
    assert b"Traceback" not in said
    assert b'"level": "error"' not in said


def _held(pid: int) -> tuple[int, int]:
    """Resident kilobytes and open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _connections(port: int) -> int:
    """How many connections of this port a process holds; see proc_pid_net(5)."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(local.rpartition(":")[2], 16) == port and state != LISTENS and inode != "0"
        for _, local, _, state, _, _, _, _, _, inode, *_ in rows
    )


def _hostile(server: Server) -> None:
    """One connection of each kind of guest."""
    authorized = UPGRADE + f"Authorization: {server.agent['authorization']}\r\n\r\n".encode()
    hello = authorized + frame(1, envelope("hello", host="node-1").encode())
    kinds = [
        (UPGRADE + b"\r\n",),
        (UPGRADE,),
        (authorized,),
        (authorized, frame(1, b"x" * 500_000, fin=False)),
        (authorized, frame(1, envelope("hello", host="node-1", agent_version="x" * 500_000).encode())),
        (hello,),
        (hello, frame(1, json.dumps([{"type": "x"}] * 10_000).encode())),
        (hello, frame(1, envelope("job.log", job_id="nobody", lines=["x" * 4096] * 100).encode())),
        (hello, frame(1, envelope("schedule.fire", schedule_id="none", scheduled_at=DUE).encode())),
        (b"POST /api/v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + b"x" * 500_000,),
    ]
    for sent in kinds:
        with suppress(ConnectionResetError, BrokenPipeError):
            server.raw(*sent).close()
