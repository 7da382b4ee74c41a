"""Frames: messages to JSON text and back, with the limits on size, number and depth that each side enforces.

A frame is one envelope {"type", "id", "payload"} or an array of them. An answer has the `id` of the message that it
answers; other messages have none.
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
"""Bytes of the longest frame that the server accepts from an agent."""
MAX_SERVER_FRAME = 64 << 20
"""Bytes of the longest frame that an agent accepts from the server: a set of 100,000 schedules fits."""
MAX_MESSAGES = 10_000
"""The most messages in one frame."""
YEARS = range(2, 9999)
"""The allowed years of times: beyond them, adding spans or converting zones overflows (datetime.MAXYEAR)."""

M = TypeVar("M", FromAgent, FromServer)


class FrameError(ValueError):
    """A frame breaks the protocol. The receiver closes the connection with this reason (RFC 6455, code 1007)."""


def close_reason(error: Exception) -> str:
    """The error's message, cut to what a close frame holds: 123 bytes of UTF-8 (RFC 6455, section 5.5)."""
    return str(error).encode(errors="replace")[:123].decode(errors="ignore")


class Envelope(Struct, omit_defaults=True):
    """What surrounds every message in a frame."""

    type: str
    id: Annotated[str, Meta(max_length=64)] = ""
    payload: Raw = Raw(b"{}")


class Outgoing(Struct, omit_defaults=True):
    """An envelope whose payload is not encoded yet."""

    type: str
    id: str = ""
    payload: Message | dict[str, object] = {}


_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(list[Envelope] | Envelope)
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What a decoder raises. Invalid UTF-8 is found only when its field is decoded."""


def encode(messages: Sequence[Message], ids: Sequence[str] = ()) -> str:
    """One frame with these messages in order; a single message is not put into an array.

    `ids`: for each message the id of the message that it answers; empty when none is an answer.
    """
    frame = [Outgoing(TYPES[type(message)], ids[at] if ids else "", message) for at, message in enumerate(messages)]
    return _encoder.encode(frame[0] if len(frame) == 1 else frame).decode()


class Reader(Generic[M]):
    """Reads frames from one side. `types`: its messages by name; `limit`: bytes of its longest frame."""

    def __init__(self, types: Mapping[str, type[M]], limit: int) -> None:
        self._limit = limit
        self._decoders: dict[str, msgspec.json.Decoder[M]] = {
            name: msgspec.json.Decoder(cls) for name, cls in types.items()
        }
        self._times: dict[type[Struct], list[str]] = {  # the fields of each message that hold times
            cls: [it.name for it in msgspec.structs.fields(cls) if it.type == Time or Time in get_args(it.type)]
            for cls in types.values()
        }

    def read(self, frame: str | bytes) -> list[tuple[M, str]]:
        """The messages of a frame, each with its envelope's id. Messages of unknown types are skipped and logged.

        Raises FrameError, with the place of the error, for a frame that is too long, is too deep, is not JSON, or has a
        known message that breaks its limits.
        """
        if len(frame) > self._limit:
            raise FrameError(f"frame of {len(frame)} bytes: at most {self._limit} are allowed")
        try:
            envelopes = _envelopes.decode(frame)
        except _UNREADABLE as error:
            raise FrameError(f"frame: {error}") from None
        if isinstance(envelopes, Envelope):
            envelopes = [envelopes]
        if len(envelopes) > MAX_MESSAGES:
            raise FrameError(f"frame of {len(envelopes)} messages: at most {MAX_MESSAGES} are allowed")
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
            log.info("messages of unknown type skipped", extra=facts)
        return messages


from_agent: Reader[FromAgent] = Reader(FROM_AGENT, MAX_AGENT_FRAME)
from_server: Reader[FromServer] = Reader(FROM_SERVER, MAX_SERVER_FRAME)
