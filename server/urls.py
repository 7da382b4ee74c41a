"""The URLs of repositories: of which kind one is, and whether the operator of the server allows that kind.

Source: restic's manual, "Preparing a new repository", and its source (internal/backend/location).
"""

from collections.abc import Collection, Iterator

from server.problems import FieldError

SCHEMES = ("local", "rest", "s3", "b2", "azure", "gs", "swift", "sftp")
"""Allowed unless the operator says otherwise: folders, and storage that restic itself speaks with.

Not `rclone`: what follows it is rclone's to read, which takes connection strings that run programs of the host.
"""


def scheme_of(url: str) -> str:
    """What kind of URL this is: the word before its first colon, `local` for a path."""
    scheme, colon, _ = url.partition(":")
    return "local" if not colon or url.startswith(("/", "./", "../")) else scheme


def folder_of(url: str) -> str | None:
    """The folder that a URL means; None for one that is elsewhere."""
    return url.removeprefix("local:") if scheme_of(url) == "local" else None


def scheme_errors(url: str, allowed: Collection[str]) -> Iterator[FieldError]:
    """That a URL is of a kind that is not allowed."""
    if (scheme := scheme_of(url)) not in allowed:
        known = ", ".join(f"{it}:" for it in allowed)
        detail = f"{scheme[:32]}: is not allowed here: use one of {known}; the server's operator can change that"
        yield {"field": "spec.url", "detail": detail}
