"""Validates a spec against its custom resource definition, as the Kubernetes API server does.

Defaults, structure and CEL rules are read from the definition itself, so that nothing is written twice. The API server
silently drops unknown fields unless it is asked to be strict; here they are always refused.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from typing import Any

import yaml
from cel_expr_python import cel  # type: ignore[import-untyped]
from jsonschema import Draft4Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from server.errors import FieldError

Path = tuple[str | int, ...]
Node = Mapping[str, Any]
"""A schema, or a part of one."""

MAX_ERRORS = 50
"""Maximum errors of a kind in one answer."""
MAX_STEP = 317
"""Maximum characters of a field's name in an error: the longest key of a label."""


@functools.cache
def definition(plural: str) -> Node:
    """The `spec` of crds/`plural`.yaml. It is cached, since parsing is slow, and must not be changed."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # an installation without libyaml has no C loader
    text = (files("crds") / f"{plural}.yaml").read_text(encoding="utf-8")
    loaded: Node = yaml.load(text, loader)["spec"]  # noqa: S506 - both loaders are safe
    return loaded


class Schema:
    """The schema of one resource's spec."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._validator = _Validator(node)

    @classmethod
    def load(cls, plural: str) -> "Schema":
        """The schema in crds/`plural`.yaml."""
        return cls(definition(plural)["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])

    @property
    def fields(self) -> Mapping[str, Node]:
        """The schemas of its fields, by name."""
        fields: Mapping[str, Node] = self._node["properties"]
        return fields

    def complete(self, spec: Any) -> Any:
        """A copy with defaults filled in and null fields removed, as the API server does."""
        return _complete(self._node, spec)

    def errors(self, spec: Any) -> list[FieldError]:
        """Errors in a completed spec: up to MAX_ERRORS in its structure, and as many of its rules.

        A rule is evaluated only where the structure below it is right.
        """
        wrong: dict[Path, str] = {}
        for error in islice(self._validator.iter_errors(spec), MAX_ERRORS):
            wrong.setdefault(tuple(error.absolute_path), _message(error))
        rules = islice(_broken_rules(self._node, spec, (), list(wrong)), MAX_ERRORS)
        return [{"field": dotted(("spec", *path)), "detail": detail} for path, detail in [*wrong.items(), *rules]]


def below(field: str, step: str | int) -> str:
    """A field within a field, as people write it: `spec.backup.paths[0]`, `metadata.labels[example.org/tier]`."""
    shown = str(step)[:MAX_STEP]
    if not shown.isidentifier():
        return f"{field}[{shown}]"
    return f"{field}.{shown}" if field else shown


def dotted(path: Iterable[str | int]) -> str:
    """A path as people write it."""
    return functools.reduce(below, path, "")


def hint(name: str, known: Sequence[str]) -> str:
    """The end of an error about an unknown name: the known name closest to it, or all of them if they are few."""
    close = difflib.get_close_matches(name[:64], known, n=1)
    return f": did you mean {close[0]}?" if close else f": use {', '.join(known)}" if len(known) < 8 else ""


def _complete(node: Node, value: Any) -> Any:
    if isinstance(value, dict):
        fields: dict[str, Node] = node.get("properties", {})
        kept = {key: it for key, it in value.items() if it is not None or key not in fields}
        absent = {key: field["default"] for key, field in fields.items() if key not in kept and "default" in field}
        other: Node = node.get("additionalProperties", {})
        return {key: _complete(fields.get(key, other), it) for key, it in {**kept, **absent}.items()}
    if isinstance(value, list):
        return [_complete(node.get("items", {}), it) for it in value]
    return value


def _broken_rules(node: Node, value: Any, path: Path, broken: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The rules below this node that do not hold."""
    if path in broken:
        return
    if not any(it[: len(path)] == path for it in broken):
        for rule in node.get("x-kubernetes-validations", ()):
            if "oldSelf" in rule["rule"]:
                continue  # a transition rule: it compares with the object before a change (KEP-2876)
            # A rule that cannot be evaluated does not hold, as in the API server.
            if _compiled(rule["rule"]).eval(data={"self": value}).value() is not True:
                below = tuple(step for step in rule.get("fieldPath", "").split(".") if step)
                yield (*path, *below), rule["message"]
    if isinstance(value, dict):
        fields: Node = node.get("properties", {})
        other: Node = node.get("additionalProperties", {})
        for key, item in value.items():
            yield from _broken_rules(fields.get(key, other), item, (*path, key), broken)
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _broken_rules(node.get("items", {}), item, (*path, at), broken)


@functools.cache
def _compiled(rule: str) -> cel.Expression:
    return _environment().compile(rule)


@functools.cache
def _environment() -> cel.Env:
    return cel.NewEnv(variables={"self": cel.Type.DYN})


def _properties(validator: Validator, fields: Mapping[str, Node], value: Any, node: Node) -> Iterator[ValidationError]:
    """Validate the known fields of an object, and refuse all others."""
    yield from Draft4Validator.VALIDATORS["properties"](validator, fields, value, node)
    if isinstance(value, dict):
        for name in value:
            if name not in fields:
                known = sorted(fields)
                yield ValidationError(f"unknown field{hint(str(name), known)}", path=(name,), validator="unknown")


def _items(validator: Validator, item: Node, value: Any, node: Node) -> Iterator[ValidationError]:
    """Validate the items of a list, unless there are too many, which is an error of its own."""
    if isinstance(value, list) and len(value) <= node.get("maxItems", len(value)):
        yield from Draft4Validator.VALIDATORS["items"](validator, item, value, node)


def _values(validator: Validator, item: Node, value: Any, node: Node) -> Iterator[ValidationError]:
    """Validate the values of an object with free keys, unless there are too many."""
    if isinstance(value, dict) and len(value) <= node.get("maxProperties", len(value)):
        yield from Draft4Validator.VALIDATORS["additionalProperties"](validator, item, value, node)


def _required(validator: Validator, names: Sequence[str], value: Any, node: Node) -> Iterator[ValidationError]:
    """Report each missing field, with what it is for."""
    if isinstance(value, dict):
        for name in names:
            if name not in value:
                about = node["properties"][name].get("description", "").rstrip(".")
                yield ValidationError(f"missing. Give it: {about[:1].lower()}{about[1:]}", path=(name,))


def _type(validator: Validator, name: str, value: Any, node: Node) -> Iterator[ValidationError]:
    """Validate the type of a value. A string must fit in every database and on every command line."""
    if not validator.is_type(value, name):
        remedy = ": put it in quotes" if name == "string" and isinstance(value, int | float) else ""  # such as 22:00
        yield ValidationError(f"must be {_TYPES[name]}, not {_in_words(value)}{remedy}")
    elif isinstance(value, str) and not is_plain(value):
        yield ValidationError("contains a NUL or half a character (a lone surrogate): remove it")


def is_plain(text: str) -> bool:
    """Whether text has neither NUL nor lone surrogates."""
    return _UNPLAIN.search(text) is None


_UNPLAIN = re.compile("[\0\ud800-\udfff]")
_Validator: Callable[[Node], Validator] = extend(  # type: ignore[no-untyped-call]
    Draft4Validator,
    {"properties": _properties, "items": _items, "additionalProperties": _values, "required": _required, "type": _type},
)
_TYPES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def _in_words(value: object) -> str:
    """What a value is, in words. A string is not repeated, since it may be a password in the wrong place."""
    kind = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    said = kind.get(type(value), "null")
    return f"{said} ({repr(value)[:32]})" if isinstance(value, int | float) else said


def _message(error: ValidationError) -> str:
    """What is wrong, and what to do."""
    value: Any = error.instance
    limit: Any = error.validator_value
    if error.validator == "enum":
        return f"{str(value)[:64]!r} is not known{hint(str(value), limit)}"
    template = _REMEDIES.get(str(error.validator))
    if template is None:
        return error.message
    return template.format(limit=limit, value=value, size=len(value) if hasattr(value, "__len__") else value)


_REMEDIES = {
    "minimum": "must be at least {limit}, not {value}",
    "maximum": "must be at most {limit}, not {value}",
    "minLength": "must not be empty",
    "maxLength": "must be at most {limit} characters long, not {size}",
    "minItems": "must not be empty: give at least one",
    "maxItems": "must hold at most {limit}, not {size}",
    "maxProperties": "must hold at most {limit}, not {size}",
}
