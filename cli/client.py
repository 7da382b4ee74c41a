"""A server's REST API, as the command line calls it: one method sends a request, and each failure names its remedy."""

import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
import httpx

from cli.options import Access, read_token
from cli.reach import tls_trouble, unreachable

TIMEOUT_S = 45.0
"""Seconds to wait for one answer. The server itself gives a host 30 s to list snapshots or files."""
PAGE = 500
"""Items in one page of a list."""
Item = Mapping[str, Any]
"""An item of a REST list: a resource, or a record."""


class NotFoundError(click.ClickException):
    """The server has no such object."""


class ForbiddenError(click.ClickException):
    """The caller lacks a permission."""


class UnavailableError(click.ClickException):
    """The server was not reached, or cannot answer now: the same request may succeed later."""


class Client:
    """Calls a server's REST API. Every method raises click.ClickException, with the remedy, when a request fails."""

    def __init__(self, access: Access, timeout_s: float = TIMEOUT_S) -> None:
        self._access = access
        cluster = access.cluster
        token = cluster.token if cluster else read_token(access.token_file or access.data_dir / "admin-token")
        try:
            base = httpx.URL(f"{access.server.rstrip('/')}/api/v1")
        except httpx.InvalidURL as error:
            raise click.ClickException(f"--server {access.server}: not a server's URL ({error})") from None
        local = base.host in ("127.0.0.1", "::1", "localhost")  # no proxy stands between this machine and itself
        headers = {"Authorization": f"Bearer {token}"}
        try:
            trusted = ssl.create_default_context(cafile=access.ca_file, cadata=(cluster and cluster.ca) or None)
        except OSError as error:
            raise click.ClickException(f"--ca-file {access.ca_file} holds no certificate in PEM ({error})") from None
        hooks = {"request": [_named(cluster.tls_name)]} if cluster else {}
        self._http = httpx.Client(
            base_url=base,
            headers=headers,
            timeout=timeout_s,
            trust_env=not local,
            verify=trusted,
            event_hooks=hooks,
        )

    @property
    def url(self) -> str:
        """The server's URL, as given."""
        return self._access.server

    def request(self, method: str, path: str, /, *, body: object = None, **query: object) -> Any:
        """Send a request and return its decoded answer; None for 204. A query value of None is left out."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        try:
            answer = self._http.request(method, path, params=given, json=body)
        except (httpx.RequestError, httpx.UnsupportedProtocol) as error:
            raise self._unreachable(error) from None
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        content = _content(answer)
        if not answer.is_success or content is None:
            raise self._refusal(answer.status_code, content)
        return content

    def items(self, path: str, limit: int | None = None, **query: object) -> Iterator[Item]:
        """The items of a list, fetched page by page, at most `limit`."""
        cursor = None
        while True:
            page = self.request("GET", path, cursor=cursor, limit=min(limit or PAGE, PAGE), **query)
            yield from page["items"][:limit]
            limit = limit and limit - len(page["items"])
            cursor = page["next"]
            if cursor is None or limit == 0:
                return

    def changes(self, **query: object) -> Iterator[frozenset[str]]:
        """The kinds of objects that changed, at first all, and nothing from time to time; until the stream ends."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        try:
            with self._http.stream("GET", "/news", params=given) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(answer.status_code, _content(answer))
                for line in answer.iter_lines():
                    if line.startswith(":"):
                        yield frozenset()
                    elif line.startswith("data: "):
                        yield frozenset(json.loads(line.removeprefix("data: "))["changed"])
        except (httpx.RequestError, httpx.UnsupportedProtocol) as error:
            raise self._unreachable(error) from None

    def version(self) -> str:
        """The server's version, which needs no token."""
        about = self.request("GET", str(self._http.base_url.copy_with(path="/openapi.json")))
        return str(about["info"]["version"])

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def refuses_writes(self) -> str:
        """Why the server cannot write to its store now, by /readyz; empty when it can."""
        try:
            answer = self._http.get(self._http.base_url.copy_with(path="/readyz"))
            return "" if answer.is_success else str(answer.json()["detail"])
        except (httpx.RequestError, ValueError, LookupError, TypeError) as error:
            return f"/readyz gives no answer ({error})"

    def _unreachable(self, error: Exception) -> click.ClickException:
        if cluster := self._access.cluster:
            why = tls_trouble(f"https://{cluster.tls_name}", error, self._access.ca_file) or str(error)
            return UnavailableError(f"no answer from {cluster.service} through kubectl port-forward: {why}")
        return UnavailableError(unreachable(self.url, error, self._access.ca_file))

    def _refusal(self, status: int, content: Any) -> click.ClickException:
        """Why the server refused a request, in one line with the remedy."""
        if status == httpx.codes.UNAUTHORIZED and not self._access.cluster:
            tried = self._access.token_file or self._access.data_dir / "admin-token"
            remedy = "give --token-file, or the --data-dir of that server"
            return click.ClickException(f"the server does not know the token in {tried}: {remedy}")
        if not isinstance(content, dict) or "detail" not in content:
            remedy = "give the server's URL with --server"
            return click.ClickException(f"{self.url} answers, but is not a Lamplighter server: {remedy}")
        errors = [f"{error['field']}: {error['detail']}" for error in content.get("errors", ())]
        detail = "; ".join(errors) or str(content["detail"])
        if status == httpx.codes.FORBIDDEN and detail.endswith("in all namespaces"):
            detail += ": for one namespace, give -n NAMESPACE"
        return _ERRORS.get(status, click.ClickException)(detail)


_ERRORS: Mapping[int, type[click.ClickException]] = {
    403: ForbiddenError,
    404: NotFoundError,
    503: UnavailableError,
}


def _named(tls_name: str) -> Callable[[httpx.Request], None]:
    """What has each request check the server's certificate for this name."""

    def set_name(request: httpx.Request) -> None:
        request.extensions.update(sni_hostname=tls_name)

    return set_name


def _content(answer: httpx.Response) -> Any:
    """The decoded JSON of an answer; None where it is none."""
    try:
        return answer.json()
    except ValueError:
        return None
