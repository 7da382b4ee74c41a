"""A server's REST API, as the command line calls it: one method sends a request, and each failure names its remedy."""

import ssl
import string
from collections.abc import Iterator, Mapping
from typing import Any

import click
import httpx

from cli.options import Access, read_token
from cli.reach import unreachable

TIMEOUT_S = 45.0
"""Seconds to wait for one answer. The server itself gives a host 30 s to list snapshots or files."""
PAGE = 500
"""Items in one page of a list."""
_PART = frozenset(string.ascii_lowercase + string.digits + "-.")
"""The characters of names (RFC 1123)."""

Item = Mapping[str, Any]
"""An item of a REST list: a resource, or a record."""


class Client:
    """Calls a server's REST API. Every method raises click.ClickException, with the remedy, when a request fails."""

    def __init__(self, access: Access) -> None:
        self._access = access
        token = read_token(access.token_file or access.data_dir / "admin-token")
        try:
            base = httpx.URL(f"{access.server.rstrip('/')}/api/v1")
        except httpx.InvalidURL as error:
            raise click.ClickException(f"--server {access.server}: not a server's URL ({error})") from None
        local = base.host in ("127.0.0.1", "::1", "localhost")  # no proxy stands between this machine and itself
        headers = {"Authorization": f"Bearer {token}"}
        try:
            trusted = ssl.create_default_context(cafile=access.ca_file)
        except OSError as error:
            raise click.ClickException(f"--ca-file {access.ca_file} holds no certificate in PEM ({error})") from None
        self._http = httpx.Client(
            base_url=base, headers=headers, timeout=TIMEOUT_S, trust_env=not local, verify=trusted
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
            raise click.ClickException(unreachable(self.url, error, self._access.ca_file)) from None
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not answer.is_success or content is None:
            raise click.ClickException(self._refusal(answer.status_code, content))
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

    def refuses_writes(self) -> str:
        """Why the server cannot write to its store now, by /readyz; empty when it can."""
        try:
            answer = self._http.get(self._http.base_url.copy_with(path="/readyz"))
            return "" if answer.is_success else str(answer.json()["detail"])
        except (httpx.RequestError, ValueError, LookupError, TypeError) as error:
            return f"/readyz gives no answer ({error})"

    def _refusal(self, status: int, content: Any) -> str:
        """Why the server refused a request, in one line with the remedy."""
        if status == httpx.codes.UNAUTHORIZED:
            tried = self._access.token_file or self._access.data_dir / "admin-token"
            return f"the server does not know the token in {tried}: give --token-file, or the --data-dir of that server"
        if not isinstance(content, dict) or "detail" not in content:
            return f"{self.url} answers, but is not a Lamplighter server: give the server's URL with --server"
        errors = [f"{error['field']}: {error['detail']}" for error in content.get("errors", ())]
        return "; ".join(errors) or str(content["detail"])


def full_name(name: str) -> str:
    """NAMESPACE/NAME of a name; without a namespace it is in `default`. Raises click.ClickException."""
    namespace, _, own = (name if "/" in name else f"default/{name}").partition("/")
    if not namespace or not own or not _PART.issuperset(namespace + own):
        raise click.ClickException(f"{name!r} is not a valid name: give NAME (in namespace default) or NAMESPACE/NAME")
    return f"{namespace}/{own}"
