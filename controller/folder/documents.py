"""YAML documents: text to resources, within limits; what is wrong is told with its place and the remedy."""

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
API_VERSIONS = {"Schedule": API_VERSION, "Repository": API_VERSION, "Host": API_VERSION, "Secret": "v1"}
"""The kinds that are read, each with the only version of it that is."""
MAX_DEPTH = 32
"""How deep a document may be nested."""
MAX_NODES = 200_000
"""Values of a file, counted again wherever an alias repeats them."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class Mistake(NamedTuple):
    """What is wrong in a file. `mark`: `:line` or `:line:column`, or empty; `document`: counted from 1."""

    file: str
    mark: str
    document: int
    field: str
    detail: str

    @property
    def place(self) -> str:
        """The file, with line and column where they are known."""
        return f"{self.file}{self.mark}"


class Document(NamedTuple):
    """One resource in a file. `line`: its first; `number`: from 1. Its repr tells no content: that may be a Secret."""

    file: str
    line: int
    number: int
    content: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Document({self.place!r}, {self.number})"

    @property
    def place(self) -> str:
        """The file, with the line in which this begins."""
        return f"{self.file}:{self.line}"

    @property
    def kind(self) -> str:
        """The resource's kind."""
        return str(self.content["kind"])

    @property
    def namespace(self) -> str:
        """The resource's namespace; "" for a Host, which all namespaces share."""
        return "" if self.kind == "Host" else str(self.content["metadata"].get("namespace") or "default")

    @property
    def name(self) -> str:
        """The resource's name, which no other of its kind and namespace has."""
        return str(self.content["metadata"]["name"])

    def mistake(self, field: str, detail: str) -> Mistake:
        """Something that is wrong in here."""
        return Mistake(self.file, f":{self.line}", self.number, field, detail)


class Parsed(NamedTuple):
    """What a file says: its resources, what is wrong in it, and what is not read."""

    documents: tuple[Document, ...]
    mistakes: tuple[Mistake, ...]
    unread: tuple[Mistake, ...]


def parse(path: Path, text: str) -> Parsed:
    """Read a file's documents; `path` is what places are told by."""
    found: list[Document] = []
    mistakes: list[Mistake] = []
    unread: list[Mistake] = []
    number = 1
    try:
        for line, content in _contents(text):
            document = Document(str(path), line, number, content)
            number += 1
            if isinstance(content, dict) and str(content.get("kind") or "Secret") not in API_VERSIONS:
                unread.append(document.mistake("kind", f"{content['kind']} is not read: {_KINDS} are"))
            elif content is not None:
                mistakes += _mistakes(document)
                found.append(document)
    except yaml.YAMLError as error:
        mistakes.append(_yaml_mistake(path, number, error))
    except RecursionError:
        mistakes.append(Mistake(str(path), "", number, "", f"nested more than {MAX_DEPTH} deep"))
    return Parsed(tuple(found), tuple(mistakes), tuple(unread))


_KINDS = "Schedule, Repository, Host and Secret"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads as kubectl does: what looks like a date stays text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _contents(text: str) -> Iterator[tuple[int, Any]]:
    """The documents of a text, each with the line that it begins in. Raises yaml.YAMLError."""
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
    """What a document says, which JSON can say too."""
    try:
        value = loader.construct_document(node)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # PyYAML's, for tags such as !!int x
        raise _NodeError("holds a value that JSON cannot say: put it in quotes, if it is meant as text", node) from None
    return value


class _NodeError(yaml.MarkedYAMLError):
    """YAML that can be read, but is refused."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


def _size(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """The number of values in a node, aliases followed, at the cost of one visit to each node.

    Raises _NodeError for a key that is given twice, and for nodes within themselves or nested too deep.
    """
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise _NodeError("an alias stands within what it repeats", node)
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
    """Keys must be strings, each given once: of two, YAML's readers keep one without a word."""
    seen = set()
    for key, _ in node.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise _NodeError(f"a key must be a string: put {str(key.value)[:64]} in quotes", key)
        if key.value in seen:
            raise _NodeError(f"{key.value[:64]} is given twice: keep one", key)
        seen.add(key.value)


def _yaml_mistake(path: Path, document: int, error: yaml.YAMLError) -> Mistake:
    """A YAML error with its place. No text of the file is repeated: it may be a Secret's."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return Mistake(str(path), "", document, "", "holds characters that YAML does not allow: save it as UTF-8 text")
    mark = error.problem_mark or error.context_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    if "alias" in problem and not isinstance(error, _NodeError):
        problem += ': a value that begins with * needs quotes, for example cron: "0 2 * * *"'
    return Mistake(str(path), place, document, "", problem)


def field_line(text: str, number: int, field: str) -> int | None:
    """The line of a field, such as spec.backup.paths[0], in a text's document of this number (from 1).

    That of the innermost field around it where it is not there; None where the document cannot be read.
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
    """A field of an object, or an item of a list by its number, with the line in which it begins (from 0)."""
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line, value) for key, value in node.value if key.value == name), None)
    if isinstance(node, yaml.SequenceNode) and name.isdigit() and int(name) < len(node.value):
        return node.value[int(name)].start_mark.line, node.value[int(name)]
    return None


def _mistakes(document: Document) -> Iterator[Mistake]:
    """What is wrong with a resource before its spec is looked at: that is the server's to judge."""
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
    if kind == "Host" and content.get("spec"):
        yield document.mistake(
            "spec", "a Host in a folder has none: remove it, and put its labels into metadata.labels"
        )


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
                    f"{field}.{key}", "must be UTF-8 text in base64: or put it into stringData as it is"
                )


def secret_values(secret: Document) -> dict[str, str]:
    """The values of a Secret without mistakes; of a key in both, stringData's counts, as in Kubernetes."""
    data = secret.content.get("data") or {}
    return {key: _decoded(it) or "" for key, it in data.items()} | (secret.content.get("stringData") or {})


def _decoded(value: str) -> str | None:
    try:
        return base64.b64decode("".join(value.split()), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
