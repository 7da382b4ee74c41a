"""Sessions of the pages: who is signed in with a browser, and the links that sign in once.

A session is a cookie that the vault sealed, so every server with the same keys opens it. It holds the caller's token,
which is checked again at each request: whoever loses the token loses the session. A session that its user ends is noted
in the store until it would have expired. A link's code has 256 random bits, so the store holds its SHA-256.
"""

import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
from msgspec import Struct

from server.access.vault import Vault
from server.errors import Invalid, Unauthorized
from server.store import sign_ins
from server.store.engine import Store
from server.store.sign_ins import EndedRow, LinkRow

LIFE, LINK_LIFE = timedelta(hours=8), timedelta(minutes=10)
"""How long a session lasts, and how long a link can be used."""
MAX_SEALED = 3800
"""Maximum characters of a sealed session: browsers keep cookies of up to 4096 bytes (RFC 6265, section 6.1)."""


class Session(Struct, frozen=True):
    """A session. `token`: of its user; empty when a proxy names the user at each request, who is `proxied`."""

    id: str
    expires_at: datetime
    token: str = ""
    proxied: str = ""

    def __repr__(self) -> str:
        return f"Session(expires_at={self.expires_at})"


class Sessions:
    """Begins, opens and ends sessions, and makes the links that sign in once."""

    def __init__(self, store: Store, vault: Vault, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._sessions, self._links, self._forms = (vault.sealer(it) for it in ("session", "sign-in link", "form"))
        self._clock = clock

    def begin(self, token: str = "", proxied: str = "") -> tuple[Session, str]:
        """A new session, and its cookie. Raises Invalid for a token that is too long for a cookie."""
        session = Session(secrets.token_urlsafe(16), self._clock() + LIFE, token, proxied)
        sealed = self._sessions.seal(msgspec.json.encode(session))
        if len(sealed) > MAX_SEALED:
            raise Invalid.field(
                "token", "is too long for a browser's cookie: use a shorter one, such as a service account's"
            )
        return session, sealed

    async def opened(self, sealed: str) -> Session | None:
        """The session in a cookie; None when it is not one of ours, has expired or was ended."""
        session = _decoded(self._sessions.unseal(sealed)) if len(sealed) <= MAX_SEALED else None
        if session is None or session.expires_at <= self._clock():
            return None
        return None if await self._store.read(sign_ins.is_ended, _digest(session.id)) else session

    async def end(self, session: Session) -> None:
        """End a session before it expires, on all servers."""
        row = EndedRow(_digest(session.id), session.expires_at, self._clock())
        await self._store.write(sign_ins.end_sessions, row)

    def form_token(self, session: Session) -> str:
        """A text for the forms of this session's pages, another one each time, which other sites cannot know."""
        return self._forms.seal(session.id.encode())

    def is_form_token(self, session: Session, given: str) -> bool:
        """Whether a form has a text of this session."""
        return self._forms.unseal(given) == session.id.encode()

    async def offer_link(self, token: str) -> tuple[str, datetime]:
        """Make a link that signs in once with this token. Returns its code, and when it expires."""
        code, expires_at = secrets.token_urlsafe(32), self._clock() + LINK_LIFE
        row = LinkRow(_digest(code), self._links.seal(token.encode()), expires_at)
        await self._store.write(sign_ins.put_links, row)
        return code, expires_at

    async def use_link(self, code: str) -> str:
        """The token of a link, which does not work again. Raises Unauthorized."""
        row = await self._store.write(sign_ins.use_links, _digest(code))
        token = None if row is None or row.expires_at <= self._clock() else self._links.unseal(row.sealed)
        if token is None:
            raise Unauthorized("this link was used, or has expired: make another one, or sign in with a token")
        return token.decode()


def _decoded(opened: bytes | None) -> Session | None:
    try:
        return None if opened is None else msgspec.json.decode(opened, type=Session)
    except msgspec.DecodeError:
        return None  # of another version


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
