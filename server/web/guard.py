"""What protects pages from other sites: headers of answers, and where a request came from. Plain functions."""

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send forms with `Origin: null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Headers of each page. Files of `static` have a Cache-Control of their own."""
MAX_NEXT = 2000
"""Maximum characters of a path to return to after signing in."""

_PATH = re.compile(r"/(?![/\\])[!-~]*")


def came_from_here(headers: Headers) -> bool:
    """Whether a page of this site made the request, by what the browser says and no script can change.

    Browsers without Sec-Fetch-Site (https://w3c.github.io/webappsec-fetch-metadata/) send Origin with each form.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(headers.get("origin", ""))
    return origin.scheme in {"http", "https"} and origin.netloc.lower() == headers.get("host", "").lower() != ""


def came_from_elsewhere(headers: Headers) -> bool:
    """Whether the user followed a link of another site. Browsers then send no SameSite=Strict cookie."""
    return headers.get("sec-fetch-site") == "cross-site"


def is_loopback(host: str) -> bool:
    """Whether the value of the header Host names this machine, so that no network is between browser and server."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def path_here(given: str) -> str:
    """The path to return to after signing in; / unless it is a path of this site."""
    return given if len(given) <= MAX_NEXT and _PATH.fullmatch(given) and "\\" not in given else "/"
