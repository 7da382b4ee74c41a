"""Reading requests within limits: bodies, query parameters, cursors. A refusal names the field."""

import asyncio
import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request

from server.access.identity import User
from server.errors import BadRequest, FieldError, Invalid, TooLarge, TooSlow, UnsupportedMediaType
from server.resources.selectors import OWN_ID, is_dns_label, parse_selector
from server.resources.specs import LabelSelector
from server.store.queries import LabelCondition
from server.store.tables import Actor

MAX_BODY = 1 << 20
"""Maximum bytes of a request's body."""
MAX_DEPTH = 32
"""Maximum nesting of objects and arrays in a body."""
BODY_S = 30.0
"""Seconds within which the whole body must arrive."""
MAX_LIMIT, DEFAULT_LIMIT = 500, 100
"""Maximum and default number of items of a page."""
Number = Annotated[int, Meta(ge=0, le=2**53)]
"""A number in a cursor: the key by which the rows are ordered."""

T = TypeVar("T")


async def body(request: Request) -> object:
    """The JSON of the body. It is read once and kept. Raises UnsupportedMediaType, TooLarge, TooSlow, BadRequest."""
    if not hasattr(request.state, "body"):
        request.state.body = await _read_body(request)
    return request.state.body


async def _read_body(request: Request) -> object:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        got = f"(got {content_type[:64]!r})"
        raise UnsupportedMediaType(f"send JSON with the header 'Content-Type: application/json' {got}")
    content = await content_of(request, MAX_BODY)
    try:
        value = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


async def object_body(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises what `body` raises, and Invalid when it is not an object."""
    value = await body(request)
    if not isinstance(value, dict):
        raise Invalid("the body must be a JSON object")
    return value


def has_body(request: Request) -> bool:
    """Whether there is a body: by Content-Length, or else by the presence of Content-Type."""
    length = request.headers.get("content-length")
    return length != "0" if length is not None else "content-type" in request.headers


async def content_of(request: Request, max_bytes: int) -> bytes:
    """The bytes of the body. Raises TooLarge, TooSlow."""
    too_large = TooLarge(f"the body is longer than {max_bytes} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise TooSlow(f"the body did not come within {BODY_S:.0f} s") from None
    return bytes(content)


def _number(text: str) -> float | int:
    """A number that has a point or an exponent. 1.0 is an integer, as in JSON Schema."""
    number = float(text)
    if math.isinf(number):
        raise msgspec.DecodeError(f"number out of range: {text[:32]}")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


_decode = msgspec.json.Decoder(float_hook=_number).decode


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> BadRequest:
    return BadRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


def converted(value: object, to: type[T]) -> T:
    """Convert a decoded JSON value to a type. Raises Invalid, which names the field."""
    try:
        return msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").removeprefix(".")
        if unknown := re.search(r"unknown field `(.*)`", detail):
            field = f"{field}.{unknown[1]}".lstrip(".")
        raise invalid({field: detail}) from None


def invalid(errors: Mapping[str, str]) -> Invalid:
    """The error for fields of the body, by what is wrong with each."""
    listed: list[FieldError] = [{"field": field, "detail": detail} for field, detail in errors.items()]
    return Invalid("the request is not allowed", listed)


def actor(request: Request) -> Actor:
    """The actor of an authenticated request."""
    user: User = request.state.user
    return user.actor


def own_id(request: Request) -> str:
    """The id in the path, which the caller chose. Raises Invalid for a bad id, and for a bad namespace in the path."""
    own: str = request.path_params["id"]
    if not OWN_ID.fullmatch(own):
        raise invalid({"id": "must be 1 to 40 lower case letters, digits and '-', such as a uid"})
    if not is_dns_label(request.path_params["namespace"]):
        raise invalid({"namespace": "must be the name of a namespace: at most 63 lower case letters, digits and '-'"})
    return own


class Query:
    """The query parameters of a request. Raises BadRequest for one that is not `known`, or is given twice."""

    def __init__(self, request: Request, *known: str) -> None:
        self._given = request.query_params
        errors: list[FieldError] = []
        for name in self._given:
            if name not in known:
                allowed = ", ".join(known) or "none"
                errors.append({"field": name[:64], "detail": f"is not a parameter of this operation; known: {allowed}"})
            elif len(self._given.getlist(name)) > 1:
                errors.append({"field": name, "detail": "must be given at most once"})
            elif "\0" in self._given[name]:
                errors.append({"field": name, "detail": "must not contain a NUL"})
        if errors:
            raise BadRequest("the query cannot be read", errors)

    def text(self, name: str) -> str | None:
        """The value of a parameter, or None."""
        return self._given.get(name)

    def one_of(self, name: str, values: Sequence[str]) -> str | None:
        """The value of a parameter, or None. Raises BadRequest when it is none of `values`."""
        given = self.text(name)
        if given is not None and given not in values:
            raise bad_parameter(name, f"must be one of {', '.join(values)}")
        return given

    def label_conditions(self) -> Sequence[LabelCondition]:
        """The conditions of `labelSelector`; none when it is not given. Raises BadRequest."""
        return [(it.key, it.operator, it.values) for it in self.label_selector().match_expressions]

    def label_selector(self) -> LabelSelector:
        """`labelSelector`; that of everything when it is not given. Raises BadRequest."""
        try:
            return LabelSelector(match_expressions=tuple(parse_selector(self.text("labelSelector") or "")))
        except ValueError as error:
            raise bad_parameter("labelSelector", str(error)) from None

    def limit(self) -> int:
        """The maximum number of items of the page, from 1 to MAX_LIMIT. Raises BadRequest."""
        return self.number("limit", DEFAULT_LIMIT, MAX_LIMIT)

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number from 1 to `most`. Raises BadRequest."""
        given = self._given.get(name, str(default))
        if not re.fullmatch(r"[0-9]{1,6}", given) or not 1 <= int(given) <= most:
            raise bad_parameter(name, f"must be a whole number from 1 to {most}")
        return int(given)

    def after(self, key: type[T]) -> T | None:
        """The key in the cursor, after which the page starts; None for the first page. Raises BadRequest."""
        given = self._given.get("cursor")
        if given is None:
            return None
        wrong = bad_parameter("cursor", "must be the `next` of an earlier page, unchanged")
        try:
            text = base64.urlsafe_b64decode(given + "=" * (-len(given) % 4))
            after = msgspec.json.decode(text, type=key)
        except (binascii.Error, ValueError, RecursionError):
            raise wrong from None
        if b"\\u0000" in text:
            raise wrong  # PostgreSQL does not accept a NUL in a query
        return after


def cursor(key: object) -> str:
    """The `next` of a page: an opaque text that holds the key of its last row."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def bad_header(name: str, detail: str) -> BadRequest:
    """The error for one header."""
    return BadRequest("the headers cannot be read", [{"field": name, "detail": detail}])


def bad_parameter(name: str, detail: str) -> BadRequest:
    """The error for one query parameter."""
    return BadRequest("the query cannot be read", [{"field": name, "detail": detail}])
