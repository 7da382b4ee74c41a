"""The set of schedules of a host: digests, the diff of two sets, and applying a diff.

An entry's identity is its bytes, as the server encoded them. Both sides hash these bytes, so a field that an older
agent does not know makes no difference. A set's digest is the sum of its entries' SHA-256 modulo 2**256, in hexadecimal
(AdHash: Bellare and Micciancio, "A New Paradigm for Collision-free Hashing", 1997). It does not depend on order, and
changing one entry costs one subtraction and one addition, whatever the size of the set.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from wire.messages import Entry

_MODULUS = 1 << 256


class EncodedEntry(NamedTuple):
    """An entry's bytes and their hash as a number."""

    raw: bytes
    hash: int


class _Identified(Struct):
    id: str


_id_decoder = msgspec.json.Decoder(_Identified)
_entry_decoder = msgspec.json.Decoder(Entry)
_entry_encoder = msgspec.json.Encoder()


class EntrySet:
    """An immutable set of entries by schedule id. `digest`: 64 hexadecimal digits; equal digests mean equal sets."""

    __slots__ = ("__weakref__", "digest", "digest_sum", "items")

    def __init__(self, items: Mapping[str, EncodedEntry], digest_sum: int) -> None:
        self.items = items
        self.digest_sum = digest_sum
        self.digest = format(digest_sum, "064x")

    def __len__(self) -> int:
        return len(self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntrySet) and self.digest_sum == other.digest_sum

    def __hash__(self) -> int:
        return hash(self.digest_sum)


EMPTY = EntrySet({}, 0)


class Diff(NamedTuple):
    """What turns one set into another: entries to add or replace, and ids to remove."""

    upsert: tuple[bytes, ...]
    remove: tuple[str, ...]


def encode_entry(entry: Entry) -> bytes:
    """The bytes of an entry, the same for every host."""
    return _entry_encoder.encode(entry)


def parse_entry(raw: bytes) -> Entry:
    """Decode an entry. Raises msgspec.DecodeError, which names the field."""
    return _entry_decoder.decode(raw)


def encoded(raw: bytes) -> EncodedEntry:
    """An entry's bytes with their hash."""
    return EncodedEntry(raw, int.from_bytes(hashlib.sha256(raw).digest(), "big"))


def entry_id(raw: bytes) -> str:
    """The schedule id in an entry's bytes, even if the other fields are invalid. Raises msgspec.DecodeError."""
    return _id_decoder.decode(raw).id


def whole(raws: Iterable[Raw | bytes]) -> EntrySet:
    """The set of these entries. Of two with the same id, the later one counts. Raises msgspec.DecodeError."""
    items = {entry_id(raw): encoded(bytes(raw)) for raw in map(bytes, raws)}
    return EntrySet(items, sum(it.hash for it in items.values()) % _MODULUS)


def diff(old: EntrySet, new: EntrySet) -> Diff:
    """The diff that turns `old` into `new`, in a stable order."""
    if old is new:
        return Diff((), ())
    upsert = [it.raw for key, it in new.items.items() if (was := old.items.get(key)) is None or was.raw != it.raw]
    remove = [key for key in old.items if key not in new.items]
    return Diff(tuple(upsert), tuple(remove))


def patched(old: EntrySet, upsert: Mapping[str, EncodedEntry], remove: Iterable[str] = ()) -> EntrySet:
    """`old` with these entries added or replaced, and these ids removed. Unknown ids are ignored."""
    items = dict(old.items)
    total = old.digest_sum
    for key in remove:
        if (gone := items.pop(key, None)) is not None:
            total -= gone.hash
    for key, put in upsert.items():
        if (gone := items.get(key)) is not None:
            total -= gone.hash
        items[key] = put
        total += put.hash
    return EntrySet(items, total % _MODULUS)


def apply(old: EntrySet, change: Diff) -> EntrySet:
    """Apply a diff: `apply(a, diff(a, b)) == b`. Raises msgspec.DecodeError for an entry without an id."""
    return patched(old, {entry_id(raw): encoded(raw) for raw in change.upsert}, change.remove)
