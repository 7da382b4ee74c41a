"""A Kubernetes API server, as far as it is asked who a token is for and what a user may do."""

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
"""Where a pod finds its own token and the API server's CA."""
TIMEOUT_S = 5.0
"""Seconds for one answer, a second try included: less than agents wait for their handshake."""
CONNECTIONS = 16
"""Requests under way at once; more wait, within their time."""


class KubernetesError(Exception):
    """The API server cannot be asked; the message says why, and holds no secret."""


class Config(Struct, frozen=True):
    """Where an API server is, and the files with our token there and with the CA of its certificate."""

    url: str
    token_file: Path
    ca_file: Path | None = None


def in_cluster(environ: Mapping[str, str] = os.environ, files: Path = SERVICE_ACCOUNT) -> Config:
    """The API server of the cluster that this pod runs in. Raises KubernetesError outside of one."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise KubernetesError("not in a cluster: give --kubernetes-api, or use --auth file")
    return Config(f"https://{f'[{host}]' if ':' in host else host}:{port}", files / "token", files / "ca.crt")


class Client:
    """Speaks with one API server, as an asynchronous context manager."""

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
        """Create a review, and return the status that it is answered with. Raises KubernetesError."""
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
        """Ask; and once more on a connection that the API server had closed meanwhile, for a review changes nothing."""
        try:
            return await self._http.post(path, json=body, headers=self._headers())
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            return await self._http.post(path, json=body, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        """With our token as it is now: the kubelet replaces it before it expires."""
        return {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}


def _status(answer: httpx.Response, kind: str) -> dict[str, Any]:
    """A review's status. Of an answer that is none, the message is told, which names the right that is missing."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    told = content if isinstance(content, dict) else {}
    status = told.get("status")
    if answer.is_success and isinstance(status, dict):
        return status
    reason = told.get("message") or answer.reason_phrase
    raise KubernetesError(f"the API server refused a {kind}: {answer.status_code} {reason}")
