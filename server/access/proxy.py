"""Users whom a proxy in front of the pages has signed in, such as one for OIDC.

The proxy proves itself by a secret. It must remove these three headers from what browsers send, and set its own.
"""

from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers

from server.access import tokens
from server.access.identity import MAX_NAME, User
from server.errors import Unauthorized

SECRET, USER, GROUPS = "x-lamplighter-proxy-secret", "x-forwarded-user", "x-forwarded-groups"
SHORTEST = 16
"""Minimum characters of the secret."""
MAX_GROUPS = 200
_OF_KUBERNETES = "system:"
"""How names of Kubernetes' own users and groups begin. No proxy may name one: an identity provider's user could."""


class ProxyUsers:
    """Reads the user from headers of a proxy that knows the secret. Its repr hides the secret."""

    def __init__(self, secret: str) -> None:
        if len(secret) < SHORTEST:
            raise ValueError(f"the proxy's secret needs at least {SHORTEST} characters, such as 32 random hex digits")
        self._secret = secret

    def __repr__(self) -> str:
        return "ProxyUsers(...)"

    @classmethod
    def load(cls, path: Path) -> "ProxyUsers":
        """With the secret in a file. Raises OSError, and ValueError for a secret that is too short."""
        return cls(path.read_text(encoding="utf-8").strip())

    def user(self, headers: Headers) -> User | None:
        """The user that the proxy names; None for a request that is not from the proxy. Raises Unauthorized."""
        given = headers.getlist(SECRET)
        if not given:
            return None
        if len(given) > 1 or not tokens.same(given[0], self._secret):
            raise Unauthorized(f"the header {SECRET} is wrong: give the proxy the secret of --proxy-auth-secret-file")
        names = headers.getlist(USER)
        if len(names) != 1 or not names[0] or len(names[0]) > MAX_NAME:
            raise Unauthorized(f"the proxy must name one user in the header {USER}, in at most {MAX_NAME} characters")
        groups = [it.strip() for line in headers.getlist(GROUPS) for it in line.split(",") if it.strip()]
        return _checked(names[0], groups)


def _checked(name: str, groups: Sequence[str]) -> User:
    if any(it.startswith(_OF_KUBERNETES) for it in (name, *groups)) or len(groups) > MAX_GROUPS:
        raise Unauthorized(
            f"the proxy names a user or group that begins with {_OF_KUBERNETES!r}, or more than {MAX_GROUPS} groups: "
            "have it leave them out"
        )
    return User(name, groups=(*groups, "system:authenticated"))
