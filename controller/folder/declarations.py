"""Decides what the files of a folder declare: texts in, resources and mistakes out. No I/O.

A file with mistakes declares what its last text without mistakes did, so that a typing error never deletes a schedule.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from controller.folder.documents import Document, Mistake, Parsed, parse, secret_values
from controller.folder.files import Unreadable
from controller.reconcile import Declared
from controller.resources import (
    FOLDER_PLURALS,
    PING_KEY,
    SECRET_PARTS,
    URLS_KEY,
    Key,
    Resource,
    alert_credentials,
    environment_of,
    ping_secret,
    repository_urls,
)


class File(NamedTuple):
    """A file as it was last read. `documents`: of its last text without mistakes; None if there was none.

    Its repr leaves out the text, which may hold a Secret.
    """

    text: str | Unreadable
    parsed: Parsed
    documents: tuple[Document, ...] | None

    def __repr__(self) -> str:
        return f"File({self.parsed!r}, {self.documents!r})"


class Reading(NamedTuple):
    """What a folder declares. `documents`: the document of each resource. `files`: to pass to the next `read`."""

    declared: Declared
    documents: Mapping[Key, Document]
    errors: Sequence[Mistake]
    warnings: Sequence[Mistake]
    files: Mapping[Path, File]


_NOTHING: Mapping[Path, File] = {}


def read(
    texts: Mapping[Path, str | Unreadable], last: Mapping[Path, File] = _NOTHING, *, has_secrets: bool = True
) -> Reading:
    """What these files declare, each by its last text without mistakes. `last`: `files` of the last reading.

    `has_secrets`: whether the Secrets to which Repositories refer must be in the files; otherwise a Repository may lack
    some, and then has no credentials here.
    If a file never had such a text, it is unknown what it declares, and `declared` is not complete.
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
            if not has_secrets and any(it.detail.endswith(_MISSING) for it in mistakes):
                credentials, mistakes = None, []
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
    return document.mistake("metadata.name", f"{name} is also declared in {first.place}: keep one of them")


_MISSING = "in the folder: declare it"


def _credentials(
    repository: Document, documents: Mapping[Key, Document]
) -> tuple[dict[str, Any] | None, list[Mistake]]:
    """A resource's credentials, from the Secrets that it refers to, and mistakes.

    None if it refers to no Secret.
    """
    if repository.kind == "Alert":
        return _alert_credentials(repository, documents)
    if repository.kind == "Schedule":
        return _ping_credentials(repository, documents)
    given = repository.content.get("spec")
    spec = given if isinstance(given, dict) else {}
    found: dict[str, Any] = {}
    mistakes = []
    for field in ("passwordSecretRef", "envSecretRef"):
        ref = spec.get(field)
        if not isinstance(ref, dict) or not isinstance(ref.get("name"), str):
            continue  # it is absent, or the server reports what is wrong with it
        at, name = f"spec.{field}", f"Secret {repository.namespace}/{ref['name']}"
        secret = documents.get(Key("Secret", repository.namespace, ref["name"]))
        if secret is None:
            mistakes.append(repository.mistake(f"{at}.name", f"there is no {name} {_MISSING}"))
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


def _alert_credentials(
    alert: Document, documents: Mapping[Key, Document]
) -> tuple[dict[str, Any] | None, list[Mistake]]:
    """Where an Alert's messages go, from its Secret, and mistakes."""
    given = alert.content.get("spec")
    ref = given.get("secretRef") if isinstance(given, dict) else None
    if not isinstance(ref, dict) or not isinstance(ref.get("name"), str):
        return None, []  # the server reports what is wrong with it
    name = f"Secret {alert.namespace}/{ref['name']}"
    secret = documents.get(Key("Secret", alert.namespace, ref["name"]))
    if secret is None:
        return None, [alert.mistake("spec.secretRef.name", f"there is no {name} in the folder: declare it")]
    values = secret_values(secret)
    try:
        return alert_credentials(values), []
    except KeyError:
        has = f"it has {', '.join(values) or 'none'}"
        return None, [alert.mistake("spec.secretRef.name", f"{name} has no key {URLS_KEY}, which holds URLs: {has}")]


def _ping_credentials(
    schedule: Document, documents: Mapping[Key, Document]
) -> tuple[dict[str, Any] | None, list[Mistake]]:
    """The URL that a Schedule pings, from its Secret, and mistakes."""
    ref = ping_secret(schedule.content.get("spec"))
    if ref is None:
        return None, []
    at, name = "spec.ping.urlSecretRef", f"Secret {schedule.namespace}/{ref['name']}"
    secret = documents.get(Key("Secret", schedule.namespace, ref["name"]))
    if secret is None:
        return None, [schedule.mistake(f"{at}.name", f"there is no {name} in the folder: declare it")]
    values, key = secret_values(secret), ref.get("key") or PING_KEY
    if key not in values:
        return None, [schedule.mistake(f"{at}.key", f"{name} has no key {key}: it has {', '.join(values) or 'none'}")]
    return {"pingUrl": values[key].strip()}, []
