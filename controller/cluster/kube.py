"""The Kubernetes API, as far as the controller asks and writes; kopf does the watching."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx
import kopf

from controller.client import ControllerError, error_text
from controller.cluster.access import TIMEOUT_S

GROUP = "lamplighter.dev"
VERSION = "v1alpha1"
PAGE = 500
"""Objects that one page of a list holds."""
COMPONENT = "lamplighter-controller"

Object = dict[str, Any]
"""An object as JSON."""


class KubeError(ControllerError):
    """The API server did not do what was asked. `status`: HTTP's, 0 when it did not answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (0, 429) or self.status >= 500


class Kind(NamedTuple):
    """A kind of object: where the API has it. `version`: with the group, as in apiVersion."""

    version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of an object, or of all of them."""
        root = f"/apis/{self.version}" if "/" in self.version else f"/api/{self.version}"
        within = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
        return f"{root}{within}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


KINDS: Mapping[str, Kind] = {
    "Schedule": Kind(f"{GROUP}/{VERSION}", "schedules"),
    "Repository": Kind(f"{GROUP}/{VERSION}", "repositories"),
    "Host": Kind(f"{GROUP}/{VERSION}", "hosts"),
    "Run": Kind(f"{GROUP}/{VERSION}", "runs"),
    "Restore": Kind(f"{GROUP}/{VERSION}", "restores"),
    "Node": Kind("v1", "nodes"),
    "Secret": Kind("v1", "secrets"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Event": Kind("events.k8s.io/v1", "events"),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
}


class Kube:
    """Speaks with one API server, as an asynchronous context manager. Every method raises KubeError.

    `login`: tells where it is and the credentials for it; it is asked again when those work no more.
    """

    def __init__(self, login: Callable[[], kopf.ConnectionInfo]) -> None:
        self._login = login
        info = login()
        self._headers = info.as_http_headers()
        self._http = httpx.AsyncClient(
            base_url=info.server,
            verify=info.as_ssl_context() if info.server.startswith("https:") else True,
            proxy=info.proxy_url,
            trust_env=info.trust_env,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=None),
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def list(self, kind: str, namespace: str | None = None) -> AsyncIterator[Object]:
        """All objects of a kind, in one namespace or in all, page by page."""
        params = {"limit": str(PAGE)}
        while True:
            page = await self._ask("GET", KINDS[kind].path(namespace), params=params)
            items = page.get("items")
            if not isinstance(items, list):  # what is no list is not an empty one
                raise KubeError(0, f"{KINDS[kind].plural}: the answer is no list: is this the Kubernetes API?")
            for item in items:
                yield item
            if not (following := (page.get("metadata") or {}).get("continue")):
                return
            params["continue"] = following

    async def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """An object, or None when there is none."""
        try:
            return await self._ask("GET", KINDS[kind].path(namespace, name))
        except KubeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def create(self, kind: str, body: Object) -> Object:
        """Create an object."""
        return await self._ask("POST", KINDS[kind].path(body["metadata"].get("namespace")), body=body)

    async def replace(self, kind: str, body: Object) -> Object:
        """Replace an object; refused with status 409 when it has changed since it was read."""
        metadata = body["metadata"]
        return await self._ask("PUT", KINDS[kind].path(metadata["namespace"], metadata["name"]), body=body)

    async def patch(
        self, kind: str, namespace: str | None, name: str, patch: Object, subresource: str = ""
    ) -> Object | None:
        """Change an object by a merge patch (RFC 7386), or its subresource. None when it is gone."""
        path = KINDS[kind].path(namespace, name) + (f"/{subresource}" if subresource else "")
        try:
            return await self._ask("PATCH", path, body=patch, content_type="application/merge-patch+json")
        except KubeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def delete(self, kind: str, namespace: str | None, name: str, uid: str) -> None:
        """Delete an object, if it is still the one with that uid; one that is gone is no error."""
        try:
            await self._ask("DELETE", KINDS[kind].path(namespace, name), body={"preconditions": {"uid": uid}})
        except KubeError as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    async def _ask(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        content = None if body is None else json.dumps(body).encode()

        async def attempt() -> httpx.Response:
            headers = self._headers | ({} if body is None else {"Content-Type": content_type})
            async with asyncio.timeout(TIMEOUT_S):
                return await self._http.request(method, path, params=params, content=content, headers=headers)

        try:
            answer = await attempt()
            if answer.status_code == HTTPStatus.UNAUTHORIZED:  # a service account's token is replaced every hour
                self._headers = self._login().as_http_headers()
                answer = await attempt()
        except (httpx.RequestError, TimeoutError) as error:
            raise KubeError(
                0, f"the Kubernetes API at {self._http.base_url} does not answer ({error_text(error)})"
            ) from None
        if not answer.is_success:
            raise KubeError(answer.status_code, f"{method} {path}: {_message(answer.content) or answer.status_code}")
        try:
            found: Object = answer.json()
        except ValueError:
            raise KubeError(0, f"{method} {path}: the answer is not JSON: is this the Kubernetes API?") from None
        return found


def _message(said: bytes) -> str:
    """What a Status says, or nothing."""
    try:
        return str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
