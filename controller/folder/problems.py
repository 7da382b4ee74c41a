"""Describes what is wrong with a folder or its server, for the log and for reports to the server."""

import logging
from collections.abc import Sequence
from pathlib import Path

from controller.client import ControllerError, Refused
from controller.folder.declarations import Reading
from controller.folder.dedup_logger import Facts, LogEvent
from controller.folder.documents import Mistake, field_line
from controller.folder.files import Unreadable
from controller.reconcile import Outcome
from controller.resources import Key, final_newlines

MAX_REPORTED = 20
"""The most problems in one report to the server."""
MAX_MESSAGE = 1024
"""The most characters of a problem's message."""


def reported(problems: Sequence[LogEvent]) -> list[dict[str, str]]:
    """The first MAX_REPORTED problems in the form of the API. If there are more, the last one says how many."""
    told = [{"reason": it.reason, "message": _one_line(it)} for it in problems[:MAX_REPORTED]]
    if more := len(problems) - len(told):
        told[-1] = {"reason": "MoreProblems", "message": f"and {more + 1} more: see the controller's log"}
    return told


def _one_line(event: LogEvent) -> str:
    """An event with its facts in one line, cut to MAX_MESSAGE characters."""
    facts = "; ".join(str(value) if name == "detail" else f"{name} {value}" for name, value in event.facts)
    return f"{event.message}: {' '.join(facts.split())}"[:MAX_MESSAGE]


def newline_events(reading: Reading) -> list[LogEvent]:
    """Warnings of secrets that end with a newline, which is left out. That is rarely intended."""
    declared = reading.declared
    return [
        LogEvent(
            logging.WARNING,
            "newline at the end of a secret left out",
            log_facts(repository=key, fields=", ".join(names), file=reading.documents[key].place),
        )
        for key, resource in declared.resources.items()
        if (names := final_newlines(resource.credentials))
    ]


def file_events(reading: Reading) -> list[LogEvent]:
    """Events for mistakes in files, for ignored documents, and for deletions that a mistake prevents."""
    events = []
    for it in reading.errors:
        place = mistake_place(reading, it)
        facts = log_facts(file=place, document=it.document, field=it.field, detail=it.detail)
        events.append(LogEvent(logging.ERROR, "file refused", facts, file_subject(it.file), "file valid now"))
    for it in reading.warnings:
        facts = log_facts(file=it.place, document=it.document, detail=it.detail)
        events.append(LogEvent(logging.WARNING, "document ignored", facts))
    if not reading.declared.complete:
        detail = "a file has mistakes, so that what it declares is unknown: nothing is deleted until they are corrected"
        events.append(LogEvent(logging.WARNING, "deleting nothing", log_facts(detail=detail)))
    return events


def _place(reading: Reading, path: str, document: int, field: str, mistake: Mistake | None = None) -> str:
    """The file and line of a field; "" without a field. The line is left out if an earlier text of the file counts."""
    file = reading.files[Path(path)]
    if not field or isinstance(file.text, Unreadable):
        return ""
    if file.parsed.mistakes and mistake not in file.parsed.mistakes:
        return path
    line = field_line(file.text, document, field)
    return f"{path}:{line}" if line else path


def mistake_place(reading: Reading, mistake: Mistake) -> str:
    """The file and line of a mistake."""
    return _place(reading, mistake.file, mistake.document, mistake.field, mistake) or mistake.place


def refusals(outcomes: Sequence[Outcome], reading: Reading) -> list[LogEvent]:
    """Events for what the server refused, one for each field, with its place in the folder."""
    events = []
    for outcome in outcomes:
        if isinstance(outcome.error, Refused):
            key = outcome.change.key
            kind, subject = key.kind.lower(), resource_subject(key)
            fields = [(it.field, it.detail) for it in outcome.error.errors]
            for field, detail in fields or [("", outcome.error.detail)]:
                facts = subject + log_facts(**where(reading, key, field), field=field, detail=detail)
                events.append(LogEvent(logging.ERROR, f"{kind} refused", facts, subject, f"{kind} accepted now"))
    return events


def where(reading: Reading, key: Key, field: str) -> dict[str, object]:
    """The file and line, and the document, of a resource's field."""
    document = reading.documents.get(key)
    if document is None:
        return {}
    place = _place(reading, document.file, document.number, field) or document.place
    return {"file": place, "document": document.number}


def failing(level: int, message: str, error: ControllerError, resolved: str) -> LogEvent:
    """An event for an error that prevents comparing. `resolved`: logged once it is over."""
    return LogEvent(level, message, log_facts(detail=error), resolved=resolved)


def log_facts(**facts: object) -> Facts:
    """Facts for a line of the log, without empty ones."""
    return tuple((key, str(value)) for key, value in facts.items() if value)


def resource_subject(key: Key) -> Facts:
    """A resource as the subject of an event."""
    return ((key.kind.lower(), str(key)),)


def file_subject(path: str) -> Facts:
    """A file as the subject of an event."""
    return (("file", path),)
