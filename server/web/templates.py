"""What templates may use: filters for times, sizes and counts, and the URLs of pages and static files."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context, select_autoescape
from jinja2.runtime import Context
from markupsafe import Markup

import cron
from server.web.static import Static

FOLDER = Path(__file__).parent / "templates"
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def environment(static: Static) -> Environment:
    """The environment of all templates. A name that a page does not give is an error."""
    found = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=select_autoescape(("html", "svg")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters |= {
        "ago": ago,
        "at": at,
        "bytes": in_bytes,
        "crons": crons,
        "duration": duration,
        "many": many,
        "windows": windows,
    }
    found.globals |= {"url": url, "static": static.url, "same_page": same_page, "narrowed": narrowed, "took": took}
    return found


def crons(spec: Mapping[str, Any]) -> str:
    """When a Schedule is due, in one line: its expression, or those of `crons`."""
    return cron.joined(spec.get("crons") or [spec["cron"]])


def windows(its: Sequence[Mapping[str, Any]]) -> str:
    """Windows in one line, with the days of those that do not open every day."""
    return "; ".join(f"{it['from']} to {it['to']}{_on(it['days'])}" for it in its)


def _on(days: Sequence[str]) -> str:
    return f" on {', '.join(days)}" if len(days) < 7 else ""


def url(*path: str, **query: object) -> str:
    """The path of a page, by its segments. Parameters that are None or empty are left out."""
    given = urlencode({name: value for name, value in query.items() if value not in (None, "")})
    return "/" + "/".join(quote(it, safe="") for it in path) + (f"?{given}" if given else "")


def same_page(path: str, query: Mapping[str, str], /, **changed: object) -> str:
    """The path of a page with its parameters, some of them changed. Those that are None or empty are left out."""
    given = urlencode({name: value for name, value in {**query, **changed}.items() if value not in (None, "")})
    return path + (f"?{given}" if given else "")


def narrowed(selector: str, key: str, value: str) -> str:
    """A label selector that also asks for a value of a label."""
    return f"{selector},{key}={value}" if selector else f"{key}={value}"


@pass_context
def ago(context: Context, value: datetime | str | None, nothing: str = "never") -> str | Markup:
    """How long ago, or in how long, a time is: the whole time stands in the title. `value`: as REST writes it."""
    if not value:
        return nothing
    time = _time(value)
    seconds = (context["now"] - time).total_seconds()
    text = f"{_largest(seconds)} ago" if seconds >= 0 else f"in {_largest(-seconds)}"
    return _marked(time, text)


def at(value: datetime | str | None, nothing: str = "-") -> str | Markup:
    """A time in UTC, to the second; scripts show it in the user's zone."""
    return _marked(_time(value), f"{_time(value):%Y-%m-%d %H:%M:%S} UTC") if value else nothing


def _marked(time: datetime, text: str) -> Markup:
    machine = time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(machine, f"{time:%Y-%m-%d %H:%M:%S} UTC", text)


def _time(value: datetime | str) -> datetime:
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    return time.astimezone(UTC)


def _largest(seconds: float) -> str:
    """A time span by its largest unit: `3 min`, `2 d`."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "0 s"


def duration(seconds: float | timedelta | None, nothing: str = "-") -> str:
    """A time span by its two largest units, such as `2 h 5 min`."""
    if seconds is None:
        return nothing
    left = int(seconds.total_seconds() if isinstance(seconds, timedelta) else seconds)
    parts: list[str] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def took(began: str | None, ended: str | None) -> float | None:
    """The seconds from one time to the other, as REST writes them; None unless both are known."""
    return (_time(ended) - _time(began)).total_seconds() if began and ended else None


def in_bytes(count: float | None, nothing: str = "-") -> str:
    """A number of bytes in binary units, such as `1.5 GiB`."""
    if count is None:
        return nothing
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


def many(count: int, one: str, more: str = "") -> str:
    """A count with its noun: `1 host`, `10,000 hosts`."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
