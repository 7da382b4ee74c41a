"""Parses YAML into resources, within limits. Each mistake has its place and a remedy."""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

API_VERSION = "lamplighter.dev/v1alpha1"
API_VERSIONS = {**dict.fromkeys(("Schedule", "Repository", "Alert", "Host"), API_VERSION), "Secret": "v1"}
"""The kinds that are read, each with its apiVersion."""
MAX_DEPTH = 32
"""The deepest nesting of a document."""
MAX_NODES = 200_000
"""The most values of a file. Values that an alias repeats count each time."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class Mistake(NamedTuple):
    """A mistake in a file. `mark`: `:line`, `:line:column` or empty. `document`: its number, from 1."""

    file: str
    mark: str
    document: int
    field: str
    detail: str

    @property
    def place(self) -> str:
        """The file, with line and column if they are known."""
        return f"{self.file}{self.mark}"


class Document(NamedTuple):
    """One resource in a file. `line`: its first line. `number`: from 1. Its repr hides the content, maybe a Secret."""

    file: str
    line: int
    number: int
    content: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Document({self.place!r}, {self.number})"

    @property
    def place(self) -> str:
        """The file, with the document's first line."""
        return f"{self.file}:{self.line}"

    @property
    def kind(self) -> str:
        """The resource's kind."""
        return str(self.content["kind"])

    @property
    def namespace(self) -> str:
        """The resource's namespace; "" for a Host, which has none."""
        return "" if self.kind == "Host" else str(self.content["metadata"].get("namespace") or "default")

    @property
    def name(self) -> str:
        """The resource's name, unique in its kind and namespace."""
        return str(self.content["metadata"]["name"])

    def mistake(self, field: str, detail: str) -> Mistake:
        """A mistake in this document."""
        return Mistake(self.file, f":{self.line}", self.number, field, detail)


class Parsed(NamedTuple):
    """The parsed text of a file. `unread`: documents of kinds that are not read."""

    documents: tuple[Document, ...]
    mistakes: tuple[Mistake, ...]
    unread: tuple[Mistake, ...]


def parse(path: Path, text: str) -> Parsed:
    """Parse a file's documents. `path`: for the places of mistakes."""
    found: list[Document] = []
    mistakes: list[Mistake] = []
    unread: list[Mistake] = []
    number = 1
    try:
        for line, content in _contents(text):
            document = Document(str(path), line, number, content)
            number += 1
            if isinstance(content, dict) and str(content.get("kind") or "Secret") not in API_VERSIONS:
                unread.append(document.mistake("kind", _unread(content["kind"])))
            elif content is not None:
                mistakes += _mistakes(document)
                found.append(document)
    except yaml.YAMLError as error:
        mistakes.append(_yaml_mistake(path, number, error))
    except RecursionError:
        mistakes.append(Mistake(str(path), "", number, "", f"nested more than {MAX_DEPTH} deep"))
    return Parsed(tuple(found), tuple(mistakes), tuple(unread))


_KINDS = "Schedule, Repository, Alert, Host and Secret"
_COMMANDS = {"Run": "run", "Restore": "restore"}
"""What does here what an object of the kind does in a cluster."""


def _unread(kind: object) -> str:
    """Why a document of a kind is left out."""
    command = _COMMANDS.get(str(kind))
    instead = f"; use `lamplighter {command}` instead" if command else ""
    return f"{kind} is not read: {_KINDS} are{instead}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads YAML as kubectl does: a value that looks like a date stays text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _contents(text: str) -> Iterator[tuple[int, Any]]:
    """The documents of a text, each with its first line. Raises yaml.YAMLError."""
    loader = _Loader(text)
    left = MAX_NODES
    try:
        while loader.check_node():
            node = loader.get_node()
            left -= _size(node, {}, 1)
            if left < 0:
                raise _NodeError(f"holds more than {MAX_NODES} values, aliases included: split it", node)
            yield node.start_mark.line + 1, _value(loader, node)
    finally:
        loader.dispose()


def _value(loader: _Loader, node: yaml.Node) -> Any:
    """A document's value, which must be valid in JSON, too. Raises _NodeError."""
    try:
        value = loader.construct_document(node)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # PyYAML's, for tags such as !!int x
        raise _NodeError("holds a value that is not valid in JSON: put it in quotes if it is text", node) from None
    return value


class _NodeError(yaml.MarkedYAMLError):
    """Valid YAML that is refused."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


def _size(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """The number of values in a node, with aliases counted each time. It visits each node once.

    Raises _NodeError for a duplicate key, a node within itself, or nesting that is too deep.
    """
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise _NodeError("an alias is inside of what it repeats: write the value out", node)
        return sizes[id(node)]
    if depth > MAX_DEPTH:
        raise _NodeError(f"nested more than {MAX_DEPTH} deep", node)
    sizes[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        inner = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    sizes[id(node)] = 1 + sum(_size(it, sizes, depth + 1) for it in inner)
    return sizes[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    """Check that keys are strings without duplicates, of which YAML's readers silently keep one. Raises _NodeError."""
    seen = set()
    for key, _ in node.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise _NodeError(f"a key must be a string: put {str(key.value)[:64]} in quotes", key)
        if key.value in seen:
            raise _NodeError(f"{key.value[:64]} is given twice: keep one", key)
        seen.add(key.value)


def _yaml_mistake(path: Path, document: int, error: yaml.YAMLError) -> Mistake:
    """A YAML error as a mistake with its place. It repeats no text of the file, which may hold a Secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return Mistake(str(path), "", document, "", "holds characters that YAML does not allow: save it as UTF-8 text")
    mark = error.problem_mark or error.context_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    if "alias" in problem and not isinstance(error, _NodeError):
        problem += ': a value that begins with * needs quotes, for example cron: "0 2 * * *"'
    return Mistake(str(path), place, document, "", problem)


def field_line(text: str, number: int, field: str) -> int | None:
    """The line of a field, such as spec.backup.paths[0], in the document with this number (from 1).

    If the field is missing, the line of the innermost field around it; None if the document cannot be read.
    """
    try:
        node = next(islice(yaml.compose_all(text, Loader=_Loader), number - 1, None), None)
    except (yaml.YAMLError, RecursionError):
        return None
    if node is None:
        return None
    line: int = node.start_mark.line
    for name in re.findall(r"[^.\[\]]+", field):
        if (found := _child(node, name)) is None:
            break
        line, node = found
    return line + 1


def _child(node: yaml.Node, name: str) -> tuple[int, yaml.Node] | None:
    """A field of an object, or an item of a list by its index, with its first line (from 0)."""
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line, value) for key, value in node.value if key.value == name), None)
    if isinstance(node, yaml.SequenceNode) and name.isdigit() and int(name) < len(node.value):
        return node.value[int(name)].start_mark.line, node.value[int(name)]
    return None


def _mistakes(document: Document) -> Iterator[Mistake]:
    """The mistakes in a resource outside its spec, which the server checks."""
    content = document.content
    if not isinstance(content, dict):
        yield document.mistake("", "must be an object with apiVersion, kind, metadata and spec")
        return
    kind = content.get("kind")
    wanted = API_VERSIONS.get(str(kind))
    if wanted is None:
        yield document.mistake("kind", f"missing: one of {_KINDS}")
    elif content.get("apiVersion") != wanted:
        yield document.mistake("apiVersion", f"must be {wanted}")
    metadata = content.get("metadata")
    if not isinstance(metadata, dict):
        yield document.mistake("metadata", "missing: give it at least a name")
        return
    for field, value in (("name", metadata.get("name")), ("namespace", metadata.get("namespace") or "default")):
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            yield document.mistake(f"metadata.{field}", "must be a DNS name: lower case letters, digits, '-' and '.'")
    if kind == "Secret":
        yield from _secret_mistakes(document)


def _secret_mistakes(document: Document) -> Iterator[Mistake]:
    for field in ("data", "stringData"):
        values = document.content.get(field) or {}
        if not isinstance(values, dict):
            yield document.mistake(field, "must be an object of keys and values")
            continue
        for key, value in values.items():
            if not isinstance(value, str):
                yield document.mistake(f"{field}.{key}", "must be a string: put it in quotes")
            elif field == "data" and _decoded(value) is None:
                yield document.mistake(
                    f"{field}.{key}", "must be UTF-8 text in base64: encode it, or put it into stringData as it is"
                )


def secret_values(secret: Document) -> dict[str, str]:
    """The values of a Secret. A key in both data and stringData has stringData's value, as in Kubernetes."""
    data = secret.content.get("data") or {}
    return {key: _decoded(it) or "" for key, it in data.items()} | (secret.content.get("stringData") or {})


def _decoded(value: str) -> str | None:
    try:
        return base64.b64decode("".join(value.split()), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
