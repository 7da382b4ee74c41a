"""A pattern for a whole name matches nothing more: a name with a newline after it is refused."""

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
import yaml
from cel_expr_python import cel  # type: ignore[import-untyped]
from hypothesis import Phase, find, settings
from hypothesis import strategies as st

from server.api import openapi
from server.api.operations import BODIES, OPERATIONS
from server.api.routing import PREFIX

PARTS = ("agent", "cli", "controller", "cron", "listener", "server", "wire")
SOURCES = [path for part in PARTS for path in sorted(Path(part).rglob("*.py"))]


def ends(pattern: str) -> bool:
    """Whether a pattern has a `$` that is no letter."""
    return "$" in re.sub(r"\\.|\[[^]]*\]", "", pattern)


def modules() -> Iterator[ModuleType]:
    for part in PARTS:
        package = importlib.import_module(part)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{part}."):
            if "__main__" not in found.name and "migrations" not in found.name:
                yield importlib.import_module(found.name)


def metas(hint: Any) -> Iterator[msgspec.Meta]:
    """Every Meta with a pattern in a type."""
    if get_origin(hint) is Annotated:
        yield from (it for it in get_args(hint)[1:] if isinstance(it, msgspec.Meta) and it.pattern)
    for inner in get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is not None else ():
        if not isinstance(inner, (str, int, msgspec.Meta)):
            yield from metas(inner)


def message_patterns() -> list[str]:
    found = set()
    for module in modules():
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, msgspec.Struct):
                for hint in get_type_hints(thing, include_extras=True).values():
                    found |= {it.pattern for it in metas(hint) if it.pattern}
            found |= {it.pattern for it in metas(thing) if it.pattern}
    return sorted(found)


def test_messages_are_looked_through() -> None:
    assert len(message_patterns()) >= 4


@pytest.mark.parametrize("pattern", message_patterns())
def test_no_message_takes_a_newline_after_a_text(pattern: Any) -> None:
    hint: Any = Annotated[str, msgspec.Meta(pattern=pattern)]
    some = settings(database=None, derandomize=True, phases=[Phase.generate])  # which does not look for the shortest
    text = find(st.from_regex(pattern), lambda it: not it.endswith("\n"), settings=some)
    assert msgspec.convert(text, hint) == text
    if r"\Z" not in pattern:
        assert not ends(pattern)  # the beginning alone is meant
        return
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text + "\n", hint)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_pattern_of_the_code_ends_where_a_newline_may_follow(path: Path) -> None:
    """`$` of `re` is also before a last newline. Where JSON Schema or CEL read a pattern, `$` is the end."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        texts = [it.value for it in node.args if isinstance(it, ast.Constant) and isinstance(it.value, str)]
        given = [it.value for it in node.keywords if it.arg == "pattern" and isinstance(it.value, ast.Constant)]
        texts += [str(it.value) for it in given]
        if (owner == "re" and name in {"compile", "match", "search", "fullmatch", "sub"}) or getattr(
            node.func, "id", ""
        ) == "Meta":
            assert not [it for it in texts if ends(it)], ast.unparse(node)


def schema_patterns(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        for inner in node.values():
            yield from schema_patterns(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from schema_patterns(inner)


def test_the_description_says_ends_as_json_schema_reads_them() -> None:
    found = set(schema_patterns(openapi.document(OPERATIONS, BODIES, PREFIX)))
    assert found
    assert [it for it in found if r"\Z" in it] == []
    assert [it for it in found if not (ends(it) or it == "^/")] == []


def definitions() -> list[Path]:
    return [path for path in sorted(Path("crds").glob("*.yaml")) if path.name != "kustomization.yaml"]


@pytest.mark.parametrize("path", definitions(), ids=lambda it: it.name)
def test_definitions_leave_patterns_to_cel_whose_ends_are_ends(path: Any) -> None:
    """`pattern` of a definition would be read by Python here and by Go in the API server."""
    assert list(schema_patterns(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize(("text", "is_one"), [("one", True), ("one\n", False), ("one\r", False), ("one\n\n", False)])
def test_the_end_that_cel_means_is_the_end(text: str, is_one: bool) -> None:
    env = cel.NewEnv(variables={"self": cel.Type.STRING})
    program = env.compile("self.matches('^[a-z]+$')")
    assert bool(program.eval(data={"self": text}).value()) is is_one


def test_the_charts_schema_is_looked_through() -> None:
    """Helm reads it, in Go, where `$` is the end; it must be a pattern to Python too, for those who check it so."""
    found = list(schema_patterns(json.loads(Path("helm/lamplighter/values.schema.json").read_text())))
    assert found
    for pattern in found:
        assert re.compile(pattern)
