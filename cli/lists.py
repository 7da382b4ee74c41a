"""Carries out `get`: objects as tables for people, or as JSON, YAML or names for programs."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import click

from cli.client import PAGE, Client, Item, NotFoundError
from cli.jobs import find, show_progress
from cli.options import Access
from cli.problems import found_problems
from cli.rows import STYLES, TABLES, Table, short_ids
from cli.terminal import Bars, bars, note, print_table, say, say_json, say_yaml
from cli.types import AUDIT, JOB, PROBLEM, Target, Type, full_name, in_namespace, narrowed
from cli.watching import Watched, watch

_UID = re.compile(r"[0-9a-f]{32}")
"""A Schedule's uid, which still names it after it was deleted."""
MAX_BARS = 20
"""Running jobs that are shown as bars."""
REFRESH_S = 1.0
"""Seconds after which bars are drawn anew."""
MAX_NAMED = 5
"""Names of others that an error lists."""


class Asked(NamedTuple):
    """What to list. `namespace`: "" for all. `labels`: a selector as `kubectl -l` takes it. `filters`: of jobs."""

    targets: Sequence[Target]
    namespace: str = ""
    labels: str = ""
    filters: Mapping[str, str] = {}
    limit: int = 50
    output: str = "table"


def get(access: Access, asked: Asked) -> None:
    """Show what was asked for. Raises click.exceptions.Exit, with code 1, for a problem or a missing object."""
    client = Client(access)
    shown = [_Shown(client, asked, target) for target in asked.targets]
    for it in shown:
        it.fetch()
    if asked.output in ("json", "yaml"):
        (say_json if asked.output == "json" else say_yaml)(_document(shown))
    else:
        for number, it in enumerate(shown):
            if number and asked.output != "name":
                say("")
            it.say()
    if any(it.failed for it in shown):
        raise click.exceptions.Exit(1)


def follow(access: Access, asked: Asked, *, events: bool, with_bars: bool = False) -> None:
    """Show what was asked for, and then what changes, until it is interrupted.

    `events`: say what happened to each. `with_bars`: in a terminal, show running jobs as progress bars.
    """
    client = Client(access)
    [target] = asked.targets
    shown, before = _Shown(client, asked, target), Watched(target.type.plural)

    def look(its: Bars | None) -> None:
        changes = before.changed(shown.fetch())
        with its.aside() if its and changes else nullcontext():
            shown.say_changes(changes, events=events or target.type is PROBLEM)
        if its:
            running = list(client.items("/jobs", MAX_BARS, status="running", **shown.narrowed))
            its.keep([job["id"] for job in running])
            for job in running:
                show_progress(its, job)

    with bars() if with_bars else nullcontext() as made:
        its = made if made and made.are_shown else None
        watch(client, target.type.changes, asked.namespace, lambda: look(its), REFRESH_S if its else None)


class _Shown:
    """One target of a `get`: its items, and how they are shown.

    `failed`: whether something was not there or is wrong. `narrowed`: the query for the namespace.
    """

    def __init__(self, client: Client, asked: Asked, target: Target) -> None:
        self._client = client
        self._asked = asked
        self.target = target
        self.items: list[Item] = []
        self.failed = False
        self.narrowed = narrowed(asked.namespace)
        self._names = ScheduleNames(client, asked.namespace)
        self._has_heading = False

    def fetch(self) -> list[Item]:
        """Get the items, and tell about those that are not there."""
        type_, names = self.target
        self.failed = False
        if type_ is PROBLEM:
            self.items = [it._asdict() for it in found_problems(self._client, self._asked.namespace)]
            self.failed = bool(self.items)
        elif names:
            self.items = list(self._named(names))
        else:
            self.items = self._listed()
        return self.items

    def _listed(self) -> list[Item]:
        type_, asked = self.target.type, self._asked
        newest_first = type_ in (JOB, AUDIT)
        query: dict[str, str] = dict(asked.filters) if type_ is JOB else {}
        if (schedule := query.get("schedule")) is not None and not _UID.fullmatch(schedule):
            query["schedule"] = full_name(schedule, asked.namespace or "default")
        if type_.is_namespaced or type_ is JOB:
            query |= self.narrowed
        if asked.labels:
            query["labelSelector"] = asked.labels
        items = list(self._client.items(f"/{type_.plural}", asked.limit + 1 if newest_first else None, **query))
        if newest_first and len(items) > asked.limit:
            del items[asked.limit :]
            note(f"only the newest {asked.limit} are shown: give a larger --limit to see older ones")
        return items

    def _named(self, names: Sequence[str]) -> Iterator[Item]:
        for name in names:
            try:
                yield one(self._client, self.target.type, name, self._asked.namespace)
            except NotFoundError as error:
                note(f"Error: {error.format_message()}")
                self.failed = True

    def say(self) -> None:
        """Show the items."""
        if self._asked.output == "name":
            for name in map(self._name, self.items):
                say(name)
        elif self.items:
            table = self._table()
            rows = [table.row(item, self._names_of(self.items)) for item in self.items]
            print_table(table.columns, rows, STYLES, table.optional, whole=self._asked.output == "wide")
        elif not self.failed:
            type_, asked = self.target.type, self._asked
            narrowed = type_ is not PROBLEM and (asked.filters or asked.labels or asked.namespace)
            note(f"no {type_.plural}" + (" match" if narrowed else ""))

    def say_changes(self, changes: Sequence[tuple[str, Item]], *, events: bool) -> None:
        """Show what happened to items, as (what, item); the first rows of a table have a heading."""
        match self._asked.output:
            case "json":
                for what, item in changes:
                    say_json({"type": what, "object": item} if events else item)
            case "yaml":
                for what, item in changes:
                    say("---")
                    say_yaml({"type": what, "object": item} if events else item)
            case "name":
                for _, item in changes:
                    say(self._name(item))
            case _:
                if changes:
                    self._say_rows(changes, events=events)

    def _say_rows(self, changes: Sequence[tuple[str, Item]], *, events: bool) -> None:
        table = self._table()
        shown = [*changes, *(("", item) for item in self.items)]  # the widths are those of all
        names = self._names_of([item for _, item in shown])
        rows = [[what.ljust(len("MODIFIED"))] * events + table.row(item, names) for what, item in shown]
        columns = ["EVENT"] * events + list(table.columns)
        numbers = range(0 if self._has_heading else -1, len(changes))
        self._has_heading = True
        print_table(columns, rows, STYLES, table.optional, only=numbers, whole=self._asked.output == "wide")

    def _table(self) -> Table:
        type_ = self.target.type
        table = TABLES[type_.plural]
        return table.widened() if self._asked.output == "wide" else table

    def _names_of(self, items: Sequence[Item]) -> Mapping[str, str]:
        """Names by id: short ones of these jobs, and those of Schedules that a job tells by its uid alone."""
        return {**self._names.of(items), **short_ids(items)} if self.target.type is JOB else {}

    def _name(self, item: Item) -> str:
        return name_of(self.target.type, item)


class ScheduleNames:
    """The names of Schedules by uid, for jobs that tell the uid alone: those that no tick of a cron caused."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._query = narrowed(namespace)
        self._known: dict[str, str] = {}

    def of(self, jobs: Sequence[Item]) -> Mapping[str, str]:
        """The names that these jobs need, of Schedules that there are. They are asked for once, if need be."""
        uids = {job["scheduled_id"] for job in jobs if job["actor_kind"] != "schedule" and job["scheduled_id"]}
        if not uids <= self._known.keys():
            metadata = (item["metadata"] for item in self._client.items("/schedules", None, **self._query))
            self._known.update(dict.fromkeys(uids, "") | {it["uid"]: _full(it) for it in metadata})
        return {uid: name for uid, name in self._known.items() if name}


def one(client: Client, type_: Type, name: str, namespace: str = "") -> Item:
    """The object of this name. Raises NotFoundError, which names others that there are."""
    if type_ is JOB:
        found: Item = client.request("GET", JOB.path(find(client, name, namespace)["id"]))
        return found
    wanted = in_namespace(type_, name, namespace or "default")
    try:
        found = client.request("GET", type_.path(wanted))
    except NotFoundError as error:
        raise missing(client, type_, wanted, error) from None
    return found


def missing(client: Client, type_: Type, wanted: str, error: NotFoundError) -> NotFoundError:
    """The error for an object that is not there, which names some that there are, those of like names first."""
    try:
        page = client.request("GET", f"/{type_.plural}", limit=PAGE)["items"]
    except click.ClickException:  # who may read one object may not list all
        return error
    names = [full_name_of(it) for it in page]
    like = difflib.get_close_matches(wanted, names, MAX_NAMED, 0.5)
    named = [*like, *(name for name in names if name not in like)][:MAX_NAMED]
    more = " and others" if len(names) > len(named) else ""
    there = f"there {'are' if len(names) > 1 else 'is'} {', '.join(named)}{more}" if named else "there are none"
    return NotFoundError(f"{error.message}: {there}")


def name_of(type_: Type, item: Item) -> str:
    """An object as TYPE/NAME, which commands take."""
    return f"{type_.singular}/{full_name_of(item)}"


def full_name_of(item: Item) -> str:
    """An object's name, with its namespace where it has one; a job's or audit line's id."""
    if "metadata" in item:
        return _full(item["metadata"])
    return str(item["name"] if "name" in item else item["id"])


def _full(metadata: Mapping[str, Any]) -> str:
    return f"{metadata['namespace']}/{metadata['name']}"


def _document(shown: Sequence[_Shown]) -> object:
    """What JSON and YAML show: the object where one was asked for by name, else a list."""
    if len(shown) == 1 and len(shown[0].target.names) == 1 and shown[0].items:
        return shown[0].items[0]
    return {"items": [item for it in shown for item in it.items]}
