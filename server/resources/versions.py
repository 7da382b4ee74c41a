"""Versions of declared objects, and conditions on them under which a change is made."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

Condition = Callable[[str | None], None]
"""Raises a Problem if an object of this version must not be changed. The version is None if there is no object."""


class Versioned(Protocol):
    """A schedule or a repository."""

    @property
    def id(self) -> str:
        """Its uid."""

    @property
    def generation(self) -> int:
        """A number that is 1 at first and grows by one with each change."""


def unconditional(_version: str | None) -> None:
    """The condition of a change that is always made."""


def resource_version(id_: str, generation: int) -> str:
    """The version of a schedule or a repository: another one after each change, and for a new object of its name."""
    return f"{id_}-{generation}"


def version_of(row: Versioned | None) -> str | None:
    """The version of a schedule or a repository; None for None."""
    return None if row is None else resource_version(row.id, row.generation)


def host_version(labels: Mapping[str, str], spec: Mapping[str, Any]) -> str:
    """The version of a host: a digest of what is declared of it."""
    declared = [labels, spec] if spec else labels
    return hashlib.blake2b(msgspec.json.encode(declared, order="deterministic"), digest_size=8).hexdigest()
