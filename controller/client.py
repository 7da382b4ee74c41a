"""Client of the server's REST API, for what a controller needs."""

import json
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx

TIMEOUT_S = 30.0
"""Seconds to wait for an answer of the server."""
STREAM_S = 60.0
"""Seconds without data after which the stream of changes counts as broken. The server sends signs of life."""
PAGE = 500
"""Resources on one page of a list."""

Object = dict[str, Any]
"""A resource as JSON."""


class FieldError(NamedTuple):
    """An invalid field, and the remedy."""

    field: str
    detail: str


class ControllerError(Exception):
    """Base of the controller's errors. The message says what to do, and holds no secret."""


class Unreachable(ControllerError):  # noqa: N818 - a state of affairs
    """The server does not answer, or not for now. The same request may succeed later."""


class Refused(ControllerError):  # noqa: N818 - an answer
    """The server refused a request. `status`: of HTTP. `errors`: the invalid fields, if the server named any."""

    def __init__(self, status: int, detail: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__("; ".join([detail, *(f"{error.field}: {error.detail}" for error in errors)]))
        self.status = status
        self.detail = detail
        self.errors = errors

    @property
    def is_foreign(self) -> bool:
        """Whether the answer is not from a Lamplighter server, but for example from a proxy in front of it."""
        return self.detail == _FOREIGN


class Bearer(httpx.Auth):
    """Reads the token for every request, since service-account tokens are replaced every hour.

    `token` may raise OSError, as for a file that is away for a moment.
    """

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put the token into the request's header (RFC 6750, section 2.1). Raises Unreachable if it cannot be read."""
        try:
            token = self._token()
        except OSError as error:
            raise Unreachable(f"the token cannot be read: {error.filename}: {error.strerror}: correct that") from None
        if not (token.isascii() and token.isprintable()):
            raise Unreachable("the token has characters that no token may have: write its file again")
        request.headers["Authorization"] = f"Bearer {token}"
        yield request


def error_text(error: Exception) -> str:
    """An error's message; its class's name if the message is empty."""
    return str(error) or type(error).__name__


class Client:
    """A client of one server, as an asynchronous context manager. Its repr hides the token.

    `token`: the bearer token, or a function that reads it. `ca_file`: the only certificates to trust, in PEM; None for
    the system's. `explain`: turns a connection error into a message. Every method raises Unreachable and Refused.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str],
        ca_file: Path | None = None,
        explain: Callable[[Exception], str] = error_text,
    ) -> None:
        self.url = url
        self._explain = explain
        auth = Bearer(token if callable(token) else lambda: token)
        try:
            verify = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ControllerError(
                f"{ca_file}: {error.strerror}: give a readable file with certificates in PEM"
            ) from None
        try:
            base = httpx.URL(f"{url.rstrip('/')}/api/v1")
        except httpx.InvalidURL as error:
            raise ControllerError(
                f"{url!r} is not a server's URL ({error}): give one like http://127.0.0.1:8700"
            ) from None
        # This machine is reached without a proxy.
        remote = base.host not in ("127.0.0.1", "::1", "localhost")
        self._http = httpx.AsyncClient(base_url=base, auth=auth, verify=verify, timeout=TIMEOUT_S, trust_env=remote)

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def resources(self, plural: str) -> AsyncIterator[Object]:
        """All `schedules`, `repositories` or `hosts` of the server, page by page."""
        cursor: str | None = None
        while True:
            params = {"limit": PAGE} | ({"cursor": cursor} if cursor else {})
            page = await self._ask("GET", f"/{plural}", params=params)
            if not isinstance(page.get("items"), list):
                raise Refused(httpx.codes.OK, _FOREIGN)
            for item in page["items"]:
                yield item
            cursor = page.get("next")
            if not cursor:
                return

    async def put(self, plural: str, namespace: str, name: str, manifest: Object) -> Object:
        """Create or replace a resource. Returns it as the server has it."""
        return await self._ask("PUT", _path(plural, namespace, name), body=manifest)

    async def get(self, plural: str, namespace: str, name: str) -> Object | None:
        """A resource as the server has it; None if it does not exist."""
        return await self._found("GET", _path(plural, namespace, name))

    async def resume(self, namespace: str, schedule: str) -> Object | None:
        """Have a schedule go on, if it is paused. Returns it; None if it does not exist."""
        return await self._found("POST", f"{_path('schedules', namespace, schedule)}/resume")

    async def _found(self, method: str, path: str) -> Object | None:
        """The answer to a request about an object; None if the server does not have it."""
        try:
            return await self._ask(method, path)
        except Refused as refused:
            if refused.status != httpx.codes.NOT_FOUND or refused.is_foreign:
                raise
            return None

    async def delete(self, plural: str, namespace: str, name: str) -> None:
        """Delete a resource. A missing one is no error."""
        await self._delete(plural, namespace, name)

    async def _delete(self, *parts: str) -> None:
        try:
            await self._ask("DELETE", _path(*parts))
        except Refused as refused:
            if refused.status != httpx.codes.NOT_FOUND:
                raise

    async def put_host(self, name: str, labels: Mapping[str, str], spec: Mapping[str, Any] | None = None) -> Object:
        """Create a host, or replace its labels and its spec. `spec`: None where it is to stay as it is."""
        body = {"labels": dict(labels)} | ({} if spec is None else {"spec": spec})
        return await self._ask("PUT", _path("hosts", name), body=body)

    async def delete_host(self, name: str) -> None:
        """Delete a host. A missing one is no error."""
        await self._delete("hosts", name)

    async def report(self, controller: str, problems: Sequence[Mapping[str, str]]) -> None:
        """Report a controller's problems to the server, each with a reason and a message; none if all is well."""
        await self._ask("PUT", _path("controllers", controller), body={"problems": list(problems)})

    async def run(self, namespace: str, schedule: str, run: str, selector: object) -> Object:
        """Run a schedule now, on those of its hosts that a selector selects. Repeating it does not start another run.

        Returns the run's progress, in the fields of a Run's status.
        """
        body = {"schedule": schedule, "hostSelector": selector}
        return await self._ask("PUT", _path("runs", namespace, run), body=body)

    async def run_status(self, namespace: str, run: str) -> Object:
        """A run's progress, in the fields of a Run's status."""
        return await self._ask("GET", _path("runs", namespace, run))

    async def restore(self, namespace: str, restore: str, spec: Object) -> Object:
        """Start the restore of a Restore's spec. Repeating it does not start another restore. Returns its job."""
        return await self._ask("PUT", _path("restores", namespace, restore), body={"spec": spec})

    async def restore_job(self, namespace: str, restore: str) -> Object:
        """The job of a restore."""
        return await self._ask("GET", _path("restores", namespace, restore))

    async def changes(self) -> AsyncIterator[Collection[str]]:
        """The kinds that change on the server (`schedules`, `hosts`, `runs`), as they change. The first item has all.

        It ends when the server ends the stream. Changes after that are missed.
        """
        try:
            async with self._http.stream("GET", "/news", timeout=httpx.Timeout(TIMEOUT_S, read=STREAM_S)) as answer:
                if not answer.is_success:
                    await answer.aread()
                    _read(answer)
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))["changed"]
        except httpx.RequestError as error:
            raise self._unreachable(error) from None
        except (ValueError, KeyError, TypeError):
            raise Refused(httpx.codes.OK, _FOREIGN) from None

    async def _ask(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, body: object = None
    ) -> Object:
        try:
            answer = await self._http.request(method, path, params=params, json=body)
        except httpx.RequestError as error:
            raise self._unreachable(error) from None
        return _read(answer)

    def _unreachable(self, error: httpx.RequestError) -> Unreachable:
        return Unreachable(f"{self.url} does not answer ({self._explain(error)}): is the server running there?")


def _path(*parts: str) -> str:
    return "".join("/" + quote(part, safe="") for part in parts)


def _read(answer: httpx.Response) -> Object:
    """The object in an answer. Raises Unreachable for an error that may pass, Refused for any other."""
    try:
        content = answer.json() if answer.content else {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if answer.is_success and isinstance(content, dict):
        return content
    problem = content if isinstance(content, dict) else {}
    detail = str(problem.get("detail") or problem.get("title") or _FOREIGN)
    if answer.status_code in _RETRYABLE:
        raise Unreachable(f"{answer.url.copy_with(path='/')} cannot answer now ({answer.status_code}): {detail}")
    listed = problem.get("errors")
    errors = [it for it in listed if isinstance(it, dict)] if isinstance(listed, list) else []
    fields = tuple(FieldError(str(it.get("field", "")), str(it.get("detail", ""))) for it in errors)
    raise Refused(answer.status_code, detail, fields)


_RETRYABLE = (429, 502, 503, 504)
_FOREIGN = "the answer is not from a Lamplighter server: does the URL point to one?"
