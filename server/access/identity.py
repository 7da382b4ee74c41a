"""Who is calling, and what they may do, according to token files (the embedded default) or a Kubernetes API server.

Hosts outside a cluster have keys of their own in either case: see `agents`.
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
"""The API group of the resources in permissions."""
AUDIENCE = "lamplighter"
"""The audience of tokens for Lamplighter. A token for the API server alone does not authenticate an agent."""
NODE_NAME = "authentication.kubernetes.io/node-name"
"""The key of `extra` in which a TokenReview names the node of the token's pod (KEP-4193)."""
ALLOWED_S, REFUSED_S = 60.0, 10.0
"""Seconds for which a granting and a refusing review are cached. A withdrawn right ends here at the latest then."""
MAX_CACHED = 20_000
"""Maximum cached reviews, of tokens and of permissions each."""
MAX_NAME = 253
"""Maximum characters of a user's name: the audit log stores no more."""


class Permission(NamedTuple):
    """What an operation needs, in the words of RBAC. `resource`: may have a subresource after a slash.

    `namespace`: empty for all namespaces. `name`: empty for every object.
    """

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""


class User(NamedTuple):
    """The caller of the API, with everything that an authorizer may consider."""

    name: str
    uid: str = ""
    groups: Sequence[str] = ()
    extra: dict[str, list[str]] = {}  # noqa: RUF012 - never changed

    @property
    def actor(self) -> Actor:
        """The user as the audit log names it."""
        return Actor("user", self.name)


class Identity(Protocol):
    """A way to authenticate and authorise callers. Tokens are compared in constant time, never logged or stored."""

    async def user(self, token: str) -> User:
        """The user with this token. Raises Unauthorized, and Unavailable when tokens cannot be checked now."""

    async def authorize(self, user: User, permission: Permission) -> None:
        """Return if the user has the permission. Raises Forbidden, which names the permission, and Unavailable."""

    async def agent(self, token: str) -> str:
        """The host that an agent's token is valid for, "" for any host. Raises Unauthorized, Unavailable."""


class Files:
    """Two tokens: the administrator's, who may do everything, and the one that all agents share."""

    def __init__(self, admin: str, agents: str) -> None:
        self.admin = admin
        self.agents = agents

    async def user(self, token: str) -> User:
        """The administrator."""
        if not tokens.same(token, self.admin):
            raise Unauthorized("the token is unknown: use the one in the file admin-token of the server's data folder")
        return User("admin")

    async def authorize(self, user: User, permission: Permission) -> None:
        """The administrator may do everything."""

    async def agent(self, token: str) -> str:
        """Any host, since all agents share the token."""
        if not tokens.same(token, self.agents):
            raise Unauthorized("the token is unknown: use the one in the file agent-token of the server's data folder")
        return ""


class Reviews:
    """Authenticates by TokenReview, and authorises by SubjectAccessReview.

    `agents`: the agents' service account as NAMESPACE/NAME. `clock`: monotonic seconds.
    """

    def __init__(self, api: Client, agents: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._agents = f"system:serviceaccount:{agents.replace('/', ':')}"
        self._users: Cache[tuple[bytes, str], User | None] = Cache(_keep_s, MAX_CACHED, clock)
        self._rights: Cache[tuple[str, Permission], bool] = Cache(_keep_s, MAX_CACHED, clock)

    async def user(self, token: str) -> User:
        """The user of a token whose audience is Lamplighter, or of one that the API server itself accepts."""
        user = await self._reviewed(token, AUDIENCE) or await self._reviewed(token, "")
        if user is None:
            raise Unauthorized(
                f"the cluster does not accept this token, or it has expired: create one with "
                f"`kubectl create token SERVICE-ACCOUNT --audience {AUDIENCE}`"
            )
        if len(user.name) > MAX_NAME:
            raise Unauthorized(f"the user's name is longer than {MAX_NAME} characters")
        return user

    async def authorize(self, user: User, permission: Permission) -> None:
        """Ask RBAC, first for all objects of the namespace: one cached review then serves requests for each of them."""
        if await self._allowed(user, permission._replace(name="")):
            return
        if permission.name and await self._allowed(user, permission):
            return
        where = f"in namespace {permission.namespace!r}" if permission.namespace else "in all namespaces"
        resource, _, subresource = permission.resource.partition("/")
        what = f"{resource}.{GROUP}{subresource and '/' + subresource}"
        raise Forbidden(f"user {user.name!r} lacks the permission to {permission.verb} {what} {where}")

    async def agent(self, token: str) -> str:
        """The node of the agent's pod, which is its host."""
        user = await self._reviewed(token, AUDIENCE)
        if user is None:
            raise Unauthorized(f"the cluster does not accept this token for audience {AUDIENCE!r}, or it has expired")
        if user.name != self._agents:
            raise Unauthorized(f"{user.name!r} is not the agents' service account {self._agents!r}")
        nodes = user.extra.get(NODE_NAME, [])
        if len(nodes) != 1 or not nodes[0]:
            raise Unauthorized("the token is not bound to a pod on a node: mount a projected token in the agent's pod")
        return nodes[0]

    async def _reviewed(self, token: str, audience: str) -> User | None:
        """The user of a token for that audience, "" for the API server's own; None for a token that is refused."""
        key = hashlib.sha256(token.encode()).digest(), audience
        return await self._users.get(key, lambda: self._token_review(token, audience))

    async def _token_review(self, token: str, audience: str) -> User | None:
        spec: dict[str, object] = {"token": token} | ({"audiences": [audience]} if audience else {})
        status = await self._review("/apis/authentication.k8s.io/v1/tokenreviews", "TokenReview", spec)
        # An authenticator that does not support audiences returns none, and has not checked ours.
        if status.get("authenticated") is not True or (audience and audience not in status.get("audiences", ())):
            return None
        info = status.get("user", {})
        user = User(info.get("username", ""), info.get("uid", ""), info.get("groups", ()), info.get("extra", {}))
        return user if user.name else None

    async def _allowed(self, user: User, permission: Permission) -> bool:
        # Two tokens of one user may differ in groups and extra, so the key has all that an authorizer considers.
        considered = repr((user.name, user.uid, user.groups, sorted(user.extra.items())))
        key = hashlib.sha256(considered.encode()).hexdigest(), permission
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
            log.warning("caller cannot be reviewed", extra={"reason": str(error)})
            raise Unavailable(
                "the Kubernetes API cannot check your token and permissions now: try again later"
            ) from error


def _keep_s(answer: User | bool | None) -> float:
    return ALLOWED_S if answer else REFUSED_S
