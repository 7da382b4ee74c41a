"""Conditional requests (RFC 9110, section 13): If-Match, If-None-Match, and the entity tags in them.

A tag is `"VERSION.DIGEST"`: the version of the declared object, and a digest of the whole answer including its status.
If-Match compares only the version, so that a change of status in between does not refuse a change of the object.
If-None-Match of a GET compares the digest, too. The tag of an answer without a version is `"DIGEST"`.
"""

import hashlib
import re

from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import json_response
from server.api.requests import bad_header
from server.errors import Conflict, PreconditionFailed
from server.resources.versions import Condition

_TAGS = re.compile(r'\s*(?:W/)?"[!#-~\x80-\xff]*"\s*(?:,\s*(?:W/)?"[!#-~\x80-\xff]*"\s*)*')
_TAG = re.compile(r'(W/)?"([!#-~\x80-\xff]*)"')


def tag(content: bytes, version: str = "") -> str:
    """The ETag of an answer."""
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f'"{version}.{digest}"' if version else f'"{digest}"'


def condition(request: Request, resource_version: object = None) -> Condition:
    """The condition of a request that changes an object: a function that checks the object's version.

    `resource_version`: the one in the body's metadata, if any; a different version is a conflict, as in Kubernetes.
    Raises BadRequest for headers that cannot be read. The function raises PreconditionFailed, Conflict.
    """
    match, none_match = _tags(request, "if-match"), _tags(request, "if-none-match")

    def check(version: str | None) -> None:
        if match is not None and not _holds(match, version, strong=True):
            raise PreconditionFailed(f"If-Match names another version: {_current(version)}")
        if none_match is not None and _holds(none_match, version, strong=False):
            raise PreconditionFailed("If-None-Match names the current version: leave it out to change the object")
        if resource_version not in (None, "", version):
            raise Conflict(f"metadata.resourceVersion names another version: {_current(version)}")

    return check


def versioned(shown: dict[str, object], version: str, status: int = 200) -> Response:
    """The answer with one object, and the ETag by which it can be changed conditionally."""
    answer = json_response(shown, status)
    answer.headers["etag"] = tag(bytes(answer.body), version)
    return answer


def answered(request: Request, response: Response) -> Response:
    """The answer to a GET, or 304 when the caller has it already. Raises PreconditionFailed, BadRequest."""
    if response.status_code != 200 or not hasattr(response, "body"):
        return response
    etag = response.headers.setdefault("etag", tag(bytes(response.body)))
    whole, version = etag.strip('"'), etag.strip('"').rpartition(".")[0]
    match, none_match = _tags(request, "if-match"), _tags(request, "if-none-match")
    if match is not None and not (
        _holds(match, whole, strong=True) or (version and _holds(match, version, strong=True))
    ):
        raise PreconditionFailed("If-Match names another version: read the object again")
    if none_match is not None and ("*" in none_match or any(it.removeprefix("W/") == whole for it in none_match)):
        return Response(status_code=304, headers={"etag": etag})
    return response


def _tags(request: Request, name: str) -> list[str] | None:
    """The tags in a header, without quotes but with the `W/` of weak ones; None without the header."""
    if name not in request.headers:
        return None
    given = ", ".join(request.headers.getlist(name))
    if given.strip() == "*":
        return ["*"]
    if not _TAGS.fullmatch(given):
        raise bad_header(name, 'must be * or quoted tags, as in the header ETag, such as "0c1a-1.9f"')
    return [weak + text for weak, text in _TAG.findall(given)]


def _holds(tags: list[str], version: str | None, *, strong: bool) -> bool:
    """Whether one of the tags names this version. Strong comparison ignores weak tags (RFC 9110, 8.8.3.2)."""
    if version is None:
        return False
    texts = [it for it in tags if not it.startswith("W/")] if strong else [it.removeprefix("W/") for it in tags]
    return any(it in ("*", version) or it.rpartition(".")[0] == version for it in texts)


def _current(version: str | None) -> str:
    return "there is no such object" if version is None else "the object has changed; read it again"
