"""Asks REST in this process, as the signed-in user: the same routes, permissions and answers as over HTTP."""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.types import ASGIApp, Message

from server.access.identity import User
from server.api.routing import PREFIX
from server.errors import FieldError, NotFound


class Refused(Exception):  # noqa: N818 - it says that REST refused, not that something broke
    """REST answered with a problem. `detail` and `errors` are for the user."""

    def __init__(self, status: int, title: str, detail: str, errors: list[FieldError]) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors


class _Problem(msgspec.Struct):
    title: str
    detail: str = ""
    errors: list[FieldError] = []


class Client:
    """Calls an application of `routing.as_user`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def ask(
        self, user: User, method: str, path: tuple[str, ...], query: Mapping[str, str | None], body: object = None
    ) -> Any:
        """The JSON of the answer; None for an answer without a body.

        `path`: its segments below /api/v1. `query`: parameters, of which those that are None or empty are left out.
        `body`: is sent as JSON unless it is None. Raises Refused, and NotFound for a segment that holds a slash.
        """
        if not all(path) or any("/" in it for it in path):
            raise NotFound("nothing is at this path")
        content = b"" if body is None else msgspec.json.encode(body)
        given = urlencode({name: value for name, value in query.items() if value})
        answer = _Answer(content)
        scope = _scope(user, method, "/".join((PREFIX, *path)), given, content)
        await self._app(scope, answer.receive, answer.send)
        return answer.value()


def _scope(user: User, method: str, path: str, query: str, content: bytes) -> dict[str, Any]:
    """What ASGI's HTTP scope (version 3.0) needs to have."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), *(headers if content else [])],
        "client": None,
        "server": None,
        "state": {"user": user},
    }


class _Answer:
    """The other end of a call: gives the body, and gathers the answer."""

    def __init__(self, content: bytes) -> None:
        self._given: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
        self._status = 500
        self._body = bytearray()

    async def receive(self) -> Message:
        """The whole body, and then nothing: the caller stays."""
        if not self._given:
            await asyncio.Event().wait()
        return self._given.pop()

    async def send(self, message: Message) -> None:
        """Take a part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        else:
            self._body += message.get("body", b"")

    def value(self) -> Any:
        """The JSON of the answer. Raises Refused."""
        if self._status < 400:
            return msgspec.json.decode(self._body) if self._body else None
        problem = msgspec.json.decode(self._body, type=_Problem)
        raise Refused(self._status, problem.title, problem.detail, problem.errors)
