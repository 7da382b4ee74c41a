"""Whose agent is calling. A host outside a cluster has a key of its own; any other agent has a token of `identity`.

Enrolment tokens and host keys have 256 random bits each, so their SHA-256 can be stored: nobody can guess them.
"""

import hashlib

from server.access.identity import Identity
from server.errors import Unauthorized
from server.store.engine import Store
from server.store.enrolments import host_of_key

TOKEN_PREFIX, KEY_PREFIX = "enrol_", "hostkey_"
"""Prefixes of enrolment tokens and host keys, by which people and secret scanners tell them apart."""


def digest(secret: str) -> str:
    """The SHA-256 of an enrolment token or a host key, as it is stored: 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Agents:
    """Authenticates agents."""

    def __init__(self, store: Store, identity: Identity) -> None:
        self._store = store
        self._identity = identity

    async def host_of(self, token: str) -> str:
        """The host that an agent's token or key is valid for, "" for any host. Raises Unauthorized, Unavailable."""
        if not token.startswith(KEY_PREFIX):
            return await self._identity.agent(token)
        host = await self._store.read(host_of_key, digest(token))
        if host is None:
            raise Unauthorized("this host's key is unknown or was revoked: delete its host-key file and enrol it again")
        return host
