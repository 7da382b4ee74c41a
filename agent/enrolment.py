"""How a host outside a cluster gets a key of its own: made here, and registered with a token that is good once.

The key is on disk before the server knows of it, so that whatever is killed or cut, asking again with the same token
registers the same key.
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
"""The file in the agent's data folder with the key that is registered."""
TIMEOUT_S = 30
"""Seconds that the server has for its answer."""
MAX_ANSWER = 64 << 10
"""Bytes that are read of an answer."""

_KEY = re.compile(r"hostkey_[A-Za-z0-9_-]{43}")


class EnrolmentError(Exception):
    """This host could not be enrolled; the message says what to do, and holds no secret."""


def enrol(server: str, token: str, host: str, data: Path, ca_file: Path | None = None) -> None:
    """Make this host's key, have the server register it, and keep it in the data folder. Raises EnrolmentError.

    `server`: its URL, https:// or http://; `ca_file`: whom to trust instead of the system's authorities.
    """
    draft = data / f".{KEY_FILE}.new"
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _drafted(draft)
        _register(server, token, host, hashlib.sha256(key.encode()).hexdigest(), ca_file)
        draft.replace(data / KEY_FILE)
        sync_folder(data)
    except OSError as error:
        raise EnrolmentError(f"{host} cannot be enrolled at {server}: {error}: start the agent again") from error


def _drafted(draft: Path) -> str:
    """The key to register: that of an earlier try, or a new one in a file that only the agent can read."""
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
        raise EnrolmentError(f"--server {server}: give a URL like https://lamplighter.example.org:8700")
    body = json.dumps({"token": token, "host": host, "key_sha256": key_sha256}).encode()
    url = f"{server.rstrip('/')}/api/v1/enrol"
    asked = Request(url, body, {"Content-Type": "application/json"}, method="POST")  # noqa: S310 - checked above
    proxy = proxy_for(url)
    proxies = {urlsplit(url).scheme: proxy} if proxy else {}
    trusted = HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    try:
        with build_opener(ProxyHandler(proxies), trusted).open(asked, timeout=TIMEOUT_S):
            pass
    except HTTPError as answer:
        with answer:
            raise EnrolmentError(_reason(answer)) from None


def _reason(answer: HTTPError) -> str:
    """What the server said, where it is a Lamplighter server."""
    try:
        return str(json.loads(answer.read(MAX_ANSWER))["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.code} {answer.reason}: is it a Lamplighter server?"
