"""The version of what is declared of an object, and what a change demands of it."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

Condition = Callable[[str | None], None]
"""Raises a problem when an object of this version may not be changed; None for one that is not there."""


class Versioned(Protocol):
    """A schedule or a repository."""

    @property
    def id(self) -> str:
        """Its uid."""

    @property
    def generation(self) -> int:
        """How often it was changed, from 1 on."""


def unconditional(_version: str | None) -> None:
    """The condition of a change that is made whatever is there."""


def resource_version(id_: str, generation: int) -> str:
    """The version of a schedule or a repository: another one after each change, and for another of the same name."""
    return f"{id_}-{generation}"


def version_of(row: Versioned | None) -> str | None:
    """The version of a schedule or a repository, None for none."""
    return None if row is None else resource_version(row.id, row.generation)


def host_version(labels: Mapping[str, str]) -> str:
    """The version of what is declared of a host: its labels."""
    return hashlib.blake2b(msgspec.json.encode(labels, order="deterministic"), digest_size=8).hexdigest()
