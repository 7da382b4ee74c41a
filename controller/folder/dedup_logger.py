"""Logs each problem once while it lasts, and once more when it is resolved."""

import logging
from collections.abc import Container, Iterable
from typing import NamedTuple

log = logging.getLogger(__name__)

Facts = tuple[tuple[str, object], ...]
"""The names and values in a line of the log."""


class LogEvent(NamedTuple):
    """A line for the log: its level, its message, and its facts.

    `resolved`: the message to log, with the facts in `subject`, when that subject no longer has an event with the same
    `resolved`; "" for none.
    """

    level: int
    message: str
    facts: Facts
    subject: Facts = ()
    resolved: str = ""

    @property
    def reason(self) -> str:
        """The reason as one word, for programs."""
        return "".join(word.capitalize() for word in self.message.split())


class DedupLogger:
    """Logs each problem once when it appears, and once when it is resolved."""

    def __init__(self) -> None:
        self._current: dict[str, dict[LogEvent, None]] = {}

    def log(self, topic: str, events: Iterable[LogEvent], present: Container[Facts] = ((),)) -> None:
        """Log what is new and what is resolved. `events`: all present problems of a topic.

        `present`: the subjects that still exist; a problem whose subject went away is not logged as resolved.
        """
        before, now = self._current.get(topic, {}), dict.fromkeys(events)
        for event in now:
            if event not in before:
                log.log(event.level, event.message, extra=dict(event.facts))
        lasting = {(event.resolved, event.subject) for event in now}
        for resolved, subject in dict.fromkeys((event.resolved, event.subject) for event in before):
            if resolved and (resolved, subject) not in lasting and subject in present:
                log.info(resolved, extra=dict(subject))
        self._current[topic] = now

    def errors(self) -> list[LogEvent]:
        """The present problems that somebody has to correct."""
        return [event for events in self._current.values() for event in events if event.level >= logging.ERROR]
