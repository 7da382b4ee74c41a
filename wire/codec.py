"""Frames: messages to JSON text and back, with the limits on size, number and depth that each side holds.

A frame is one envelope {"type", "id", "payload"} or an array of them. An answer's `id` is the id of what it answers;
a message that answers nothing has none.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Generic, TypeVar, get_args

import msgspec
from msgspec import Meta, Raw, Struct

from wire.messages import FROM_AGENT, FROM_SERVER, TYPES, FromAgent, FromServer, Message, Time

log = logging.getLogger(__name__)

MAX_AGENT_FRAME = 1 << 20
"""Bytes that the server reads in one frame of an agent."""
MAX_SERVER_FRAME = 64 << 20
"""Bytes that an agent reads in one frame of the server: a set of 100,000 schedules fits."""
MAX_MESSAGES = 10_000
"""Messages in one frame."""
YEARS = range(2, 9999)
"""Those that times may be in: beyond, arithmetic with spans and zones leaves the calendar (datetime.MAXYEAR)."""

M = TypeVar("M", FromAgent, FromServer)


class FrameError(ValueError):
    """A frame that breaks the protocol: the connection is closed with this reason (RFC 6455, code 1007)."""


def close_reason(error: Exception) -> str:
    """The error as a close frame can hold it: 123 bytes of UTF-8 (RFC 6455, section 5.5)."""
    return str(error).encode(errors="replace")[:123].decode(errors="ignore")


class Envelope(Struct, omit_defaults=True):
    """What every message travels in."""

    type: str
    id: Annotated[str, Meta(max_length=64)] = ""
    payload: Raw = Raw(b"{}")


class Outgoing(Struct, omit_defaults=True):
    """An envelope whose payload is yet to be encoded."""

    type: str
    id: str = ""
    payload: Message | dict[str, object] = {}


_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(list[Envelope] | Envelope)
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What a decoder raises: text is looked at only where a field holds it, so bytes that are none surface late."""


def encode(messages: Sequence[Message], ids: Sequence[str] = ()) -> str:
    """One frame that carries the messages in order; a lone message is not put into an array.

    `ids`: the id of what each message answers, in the same order; empty when none answers anything.
    """
    frame = [Outgoing(TYPES[type(message)], ids[at] if ids else "", message) for at, message in enumerate(messages)]
    return _encoder.encode(frame[0] if len(frame) == 1 else frame).decode()


class Reader(Generic[M]):
    """Reads the frames of one side: knows its messages and its limit."""

    def __init__(self, types: Mapping[str, type[M]], limit: int) -> None:
        self._limit = limit
        self._decoders: dict[str, msgspec.json.Decoder[M]] = {
            name: msgspec.json.Decoder(cls) for name, cls in types.items()
        }
        self._times: dict[type[Struct], list[str]] = {cls: _times_of(cls) for cls in types.values()}

    def read(self, frame: str | bytes) -> list[tuple[M, str]]:
        """The messages of a frame, each with its envelope's id. Types that are not known are left out, and the first of
        them is logged.

        Raises FrameError, with what is wrong and where, for a frame that is too long or too deep, is not JSON,
        or carries a known message that breaks its limits.
        """
        if len(frame) > self._limit:
            raise FrameError(f"frame of {len(frame)} bytes: at most {self._limit} are read")
        try:
            envelopes = _envelopes.decode(frame)
        except _UNREADABLE as error:
            raise FrameError(f"frame: {error}") from None
        if isinstance(envelopes, Envelope):
            envelopes = [envelopes]
        if len(envelopes) > MAX_MESSAGES:
            raise FrameError(f"frame of {len(envelopes)} messages: at most {MAX_MESSAGES} are read")
        messages = []
        unknown = ""
        for envelope in envelopes:
            decoder = self._decoders.get(envelope.type)
            if decoder is None:
                unknown = unknown or envelope.type
                continue
            try:
                message = decoder.decode(envelope.payload)
            except _UNREADABLE as error:
                raise FrameError(f"{envelope.type}: {error}") from None
            for name in self._times[type(message)]:
                at: datetime | None = getattr(message, name)
                if at is not None and at.year not in YEARS:
                    raise FrameError(f"{envelope.type}: {name} must be in the years {YEARS[0]} to {YEARS[-1]}")
            messages.append((message, envelope.id))
        if unknown or len(messages) < len(envelopes):
            facts = {"type": unknown[:64], "messages": len(envelopes) - len(messages)}
            log.info("message of unknown type left unread", extra=facts)
        return messages


def _times_of(cls: type[Struct]) -> list[str]:
    """The fields of a message that hold times."""
    return [it.name for it in msgspec.structs.fields(cls) if it.type == Time or Time in get_args(it.type)]


from_agent: Reader[FromAgent] = Reader(FROM_AGENT, MAX_AGENT_FRAME)
from_server: Reader[FromServer] = Reader(FROM_SERVER, MAX_SERVER_FRAME)
