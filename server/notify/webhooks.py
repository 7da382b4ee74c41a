"""Calls webhooks and pings: to which addresses, for how long, and what is said when that fails.

An address is looked up once, checked, and called by its number, so that a name cannot lead to another address in
between. Redirects are not followed. Answers are not read, but for their status.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple, Self

import httpx

TIMEOUT_S = 15.0
"""Seconds for one call, the lookup of its address included."""
MAX_TRIED = 3
"""The most addresses of one name that are tried."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_METADATA = ipaddress.ip_address("fd00:ec2::254")  # of Amazon's machines


class CallError(Exception):
    """A call failed. The message says why, and not where it went."""


class Webhooks:
    """Calls URLs, as an asynchronous context manager."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        once = httpx.Limits(max_keepalive_connections=0)
        verify = ssl.create_default_context()
        self._http = httpx.AsyncClient(
            verify=verify, trust_env=False, follow_redirects=False, timeout=timeout_s, limits=once
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def call(
        self, url: str, content: bytes, headers: Mapping[str, str], *, anywhere: bool, method: str = "POST"
    ) -> None:
        """Call a URL. `anywhere`: whether it may lead to addresses that are not public. Raises CallError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._call(Call(method, httpx.URL(url), content, headers), anywhere=anywhere)
        except TimeoutError:
            raise CallError(f"there was no answer within {self._timeout_s:.0f} s") from None
        except (httpx.InvalidURL, UnicodeError):
            raise CallError("its URL cannot be read: correct it in the Secret") from None

    async def _call(self, call: "Call", *, anywhere: bool) -> None:
        addresses = [it for it in await _lookup(call.url) if is_allowed(it, anywhere=anywhere)][:MAX_TRIED]
        if not addresses:
            raise CallError("it leads to an address that is not public, which its namespace may not call")
        for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            try:
                return _check(await self._sent(call, address))
            except httpx.ConnectError as error:
                if not left:
                    raise CallError(f"it cannot be reached: {_reason(error)}") from None
            except httpx.HTTPError as error:
                raise CallError(f"the connection failed: {type(error).__name__}") from None
        return None

    async def _sent(self, call: "Call", address: Address) -> int:
        """Call one address of a URL's name, whose certificate must be that of the name. Returns the status."""
        url = call.url
        authorized = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        request = self._http.build_request(
            call.method,
            url.copy_with(host=str(address), username=None, password=None),
            content=call.content,
            headers={"User-Agent": "Lamplighter", **call.headers, "Host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": url.host},
        )
        answer = await self._http.send(request, auth=authorized, stream=True)
        await answer.aclose()
        return answer.status_code


class Call(NamedTuple):
    """What to send, and where to."""

    method: str
    url: httpx.URL
    content: bytes
    headers: Mapping[str, str]


def is_allowed(address: Address, *, anywhere: bool) -> bool:
    """Whether an address may be called: a public one, or any that is not special with `anywhere`.

    Link-local addresses never are: clouds have the credentials of machines there.
    """
    address = _embedded(address)
    if address.is_link_local or address.is_multicast or address.is_unspecified or address == _METADATA:
        return False
    return anywhere or (address.is_global and not address.is_reserved)


def _embedded(address: Address) -> Address:
    """The address of IPv4 to which one of IPv6 leads, if it does (RFC 4291, RFC 6052, RFC 3056)."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


async def _lookup(url: httpx.URL) -> Sequence[Address]:
    loop, port = asyncio.get_running_loop(), url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await loop.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CallError(f"its host's name cannot be looked up: {error.strerror or error}") from None
    return list(dict.fromkeys(ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found))


def _check(status: int) -> None:
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise CallError(f"it answered {status}, a redirect, which is not followed: put the final URL into the Secret")
    known = status in HTTPStatus.__members__.values()
    raise CallError(f"it answered {status}{' ' + HTTPStatus(status).phrase if known else ''}")


def _reason(error: httpx.ConnectError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "TLS failed"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return "nothing answers there"
