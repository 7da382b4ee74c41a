"""Requests read within limits, and answers as JSON. What cannot be read is refused with its name."""

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
from starlette.responses import Response

from server.problems import BadRequest, FieldError, Invalid, TooLarge, TooSlow, UnsupportedMediaType

MAX_BODY = 1 << 20
"""Bytes of a request's body that are read."""
MAX_DEPTH = 32
"""How deep objects and arrays of a body may be nested."""
BODY_S = 30.0
"""Seconds within which a body must have come."""
MAX_LIMIT, DEFAULT_LIMIT = 500, 100
"""Items of one page."""
Number = Annotated[int, Meta(ge=0, le=2**53)]
"""A number by which rows are in order, as a cursor holds it."""

T = TypeVar("T")


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer: datetimes as RFC 3339, Raw as it stands."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


async def body(request: Request) -> object:
    """The JSON of the body, read the first time. Raises UnsupportedMediaType, TooLarge, TooSlow, BadRequest."""
    if not hasattr(request.state, "body"):
        request.state.body = await _read_body(request)
    return request.state.body


async def _read_body(request: Request) -> object:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        got = f"(got {content_type[:64]!r})"
        raise UnsupportedMediaType(f"send JSON with the header 'Content-Type: application/json' {got}")
    content = await _content(request)
    try:
        value = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


async def object_body(request: Request) -> dict[str, Any]:
    """The JSON object of the body. Raises as `body` does, and Invalid for another value."""
    value = await body(request)
    if not isinstance(value, dict):
        raise Invalid("the body must be a JSON object")
    return value


def has_body(request: Request) -> bool:
    """Whether there is a body; where its length is not told, whether its type is."""
    length = request.headers.get("content-length")
    return length != "0" if length is not None else "content-type" in request.headers


async def _content(request: Request) -> bytes:
    """The body, read no further than its limit."""
    too_large = TooLarge(f"the body is longer than {MAX_BODY} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY:
                    raise too_large
    except TimeoutError:
        raise TooSlow(f"the body did not come within {BODY_S:.0f} s") from None
    return bytes(content)


def _number(text: str) -> float | int:
    """A number with a point or an exponent; one that is whole counts as such (JSON Schema, `integer`)."""
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
    """A value as this type. Raises Invalid that names the field."""
    try:
        return msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").removeprefix(".")
        if unknown := re.search(r"unknown field `(.*)`", detail):
            field = f"{field}.{unknown[1]}".lstrip(".")
        raise invalid({field: detail}) from None


def invalid(errors: Mapping[str, str]) -> Invalid:
    """A refusal of fields: what is wrong with each."""
    listed: list[FieldError] = [{"field": field, "detail": detail} for field, detail in errors.items()]
    return Invalid("the request is not allowed", listed)


class Query:
    """The parameters of a request: each at most once, and none but the `known`. Raises BadRequest."""

    def __init__(self, request: Request, *known: str) -> None:
        self._given = request.query_params
        errors: list[FieldError] = []
        for name in self._given:
            if name not in known:
                allowed = ", ".join(known) or "none"
                errors.append({"field": name[:64], "detail": f"is not a parameter here; known: {allowed}"})
            elif len(self._given.getlist(name)) > 1:
                errors.append({"field": name, "detail": "may be given once"})
            elif "\0" in self._given[name]:
                errors.append({"field": name, "detail": "must not hold a NUL"})
        if errors:
            raise BadRequest("the query cannot be read", errors)

    def text(self, name: str) -> str | None:
        """A parameter as it stands."""
        return self._given.get(name)

    def one_of(self, name: str, values: Sequence[str]) -> str | None:
        """A parameter that must be one of these values."""
        given = self.text(name)
        if given is not None and given not in values:
            raise bad_parameter(name, f"must be one of {', '.join(values)}")
        return given

    def limit(self) -> int:
        """How many items a page may hold."""
        given = self._given.get("limit", str(DEFAULT_LIMIT))
        if not re.fullmatch(r"[0-9]{1,4}", given) or not 1 <= int(given) <= MAX_LIMIT:
            raise bad_parameter("limit", f"must be a whole number from 1 to {MAX_LIMIT}")
        return int(given)

    def after(self, key: type[T]) -> T | None:
        """The key that a page's `next` stands for."""
        given = self._given.get("cursor")
        if given is None:
            return None
        wrong = bad_parameter("cursor", "must be the `next` of an earlier page, as it was given")
        try:
            text = base64.urlsafe_b64decode(given + "=" * (-len(given) % 4))
            after = msgspec.json.decode(text, type=key)
        except (binascii.Error, ValueError, RecursionError):
            raise wrong from None
        if b"\\u0000" in text:
            raise wrong  # PostgreSQL cannot even be asked for it
        return after


def cursor(key: object) -> str:
    """The opaque text for a key, as pages give it."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def bad_header(name: str, detail: str) -> BadRequest:
    """A refusal of one header."""
    return BadRequest("the headers cannot be read", [{"field": name, "detail": detail}])


def bad_parameter(name: str, detail: str) -> BadRequest:
    """A refusal of one query parameter."""
    return BadRequest("the query cannot be read", [{"field": name, "detail": detail}])
