"""Objects get what they need when they are built, and no name is reached through three objects.

Both rules read the syntax tree. What breaks them today is listed, by file, with its reason. A new break fails, and so
does an entry that is no longer needed: the lists only shrink.
"""

import ast
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["agent", "cli", "controller", "listener", "server"]

OWN = {"self", "cls"}
SETTERS = {"setattr", "delattr", "__setattr__", "__delattr__"}
DOCUMENT = "spec"
"""What comes after it are fields of a manifest, which is data in the shape of its schema."""
METHODS = {name for kind in (dict, frozenset, list, set, str, Path) for name in dir(kind)}
"""Of plain values. To call one, as in `a.b.c.items()`, reaches no further than the value."""

SET_FROM_OUTSIDE: dict[str, set[str]] = {
    "cli/main.py": {"sys.excepthook"},  # Python asks for it
    "controller/cluster/watching.py": {  # kopf is set up so
        "settings.networking.error_backoffs",
        "settings.networking.request_timeout",
        "settings.posting.enabled",
        "settings.queueing.idle_timeout",
        "settings.scanning.disabled",
        "settings.watching.client_timeout",
        "settings.watching.server_timeout",
    },
    "server/api/requests.py": {"request.state.body"},  # Starlette's place for what belongs to a request
    "server/fleet/placement.py": {"state.entries", "state.labels", "state.since", "state.version"},  # its own records
    "server/store/database.py": {"connection.isolation_level"},  # sqlite3's way to switch off its own transactions
    "server/transport/tls.py": {"connection.context", "outer.sni_callback"},  # ssl asks for both
}
REACHED_THROUGH: dict[str, set[str]] = {
    "cli/client.py": {"self._http.base_url.copy_with"},  # httpx
    "controller/folder/documents.py": {"node.value.start_mark.line"},  # PyYAML
    "server/gateway/endpoint.py": {"websocket.state.peer.keep"},  # ASGI's place for what belongs to a connection
    "server/store/batch.py": {"table.c.value.as_string"},  # SQLAlchemy
    "server/store/history.py": {"later.c.status.in_", "later.c.status.not_in"},  # SQLAlchemy
}

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def scopes(tree: ast.AST) -> Iterator[list[ast.AST]]:
    """The nodes of the module and of each function, without those of the functions inside."""
    inner: list[ast.AST] = []
    found: list[ast.AST] = []
    left: list[ast.AST] = list(ast.iter_child_nodes(tree))
    while left:
        node = left.pop()
        found.append(node)
        if isinstance(node, Function):
            inner.append(node)
        else:
            left += ast.iter_child_nodes(node)
    yield found
    for function in inner:
        yield from scopes(function)


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of each file. They are read once they are asked for: each worker of the tests imports this."""
    files = (path for part in PARTS for path in sorted((ROOT / part).rglob("*.py")))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in files}


def built(nodes: list[ast.AST]) -> set[str]:
    """Local names that these nodes bind to what they build, as in `x = Class(…)`, and to nothing else."""
    bound: dict[str, bool] = {}
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and node.value is not None:
                    bound[target.id] = bound.get(target.id, True) and _builds(node.value)
    return {name for name, builds in bound.items() if builds}


def _builds(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and _names(value.func)[-1].lstrip("_")[:1].isupper()


def set_from_outside(tree: ast.AST) -> Iterator[str]:
    """Attributes that are set or deleted on what is neither the own object nor one that the same function built."""
    for nodes in scopes(tree):
        allowed = OWN | built(nodes)
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                holder = node.value
            elif isinstance(node, ast.Call) and _names(node.func)[-1] in SETTERS:
                holder = node.args[0]
            else:
                continue
            if not (isinstance(holder, ast.Name) and holder.id in allowed):
                yield ast.unparse(node)


def imported(tree: ast.AST) -> set[str]:
    """The names that imports bind: modules, and what a module has."""
    return {
        (name.asname or name.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }


def reached_through(tree: ast.AST) -> Iterator[str]:
    """The names that code reaches through three objects or more: `a.b.c.d`. `a.b[c].d` reaches as far as `a.b.d`."""
    modules = imported(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    longer = {id(_without_items(node.value)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in longer:
            root, *names = _names(node)
            if id(node) in called and names and names[-1] in METHODS:
                names.pop()
            if DOCUMENT in names:
                names = names[: names.index(DOCUMENT)]
            if root and root not in modules and len(names) >= 3:
                yield ".".join([root, *names])


def _without_items(node: ast.expr) -> ast.expr:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node


def _names(node: ast.expr) -> list[str]:
    """A chain's names from its root on; the root is "" where it is no name, but a call or a literal."""
    node = _without_items(node)
    if isinstance(node, ast.Attribute):
        return [*_names(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]


def listed(exceptions: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The exceptions as pairs of file and name."""
    return {(file, name) for file, names in exceptions.items() for name in names}


def broken(rule: Callable[[ast.AST], Iterator[str]]) -> set[tuple[str, str]]:
    """What breaks a rule, as pairs of file and name."""
    return {(file, name) for file, tree in trees().items() for name in rule(tree)}


def test_nothing_is_set_on_an_object_after_it_was_built() -> None:
    found, known = broken(set_from_outside), listed(SET_FROM_OUTSIDE)
    assert sorted(found - known) == [], "set it in the constructor, or by a method of the object's own"
    assert sorted(known - found) == [], "no longer needed: take it from the list"


def test_no_name_is_reached_through_three_objects() -> None:
    found, known = broken(reached_through), listed(REACHED_THROUGH)
    assert sorted(found - known) == [], "ask the nearest object, or be given what is needed"
    assert sorted(known - found) == [], "no longer needed: take it from the list"


PIPELINE = {"server/changes/change.py", "server/jobs/queue.py"}
"""What stores changes; the second stores audit lines with their jobs."""


def stored_by(file: str, tree: ast.AST) -> Iterator[str]:
    """The statements on declared state, host keys and the audit log that a file of the server imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("server.store"):
            for name in node.names:
                if name.name in changing() or name.name == "batch":
                    yield f"{file}: {name.name}"


@cache
def changing() -> set[str]:
    """The names of the statements that change what is declared."""
    return {
        node.name
        for file in ("declared", "hosts", "enrolments")
        for node in ast.walk(trees()[f"server/store/{file}.py"])
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("upsert_", "delete_"))
    } | {"record_audit", "set_desired"}


def test_the_pipeline_alone_stores_changes() -> None:
    elsewhere = [
        found
        for file, tree in trees().items()
        if file.startswith("server/") and not file.startswith("server/store/") and file not in PIPELINE
        for found in stored_by(file, tree)
    ]
    assert elsewhere == [], "give `Pipeline.commit` a Change"


@pytest.mark.parametrize(
    "line",
    [
        "thing.deliver = f",
        "thing.count += 1",
        "thing.known: bool = True",
        "self.other.deliver = f",
        "one.a, other.b = 1, 2",
        "del thing.deliver",
        "setattr(thing, name, f)",
        "object.__setattr__(thing, 'deliver', f)",
        "for thing.current in things: pass",
        "thing = things[0]; thing.deliver = f",
        "thing = find(); thing.deliver = f",
        "thing = Thing(); thing = given; thing.deliver = f",
        "def inner():\n    thing.deliver = f\nthing = Thing()",
    ],
)
def test_what_is_set_from_outside_is_found(line: str) -> None:
    assert list(set_from_outside(ast.parse("def outer(self, thing):\n" + textwrap.indent(line, "    "))))


@pytest.mark.parametrize(
    "line",
    [
        "self.deliver = f",
        "cls.known = {}",
        "thing = Thing(); thing.deliver = f",
        "thing: Thing = module.Thing(1); thing.deliver = f",
        "things[0] = f",
        "self.things[name] = f",
        "thing = other.deliver",
    ],
)
def test_what_is_ones_own_may_be_set(line: str) -> None:
    assert not list(set_from_outside(ast.parse("def outer(self, other):\n" + textwrap.indent(line, "    "))))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("control.jobs.queue.jobs", ["control.jobs.queue.jobs"]),
        ("control.jobs.queue.of_host(name)", ["control.jobs.queue.of_host"]),
        ("self.jobs.queue.jobs", ["self.jobs.queue.jobs"]),
        ("self.jobs[name].queue.jobs[0]", ["self.jobs.queue.jobs"]),
        ("control.jobs.queue.jobs.get(name)", ["control.jobs.queue.jobs"]),
        ("control.jobs.queue.items", ["control.jobs.queue.items"]),
        ("jobs.queue.items()", []),
        ("self.queue.jobs.get(name)", []),
        ("target.spec.retry.backoff_seconds", []),
        ("fleet.targets[0].spec.retry.limit", []),
        ("import os\nos.path.sep.join.something", []),
        ("select(table).where(it).order_by(it).limit(1)", []),
    ],
)
def test_what_is_reached_through_three_objects_is_found(line: str, found: list[str]) -> None:
    assert list(reached_through(ast.parse(line))) == found
