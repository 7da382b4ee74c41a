"""The tokens of the embedded default, in files that only this user can read."""

import hmac
import secrets
from pathlib import Path

from server.access import secretfile


def load(path: Path) -> str:
    """The token in a file, which is created (mode 0600) when missing. Raises OSError, ValueError for an empty file."""
    if not path.exists():
        secretfile.create(path, secrets.token_urlsafe(32) + "\n")
    token = path.read_text().strip()
    if not token:
        raise ValueError(f"{path} is empty: delete it, and restart to generate a new token")
    return token


def same(given: str, expected: str) -> bool:
    """Whether two tokens are equal, compared in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())
