"""Errors that a caller of the API can get: one class for each HTTP status, sent as RFC 9457 problem details."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import ClassVar, Self, TypedDict

MEDIA_TYPE = "application/problem+json"


class FieldError(TypedDict):
    """A wrong field: its path from the top of the body, such as `spec.cron`, or the name of a parameter."""

    field: str
    detail: str


def as_text(errors: Sequence[FieldError], limit: int = 5) -> str:
    """The first `limit` field errors as one line of text."""
    return "; ".join(f"{it['field']} {it['detail']}" for it in errors[:limit])


class ApiException(Exception):  # noqa: N818 - subclasses are named after the phrases of their status
    """Base of all errors that the API answers with. `detail` is for the caller: what is wrong and what to do about it.

    `detail` and `errors` never contain a secret.
    """

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)

    def __str__(self) -> str:
        return "; ".join([self.detail, *(f"{error['field']}: {error['detail']}" for error in self.errors)])

    @property
    def title(self) -> str:
        """The phrase of the status code, which RFC 9457, section 4.2.1, asks for when the type is about:blank."""
        return self.status.phrase

    def body(self) -> dict[str, object]:
        """The problem details object (RFC 9457, section 3.1). It has `errors` when fields are named."""
        body: dict[str, object] = {
            "type": "about:blank",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
        }
        return {**body, "errors": self.errors} if self.errors else body


class BadRequest(ApiException):
    """The request cannot be parsed: its JSON, a parameter, a cursor."""

    status = HTTPStatus.BAD_REQUEST


class Unauthorized(ApiException):
    """The request has no token, or an unknown one."""

    status = HTTPStatus.UNAUTHORIZED
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="lamplighter"'}


class Forbidden(ApiException):
    """The caller is known, but may not do this."""

    status = HTTPStatus.FORBIDDEN


class NotFound(ApiException):
    """There is no object of that name."""

    status = HTTPStatus.NOT_FOUND


class Conflict(ApiException):
    """The current state of the object does not allow this."""

    status = HTTPStatus.CONFLICT


class PreconditionFailed(ApiException):
    """The object does not match the caller's condition (RFC 9110, section 13)."""

    status = HTTPStatus.PRECONDITION_FAILED


class TooLarge(ApiException):
    """The body is longer than the server accepts."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class TooSlow(ApiException):
    """The request did not arrive in time. The server closes the connection without reading the rest."""

    status = HTTPStatus.REQUEST_TIMEOUT
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class UnsupportedMediaType(ApiException):
    """The body has a media type that the server does not accept."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class Invalid(ApiException):
    """The request can be parsed, but fields of it are not allowed. `errors` names each field."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY

    @classmethod
    def field(cls, field: str, detail: str) -> Self:
        """The error for one wrong field."""
        return cls("the request is not allowed", [{"field": field, "detail": detail}])


class BadGateway(ApiException):
    """The server asked a host, and the host failed."""

    status = HTTPStatus.BAD_GATEWAY


class NoAnswer(ApiException):
    """No host could be asked, or the host did not answer in time."""

    status = HTTPStatus.GATEWAY_TIMEOUT


class Unavailable(ApiException):
    """The server cannot do this now. The same request may succeed later."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}
