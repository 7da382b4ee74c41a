"""Real receivers of notifications: one of webhooks over HTTP, and one of mail over SMTP."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from bench.servers import free_port

GONE = 0
"""In place of a status: close the connection without an answer."""


class Call(NamedTuple):
    """A request that came."""

    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def items(self) -> list[dict[str, Any]]:
        data = json.loads(self.content)["data"]
        assert data["more"] == 0
        found: list[dict[str, Any]] = data["items"]
        return found


class Receiver:
    """Keeps the calls that came, those that it took apart. `status`: its answer to each, by a function."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.taken: list[Call] = []
        self.status: Callable[[Call], int] = lambda _: 200
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def told(self) -> list[tuple[str, str]]:
        """Status and key of each situation that was told, each message once however often it came."""
        once = {call.id: call for call in self.taken}
        return [(it["status"], it["key"]) for call in once.values() for it in call.items]

    @property
    def copies(self) -> int:
        """How often the call that came most often came again: each server that dies may leave each to the next one."""
        return max(Counter(call.id for call in self.taken).values(), default=1) - 1


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """A receiver of webhooks on this machine."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            call = Call(self.path, {name.lower(): value for name, value in self.headers.items()}, content)
            receiver.calls.append(call)
            status = receiver.status(call)
            if status == GONE:
                self.close_connection = True
                return
            if 200 <= status < 300:
                receiver.taken.append(call)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", f"http://127.0.0.1:{receiver.port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_args: Any) -> None:
            """It is the test that tells."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Mailbox:
    """Keeps the mail that came."""

    @property
    def texts(self) -> list[str]:
        """What the mails say."""
        parts = [mail.get_body(("plain",)) for mail in self.mails]
        return [part.get_content().replace("\r\n", "\n") for part in parts if part is not None]

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.refuse = False
        self.port = 0

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take a mail: aiosmtpd calls it."""
        if self.refuse:
            return "451 not now"
        assert isinstance(envelope.original_content, bytes)
        mail = BytesParser(policy=default).parsebytes(envelope.original_content)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """An SMTP server on this machine."""
    box = Mailbox()
    box.port = free_port()
    controller = Controller(box, hostname="127.0.0.1", port=box.port)
    controller.start()
    try:
        yield box
    finally:
        controller.stop()
