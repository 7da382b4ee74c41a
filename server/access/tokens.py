"""The tokens of the embedded default, in files that only we can read: one for people and scripts, one for agents."""

import hmac
import secrets
from pathlib import Path

from server.access import secretfile as private


def load(path: Path) -> str:
    """The token in a file, made there (mode 0600) when missing. Raises OSError, or ValueError for an empty file."""
    if not path.exists():
        private.create(path, secrets.token_urlsafe(32) + "\n")
    token = path.read_text().strip()
    if not token:
        raise ValueError(f"{path} is empty: delete it to have a new token made")
    return token


def same(given: str, expected: str) -> bool:
    """Whether two tokens are the same, in time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), expected.encode())
