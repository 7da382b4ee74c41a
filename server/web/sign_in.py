"""Who is signed in, and signing in and out: by a token, by a link that works once, or by a proxy's headers."""

import logging
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from server.access.identity import Identity, User
from server.access.proxy import ProxyUsers
from server.access.sessions import LIFE, Session, Sessions
from server.errors import Forbidden, Unauthorized
from server.web import guard

log = logging.getLogger(__name__)

MAX_TOKEN = 16_384
"""Maximum characters of a token that is checked."""


class SignedIn(NamedTuple):
    """Who is signed in. `cookie`: of a session that has begun with this request; empty otherwise."""

    user: User
    session: Session
    cookie: str = ""


class SignIn:
    """Finds out who is signed in, and signs in and out."""

    def __init__(self, sessions: Sessions, identity: Identity, proxy: ProxyUsers | None) -> None:
        self._sessions = sessions
        self._identity = identity
        self._proxy = proxy

    async def who(self, request: Request) -> SignedIn | None:
        """Who is signed in; None when nobody is. Raises Unauthorized for a proxy without its secret, Unavailable."""
        session = await self._sessions.opened(request.cookies.get(cookie_name(request), ""))
        named = self._proxy.user(request.headers) if self._proxy is not None else None
        if named is not None:
            if session is not None and session.proxied == named.name:
                return SignedIn(named, session)
            return SignedIn(named, *self._sessions.begin(proxied=named.name))
        if session is None or not session.token:
            return None
        try:
            return SignedIn(await self._identity.user(session.token), session)
        except Unauthorized:  # the token was replaced, or has expired
            return None

    async def sign_in(self, request: Request, code: str, token: str, path: str) -> Response:
        """Begin a session with a link's code or with a token, and go to a path of this site.

        Raises Unauthorized, Forbidden over plain HTTP, Invalid for a token too long for a cookie, Unavailable.
        """
        if over_plain_http(request.headers):
            raise Forbidden(
                "over plain HTTP, others in the network could read your token and session: use HTTPS, or come by way "
                "of localhost, as with kubectl port-forward or ssh -L"
            )
        token = (await self._sessions.use_link(code) if code else token).strip()
        if not token or len(token) > MAX_TOKEN or not token.isprintable():
            raise Unauthorized("this is not a token: give the one that you use for the command line")
        user = await self._identity.user(token)
        _, cookie = self._sessions.begin(token)
        log.info("signed in", extra={"user": user.name, "by": "link" if code else "token"})
        answer = RedirectResponse(path, 303)
        keep(request, answer, cookie)
        return answer

    async def sign_out(self, request: Request, signed_in: SignedIn) -> Response:
        """End the session, on all servers and in the browser."""
        await self._sessions.end(signed_in.session)
        answer = RedirectResponse("/sign-in", 303)
        keep(request, answer, "", 0)
        log.info("signed out", extra={"user": signed_in.user.name})
        return answer


def over_plain_http(headers: Headers) -> bool:
    """Whether a form was sent over plain HTTP and a network, as the browser says in Origin."""
    return headers.get("origin", "").startswith("http://") and not guard.is_loopback(headers.get("host", ""))


def cookie_name(request: Request) -> str:
    """The name of the session's cookie. `__Host-` binds it to this host and to HTTPS (RFC 6265bis, section 4.1.3)."""
    return "__Host-lamplighter" if _is_secure(request) else "lamplighter"


def keep(request: Request, answer: Response, cookie: str, seconds: int = int(LIFE.total_seconds())) -> None:
    """Have the browser keep a session, or forget it after 0 seconds."""
    name, secure = cookie_name(request), _is_secure(request)
    answer.set_cookie(name, cookie, seconds, path="/", secure=secure, httponly=True, samesite="strict")


def _is_secure(request: Request) -> bool:
    """Whether the cookie is for HTTPS alone: always but on this machine's own address, where some browsers take no
    Secure cookie without HTTPS. A proxy may end TLS, so the scheme of the request does not tell."""
    return request.scope["scheme"] == "https" or not guard.is_loopback(request.headers.get("host", ""))
