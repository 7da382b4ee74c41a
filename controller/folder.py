"""Resources as files: a folder is read, what it declares is worked out, and a server is made to follow it.

A file that cannot be understood leaves everything as it is that it said when it last could be: a slip of the pen never
deletes a schedule. `read` is pure; `watch` does it again whenever a file changes, and from time to time in any case.
"""

import asyncio
import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from watchfiles import Change, awatch

from controller.client import Client, ControllerError, Refused, Unreachable
from controller.documents import Document, Mistake, Parsed, field_line, parse, secret_values
from controller.metrics import FolderMetrics
from controller.reconcile import (
    FOLDER_PLURALS,
    SECRET_PARTS,
    Declared,
    Delete,
    Key,
    Outcome,
    Put,
    Reconciler,
    Resource,
    Withheld,
    environment_of,
    final_newlines,
    observe,
    repository_urls,
)

log = logging.getLogger(__name__)

OWNER = "lamplighter-folder"
SUFFIXES = (".yaml", ".yml")
CONFIRMATION = "allow-empty"
"""The file in a folder that confirms that most of what it declared is to be deleted."""
MAX_FILE = 4 << 20
"""Bytes of a file that are read."""
MAX_FILES = 10_000
"""Files of a folder that are read."""
MAX_REPORTED = 20
"""Problems that the server is told of."""
MAX_SAID = 1024
"""Characters of the message of each."""
MAX_NAMED = 5
"""Resources that a message names."""
RESYNC_S = 60.0
"""Seconds between full comparisons, whether or not a file has changed."""
SETTLE_MS = 200
"""Milliseconds without a change after which files are read: editors save in several steps."""
RETRY_S, MAX_RETRY_S = 0.5, 30.0
"""Seconds before a server that cannot be reached is tried again: the first time, and at most."""


class FolderError(ControllerError):
    """The folder cannot be read as a whole; the message says why and what to do."""


class Unreadable(NamedTuple):
    """Stands for the text of a file that cannot be read."""

    reason: str


class File(NamedTuple):
    """A file as it was last read. `documents`: those of the last text without mistakes; None when there was none.

    Its repr leaves out the text, which may be a Secret's.
    """

    text: str | Unreadable
    parsed: Parsed
    documents: tuple[Document, ...] | None

    def __repr__(self) -> str:
        return f"File({self.parsed!r}, {self.documents!r})"


class Reading(NamedTuple):
    """What a folder declares. `documents`: where each resource stands; `files`: to be given to the next reading."""

    declared: Declared
    documents: Mapping[Key, Document]
    errors: Sequence[Mistake]
    warnings: Sequence[Mistake]
    files: Mapping[Path, File]


_NOTHING: Mapping[Path, File] = {}


def read(texts: Mapping[Path, str | Unreadable], last: Mapping[Path, File] = _NOTHING) -> Reading:
    """What these files declare, each by its last text without mistakes. `last`: `files` of the reading before.

    Where a file never had such a text, what it declares is not known, and nothing is to be deleted.
    """
    files = {path: _file(path, texts[path], last.get(path)) for path in sorted(texts)}
    errors = [mistake for file in files.values() for mistake in file.parsed.mistakes]
    warnings = [mistake for file in files.values() for mistake in file.parsed.unread]
    named: dict[Key, list[Document]] = defaultdict(list)
    for file in files.values():
        for document in file.documents or ():
            named[Key(document.kind, document.namespace, document.name)].append(document)
    for same in named.values():
        errors += [_twice(document, same[0]) for document in same[1:]]
    once = {key: same[0] for key, same in named.items() if len(same) == 1}
    documents = {key: same[0] for key, same in named.items() if key.kind in FOLDER_PLURALS}
    resources: dict[Key, Resource] = {}
    for key, document in documents.items():
        if key in once:
            credentials, mistakes = _credentials(document, once)
            errors += mistakes
            if not mistakes:
                content = document.content
                resources[key] = Resource(content["metadata"], content.get("spec"), credentials)
    complete = all(file.documents is not None for file in files.values())
    declared = Declared(resources, documents.keys() - resources.keys(), complete)
    return Reading(declared, documents, errors, warnings, files)


def _file(path: Path, text: str | Unreadable, last: File | None) -> File:
    if last is not None and last.text == text:
        return last
    if isinstance(text, Unreadable):
        parsed = Parsed((), (Mistake(str(path), "", 0, "", text.reason),), ())
    else:
        parsed = parse(path, text)
    if parsed.mistakes:
        return File(text, parsed, last.documents if last is not None else None)
    return File(text, parsed, parsed.documents)


def _twice(document: Document, first: Document) -> Mistake:
    name = f"{document.kind} {document.namespace}/{document.name}"
    return document.mistake("metadata.name", f"{name} is declared in {first.place} too: keep one of them")


def _credentials(
    repository: Document, documents: Mapping[Key, Document]
) -> tuple[dict[str, Any] | None, list[Mistake]]:
    """What opens a Repository, from the Secrets that it refers to; None where it refers to none."""
    given = repository.content.get("spec")
    spec = given if isinstance(given, dict) else {}
    found: dict[str, Any] = {}
    mistakes = []
    for field in ("passwordSecretRef", "envSecretRef"):
        ref = spec.get(field)
        if not isinstance(ref, dict) or not isinstance(ref.get("name"), str):
            continue  # absent, or the server tells what is wrong with it
        at, name = f"spec.{field}", f"Secret {repository.namespace}/{ref['name']}"
        secret = documents.get(Key("Secret", repository.namespace, ref["name"]))
        if secret is None:
            mistakes.append(repository.mistake(f"{at}.name", f"there is no {name} in the folder: declare it"))
            continue
        if (urls := repository_urls(secret.content["metadata"])) is not None:
            found.setdefault("urls", {})[SECRET_PARTS[field]] = urls
        if field == "envSecretRef":
            found["env"] = environment_of(spec, secret_values(secret))
        else:
            key = ref.get("key") or "password"
            values = secret_values(secret)
            if key in values:
                found["password"] = values[key]
            else:
                mistakes.append(repository.mistake(f"{at}.key", f"{name} has no key {key}: it has {', '.join(values)}"))
    return found or None, mistakes


def read_texts(folder: Path) -> dict[Path, str | Unreadable]:
    """The texts of all files below a folder that may hold resources, by their paths from there; hidden ones are not.

    Raises FolderError where it cannot be known what files there are.
    """
    texts: dict[Path, str | Unreadable] = {}
    try:
        for found, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(found, name)
                if path.suffix in SUFFIXES and not name.startswith(".") and (text := _text(path)) is not None:
                    texts[path.relative_to(folder)] = text
                if len(texts) > MAX_FILES:
                    raise FolderError(f"{folder}: more than {MAX_FILES} files; put several resources into each")
    except OSError as error:
        raise FolderError(f"{error.filename}: {error.strerror}; nothing is changed until it can be read") from None
    return texts


def _raise(error: OSError) -> None:
    raise error


def _text(path: Path) -> str | Unreadable | None:
    """The text of a file; None when it is gone, or no file."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Unreadable(f"cannot be read: {error.strerror}")
    if len(content) > MAX_FILE:
        return Unreadable(f"longer than {MAX_FILE} bytes: split it")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return Unreadable("not UTF-8 text: save it as that")


Facts = tuple[tuple[str, object], ...]
"""What a line of the log names."""


class Event(NamedTuple):
    """A line for the log: its level, what it says, and its facts.

    `over`: what is said, with the facts `of`, once nothing of this kind is wrong with `of` any more; "" for nothing.
    """

    level: int
    message: str
    facts: Facts
    of: Facts = ()
    over: str = ""

    @property
    def reason(self) -> str:
        """What is wrong, in a word for programs."""
        return "".join(word.capitalize() for word in self.message.split())


class Teller:
    """Logs what is wrong once, as long as it lasts, and that it is over."""

    def __init__(self) -> None:
        self._told: dict[str, dict[Event, None]] = {}

    def tell(self, topic: str, events: Iterable[Event], there: Container[Facts] = ((),)) -> None:
        """Log what is new of all that is wrong now with a topic, and what is over.

        `there`: what is there still; what went away is not called right.
        """
        before, now = self._told.get(topic, {}), dict.fromkeys(events)
        for event in now:
            if event not in before:
                log.log(event.level, event.message, extra=dict(event.facts))
        lasting = {(event.over, event.of) for event in now}
        for over, of in dict.fromkeys((event.over, event.of) for event in before):
            if over and (over, of) not in lasting and of in there:
                log.info(over, extra=dict(of))
        self._told[topic] = now

    def errors(self) -> list[Event]:
        """What is wrong now and needs somebody to mend it."""
        return [event for events in self._told.values() for event in events if event.level >= logging.ERROR]


def reported(problems: Sequence[Event]) -> list[dict[str, str]]:
    """Problems as the server takes them: the first MAX_REPORTED, of which the last counts the rest."""
    told = [{"reason": it.reason, "message": _said(it)} for it in problems[:MAX_REPORTED]]
    if more := len(problems) - len(told):
        told[-1] = {"reason": "MoreProblems", "message": f"and {more + 1} more: see the controller's log"}
    return told


def _said(event: Event) -> str:
    """What an event says, in a line."""
    facts = "; ".join(str(value) if name == "detail" else f"{name} {value}" for name, value in event.facts)
    return f"{event.message}: {' '.join(facts.split())}"[:MAX_SAID]


async def watch(
    folder: Path,
    client: Client,
    *,
    owner: str = OWNER,
    resync_s: float = RESYNC_S,
    allow_empty: bool = False,
    metrics: FolderMetrics | None = None,
) -> None:
    """Make a server follow a folder until cancelled.

    Everything is compared when a file has changed, every `resync_s` seconds, and again, ever more rarely, while the
    server cannot be reached or a comparison fails. `allow_empty`: as for Follower.
    """
    changed = asyncio.Event()
    follower = Follower(folder, client, owner, allow_empty=allow_empty, metrics=metrics)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_notice(folder, changed), name="notice files")
        await asyncio.sleep(0)  # it notices from here on, before files are read
        retry_s = RETRY_S
        while True:
            changed.clear()
            reached = await _compared(follower)
            pause_s, retry_s = (resync_s, RETRY_S) if reached else (retry_s, min(2 * retry_s, MAX_RETRY_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await changed.wait()


async def _compared(follower: "Follower") -> bool:
    """Whether a comparison went well. Nothing that happens in one ends the next."""
    try:
        return await follower.compare()
    except Exception:
        log.exception("comparison failed, trying again")
        return False


async def _notice(folder: Path, changed: asyncio.Event) -> None:
    """Set `changed` whenever files have changed. Where that goes unnoticed, the regular comparisons have to do."""
    while True:
        try:
            async for _ in awatch(folder, watch_filter=_Visible(folder), step=SETTLE_MS, recursive=True):
                changed.set()
        except Exception as error:  # noqa: BLE001 - whatever it was, comparisons go on, and it is tried again
            log.warning("changes go unnoticed until the next comparison", extra={"folder": folder, "detail": error})
        await asyncio.sleep(RESYNC_S)


class _Visible:
    """Tells what may be files with resources, or folders with them, from all else: databases, editors' drafts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def __call__(self, change: Change, path: str) -> bool:
        inner = Path(os.path.relpath(path, self._folder))
        if inner.name == "..data":  # the link by which Kubernetes changes a mounted ConfigMap or Secret
            return True
        return inner.suffix in ("", *SUFFIXES) and not any(part.startswith(".") for part in inner.parts)


class Follower:
    """Compares a folder with a server, and says in the log what came of it.

    A folder that declares less than half of what the server holds of it deletes nothing until that is confirmed: by
    `allow_empty`, or by a file CONFIRMATION in it. It may be a volume that is not mounted.
    """

    def __init__(
        self,
        folder: Path,
        client: Client,
        owner: str,
        *,
        allow_empty: bool = False,
        metrics: FolderMetrics | None = None,
    ) -> None:
        self._folder = folder
        self._client = client
        self._owner = owner
        self._metrics = metrics or FolderMetrics()
        self._allow_empty = allow_empty
        self._reconciler = Reconciler(client, owner, FOLDER_PLURALS)
        self._files: Mapping[Path, File] = {}
        self._teller = Teller()
        self._count: tuple[int, ...] = ()

    async def compare(self) -> bool:
        """Read, compare, put right what differs, and tell the server what is wrong. Whether it could be reached."""
        reached = await self._compare()
        problems = self._teller.errors()
        self._metrics.compared(reached, [it.reason for it in problems])
        if reached:
            try:
                await self._client.report(self._owner, reported(problems))
            except ControllerError as error:  # it is told again after the next comparison
                log.debug("state not reported", extra={"detail": error})
        return reached

    async def _compare(self) -> bool:
        try:
            texts = await asyncio.to_thread(read_texts, self._folder)
            confirmed = self._allow_empty or await asyncio.to_thread(os.path.exists, self._folder / CONFIRMATION)
        except FolderError as error:
            self._teller.tell("folder", [_failing(logging.ERROR, "folder not read", error, "folder read again")])
            return True
        self._teller.tell("folder", [])
        reading = await asyncio.to_thread(read, texts, self._files)
        self._files = reading.files
        self._teller.tell("secrets", _newline_events(reading))
        self._teller.tell("files", _file_events(reading), {_of_file(str(path)) for path in reading.files})
        try:
            outcomes = await self._reconciler.reconcile(reading.declared._replace(may_delete_most=confirmed))
        except Unreachable as error:
            return self._unreachable(error)
        except Refused as error:
            refused = _failing(
                logging.ERROR, "server refuses the controller", error, "server accepts the controller now"
            )
            self._teller.tell("server", [refused])
            return False
        for outcome in outcomes:
            _log_done(outcome)
        self._warn_of_withheld(outcomes)
        self._teller.tell("refused", _refusals(outcomes, reading), {_of(key) for key in reading.declared.resources})
        lost = next((it.error for it in outcomes if isinstance(it.error, Unreachable)), None)
        if lost is not None:
            return self._unreachable(lost)
        self._teller.tell("server", [])
        self._sum_up(reading)
        return True

    def _warn_of_withheld(self, outcomes: Sequence[Outcome]) -> None:
        """Say loudly, at each comparison, what is not deleted for being too much."""
        kept = [(it.change.key, it.error.owned) for it in outcomes if isinstance(it.error, Withheld)]
        if kept:
            detail = (
                f"{len(kept)} of {kept[0][1]} resources that the server has from {self._folder} are not declared there "
                f"any more: is it mounted? They go on as they are. To have them deleted, give --allow-empty, or make a "
                f"file {CONFIRMATION} in the folder"
            )
            named = ", ".join(f"{key.kind} {key}" for key, _ in kept[:MAX_NAMED])
            event = Event(logging.ERROR, "deleting nothing", _facts(folder=self._folder, detail=detail, first=named))
            self._teller.tell("withheld", [])  # to be said anew
            self._teller.tell("withheld", [event])
        else:
            self._teller.tell("withheld", [])

    def _unreachable(self, error: Unreachable) -> bool:
        event = _failing(logging.WARNING, "server not reached, trying again", error, "server reached again")
        self._teller.tell("server", [event])
        return False

    def _sum_up(self, reading: Reading) -> None:
        """Say how much is declared, when that has changed."""
        kinds = [key.kind for key in reading.declared.resources]
        count = (kinds.count("Schedule"), kinds.count("Repository"), len(reading.files))
        if count != self._count:
            schedules, repositories, files = count
            facts = {"folder": self._folder, "files": files, "schedules": schedules, "repositories": repositories}
            log.info("folder compared", extra=facts)
        self._count = count


def _failing(level: int, message: str, error: ControllerError, over: str) -> Event:
    return Event(level, message, _facts(detail=error), over=over)


def _facts(**facts: object) -> Facts:
    return tuple((key, str(value)) for key, value in facts.items() if value)


def _of(key: Key) -> Facts:
    return ((key.kind.lower(), str(key)),)


def _of_file(path: str) -> Facts:
    return (("file", path),)


def _newline_events(reading: Reading) -> list[Event]:
    """Where a secret ends with a newline, which is left out: nothing is wrong with that where nobody meant it."""
    return [
        Event(
            logging.WARNING,
            "newline at the end of a secret left out",
            _facts(repository=key, fields=", ".join(names), file=reading.documents[key].place),
        )
        for key, resource in reading.declared.resources.items()
        if (names := final_newlines(resource.credentials))
    ]


def _file_events(reading: Reading) -> list[Event]:
    events = []
    for it in reading.errors:
        place = _place(reading, it.file, it.document, it.field, it) or it.place
        facts = _facts(file=place, document=it.document, field=it.field, detail=it.detail)
        events.append(Event(logging.ERROR, "file refused", facts, _of_file(it.file), "file valid now"))
    for it in reading.warnings:
        facts = _facts(file=it.place, document=it.document, detail=it.detail)
        events.append(Event(logging.WARNING, "document ignored", facts))
    if not reading.declared.complete:
        detail = "a file has mistakes, and what it declares is not known: nothing is deleted until they are mended"
        events.append(Event(logging.WARNING, "deleting nothing", _facts(detail=detail)))
    return events


def _place(reading: Reading, path: str, document: int, field: str, mistake: Mistake | None = None) -> str:
    """The file with the line of a field; without the line where what counts is an earlier text; "" for no field."""
    file = reading.files[Path(path)]
    if not field or isinstance(file.text, Unreadable):
        return ""
    if file.parsed.mistakes and mistake not in file.parsed.mistakes:
        return path
    line = field_line(file.text, document, field)
    return f"{path}:{line}" if line else path


def _log_done(outcome: Outcome) -> None:
    """Say what was accepted, changed or deleted; the server says so too, where people look first."""
    if outcome.error is not None:
        return
    change, answer = outcome.change, outcome.answer or {}
    what = change.key.kind.lower()
    facts: dict[str, object] = {what: str(change.key)}
    if isinstance(change, Delete):
        log.debug("%s deleted", what, extra=facts)
    elif outcome.was is None or observe(answer) != outcome.was:
        log.debug("%s %s", what, "accepted" if outcome.was is None else "changed", extra=facts | _about(change, answer))


def _about(change: Put, answer: Mapping[str, Any]) -> dict[str, object]:
    """What a reader wants to know of a resource that was just accepted."""
    if change.key.kind != "Schedule":
        return {}
    spec = answer["spec"]
    due = answer.get("status", {}).get("nextScheduleTime")
    return {"cron": spec["cron"], "next": datetime.fromisoformat(due) if due else "never"}


def _refusals(outcomes: Sequence[Outcome], reading: Reading) -> list[Event]:
    """What the server refused, by field, with the place that says it."""
    events = []
    for outcome in outcomes:
        if isinstance(outcome.error, Refused):
            key = outcome.change.key
            kind, of = key.kind.lower(), _of(key)
            fields = [(it.field, it.detail) for it in outcome.error.errors]
            for field, detail in fields or [("", outcome.error.detail)]:
                facts = _facts(**_where(reading, key, field), field=field, detail=detail)
                events.append(Event(logging.ERROR, f"{kind} refused", of + facts, of, f"{kind} accepted now"))
    return events


def _where(reading: Reading, key: Key, field: str) -> dict[str, object]:
    """The file, with the line, and the document that say a field of a resource."""
    document = reading.documents.get(key)
    if document is None:
        return {}
    place = _place(reading, document.file, document.number, field) or document.place
    return {"file": place, "document": document.number}
