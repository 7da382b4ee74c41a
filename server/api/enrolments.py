"""Enrolment of hosts outside a cluster: creates tokens, exchanges them for keys, revokes keys."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.conditions import condition
from server.api.hosts import find_host, version_of_row
from server.api.requests import Query, actor, body, converted, has_body, object_body
from server.api.services import Services
from server.changes.enrolments import DEFAULT_S, LONGEST_S, SHORTEST_S
from wire.messages import HostName


class OfferBody(Struct, forbid_unknown_fields=True):
    """Seconds for which a token to enrol a host is valid."""

    expires_in_s: Annotated[int, Meta(ge=SHORTEST_S, le=LONGEST_S)] = DEFAULT_S


class Offer(Struct, frozen=True):
    """A token to enrol a host with. No other answer contains it."""

    host: str
    token: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"Offer(host={self.host!r})"


class EnrolBody(Struct, forbid_unknown_fields=True):
    """An agent's token, its host, and the SHA-256 of the key that it will authenticate with."""

    token: Annotated[str, Meta(max_length=256)]
    host: HostName
    key_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

    def __repr__(self) -> str:
        return f"EnrolBody(host={self.host!r})"


async def enrol_host(services: Services, request: Request) -> Response:
    """Create a token with which this host's agent can register a key, once."""
    Query(request)
    wanted = converted(await body(request), OfferBody) if has_body(request) else OfferBody()
    name = request.path_params["name"]
    token, expires_at = await services.enrolments.offer(actor(request), name, wanted.expires_in_s)
    return json_response(Offer(name, token, expires_at), 201, {"Cache-Control": "no-store"})


async def enrol(services: Services, request: Request) -> Response:
    """Register a host's key. It needs only the token in the body; a repeated request changes nothing."""
    Query(request)
    given = converted(await object_body(request), EnrolBody)
    await services.enrolments.exchange(given.token, given.host, given.key_sha256)
    return Response(status_code=204)


async def revoke_host_key(services: Services, request: Request) -> Response:
    """Revoke a host's key, and close the connection opened with it. Conditions are compared with the host."""
    Query(request)
    name, check = request.path_params["name"], condition(request)
    check(version_of_row(await find_host(services, name)))
    await services.enrolments.revoke(actor(request), name)
    return Response(status_code=204)
