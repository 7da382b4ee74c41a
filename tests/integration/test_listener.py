"""Promise 9: however many clients connect or stay silent, probes, metrics and REST are answered."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.servers import free_port
from listener import http
from listener.accept import bind
from listener.slots import Slots
from tests.certificates import Authority
from tests.integration.conftest import DataFolders
from tests.plain import NO_TLS

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")
PATIENCE_S = 60
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Which one goes.


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from(["add", "busy", "idle", "remove"]), st.integers(0, 9))))
def test_no_more_are_held_than_the_limit_and_the_one_that_waits_longest_goes(limit: int, steps: list[Any]) -> None:
    slots: Slots[Any] = Slots(limit)
    waiting: list[int] = []
    busy: set[int] = set()
    for step, name in steps:
        if step == "add" and name not in waiting and name not in busy:
            waiting.append(name)
            gone = waiting.pop(0) if len(waiting) + len(busy) > limit else None
            assert slots.add(name) == gone
        elif step == "busy":
            slots.busy(name)
            if name in waiting:
                waiting.remove(name)
                busy.add(name)
        elif step == "idle":
            slots.idle(name)
            if name in busy:
                busy.remove(name)
                waiting.append(name)
        elif step == "remove":
            slots.remove(name)
            busy.discard(name)
            waiting = [it for it in waiting if it != name]
        assert len(slots) <= limit
        assert slots.all()[: len(waiting)] == waiting
        assert set(slots.all()) == {*waiting, *busy}


# What is a request.


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"get /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"OPTIONS /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01" + bytes(50) + b"\r\n\r\n", 400),
        (b"GET /" + b"a" * 3000, 414),
        (b"A" * 100_000, 414),
        (GET + b"X: y\r\n" * 2000, 431),
        (GET + b"X: " + b"y" * 9000 + b"\r\n\r\n", 431),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_with_its_reason(sent: bytes, status: int) -> None:
    with pytest.raises(http.RefusedError) as refused:
        http.parse(sent)
    assert refused.value.answer.status == status
    assert (refused.value.answer.headers.get("Allow") == "GET, HEAD") == (status == 405)


def test_a_request_is_read_however_it_is_cut() -> None:
    sent = b"HEAD http://a:1/metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept:  text/plain \r\n\r\n"
    for cut in range(len(sent)):
        assert http.parse(sent[:cut]) is None
    wanted = http.Request("HEAD", "/metrics", {"host": "a", "accept": "text/plain"})
    assert http.parse(sent) == http.parse(sent + b"GET /more") == wanted
    assert http.parse(b"GET / HTTP/1.0\r\n\r\n") == http.Request("GET", "/", {})


@given(st.binary() | st.binary().map(lambda it: GET + it + b"\r\n\r\n"))
def test_whatever_comes_is_a_request_or_refused_or_not_whole(sent: Any) -> None:
    with suppress(http.RefusedError):
        request = http.parse(sent)
        assert request is None or request.path.startswith("/")


# The small server.


async def hello(request: http.Request) -> http.Answer:
    return http.text(HTTPStatus.OK, "hello")


def said(connection: socket.socket) -> bytes:
    """All that the other end says before it closes."""
    with connection, connection.makefile("rb") as lines:
        return lines.read()


def connected(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    connection.sendall(sent)
    return connection


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def closes(connection: socket.socket) -> bytes:
    """Wait for the other end to close, which may have had something to say."""
    with closing(connection):
        try:
            return await asyncio.to_thread(said, connection)
        except ConnectionResetError:
            return b""


@pytest.mark.anyio
async def test_a_request_is_answered_once_and_head_has_no_content() -> None:
    with bind("127.0.0.1", 0, "--listen") as listening:
        port = listening.getsockname()[1]
        async with http.serving(listening, hello):
            got = await closes(connected(port, GET + b"\r\n" + b"GET /again HTTP/1.1\r\n" * 10_000))
            head = await closes(connected(port, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"))
            refused = await closes(connected(port, b"PUT / HTTP/1.1\r\nHost: a\r\n\r\n" + b"x" * 500_000))
    assert got.count(b"HTTP/1.1") == 1
    assert got.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 6\r\n")
    assert got.endswith(b"\r\nConnection: close\r\n\r\nhello\n")
    assert head == got.removesuffix(b"hello\n")
    assert refused.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in refused


@pytest.mark.anyio
@pytest.mark.parametrize("begun", [b"", b"G", GET], ids=["nothing", "a letter", "a header"])
async def test_who_does_not_ask_in_time_is_not_awaited(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.1)
    with bind("127.0.0.1", 0, "--listen") as listening:
        async with http.serving(listening, hello):
            assert await closes(connected(listening.getsockname()[1], begun)) == b""


@pytest.mark.anyio
async def test_who_does_not_take_the_answer_is_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TAKE_S", 0.1)

    async def much(request: http.Request) -> http.Answer:
        return http.Answer(HTTPStatus.OK, bytes(50_000_000))

    with bind("127.0.0.1", 0, "--listen") as listening:
        async with http.serving(listening, much):
            before = open_files()
            connection = connected(listening.getsockname()[1], GET + b"\r\n")
            await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK)
            while open_files() > before + 1:  # ours alone is left
                await asyncio.sleep(0.01)
            assert len(await closes(connection)) < 50_000_000


@pytest.mark.anyio
async def test_an_answer_that_fails_or_takes_too_long_ends_only_its_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http, "ANSWER_S", 0.1)

    async def never(request: http.Request) -> http.Answer:
        if request.path == "/fails":
            raise ValueError("secret")
        await asyncio.Event().wait()
        raise AssertionError

    with bind("127.0.0.1", 0, "--listen") as listening:
        port = listening.getsockname()[1]
        async with http.serving(listening, never):
            assert await closes(connected(port, GET + b"\r\n")) == b""
            failed = await closes(connected(port, b"GET /fails HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert failed.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in failed
    assert [it.getMessage() for it in caplog.records] == ["request failed"]


@pytest.mark.anyio
async def test_the_connection_that_waits_longest_goes_first_and_those_that_are_answered_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 4)
    go_on, asked = asyncio.Event(), asyncio.Event()

    async def slow(request: http.Request) -> http.Answer:
        asked.set()
        await go_on.wait()
        return http.text(HTTPStatus.OK, "done")

    with bind("127.0.0.1", 0, "--listen") as listening, ExitStack() as stack:
        port = listening.getsockname()[1]
        async with http.serving(listening, slow):
            answered = connected(port, GET + b"\r\n")
            await asked.wait()
            waiting = [stack.enter_context(closing(connected(port))) for _ in range(5)]
            assert await closes(waiting[0]) == await closes(waiting[1]) == b""
            for connection in waiting[2:]:
                connection.setblocking(False)
                with pytest.raises(BlockingIOError):
                    connection.recv(1)
            go_on.set()
            assert (await closes(answered)).endswith(b"done\n")


# Whole parts, with few descriptors.


def with_descriptors(count: int, *words: str | Path) -> list[Any]:
    return ["prlimit", f"--nofile={count}:{count}", *words]


OUT_OF_ROOM = """
import asyncio, logging, sys
from http import HTTPStatus
from listener import http
from listener.accept import bind

async def main():
    logging.basicConfig(stream=sys.stdout)
    http.MAX_CONNECTIONS = 10_000
    async def hello(request):
        return http.text(HTTPStatus.OK, "hello")
    with bind("127.0.0.1", 0, "--listen") as listening:
        async with http.serving(listening, hello):
            print(listening.getsockname()[1], flush=True)
            await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_without_descriptors_it_waits_in_peace_and_goes_on_when_there_are_some() -> None:
    with subprocess.Popen(
        with_descriptors(40, sys.executable, "-c", OUT_OF_ROOM), stdin=-1, stdout=-1, text=True
    ) as process, ExitStack() as stack:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        idle = [stack.enter_context(closing(connected(port))) for _ in range(200)]
        answered = said(connected(port, GET + b"\r\n"))
        before = cpu_s(process.pid)
        while httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, verify=NO_TLS).text != "hello\n":
            pass
        for connection in idle:
            connection.close()
        again = said(connected(port, GET + b"\r\n"))
        used = cpu_s(process.pid) - before
        process.stdin.close()
        logged = process.stdout.read()
    assert answered.endswith(b"hello\n")
    assert again.endswith(b"hello\n")
    assert "a connection cannot be accepted" in logged
    assert logged.count("\n") < 5
    assert "Traceback" not in logged
    assert used < 2
    assert process.returncode == 0


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_idle_connections_on_every_port_stop_neither_rest_nor_probes(
    tmp_path: Path, data_folders: DataFolders, secure: bool
) -> None:
    port, probes = free_port(), free_port()
    words = ["--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{probes}", "--data-dir", str(tmp_path)]
    trust = True
    if secure:
        (tmp_path / "tls.pem").write_bytes(b"".join(Authority().issue("server", "127.0.0.1")))
        words += ["--tls-cert", str(tmp_path / "tls.pem")]
        trust = False
    log = tmp_path / "log"
    with log.open("wb") as stderr, subprocess.Popen(
        with_descriptors(200, LAMPLIGHTER, "server", *words),
        env=os.environ | data_folders.environment(tmp_path),
        stderr=stderr,
    ) as process, ExitStack() as stack:  # fmt: skip
        try:
            ends = time.monotonic() + PATIENCE_S
            while b"ready" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < ends
                time.sleep(0.05)
            for number in range(380):
                stack.enter_context(closing(connected(probes if number % 2 else port)))
            token = (tmp_path / "admin-token").read_text().strip()
            at = f"http{'s' * secure}://127.0.0.1:{port}"
            with httpx.Client(trust_env=False, verify=trust, timeout=PATIENCE_S) as client:
                hosts = client.get(f"{at}/api/v1/hosts", headers={"authorization": f"Bearer {token}"})
                assert hosts.json() == {"items": [], "next": None}
                assert client.get(f"{at}/readyz").text == "ok\n"
                assert client.get(f"http://127.0.0.1:{probes}/readyz").text == "ok\n"
                assert "lamplighter_hosts 0.0" in client.get(f"http://127.0.0.1:{probes}/metrics").text
                put = client.put(f"{at}/api/v1/hosts/a", json={"labels": {}}, headers=hosts.request.headers)
                assert put.status_code == 201
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    assert b"Traceback" not in log.read_bytes()
    assert log.read_bytes().count(b"too many connections") <= 2
