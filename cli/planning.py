"""Carries out `plan`: reads manifests as a folder's controller does, asks the server what its requests would change."""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import click

from cli import planned
from cli.client import Client, ForbiddenError, NotFoundError
from cli.options import Access
from cli.terminal import say_json
from controller.client import Refused
from controller.folder.declarations import Reading, read
from controller.folder.files import MAX_FILE, FolderError, Unreadable, read_text, read_texts, text_of
from controller.folder.follower import CONFIRMATION, OWNER
from controller.folder.problems import mistake_place, where
from controller.reconcile import (
    OWNER_LABEL,
    Change,
    Declared,
    Observed,
    Outcome,
    Put,
    foreign,
    host_labels,
    manifest,
    observe,
    withheld,
)
from controller.reconcile import plan as reconcile
from controller.resources import FOLDER_PLURALS, Key

LISTED_FROM = 50
"""From so many manifests on, all objects are listed, in place of asking for each."""
STDIN = Path("-")
Object = dict[str, Any]


class Wanted(NamedTuple):
    """What is to be planned. `owner`: whose objects; None for each object's own. `prune`: whether others may go."""

    reading: Reading
    declared: Declared
    owner: str | None
    prune: bool


class _Requests(NamedTuple):
    """What a controller would ask for, with the owner of each, and what it would leave alone."""

    changes: Sequence[tuple[Change, str]]
    left_alone: Sequence[Outcome]
    observed: Mapping[Key, Observed]


def of_folder(folder: Path, owner: str | None, *, allow_empty: bool) -> Wanted:
    """What a server that follows a folder makes of it. Raises click.ClickException."""
    try:
        reading = read(read_texts(folder))
    except FolderError as error:
        raise click.ClickException(str(error)) from None
    confirmed = allow_empty or (folder / CONFIRMATION).exists()
    return _wanted(reading, owner or OWNER, prune=True, confirmed=confirmed)


def of_files(files: Sequence[Path], owner: str | None, *, prune: bool, allow_empty: bool) -> Wanted:
    """What applying files makes of them. Their Secrets may be elsewhere. Raises click.ClickException."""
    texts: dict[Path, str | Unreadable] = {}
    try:
        for path in files:
            if path.is_dir():
                texts |= {path / name: text for name, text in read_texts(path).items()}
            else:
                texts[path] = _text(path)
    except FolderError as error:
        raise click.ClickException(str(error)) from None
    return _wanted(read(texts, has_secrets=False), owner, prune=prune, confirmed=allow_empty)


def _wanted(reading: Reading, owner: str | None, *, prune: bool, confirmed: bool) -> Wanted:
    declared = reading.declared._replace(may_delete_most=confirmed)
    declared = declared if prune else declared._replace(complete=False)
    return Wanted(reading, declared, owner, prune)


def _text(path: Path) -> str | Unreadable:
    if path == STDIN:
        return text_of(sys.stdin.buffer.read(MAX_FILE + 1))
    if path.is_fifo():  # as in `plan -f <(kustomize build .)`
        with path.open("rb") as pipe:
            return text_of(pipe.read(MAX_FILE + 1))
    text = read_text(path)
    if text is None:
        raise click.ClickException(f"there is no file {path}")
    return text


def plan(access: Access, wanted: Wanted, output: str) -> None:
    """Show a plan. Exits with 0 for no changes, 2 for changes, 1 for what would be refused."""
    with closing(Client(access)) as client:
        requests = _requests(wanted, _observed(client, wanted))
        body = _body(requests)
        answer = client.request("POST", "/plan", body=body)
    told = _told(answer, wanted.reading, body, requests.left_alone)
    if output == "json":
        say_json(told)
    else:
        planned.show(told, markdown=output == "markdown")
    sys.exit(told["exit_code"])


# What the server has.


def _observed(client: Client, wanted: Wanted) -> dict[Key, Observed]:
    """The objects that matter to a plan: all, where some may go, or those that are declared."""
    keys = wanted.declared.resources.keys()
    if wanted.prune:
        return _listed(client, FOLDER_PLURALS)
    if len(keys) >= LISTED_FROM:
        try:
            return _listed(client, {kind: FOLDER_PLURALS[kind] for kind in {key.kind for key in keys}})
        except ForbiddenError:  # it may read those of some namespaces
            pass
    found = {key: _one(client, key) for key in keys}
    return {key: it for key, it in found.items() if it is not None}


def _listed(client: Client, plurals: Mapping[str, str]) -> dict[Key, Observed]:
    found = {}
    for kind, plural in plurals.items():
        for item in client.items(f"/{plural}"):
            named = item.get("metadata", item)
            found[Key(kind, named.get("namespace", ""), named["name"])] = observe(dict(item))
    return found


def _one(client: Client, key: Key) -> Observed | None:
    """One object; None for one that does not exist or may not be read, of which the plan then says so."""
    path = "/".join(quote(part, safe="") for part in key[1:] if part)
    try:
        return observe(client.request("GET", f"/{FOLDER_PLURALS[key.kind]}/{path}"))
    except (NotFoundError, ForbiddenError):
        return None


# What a controller would ask for.


def _requests(wanted: Wanted, observed: Mapping[Key, Observed]) -> _Requests:
    """What controllers would ask for, each for the objects that it owns."""
    declared = wanted.declared
    changes: list[tuple[Change, str]] = []
    left_alone: list[Outcome] = []
    for owner, keys in _owned(wanted, observed).items():
        of_owner = declared._replace(resources={key: declared.resources[key] for key in keys})
        changes += [(change, owner) for change in reconcile(of_owner, observed, {}, owner)]
        left_alone += foreign(of_owner, observed, owner)
        left_alone += withheld(of_owner, observed, owner)
    return _Requests(changes, left_alone, observed)


def _owned(wanted: Wanted, observed: Mapping[Key, Observed]) -> Mapping[str, list[Key]]:
    keys = list(wanted.declared.resources)
    if wanted.owner is not None:
        return {wanted.owner: keys}
    found: dict[str, list[Key]] = defaultdict(list)
    for key in keys:
        found[observed[key].labels.get(OWNER_LABEL, "") if key in observed else ""].append(key)
    return found


def _body(requests: _Requests) -> Object:
    puts, deletes = [], []
    for change, owner in requests.changes:
        key = change.key
        if not isinstance(change, Put):
            deletes.append({"kind": key.kind, "namespace": key.namespace, "name": key.name})
        elif key.kind == "Host":
            labels = host_labels(change.resource, requests.observed.get(key), owner)
            spec = {"spec": change.resource.spec} if change.resource.spec else {}
            puts.append({"kind": "Host", "metadata": {"name": key.name, "labels": labels}, **spec})
        else:
            body = manifest(change, owner)
            puts.append({**body, "metadata": {**body["metadata"], "namespace": key.namespace}})
    return {"put": puts, "delete": deletes}


# What is told.


def _told(answer: Object, reading: Reading, body: Object, left_alone: Sequence[Outcome]) -> Object:
    """The answer with the files of what it is about, and with what did not come as far as the server."""
    changes = [{**it, "file": _file(reading, it)} for it in answer["changes"]]
    refused = [_refused(reading, it) for it in answer["refused"]]
    held_back = []
    for outcome in left_alone:
        named = dict(zip(("kind", "namespace", "name"), outcome.change.key, strict=True))
        if isinstance(outcome.error, Refused):
            detail = {"status": outcome.error.status, "reason": "Conflict", "detail": str(outcome.error), "errors": []}
            refused.append(_refused(reading, {"request": "put", "index": -1, **named, **detail}))
        else:
            held_back.append(named)
    mistakes = [
        {"file": mistake_place(reading, it), "document": it.document, "field": it.field, "detail": it.detail}
        for it in reading.errors
    ]
    ignored = [{"file": it.place, "document": it.document, "detail": it.detail} for it in reading.warnings]
    failed = bool(refused or held_back or mistakes)
    code = 1 if failed else 2 if changes else 0
    more = {"mistakes": mistakes, "ignored": ignored, "withheld": held_back, "exit_code": code}
    return {**answer, "changes": changes, "refused": refused, **more}


def _refused(reading: Reading, refusal: Object) -> Object:
    errors = [{**it, "file": _file(reading, refusal, it["field"])} for it in refusal["errors"]]
    return {**refusal, "errors": errors, "file": _file(reading, refusal)}


def _file(reading: Reading, named: Object, field: str = "") -> str:
    """The file and line of an object, or of a field of it; "" for one that no file declares."""
    key = Key(named["kind"], named["namespace"], named["name"])
    return str(where(reading, key, field).get("file", ""))
