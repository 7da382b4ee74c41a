"""Enrolment: a host outside a cluster makes a key, and registers it at the server with a one-time token.

The key is written to disk before it is sent. So an enrolment that was interrupted anywhere can be repeated with the
same token, and registers the same key.
"""

import hashlib
import json
import os
import re
import secrets
import ssl
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from agent.disk import sync_folder
from agent.proxies import proxy_for

KEY_FILE = "host-key"
"""The file in the agent's data folder that holds the registered key."""
TIMEOUT_S = 30
"""Seconds to wait for the server's answer."""
MAX_ANSWER = 64 << 10
"""Bytes of an error answer that are read."""

_KEY = re.compile(r"hostkey_[A-Za-z0-9_-]{43}")


class EnrolmentError(Exception):
    """The host could not be enrolled; the message says what to do and holds no secret."""


def enrol(server: str, token: str, host: str, data: Path, ca_file: Path | None = None) -> None:
    """Make a key for this host, register it at the server, and keep it in the data folder. Raises EnrolmentError.

    `server`: its URL, https:// or http://. `ca_file`: certificates, in PEM, to trust in place of the system's.
    """
    draft = data / f".{KEY_FILE}.new"
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _drafted(draft)
        _register(server, token, host, hashlib.sha256(key.encode()).hexdigest(), ca_file)
        draft.replace(data / KEY_FILE)
        sync_folder(data)
    except OSError as error:
        raise EnrolmentError(
            f"{host} could not be enrolled at {server}: {error}: correct that, and start the agent again"
        ) from error


def _drafted(draft: Path) -> str:
    """The key to register: the one of an earlier attempt, or a new one, in a file that only this user can read."""
    if draft.exists() and _KEY.fullmatch(key := draft.read_text(encoding="ascii", errors="replace").strip()):
        return key
    draft.unlink(missing_ok=True)
    key = "hostkey_" + secrets.token_urlsafe(32)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def _register(server: str, token: str, host: str, key_sha256: str, ca_file: Path | None) -> None:
    if not server.startswith(("http://", "https://")):
        raise EnrolmentError(
            f"--server {server} is no http or https URL: give one like https://lamplighter.example.org:8700"
        )
    body = json.dumps({"token": token, "host": host, "key_sha256": key_sha256}).encode()
    url = f"{server.rstrip('/')}/api/v1/enrol"
    request = Request(url, body, {"Content-Type": "application/json"}, method="POST")  # noqa: S310 - checked above
    proxy = proxy_for(url)
    proxies = {urlsplit(url).scheme: proxy} if proxy else {}
    trusted = HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    try:
        with build_opener(ProxyHandler(proxies), trusted).open(request, timeout=TIMEOUT_S):
            pass
    except HTTPError as answer:
        with answer:
            try:
                reason = str(json.loads(answer.read(MAX_ANSWER))["detail"])
            except (ValueError, KeyError, TypeError):
                reason = f"{server} answered {answer.code} {answer.reason}: check that a Lamplighter server runs there"
        raise EnrolmentError(reason) from None
