"""Writes a plan as text for a terminal, or as markdown for a comment on a pull request. Values in, lines out."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from cli.terminal import safe, say

Object = Mapping[str, Any]

MAX_MARKDOWN = 60_000
"""Maximum characters of markdown: GitHub and GitLab take a little more in one comment."""
MAX_SHOWN = 5
"""Hosts, times and runs that a line names."""
MAX_VALUE = 60
"""Characters of a value that a line shows."""
MAX_FIELDS = 12
"""Fields of an object that are shown."""

_SIGNS = {"create": "+", "update": "~", "delete": "-"}
_COLOURS = {"+": "green", "~": "yellow", "-": "red", "!": "red", "?": "yellow"}
_ESCAPED = re.compile(r"[\\`*_{}\[\]<>#|~@!&]")


def show(told: Object, *, markdown: bool) -> None:
    """Write a plan to stdout."""
    for line in markdown_lines(told) if markdown else text_lines(told):
        say(line, _COLOURS.get(line[2:3]) if not markdown and line.startswith("  ") else None)


def summary(told: Object) -> str:
    """What a plan amounts to, in one line."""
    actions = [it["action"] for it in told["changes"]]
    parts = [f"{actions.count(action)} to {action}" for action in _SIGNS if action in actions]
    parts += [f"{count} refused" for count in [len(told["refused"]) + len(told["mistakes"])] if count]
    if count := len(told["withheld"]):
        parts.append(f"{count} {'deletion' if count == 1 else 'deletions'} withheld")
    return ", ".join(parts) or "no changes"


# Text.


def text_lines(told: Object) -> Iterator[str]:
    """A plan for a terminal."""
    forecasts = {("Schedule", it["namespace"], it["name"]): it for it in told["schedules"]}
    loads = {("Repository", it["namespace"], it["name"]): it for it in told["repositories"]}
    shown = set()
    for change in told["changes"]:
        key = _key(change)
        shown.add(key)
        yield f"  {_SIGNS[change['action']]} {_name(change)}{_at(change)}"
        for line in [*_fields(change), *_effects(forecasts.get(key), loads.get(key))]:
            yield f"      {line}"
    for key, forecast in forecasts.items():
        if key not in shown and (lines := _schedule_lines(forecast)):
            yield f"    Schedule {key[1]}/{key[2]} also changes"
            yield from (f"      {line}" for line in lines)
    for key, load in loads.items():
        if key not in shown and (line := _load_line(load)):
            yield f"    Repository {key[1]}/{key[2]} also changes"
            yield f"      {line}"
    yield from (f"  ! {line}" for line in _troubles(told))
    yield from (f"  ? {line}" for line in _ignored(told))
    if hosts := told["hosts"]["count"]:
        yield f"{hosts} {'host gets' if hosts == 1 else 'hosts get'} new versions: {_some(told['hosts'])}"
    if told["changes"]:
        yield f"Due times are those of the day from {_time(told['begin'])} on."
    yield f"Plan: {summary(told)}."


def _key(it: Object) -> tuple[str, str, str]:
    return it["kind"], it["namespace"], it["name"]


def _name(it: Object) -> str:
    place = f"{it['namespace']}/{it['name']}" if it["namespace"] else it["name"]
    return f"{it['kind']} {place}" if it["kind"] else "document"


def _at(it: Object) -> str:
    return f"   ({it['file']})" if it.get("file") else ""


def _fields(change: Object) -> Iterator[str]:
    """The lines of fields: what a new object is, or each change of an old one."""
    if change["action"] == "create":
        known = {it["field"]: it["after"] for it in change["fields"]}
        when = (("cron", "cron {}"), ("crons", "crons {}"), ("timeZone", "{}"))
        where = (("repositoryRef.name", "repository {}"), ("copy.fromRepositoryRef.name", "copied from {}"))
        told = (("kind", "{}"), *when, *where)
        words = [
            text.format(str(known[f"spec.{name}"])) for name, text in (*told, ("url", "{}")) if f"spec.{name}" in known
        ]
        if words:
            yield ", ".join(words)
        return
    for it in change["fields"][:MAX_FIELDS]:
        if it["hidden"] == "secret":
            yield f"{it['field']}: changed"
        elif it["hidden"]:
            yield f"{it['field']}: changed (too long to show)"
        else:
            yield f"{it['field']}: {_value(it['before'])} → {_value(it['after'])}"
    if (more := len(change["fields"]) - MAX_FIELDS) > 0:
        yield f"and {more} more fields"


def _value(value: object) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"


def _effects(schedule: Object | None, load: Object | None) -> list[str]:
    lines = _schedule_lines(schedule) if schedule else []
    return [*lines, *([line] if load and (line := _load_line(load)) else [])]


def _schedule_lines(it: Object) -> list[str]:
    """What becomes of a schedule's hosts, due times and missed runs."""
    lines = []
    if it["gained"]["count"] or it["lost"]["count"]:
        moves = [f"{sign}{_some(it[way])}" for sign, way in (("+", "gained"), ("-", "lost")) if it[way]["count"]]
        lines.append(f"hosts: {it['hosts_before']} → {it['hosts_after']} ({'; '.join(moves)})")
    due = it["due"]
    if due["appearing"] or due["disappearing"]:
        moves = [
            f"{due[count]} {word}, at {_times(due[times])}"
            for count, word, times in (
                ("appearing", "new", "appear_at"),
                ("disappearing", "gone", "disappear_at"),
            )
            if due[count]
        ]
        spread = f", spread over {it['spread_seconds']} s" if it["spread_seconds"] else ""
        lines.append(f"runs in a day{spread}: {due['before']} → {due['after']} ({'; '.join(moves)})")
    if (joining := it.get("joining")) and joining["count"]:  # earlier servers do not say it
        count = joining["count"]
        who = "1 host that joins" if count == 1 else f"{count} hosts that join"
        lines.append(f"would run at once on {who}: {_some(joining)}")
    for name, become in (("made_up", "made up for"), ("dropped", "lost")):
        if it[name]["count"]:
            lines.append(f"missed runs that would be {become}: {_runs(it[name])}")
    return lines


def _load_line(it: Object) -> str:
    """The worst minute of a repository before and after; "" where it stays as it is."""
    if it["before"] == it["after"]:
        return ""
    return f"worst minute: {_load(it['before'])} → {_load(it['after'])}"


def _load(load: Object) -> str:
    peak, limit = load["peak"], load["limit"]
    if peak is None:
        return "nothing due"
    where = f" on {peak['host']}" if peak["host"] else ""
    text = f"{peak['jobs']} {'job' if peak['jobs'] == 1 else 'jobs'} at {_time(peak['at'])}{where}"
    if limit is None:
        return text
    waiting = peak["jobs"] - limit
    return f"{text}, limit {limit}{f': {waiting} would wait' if waiting > 0 else ''}"


def _troubles(told: Object) -> Iterator[str]:
    """What would be refused, and why."""
    for it in told["mistakes"]:
        yield f"{it['file']}: {it['field']}{': ' if it['field'] else ''}{it['detail']}"
    for it in told["refused"]:
        found = [(error["file"] or it["file"], f"{error['field']}: {error['detail']}") for error in it["errors"]]
        for file, detail in found or [(it["file"], it["detail"])]:
            yield f"{_name(it)}{_at({'file': file})}: {detail}"
    if told["withheld"]:
        named = ", ".join(_name(it) for it in told["withheld"][:MAX_SHOWN])
        more = "…" if len(told["withheld"]) > MAX_SHOWN else ""
        count = len(told["withheld"])
        yield (
            f"{count} {'object' if count == 1 else 'objects'}, most of what this owner has, no longer declared: "
            f"nothing is deleted until --allow-empty confirms that ({named}{more})"
        )


def _ignored(told: Object) -> Iterator[str]:
    """What is of a kind that is not read."""
    return (f"{it['file']}: {it['detail']}" for it in told["ignored"])


def _some(names: Object) -> str:
    """The first of some hosts, and how many more there are."""
    first = names["first"][:MAX_SHOWN]
    more = names["count"] - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _runs(runs: Object) -> str:
    """The first of some missed runs, which may be of long ago, and how many more there are."""
    first = [f"{it['host']} {datetime.fromisoformat(it['due']):%Y-%m-%d %H:%M}Z" for it in runs["first"][:MAX_SHOWN]]
    more = runs["count"] - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _times(times: Sequence[str]) -> str:
    first = ", ".join(_time(it) for it in times[:MAX_SHOWN])
    return f"{first}, …" if len(times) > MAX_SHOWN else first


def _time(time: str) -> str:
    """A time of REST, which is in UTC, in the coming days."""
    return f"{datetime.fromisoformat(time):%a %H:%M}Z"


# Markdown.


def markdown_lines(told: Object) -> list[str]:
    """A plan for a comment on a pull request, of at most MAX_MARKDOWN characters."""
    title = f"### Lamplighter plan: {summary(told)}"
    end = "_Times are in UTC. Applying does this when nothing else changes until then._"
    lines, left = [title, ""], MAX_MARKDOWN - len(title) - len(end) - 200
    rows = [*_rows(told)]
    for number, row in enumerate(rows):
        if len(row) + 1 > left:
            lines += ["", f"… and {len(rows) - number} more lines: see the job's own output."]
            break
        lines.append(row)
        left -= len(row) + 1
    return [*lines, "", end]


def _rows(told: Object) -> Iterator[str]:
    for title, lines in (("Would be refused", [*_troubles(told)]), ("Not read", [*_ignored(told)])):
        if lines:
            yield from (f"**{title}:**", "")
            yield from (f"- {_escaped(it)}" for it in lines)
            yield ""
    forecasts = {("Schedule", it["namespace"], it["name"]): it for it in told["schedules"]}
    loads = {("Repository", it["namespace"], it["name"]): it for it in told["repositories"]}
    changed = {_key(it): it for it in told["changes"]}
    keys = (key for key in (*forecasts, *loads) if key not in changed)
    others = [key for key in keys if _effects(forecasts.get(key), loads.get(key))]
    if changed or others:
        yield "| | object | what changes |"
        yield "| --- | --- | --- |"
    for key in (*changed, *others):
        change = changed.get(key)
        lines = [*(_fields(change) if change else ()), *_effects(forecasts.get(key), loads.get(key))]
        sign = _SIGNS[change["action"]] if change else "·"
        name = _name(dict(zip(("kind", "namespace", "name"), key, strict=True)))
        yield f"| {sign} | {_escaped(name)} | {'<br>'.join(map(_escaped, lines))} |"
    if hosts := told["hosts"]["count"]:
        yield from (
            "",
            f"{hosts} {'host gets' if hosts == 1 else 'hosts get'} new versions: {_escaped(_some(told['hosts']))}",
        )


def _escaped(text: str) -> str:
    """Text that markdown shows as it is, on one line, and that calls nobody (@name)."""
    return _ESCAPED.sub(lambda found: f"&#{ord(found[0])};", " ".join(safe(text).split()))
