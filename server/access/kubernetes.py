"""A client of a Kubernetes API server, for its reviews of tokens and of permissions."""

import asyncio
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from msgspec import Struct

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""The folder with a pod's own token and the API server's CA."""
TIMEOUT_S = 5.0
"""Seconds for one review, a retry included: less than agents wait for their handshake."""
CONNECTIONS = 16
"""Maximum concurrent requests; others wait, within TIMEOUT_S."""


class KubernetesError(Exception):
    """The API server cannot be used. The message says why, and contains no secret."""


class Config(Struct, frozen=True):
    """The URL of an API server, and the files with our token and with the CA of its certificate."""

    url: str
    token_file: Path
    ca_file: Path | None = None


def in_cluster(environ: Mapping[str, str] = os.environ, files: Path = SERVICE_ACCOUNT) -> Config:
    """The API server of the cluster in which this pod runs. Raises KubernetesError outside a cluster."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise KubernetesError("not in a cluster: give --kubernetes-api, or use --auth file")
    return Config(f"https://{f'[{host}]' if ':' in host else host}:{port}", files / "token", files / "ca.crt")


class Client:
    """A client of one API server, and an asynchronous context manager. Raises KubernetesError for a bad CA file."""

    def __init__(self, config: Config) -> None:
        try:
            trusted = ssl.create_default_context(cafile=config.ca_file)
        except OSError as error:
            raise KubernetesError(f"{config.ca_file}: {error.strerror or 'no certificates in PEM'}") from None
        self._token_file = config.token_file
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        self._http = httpx.AsyncClient(
            base_url=config.url, verify=trusted, limits=limits, timeout=TIMEOUT_S, trust_env=False
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def review(self, path: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Create a review, and return the status in the answer. Raises KubernetesError."""
        api_version = path.removeprefix("/apis/").rpartition("/")[0]
        body = {"apiVersion": api_version, "kind": kind, "spec": spec}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._post(path, body)
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise KubernetesError(f"the API server does not answer ({reason})") from None
        return _status(answer, kind)

    async def _post(self, path: str, body: object) -> httpx.Response:
        """Post a request; once more if its connection had been closed, since a review changes nothing."""
        try:
            return await self._http.post(path, json=body, headers=self._headers())
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            return await self._http.post(path, json=body, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        """The headers with our current token: the kubelet replaces the file before the token expires."""
        return {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}


def _status(answer: httpx.Response, kind: str) -> dict[str, Any]:
    """A review's status. Raises KubernetesError with the API server's message, which names a missing permission."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    reply = content if isinstance(content, dict) else {}
    status = reply.get("status")
    if answer.is_success and isinstance(status, dict):
        return status
    reason = reply.get("message") or answer.reason_phrase
    raise KubernetesError(f"the API server refused a {kind}: {answer.status_code} {reason}")
