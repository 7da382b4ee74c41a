"""A WebSocket client that costs little, so that a row does not measure its own load.

It masks with zeros, which leaves the bytes as they are. That is safe here, where no proxy is in between (RFC 6455,
section 10.3).
"""

import asyncio
from collections.abc import Callable

from wire.messages import PROTOCOL

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def framed(text: bytes, opcode: int = TEXT) -> bytes:
    """The bytes of one frame from a client."""
    size = len(text)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + text


def request(path: str, token: str = "") -> bytes:
    """The bytes with which a client begins its connection."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: bench",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: bGFtcGxpZ2h0ZXJiZW5jaA==",
    ]
    if token:
        lines += [f"Sec-WebSocket-Protocol: {PROTOCOL}", f"Authorization: Bearer {token}"]
    return "\r\n".join([*lines, "", ""]).encode()


class Frames:
    """Splits the bytes from a server into whole frames (RFC 6455, section 5.2). The server sends no fragments."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[tuple[int, bytes]]:
        """The opcode and payload of each frame that is whole now."""
        data = self._rest + data if self._rest else data
        found, at = [], 0
        while len(data) >= at + 2:
            size, begin = data[at + 1] & 127, at + 2
            if size > 125:
                width = 2 if size == 126 else 8
                size, begin = int.from_bytes(data[begin : begin + width], "big"), begin + width
            if len(data) < begin + size:
                break
            found.append((data[at] & 15, data[begin : begin + size]))
            at = begin + size
        self._rest = data[at:]
        return found


class Line(asyncio.Protocol):
    """One connection. `heard`: called with the text of each frame. `opened`: done after the handshake, or its error."""

    def __init__(self, hello: bytes, heard: Callable[[bytes], None]) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hello = hello
        self._heard = heard
        self._head = b""
        self._frames = Frames()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            if b" 101 " not in head:
                self.opened.set_exception(ConnectionError(head.decode(errors="replace")))
                return
            self.opened.set_result(None)
        for opcode, payload in self._frames.take(data):
            if opcode == TEXT:
                self._heard(payload)
            elif opcode == PING:
                self.send(framed(payload, PONG))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("closed during the handshake"))

    def send(self, data: bytes) -> None:
        """Send bytes, of `framed`."""
        self._transport.write(data)

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()


async def dial(port: int, hello: bytes, heard: Callable[[bytes], None]) -> Line:
    """Open a connection to this machine. Raises OSError when it is refused."""
    loop = asyncio.get_running_loop()
    _, line = await loop.create_connection(lambda: Line(hello, heard), "127.0.0.1", port)
    await line.opened
    return line
