"""Links that sign in to the pages once."""

from datetime import datetime

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.middleware import bearer
from server.api.requests import Query
from server.api.services import Services


class SignInLink(Struct, frozen=True):
    """A link that signs in to the pages once, as the caller. No other answer contains it. `path`: below the server's
    URL."""

    path: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"SignInLink(expires_at={self.expires_at})"


async def create_sign_in_link(services: Services, request: Request) -> Response:
    """Create a link that signs the caller in to the pages, once, within ten minutes."""
    Query(request)
    code, expires_at = await services.sessions.offer_link(bearer(request.scope))
    return json_response(SignInLink(f"/sign-in?code={code}", expires_at), 201, {"Cache-Control": "no-store"})
