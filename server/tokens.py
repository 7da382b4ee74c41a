"""The tokens of the embedded default, in files that only we can read: one for people and scripts, one for agents."""

import hmac
import os
import secrets
from pathlib import Path


def load(path: Path) -> str:
    """The token in a file, made there (mode 0600) when missing. Raises OSError, or ValueError for an empty file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if not token:
            raise ValueError(f"{path} is empty: delete it to have a new token made") from None
        return token
    with os.fdopen(fd, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


def same(given: str, expected: str) -> bool:
    """Whether two tokens are the same, in time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), expected.encode())
