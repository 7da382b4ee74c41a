"""Who calls, and what they may do: by the token files of the embedded default, or by asking a Kubernetes API server.

Agents outside a cluster have keys of their own, by either way: see `enrolment`.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from server.access import tokens
from server.access.cache import Cache
from server.access.kubernetes import Client, KubernetesError
from server.errors import Forbidden, Unauthorized, Unavailable
from server.store.tables import Actor

log = logging.getLogger(__name__)

GROUP = "lamplighter.dev"
"""The API group whose resources permissions are about."""
AUDIENCE = "lamplighter"
"""Whom tokens are for: one that is for the API server alone does not make an agent."""
NODE_NAME = "authentication.kubernetes.io/node-name"
"""Where a review tells the node of the pod that a token is bound to (KEP-4193)."""
ALLOWED_S, REFUSED_S = 60.0, 10.0
"""Seconds for which a review is believed. What is taken away in the cluster is so here after at most that."""
MAX_KEPT = 20_000
"""Reviews that are kept."""
MAX_NAME = 253
"""Characters of a user's name, which the audit log keeps whole."""


class Permission(NamedTuple):
    """What an operation needs, in the words of RBAC; `resource` may have a subresource after a slash.

    Without a namespace it is about all of them, without a name about every object.
    """

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""


class User(NamedTuple):
    """Who calls the API, with all that an authorizer may look at."""

    name: str
    uid: str = ""
    groups: Sequence[str] = ()
    extra: dict[str, list[str]] = {}  # noqa: RUF012 - never changed

    @property
    def actor(self) -> Actor:
        """The user as the audit log names it."""
        return Actor("user", self.name)


class Identity(Protocol):
    """One way to know callers. Tokens are compared in constant time, and neither logged nor kept."""

    async def user(self, token: str) -> User:
        """Who calls the API with this token. Raises Unauthorized, and Unavailable when that cannot be told now."""

    async def authorize(self, user: User, permission: Permission) -> None:
        """Let through who may. Raises Forbidden, which names what is missing, and Unavailable."""

    async def agent(self, token: str) -> str:
        """The host that an agent's token is for, "" for any. Raises Unauthorized, Unavailable."""


class Files:
    """Two tokens: one is the administrator's, who may do all, one is that of every agent."""

    def __init__(self, admin: str, agents: str) -> None:
        self.admin = admin
        self.agents = agents

    async def user(self, token: str) -> User:
        """The administrator."""
        if not tokens.same(token, self.admin):
            raise Unauthorized("the token is not known: it is in the file admin-token of the server's data folder")
        return User("admin")

    async def authorize(self, user: User, permission: Permission) -> None:
        """All that there is to be allowed."""

    async def agent(self, token: str) -> str:
        """Any host."""
        if not tokens.same(token, self.agents):
            raise Unauthorized("the token is not known: it is in the file agent-token of the server's data folder")
        return ""


class Reviews:
    """Tokens and permissions of a cluster, by TokenReview and SubjectAccessReview.

    `agents`: the agents' service account as NAMESPACE/NAME. `clock`: seconds that never go backwards.
    """

    def __init__(self, api: Client, agents: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._agents = f"system:serviceaccount:{agents.replace('/', ':')}"
        self._users: Cache[tuple[bytes, str], User | None] = Cache(_keep_s, MAX_KEPT, clock)
        self._rights: Cache[tuple[str, Permission], bool] = Cache(_keep_s, MAX_KEPT, clock)

    async def user(self, token: str) -> User:
        """The user that a token is for: one made for us, or one that the API server itself takes."""
        user = await self._reviewed(token, AUDIENCE) or await self._reviewed(token, "")
        if user is None:
            raise Unauthorized(
                f"the cluster does not know this token, or it has expired: get one by "
                f"`kubectl create token SERVICE-ACCOUNT --audience {AUDIENCE}`"
            )
        if len(user.name) > MAX_NAME:
            raise Unauthorized(f"the user's name is longer than {MAX_NAME} characters")
        return user

    async def authorize(self, user: User, permission: Permission) -> None:
        """Ask RBAC, first for every object of the namespace, so that many names of one cost one review."""
        if await self._allowed(user, permission._replace(name="")):
            return
        if permission.name and await self._allowed(user, permission):
            return
        where = f"in namespace {permission.namespace!r}" if permission.namespace else "in all namespaces"
        resource, _, subresource = permission.resource.partition("/")
        what = f"{resource}.{GROUP}{subresource and '/' + subresource}"
        raise Forbidden(f"user {user.name!r} lacks the permission to {permission.verb} {what} {where}")

    async def agent(self, token: str) -> str:
        """The node whose agent this is."""
        user = await self._reviewed(token, AUDIENCE)
        if user is None:
            raise Unauthorized(f"the cluster does not know this token for audience {AUDIENCE!r}, or it has expired")
        if user.name != self._agents:
            raise Unauthorized(f"{user.name!r} is not the agents' service account {self._agents!r}")
        nodes = user.extra.get(NODE_NAME, [])
        if len(nodes) != 1 or not nodes[0]:
            raise Unauthorized("the token is not bound to a pod on a node: mount a projected token in the agent's pod")
        return nodes[0]

    async def _reviewed(self, token: str, audience: str) -> User | None:
        """Whose token this is, for that audience or, without one, the API server's own."""
        key = hashlib.sha256(token.encode()).digest(), audience
        return await self._users.get(key, lambda: self._token_review(token, audience))

    async def _token_review(self, token: str, audience: str) -> User | None:
        spec: dict[str, object] = {"token": token} | ({"audiences": [audience]} if audience else {})
        status = await self._review("/apis/authentication.k8s.io/v1/tokenreviews", "TokenReview", spec)
        # An authenticator that does not know of audiences names none, and has not checked ours.
        if status.get("authenticated") is not True or (audience and audience not in status.get("audiences", ())):
            return None
        told = status.get("user", {})
        user = User(told.get("username", ""), told.get("uid", ""), told.get("groups", ()), told.get("extra", {}))
        return user if user.name else None

    async def _allowed(self, user: User, permission: Permission) -> bool:
        key = _fingerprint(user), permission
        return await self._rights.get(key, lambda: self._access_review(user, permission))

    async def _access_review(self, user: User, permission: Permission) -> bool:
        resource, _, subresource = permission.resource.partition("/")
        attributes = {
            "group": GROUP,
            "verb": permission.verb,
            "resource": resource,
            "subresource": subresource,
            "namespace": permission.namespace,
            "name": permission.name,
        }
        spec = {
            "user": user.name,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
            "resourceAttributes": attributes,
        }
        status = await self._review("/apis/authorization.k8s.io/v1/subjectaccessreviews", "SubjectAccessReview", spec)
        return status.get("allowed") is True and status.get("denied") is not True

    async def _review(self, path: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._api.review(path, kind, spec)
        except KubernetesError as error:
            log.warning("who calls cannot be told", extra={"reason": str(error)})
            raise Unavailable("the Kubernetes API cannot be asked who you are: try again later") from error


def _keep_s(answer: User | bool | None) -> float:
    return ALLOWED_S if answer else REFUSED_S


def _fingerprint(user: User) -> str:
    """All that an authorizer looks at in a user, as a key: two tokens of a user may differ in groups and extra."""
    return hashlib.sha256(repr((user.name, user.uid, user.groups, sorted(user.extra.items()))).encode()).hexdigest()
