"""Client of the Kubernetes API for reads and writes. kopf does the watching."""

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
"""Objects on one page of a list."""
COMPONENT = "lamplighter-controller"

Object = dict[str, Any]
"""An object as JSON."""

_METADATA_ALONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class KubeError(ControllerError):
    """A request to the API server failed. `status`: of HTTP; 0 if it did not answer, or not with valid JSON."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (0, 429) or self.status >= 500


class Kind(NamedTuple):
    """Where the API has a kind of object. `version`: with the group, as in apiVersion."""

    version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of an object, or of all without `name`. `namespace`: None for all, or for a cluster-scoped kind."""
        root = f"/apis/{self.version}" if "/" in self.version else f"/api/{self.version}"
        within = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
        return f"{root}{within}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


KINDS: Mapping[str, Kind] = {
    "Schedule": Kind(f"{GROUP}/{VERSION}", "schedules"),
    "Repository": Kind(f"{GROUP}/{VERSION}", "repositories"),
    "Alert": Kind(f"{GROUP}/{VERSION}", "alerts"),
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
    """A client of one API server, as an asynchronous context manager. Every method raises KubeError.

    `login`: returns its address and credentials. It is called again when the credentials are refused.
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
            if not isinstance(items, list):  # an answer without a list must not count as an empty list
                raise KubeError(
                    0, f"{KINDS[kind].plural}: the answer is no list: check that the address is the Kubernetes API"
                )
            for item in items:
                yield item
            if not (following := (page.get("metadata") or {}).get("continue")):
                return
            params["continue"] = following

    async def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """An object; None if it does not exist."""
        try:
            return await self._ask("GET", KINDS[kind].path(namespace, name))
        except KubeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def watch(self, kind: str, namespace: str, name: str, seconds: int) -> AsyncIterator[Object]:
        """The events of one object for so many seconds, of it the metadata alone. The first is of it as it was lately.

        The right to watch this one object by its name is enough. The watch begins with what the API server's cache has,
        because a server whose cache is behind, as where only other kinds changed, may refuse to begin with the newest.
        """
        params = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": "0",
            "timeoutSeconds": str(seconds),
        }
        path, timeout = KINDS[kind].path(namespace), httpx.Timeout(TIMEOUT_S, read=seconds + TIMEOUT_S)
        headers = {**self._headers, "Accept": _METADATA_ALONE}
        try:
            async with self._http.stream("GET", path, params=params, headers=headers, timeout=timeout) as answer:
                if answer.status_code == HTTPStatus.UNAUTHORIZED:
                    self._headers = self._login().as_http_headers()
                if not answer.is_success:
                    content = await answer.aread()
                    raise KubeError(answer.status_code, f"WATCH {path}: {_message(content) or answer.status_code}")
                async for line in _lines(answer):
                    event: Object = json.loads(line)
                    if event["type"] == "ERROR":
                        raise KubeError(0, f"WATCH {path}: {event['object'].get('message')}")
                    yield event
        except httpx.RequestError as error:
            raise KubeError(0, f"WATCH {path}: it broke ({error_text(error)})") from None
        except (ValueError, KeyError, TypeError):
            raise KubeError(0, f"WATCH {path}: the answer has no events: is this the Kubernetes API?") from None

    async def create(self, kind: str, body: Object) -> Object:
        """Create an object."""
        return await self._ask("POST", KINDS[kind].path(body["metadata"].get("namespace")), body=body)

    async def replace(self, kind: str, body: Object) -> Object:
        """Replace an object. Raises KubeError with status 409 if it has changed since it was read."""
        metadata = body["metadata"]
        return await self._ask("PUT", KINDS[kind].path(metadata["namespace"], metadata["name"]), body=body)

    async def patch(self, kind: str, namespace: str | None, name: str, patch: Object) -> Object | None:
        """Change an object by a merge patch (RFC 7386). Returns the object; None if it is missing."""
        path = KINDS[kind].path(namespace, name)
        try:
            return await self._ask("PATCH", path, body=patch, content_type="application/merge-patch+json")
        except KubeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def apply_status(self, about: Object, status: Object) -> Object | None:
        """Make an object's status say just this, apart from what others wrote there, by server-side apply.

        Others' conditions stay, and what this controller applied before and no longer does is removed. Returns the
        object; None if it is missing. Raises KubeError, with status 409 if it has changed since it was read: it may
        have been deleted and created again, which the API server does not tell by a uid.
        """
        kind, metadata = about["kind"], about["metadata"]
        named = {it: metadata[it] for it in ("namespace", "name", "resourceVersion") if it in metadata}
        body = {"apiVersion": KINDS[kind].version, "kind": kind, "metadata": named, "status": status}
        path = f"{KINDS[kind].path(metadata.get('namespace'), metadata['name'])}/status"
        params = {"fieldManager": COMPONENT, "force": "true"}
        try:
            return await self._ask("PATCH", path, params, body, "application/apply-patch+yaml")  # JSON is YAML
        except KubeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def delete(
        self, kind: str, namespace: str | None, name: str, uid: str, resource_version: str | None = None
    ) -> None:
        """Delete the object with this uid, if it still has this resource version. It is no error if there is none."""
        only = {"uid": uid} | ({} if resource_version is None else {"resourceVersion": resource_version})
        try:
            await self._ask("DELETE", KINDS[kind].path(namespace, name), body={"preconditions": only})
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
            raise KubeError(
                0, f"{method} {path}: the answer is not JSON: check that the address is the Kubernetes API"
            ) from None
        return found


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream. httpx's own also end at characters that JSON may hold, such as U+0085."""
    rest = b""
    async for chunk in answer.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _message(said: bytes) -> str:
    """The message of a Status (the API's error object); empty if there is none."""
    try:
        return str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
