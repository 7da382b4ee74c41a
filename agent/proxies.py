"""Chooses the proxy for a server's URL from the environment, as other programs do.

The variables are HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY; the same names in lower case take precedence. Source:
urllib.request, "Proxy settings"; for ALL_PROXY curl(1), "ENVIRONMENT".
"""

from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass


def proxy_for(url: str) -> str | None:
    """The URL of the proxy for an http, https, ws or wss URL; None to connect directly."""
    parts = urlsplit(url)
    proxies = getproxies_environment()
    kind = "https" if parts.scheme in ("https", "wss") else "http"
    proxy = proxies.get(kind) or proxies.get("all")
    direct = _is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc.rpartition("@")[2], proxies)
    if not proxy or direct:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine, which needs no proxy. Go, and so restic, has the same rule."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
