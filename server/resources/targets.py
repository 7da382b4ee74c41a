"""The URLs that notifications go to: webhooks, and what Apprise understands. No error repeats a URL, which is a secret.

Which addresses a webhook may lead to is checked again when it is called: see `server.notify.webhooks`.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qsl, urlsplit

from server.errors import FieldError
from server.resources.grants import Grant

MAX_TARGETS, MAX_TARGET = 10, 2048
"""The most URLs of an Alert, and characters of each."""
WEBHOOKS = ("http", "https")
"""The schemes of webhooks, which we call ourselves."""
LOCAL = frozenset({"dbus", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows", "blink1", "file", "config"})
"""Schemes of Apprise that act on the machine of the server, which has no desk."""
OF_FILES = re.compile(r"[+:-]?(attach|keyfile|subfile|template|pgp\w*)\Z", re.IGNORECASE)
"""Parameters of Apprise's URLs that can name a file of the server's machine, whose content would be sent or used."""

SECRET_PREFIX = "whsec_"  # noqa: S105 - not a secret
"""What a signing secret begins with (Standard Webhooks, "Signature scheme")."""
_FEWEST, _MOST = 24, 64  # bytes of a signing secret, by Standard Webhooks
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,31})://[^\s]+", re.IGNORECASE)


def scheme_of(url: str) -> str:
    """The scheme of a URL in lower case; empty where it is none."""
    found = _SCHEME.fullmatch(url)
    return found[1].lower() if found else ""


def is_webhook(url: str) -> bool:
    """Whether a URL is called by us, and not by Apprise."""
    return scheme_of(url) in WEBHOOKS


def target_errors(urls: Sequence[str], field: str = "credentials.urls") -> Iterator[FieldError]:
    """Errors of URLs that nobody may use."""
    for at, url in enumerate(urls):
        if (wrong := _wrong(url)) is not None:
            yield {"field": f"{field}[{at}]", "detail": wrong}


def _wrong(url: str) -> str | None:
    scheme = scheme_of(url)
    if not scheme or not url.isprintable():
        return "is not a URL: write one such as https://hooks.example.org/lamplighter, or one of Apprise"
    try:
        parts = urlsplit(url)
        host, query = parts.hostname, parse_qsl(parts.query, keep_blank_values=True, max_num_fields=100)
        _ = parts.port
    except ValueError:
        return "is not a URL: check its host, its port and its parameters"
    if scheme in WEBHOOKS:
        return None if host else "names no host"
    if scheme in LOCAL:
        return f"{scheme}:// would act on the server's own machine: use a service that people read"
    if named := sorted({name for name, _ in query if OF_FILES.match(name)}):
        return f"must not have the parameter {', '.join(named)}, which can name a file of the server's machine"
    return None


def grant_errors(grant: Grant, namespace: str, urls: Sequence[str], field: str) -> Iterator[FieldError]:
    """Errors of URLs that a namespace may not use: one with limits only calls public https addresses."""
    if grant.may_notify_anywhere:
        return
    for at, url in enumerate(urls):
        if scheme_of(url) != "https":
            detail = f"namespace {namespace} may only notify by https:// URLs of public addresses"
            yield {
                "field": f"{field}[{at}]",
                "detail": f"{detail}; the cluster's operator can change that (notifyAnywhere)",
            }


def signing_key(secret: str) -> bytes:
    """The bytes of the secret that signs webhooks. Raises ValueError, which does not repeat it."""
    try:
        key = base64.b64decode(secret.strip().removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _FEWEST <= len(key) <= _MOST:
        raise ValueError(
            f"must be {SECRET_PREFIX} and {_FEWEST} to {_MOST} bytes in base64, for example what "
            '`echo "whsec_$(openssl rand -base64 32)"` prints'
        )
    return key
