"""What can go wrong for a caller of the API: one class for each kind, told as RFC 9457 problem details."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import ClassVar, Self, TypedDict

MEDIA_TYPE = "application/problem+json"


class FieldError(TypedDict):
    """One field that is wrong: its path from the top of the body (`spec.cron`), or the parameter's name."""

    field: str
    detail: str


def in_words(errors: Sequence[FieldError], most: int = 5) -> str:
    """Some of what is wrong, in one text."""
    return "; ".join(f"{it['field']} {it['detail']}" for it in errors[:most])


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it a problem
    """Base of all problems. `detail` says what is wrong and what to do, for the caller to read: never a secret."""

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
        """The status code's phrase, as RFC 9457, section 4.2.1, wants for a problem of type about:blank."""
        return self.status.phrase

    def body(self) -> dict[str, object]:
        """The members of the problem details object (RFC 9457, section 3.1), with `errors` where fields are named."""
        body: dict[str, object] = {
            "type": "about:blank",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
        }
        return {**body, "errors": self.errors} if self.errors else body


class BadRequest(Problem):
    """The request cannot be read: its JSON, a parameter, a cursor."""

    status = HTTPStatus.BAD_REQUEST


class Unauthorized(Problem):
    """No token, or one that is not known."""

    status = HTTPStatus.UNAUTHORIZED
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="lamplighter"'}


class Forbidden(Problem):
    """The caller is known, but may not do this."""

    status = HTTPStatus.FORBIDDEN


class NotFound(Problem):
    """No object of that name."""

    status = HTTPStatus.NOT_FOUND


class Conflict(Problem):
    """The object's state does not allow this."""

    status = HTTPStatus.CONFLICT


class PreconditionFailed(Problem):
    """The object is not as the caller's condition demands (RFC 9110, section 13)."""

    status = HTTPStatus.PRECONDITION_FAILED


class TooLarge(Problem):
    """The body is longer than the server reads."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class TooSlow(Problem):
    """The request did not come in time; what is left of it is not awaited."""

    status = HTTPStatus.REQUEST_TIMEOUT
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class UnsupportedMediaType(Problem):
    """The body is of a type that the server does not read."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class Invalid(Problem):
    """The request can be read, but what it says is not allowed; `errors` names each field."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY

    @classmethod
    def field(cls, field: str, detail: str) -> Self:
        """One field is wrong."""
        return cls("the request is not allowed", [{"field": field, "detail": detail}])


class BadGateway(Problem):
    """A host was asked, and could not do it."""

    status = HTTPStatus.BAD_GATEWAY


class NoAnswer(Problem):
    """No host could be asked, or the one that was gave no answer in time."""

    status = HTTPStatus.GATEWAY_TIMEOUT


class Unavailable(Problem):
    """The server cannot do this now; the same request may succeed later."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}
