"""The types of objects that commands take, by all of their names, and how a command line names objects of them."""

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

import click

GROUP = ".lamplighter.dev"
"""What `kubectl` writes after a plural that is not clear."""
_PART = frozenset(string.ascii_lowercase + string.digits + "-.")
"""The characters of names (RFC 1123)."""


class Type(NamedTuple):
    """A type of objects. `plural` is also the path of its list in REST.

    `kind`: as manifests and the audit log call it. `is_named`: whether one of them can be asked for by name.
    `is_namespaced`: whether its names have a namespace. `has_labels`: whether a selector of labels can choose some.
    `changes`: the kinds in the stream of changes that may change its list; empty for any.
    """

    plural: str
    singular: str
    short: Sequence[str] = ()
    kind: str = ""
    is_named: bool = True
    is_namespaced: bool = False
    has_labels: bool = False
    changes: frozenset[str] = frozenset()

    @property
    def names(self) -> Sequence[str]:
        """All of its names, the plural first."""
        return tuple(dict.fromkeys((self.plural, self.singular, *self.short)))

    def path(self, name: str) -> str:
        """The path in REST of the object with this full name (or whole id)."""
        return f"/{self.plural}/" + "/".join(quote(part, safe="") for part in name.split("/"))


HOST = Type("hosts", "host", (), "Host", has_labels=True, changes=frozenset({"hosts"}))
SCHEDULE = Type(
    *("schedules", "schedule", ("sched",), "Schedule"),
    is_namespaced=True,
    has_labels=True,
    changes=frozenset({"schedules"}),
)
REPOSITORY = Type(
    *("repositories", "repository", ("repo",), "Repository"),
    is_namespaced=True,
    has_labels=True,
    changes=frozenset({"repositories"}),
)
ALERT = Type("alerts", "alert", ("al",), "Alert", is_namespaced=True, has_labels=True)
JOB = Type("jobs", "job", (), "Job", changes=frozenset({"runs"}))
CONTROLLER = Type("controllers", "controller", is_named=False)
PROBLEM = Type("problems", "problem", is_named=False)
AUDIT = Type("audit", "audit", is_named=False)
TYPES = (HOST, SCHEDULE, REPOSITORY, ALERT, JOB, PROBLEM, AUDIT, CONTROLLER)
"""All types, in the order of help and errors."""
DESCRIBED = (HOST, SCHEDULE, REPOSITORY, ALERT, JOB)
"""The types that can be described, and that events are about."""
DELETED = (HOST, SCHEDULE, REPOSITORY, ALERT)
"""The types of what can be deleted."""


class Target(NamedTuple):
    """Objects that a command line names. `names`: as typed, with or without a namespace; empty for all of the type."""

    type: Type
    names: Sequence[str] = ()


def targets(words: Sequence[str], types: Sequence[Type] = TYPES) -> list[Target]:
    """What `TYPE`, `TYPE,TYPE`, `TYPE NAME…` and `TYPE/NAME…` name. Raises click.UsageError, which lists the types."""
    if "/" in words[0]:
        found: dict[Type, list[str]] = {}
        for word in words:
            type_, slash, name = word.partition("/")
            if not slash:
                raise click.UsageError(f"{word!r}: after TYPE/NAME, give each object as TYPE/NAME")
            found.setdefault(_named(type_, types), []).append(name)
        return [Target(_with_names(type_), tuple(names)) for type_, names in found.items()]
    listed = [_named(word, types) for word in words[0].split(",")]
    if words[1:] and len(listed) > 1:
        raise click.UsageError("names are of one type: give TYPE NAME…, or each object as TYPE/NAME")
    names = tuple(words[1:])
    return [Target(_with_names(it) if names else it, names) for it in dict.fromkeys(listed)]


def one_type(word: str, types: Sequence[Type] = TYPES) -> Type:
    """The type with this name. Raises click.UsageError, which lists the types."""
    return _named(word, types)


def untyped(type_: Type, name: str) -> str:
    """A name without its type, which `-o name` shows: that of TYPE/NAME, or of TYPE/NAMESPACE/NAME where names have a
    namespace."""
    before, _, own = name.partition("/")
    is_typed = before in type_.names and ("/" in own if type_.is_namespaced else own)
    return own if is_typed else name


def full_name(name: str, namespace: str = "default") -> str:
    """NAMESPACE/NAME of a name, which is in `namespace` where it has none. Raises click.ClickException."""
    namespace, _, own = (name if "/" in name else f"{namespace}/{name}").partition("/")
    if not namespace or not own or not _PART.issuperset(namespace + own):
        raise click.ClickException(f"{name!r} is not a valid name: give NAME (in namespace default) or NAMESPACE/NAME")
    return f"{namespace}/{own}"


def narrowed(namespace: str) -> Mapping[str, str]:
    """The query of REST for what is in a namespace; for everything where that is "": some may read one alone."""
    return {"namespace": namespace} if namespace else {}


def in_namespace(type_: Type, name: str, namespace: str) -> str:
    """The full name of an object. A name without a namespace is in `namespace`. Raises click.ClickException."""
    return full_name(name, namespace) if type_.is_namespaced else name


def _named(word: str, types: Sequence[Type]) -> Type:
    name = word.lower().removesuffix(GROUP)
    for type_ in types:
        if name in type_.names:
            return type_
    raise click.UsageError(f"there is no type {word!r} here: the types are {', '.join(_listed(types))}")


def _listed(types: Sequence[Type]) -> Iterator[str]:
    for type_ in types:
        plural, *others = type_.names
        yield f"{plural} ({', '.join(others)})" if others else plural


def _with_names(type_: Type) -> Type:
    if not type_.is_named:
        raise click.UsageError(f"{type_.plural} are not asked for by name: `get {type_.plural}` lists them all")
    return type_
