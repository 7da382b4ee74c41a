"""Formats log records: one line for each event, with key=value for people, or as JSON for machines."""

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

from cli.terminal import escaped, is_coloured, safe

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_ID = re.compile(r"[0-9a-f]{32,}")
_LEVELS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;1"}
_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
"""The priorities of syslog(3)."""
_PARTS = {"agent": "36", "server": "35", "controller": "34", "cli": "37"}


SHORT_ID = 8
"""Digits of an id or digest that people see."""


def setup(form: str, level: str, stream: TextIO = sys.stderr) -> None:
    """Send all logs to a stream. `form`: text or json. `level`: debug, info, warning or error."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(form, stream))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for noisy in ("httpx", "httpcore", "websockets", "watchfiles", "uvicorn.access", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def formatter(form: str, stream: TextIO) -> logging.Formatter:
    """What formats the records for a stream, in a form: text or json."""
    if form == "json":
        return Json()
    return Journal() if _is_journal(stream) else Text(color=is_coloured(stream))


def facts(record: logging.LogRecord) -> dict[str, object]:
    """The facts that a log call gave as `extra`."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class Text(logging.Formatter):
    """`14:02:00 agent      fire  schedule=default/etc due=14:02:00`: local time, the part, what, and its facts."""

    def __init__(self, *, color: bool) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        """One line, with a traceback below it where there is one."""
        when = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        return f"{when} {self._line(record)}"

    def _line(self, record: logging.LogRecord) -> str:
        part = record.name.partition(".")[0]
        told = " ".join(f"{key}={_text(value, short=key == 'job')}" for key, value in facts(record).items())
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        head = self._paint(f"{part:<10}", _PARTS.get(part, "37"))
        what = self._paint(mark + safe(record.getMessage()), _LEVELS.get(record.levelname, "1"))
        line = f"{head} {what}  {told}".rstrip()
        if record.exc_info:
            line += "\n" + safe(self.formatException(record.exc_info), "\n\t")
        return line

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text


class Journal(Text):
    """For systemd's journal, which knows the time itself, and reads a line's priority from its beginning."""

    def __init__(self) -> None:
        super().__init__(color=False)

    def format(self, record: logging.LogRecord) -> str:
        """One line, with a traceback below it where there is one. Source: sd-daemon(3)."""
        return f"<{_PRIORITIES.get(record.levelname, 5)}>{self._line(record)}"


def _is_journal(stream: TextIO) -> bool:
    """Whether what is written to a stream goes to systemd's journal. Source: systemd.exec(5), JOURNAL_STREAM."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):  # it is no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


class Json(logging.Formatter):
    """One JSON object a line, keys as given, times in RFC 3339."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **facts(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return escaped(json.dumps(line, default=_plain, ensure_ascii=False))


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def local_time(at: datetime) -> str:
    """A time for people: in the local zone, with the day unless that is today."""
    local = at.astimezone()
    today = local.date() == datetime.now(UTC).astimezone().date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%dT%H:%M:%S")


def _text(value: object, *, short: bool = False) -> str:
    """A fact for people: local times, ids by their first digits, words with spaces quoted, no control characters.

    `short`: shorten any text as an id. An earlier version gave longer ids to jobs of Runs and Restores.
    """
    if isinstance(value, datetime):
        return local_time(value)
    text = str(value)
    if _ID.fullmatch(text):
        return text[:SHORT_ID]
    if short:
        text = text[:SHORT_ID]
    plain = text.isprintable() and not any(c in ' "=' for c in text)
    return text if text and plain else json.dumps(text, ensure_ascii=not text.isprintable())
