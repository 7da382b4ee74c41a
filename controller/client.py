"""The server's REST API, as far as a controller needs it."""

import json
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx

TIMEOUT_S = 30.0
"""Seconds that the server has for one answer."""
NEWS_S = 60.0
"""Seconds within which a stream of news must say something, if only that it lives."""
PAGE = 500
"""Resources that one page of a list holds."""

Object = dict[str, Any]
"""A resource as JSON."""


class FieldError(NamedTuple):
    """One field that is wrong, and the remedy."""

    field: str
    detail: str


class ControllerError(Exception):
    """Base of what can go wrong; the message says what to do, and holds no secret."""


class Unreachable(ControllerError):  # noqa: N818 - a state of affairs
    """The server does not answer, or cannot for now; the same request may succeed later."""


class Refused(ControllerError):  # noqa: N818 - an answer
    """The server answered, and said no. `status`: HTTP's; `errors`: the fields that it named, which may be none."""

    def __init__(self, status: int, detail: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__("; ".join([detail, *(f"{error.field}: {error.detail}" for error in errors)]))
        self.status = status
        self.detail = detail
        self.errors = errors


class Bearer(httpx.Auth):
    """A token that is read anew for every request: those of service accounts are replaced every hour.

    `token` may raise OSError, as for a file that is away for a moment.
    """

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put the token into the request's header (RFC 6750, section 2.1). Raises Unreachable where there is none."""
        try:
            token = self._token()
        except OSError as error:
            raise Unreachable(f"{error.filename}: {error.strerror}: no token to show the server for now") from None
        if not (token.isascii() and token.isprintable()):
            raise Unreachable("the token holds what no token does: write it into its file anew")
        request.headers["Authorization"] = f"Bearer {token}"
        yield request


def plain(error: Exception) -> str:
    """An error in its own words."""
    return str(error) or type(error).__name__


class Client:
    """Speaks with one server, as an asynchronous context manager. Its repr hides the token.

    `token`: the bearer token, or what tells it; `ca_file`: whom to trust, in PEM, besides nobody; `explain`: says why
    the server is not reached. Every method raises Unreachable and Refused.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str],
        ca_file: Path | None = None,
        explain: Callable[[Exception], str] = plain,
    ) -> None:
        self.url = url
        self._explain = explain
        auth = Bearer(token if callable(token) else lambda: token)
        try:
            verify = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ControllerError(f"{ca_file}: {error.strerror}: give a file of certificates in PEM") from None
        try:
            base = httpx.URL(f"{url.rstrip('/')}/api/v1")
        except httpx.InvalidURL as error:
            raise ControllerError(
                f"{url!r} is not a server's URL ({error}): give one like http://127.0.0.1:8700"
            ) from None
        # No proxy stands between this machine and itself.
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
        """All `schedules`, `repositories` or `hosts` that the server has, page by page."""
        cursor: str | None = None
        while True:
            params = {"limit": PAGE} | ({"cursor": cursor} if cursor else {})
            page = await self._ask("GET", f"/{plural}", params=params)
            if not isinstance(page.get("items"), list):
                raise Refused(httpx.codes.OK, _STRANGE)
            for item in page["items"]:
                yield item
            cursor = page.get("next")
            if not cursor:
                return

    async def put(self, plural: str, namespace: str, name: str, manifest: Object) -> Object:
        """Create a resource, or make it what the manifest says. Returns it as the server has it."""
        return await self._ask("PUT", _path(plural, namespace, name), body=manifest)

    async def delete(self, plural: str, namespace: str, name: str) -> None:
        """Delete a resource; one that is gone already is no error."""
        await self._gone(plural, namespace, name)

    async def _gone(self, *parts: str) -> None:
        try:
            await self._ask("DELETE", _path(*parts))
        except Refused as refused:
            if refused.status != httpx.codes.NOT_FOUND:
                raise

    async def put_host(self, name: str, labels: Mapping[str, str]) -> Object:
        """Make a host known, or give it these labels in place of those it had."""
        return await self._ask("PUT", _path("hosts", name), body={"labels": dict(labels)})

    async def delete_host(self, name: str) -> None:
        """Forget a host; one that is not known is no error."""
        await self._gone("hosts", name)

    async def report(self, controller: str, problems: Sequence[Mapping[str, str]]) -> None:
        """Tell the server what keeps a controller from its work, each with a reason and a message; nothing does where
        there are none."""
        await self._ask("PUT", _path("controllers", controller), body={"problems": list(problems)})

    async def run(self, namespace: str, schedule: str, run: str, selector: object) -> Object:
        """Run a schedule now, on those of its hosts that a selector selects; asked again, it is the same run.

        Returns how far it is, in the words of a Run's status.
        """
        body = {"schedule": schedule, "hostSelector": selector}
        return await self._ask("PUT", _path("runs", namespace, run), body=body)

    async def run_status(self, namespace: str, run: str) -> Object:
        """How far a run is, in the words of a Run's status."""
        return await self._ask("GET", _path("runs", namespace, run))

    async def restore(self, namespace: str, restore: str, spec: Object) -> Object:
        """Restore what a Restore's spec says; asked again, it is the same restore. Returns its job."""
        return await self._ask("PUT", _path("restores", namespace, restore), body={"spec": spec})

    async def restore_job(self, namespace: str, restore: str) -> Object:
        """The job of a restore."""
        return await self._ask("GET", _path("restores", namespace, restore))

    async def news(self) -> AsyncIterator[Collection[str]]:
        """Which kinds have changed on the server (`schedules`, `hosts`, `runs`), as it happens; first of all, all.

        Ends when the server ends it; then something may have been missed.
        """
        try:
            async with self._http.stream("GET", "/news", timeout=httpx.Timeout(TIMEOUT_S, read=NEWS_S)) as answer:
                if not answer.is_success:
                    await answer.aread()
                    _read(answer)
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))["changed"]
        except httpx.RequestError as error:
            raise self._unreachable(error) from None
        except (ValueError, KeyError, TypeError):
            raise Refused(httpx.codes.OK, _STRANGE) from None

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
    """The object in an answer. Raises Unreachable for one that may be another later, Refused for a no."""
    try:
        content = answer.json() if answer.content else {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if answer.is_success and isinstance(content, dict):
        return content
    problem = content if isinstance(content, dict) else {}
    detail = str(problem.get("detail") or problem.get("title") or _STRANGE)
    if answer.status_code in _PASSING:
        raise Unreachable(f"{answer.url.copy_with(path='/')} cannot answer now ({answer.status_code}): {detail}")
    raise Refused(answer.status_code, detail, tuple(_errors(problem.get("errors"))))


_PASSING = (429, 502, 503, 504)
_STRANGE = "the answer is not from a Lamplighter server: does the URL point to one?"


def _errors(errors: object) -> list[FieldError]:
    listed = errors if isinstance(errors, list) else []
    return [FieldError(str(it.get("field", "")), str(it.get("detail", ""))) for it in listed if isinstance(it, dict)]
