"""The URLs of repositories: a strict parser, which says what kind a URL is and where it leads.

restic parses URLs leniently, each backend by rules of its own. So every URL that is not clearly one of the forms in
`_FORMS` is refused, and no other code parses URLs. Source: restic's manual, "Preparing a new repository", and its code
(internal/backend/location, and config.go of each backend), read for 0.14 to 0.19.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import unquote

from server.errors import FieldError

SCHEMES = ("local", "rest", "s3", "b2", "azure", "gs", "swift", "sftp")
"""The schemes that are allowed by default: folders, and storage that restic itself talks to.

`rclone` is not one: the configuration of a remote decides what rclone does, which may be to run programs.
"""


class UrlError(ValueError):
    """A URL is not understood. The message says what to write."""


class Location(NamedTuple):
    """Where a URL leads. `server`: protocol, user, host and port, if it has any; `path`: the names below.

    Two URLs that lead to the same place by the same scheme have equal locations, however they are written.
    """

    scheme: str
    server: tuple[str, ...]
    path: tuple[str, ...]

    def covers(self, other: "Location") -> bool:
        """Whether the other location is this one or below it, on the same server, as the same user."""
        return self[:2] == other[:2] and other.path[: len(self.path)] == self.path

    @property
    def folder(self) -> str | None:
        """The path of a folder on the host, relative if the URL is; None for other schemes."""
        if self.scheme != "local":
            return None
        return ("" if self.server == _RELATIVE else "/") + "/".join(self.path)


def parse(url: str, *, prefix: bool = False) -> Location:
    """Where a URL leads; {host} and {namespace} are not filled in. Raises UrlError.

    `prefix`: accept a prefix of a repository's URL, too, such as a server without a path.
    """
    is_path = url.startswith("/") or ":" not in url
    scheme, _, rest = ("local", "", url) if is_path else url.partition(":")
    form = _FORMS.get(scheme)
    if form is None:
        lower = scheme.lower()
        hint = f"write {lower}: in lower case" if lower in _FORMS else "begin a folder with /"
        raise UrlError(f"{scheme[:32]!r} is not a scheme of restic: {hint}")
    if url != url.strip() or not url.isprintable():
        raise UrlError("must not begin or end with a space, or contain line breaks or other control characters")
    location = form(rest)
    if any(name in (".", "..") for name in location.path):
        raise UrlError("must not contain '.' or '..' in its path: write the path without them")
    if not prefix and (not location.path if scheme == "s3" else scheme in _COLON and ":" not in rest):
        raise UrlError(f"lacks a bucket or a path: write {_EXAMPLES[scheme]}")
    return location


def folder_of(url: str) -> str | None:
    """The folder on the host to which a URL leads; None for other schemes, and for a URL that is not understood."""
    try:
        return parse(url).folder
    except UrlError:
        return None


def elsewhere(url: str, env: Mapping[str, str]) -> list[str]:
    """The variables of an environment that decide which server a URL leads to.

    An azure URL names no account, and a swift URL no server and no project. An s3 URL of Amazon leads to the partition
    of the region, and a bucket's name is unique in one partition only. Names of b2 and gs buckets are unique.
    """
    try:
        location = parse(url)
    except UrlError:
        return []
    if location.scheme == "s3" and _AMAZON.search(location.server[2]):
        return sorted(name for name in _REGIONS if _PARTITION.match(env.get(name, "")))
    return sorted(name for name in env if name.startswith(_LEADING.get(location.scheme, ())))


def scheme_errors(url: str, allowed: Collection[str]) -> Iterator[FieldError]:
    """The error of a URL that is not understood, or whose scheme is not allowed."""
    try:
        scheme = parse(url).scheme
    except UrlError as error:
        known = "" if url.partition(":")[0] in _FORMS else f"; use one of {_named(allowed)}"
        yield {"field": "spec.url", "detail": f"{error}{known}"}
        return
    if scheme not in allowed:
        detail = f"{scheme}: is not allowed here: use one of {_named(allowed)}; the server's operator can change that"
        yield {"field": "spec.url", "detail": detail}


def _named(schemes: Collection[str]) -> str:
    return ", ".join(f"{it}:" for it in schemes)


# The forms of URLs, by scheme. Each parses what follows the scheme and its colon.

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_{][A-Za-z0-9_.+{}-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_WORD = re.compile(r"[A-Za-z0-9_{][A-Za-z0-9_.+{}-]*")
_NOT_IN_URL = re.compile(r"[\s?#\\\"<>^`|]|%(?![0-9A-Fa-f]{2})|%(25|2[Ff]|5[Cc]|[01][0-9A-Fa-f]|7[Ff])")
_AMAZON = re.compile(r"(?:\A|\.)amazonaws\.com(?:\.cn)?\Z")
_REGIONS = ("AWS_DEFAULT_REGION", "AWS_REGION")
_PARTITION = re.compile("cn-|us-gov-|us-iso|eu-isoe-|eusc-")
"""Prefixes of regions that are in another partition than `aws`. Source: AWS's reference, "Partitions"."""
_LEADING = {"azure": ("AZURE_ACCOUNT_NAME", "AZURE_ENDPOINT_SUFFIX"), "swift": ("OS_", "ST_")}
"""Prefixes of the variables by which a backend finds its server. Source: restic, internal/backend/azure and swift."""
_RELATIVE = ("relative",)
"""The `server` of a relative folder, which depends on the agent's working directory."""
_PORTS = {"http": "80", "https": "443", "ssh": "22"}


def _names(path: str) -> tuple[str, ...]:
    """The names in a path, without slashes at its end."""
    return tuple(path.rstrip("/").split("/")) if path.rstrip("/") else ()


def _local(rest: str) -> Location:
    if not rest or "\\" in rest:
        raise UrlError("must be the path of a folder, without backslashes")
    server = () if rest.startswith("/") else _RELATIVE
    return Location("local", server, tuple(name for name in rest.split("/") if name not in ("", ".")))


def _rest(rest: str) -> Location:
    protocol, separator, after = rest.partition("://")
    if not separator or protocol.lower() not in ("http", "https"):
        raise UrlError("must continue with http:// or https:// after rest:")  # Go ignores the case
    server, path = _split(after, protocol.lower())
    return Location("rest", server, _names(path[1:]))


def _s3(rest: str) -> Location:
    protocol = "https"
    if rest.lower().startswith("http"):  # restic takes it for a URL if it is in lower case, and for a host otherwise
        protocol, separator, after = rest.partition("://")
        if not separator or protocol not in ("http", "https"):
            raise UrlError("must continue with http://, https:// or a host after s3:, in lower case")
    elif "%" in rest:  # restic does not decode it here
        raise UrlError("must not contain % unless http:// or https:// follows s3:, where it encodes a character")
    else:
        after = rest.removeprefix("//")
    server, path = _split(after, protocol)
    if server[1]:
        raise UrlError("must not name a user: put the keys into the Secret that envSecretRef names")
    return Location("s3", server, _names(path[1:]))


def _sftp(rest: str) -> Location:
    if rest.startswith("//"):
        server, path = _split(rest[2:], "ssh")
        path = path[1:]
    else:
        authority, colon, path = rest.partition(":")
        if not colon:
            raise UrlError("lacks a folder: write sftp:user@host:/folder")
        server = _server(authority, "ssh")
    if path.startswith("~"):
        raise UrlError("must not begin its path with ~: a path that does not begin with / is in the user's home")
    return Location("sftp", server, _names(path))


def _bucket(scheme: str) -> Callable[[str], Location]:
    """`scheme:bucket:/path`, whose server the environment decides."""

    def form(rest: str) -> Location:
        bucket, _, path = rest.partition(":")
        if not _WORD.fullmatch(bucket) or (path and scheme == "swift" and not path.startswith("/")):
            raise UrlError(f"is not understood: write {_EXAMPLES[scheme]}")
        return Location(scheme, (), (bucket, *_names(path.lstrip("/"))))

    return form


def _rclone(rest: str) -> Location:
    """`rclone:remote:path`, for a configured remote. Connection strings are refused: they can run programs."""
    remote, colon, path = rest.partition(":")
    if not colon or not _WORD.fullmatch(remote):
        raise UrlError("is not understood: write rclone:remote:path, with a remote from rclone's configuration")
    return Location("rclone", (remote,), _names(path))


def _split(text: str, protocol: str) -> tuple[tuple[str, ...], str]:
    """The server in `user@host:port/path`, and the path, which begins with a slash or is empty."""
    if _NOT_IN_URL.search(text):
        raise UrlError(
            'must not contain spaces, any of ? # \\ " < > ^ ` |, or an encoded slash, % or control character'
        )
    authority, slash, path = text.partition("/")
    plain = unquote(path)
    if not plain.isprintable() or "\ufffd" in plain:
        raise UrlError("must encode only UTF-8 text without control characters in its path")
    return _server(authority, protocol), slash + plain


def _server(authority: str, protocol: str) -> tuple[str, ...]:
    """Protocol, user, host and port in `user@host:port`. Raises UrlError, also if it has a password."""
    user, at, place = authority.rpartition("@")
    if at and not (_USER.fullmatch(user) and (protocol == "ssh" or "@" not in user)):
        raise UrlError("must have a user of letters, digits and any of _ . + - before @, and no password")
    host, colon, port = place.rpartition(":") if re.search(r":[^\]]*\Z", place) else (place, "", "")
    if colon and not (_PORT.fullmatch(port) and int(port) < 65536):
        raise UrlError("must have a port from 1 to 65535")
    return protocol, user, _host(host), port or _PORTS[protocol]


def _host(host: str) -> str:
    if host.startswith("[") and host.endswith("]") and "%" not in host:
        try:
            return IPv6Address(host[1:-1]).compressed
        except ValueError:
            pass
    if not _HOST.fullmatch(host):
        raise UrlError(f"{host[:64]!r} is not a host name: use letters, digits, '-' and '.'")
    return host.lower()


_FORMS: Mapping[str, Callable[[str], Location]] = {
    "local": _local,
    "rest": _rest,
    "s3": _s3,
    "sftp": _sftp,
    "b2": _bucket("b2"),
    "azure": _bucket("azure"),
    "gs": _bucket("gs"),
    "swift": _bucket("swift"),
    "rclone": _rclone,
}
_COLON = ("azure", "gs", "swift")
"""Schemes with a colon after the bucket."""
_EXAMPLES = {
    "s3": "s3:https://host/bucket",
    "b2": "b2:bucket:path",
    "azure": "azure:container:/path",
    "gs": "gs:bucket:/path",
    "swift": "swift:container:/path",
}
