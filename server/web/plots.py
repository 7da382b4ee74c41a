"""Plots as plain data, which the template `plots.html` draws as SVG. Heights are parts of 100, from the ground up."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from server.web.templates import duration, in_bytes, many

WIDTH, HEIGHT = 1000.0, 100.0
"""The size of a plot in its own units. It is stretched to the width of the page."""
LEAST = 2.0
"""The least height of what is not nothing."""


class Bar(NamedTuple):
    """A bar. `label`: what it stands for, in words. `tone`: good, bad, warn, busy or calm; `link`: of a page, or ""."""

    x: float
    y: float
    width: float
    height: float
    label: str
    tone: str
    link: str = ""


class Plot(NamedTuple):
    """A plot. `summary`: what it shows, in words; `top`: what its full height stands for; `axis`: words along x."""

    summary: str
    top: str
    axis: Sequence[str]
    bars: Sequence[Bar]


class Value(NamedTuple):
    """A value to draw; see `Bar`."""

    value: float
    label: str
    tone: str = "busy"
    link: str = ""


def bars(summary: str, top: str, axis: Sequence[str], values: Sequence[Value]) -> Plot:
    """Bars side by side, of which the greatest has the full height. `top`: what that stands for."""
    most = max((it.value for it in values), default=0) or 1
    step = WIDTH / max(len(values), 1)
    drawn = []
    for at, (value, label, tone, link) in enumerate(values):
        height = round(max(LEAST, HEIGHT * value / most), 2) if value else 0
        drawn.append(Bar(round(at * step, 2), HEIGHT - height, round(0.8 * step, 2), height, label, tone, link))
    return Plot(summary, top, axis, drawn)


def herd(due: Mapping[str, Any]) -> Plot:
    """How many hosts of a schedule are due in each minute, as REST's `due` has it."""
    begin, end = (datetime.fromisoformat(due[name]) for name in ("begin", "end"))
    most, minutes = due["most"], due["minutes"]
    drawn = []
    for it in minutes:
        at = datetime.fromisoformat(it["at"])
        x, height = WIDTH * ((at - begin) / (end - begin)), max(LEAST, HEIGHT * it["hosts"] / most["hosts"])
        label = f"{at:%H:%M} UTC: {many(it['hosts'], 'host')}"
        drawn.append(Bar(round(x, 2), round(HEIGHT - height, 2), 1, round(height, 2), label, "busy"))
    hours = [begin + (end - begin) * part / 4 for part in range(5)]
    at_most = f"{many(most['hosts'], 'host')} in one minute, at {most['at'][11:16]} UTC" if most else "nothing is due"
    total = many(sum(it["hosts"] for it in minutes), "run")
    summary = f"{total} in 24 hours; at most {at_most}" if most else "Nothing is due in the next 24 hours"
    return Plot(summary, many(most["hosts"], "host") if most else "", [f"{at:%H:%M}" for at in hours], drawn)


def _days(items: Iterable[Mapping[str, Any]], today: date, count: int) -> list[tuple[date, Mapping[str, Any] | None]]:
    """The last days, each with how jobs went, None where none ended."""
    by_day = {it["day"]: it for it in items}
    days = [today - timedelta(days=count - 1 - at) for at in range(count)]
    return [(day, by_day.get(day.isoformat())) for day in days]


def _axis(days: Sequence[tuple[date, object]]) -> list[str]:
    return [f"{days[at][0]:%d %b}" for at in (0, len(days) // 2, -1)]


def outcomes_by_day(items: Iterable[Mapping[str, Any]], today: date, count: int) -> Plot:
    """How many jobs ended on each day. A day has the tone of its worst end."""
    days = _days(items, today, count)
    values = []
    for day, it in days:
        if it is None:
            values.append(Value(0, f"{day}: no job ended"))
            continue
        tone = "bad" if it["failed"] else "warn" if it["warned"] else "good"
        label = f"{day}: {it['succeeded']} succeeded, {it['warned']} with a warning, {it['failed']} failed"
        values.append(Value(it["succeeded"] + it["warned"] + it["failed"], label, tone))
    jobs, failed = int(sum(it.value for it in values)), sum(it["failed"] for _, it in days if it)
    top = many(int(max(it.value for it in values)), "job")
    return bars(f"{many(jobs, 'job')} in {count} days, {failed} of them failed", top, _axis(days), values)


def durations_by_day(items: Iterable[Mapping[str, Any]], today: date, count: int) -> Plot:
    """How long the longest job of each day took."""
    days = _days(items, today, count)
    values = [
        Value(it["longest"], f"{day}: the longest took {duration(it['longest'])}, {_mean(it)} on average")
        if it
        else Value(0, f"{day}: no job ended")
        for day, it in days
    ]
    longest = duration(max(it.value for it in values))
    return bars(f"The longest job of {count} days took {longest}", longest, _axis(days), values)


def _mean(day: Mapping[str, Any]) -> str:
    return duration(day["seconds"] / max(1, day["succeeded"] + day["warned"] + day["failed"]))


def bytes_by_day(items: Iterable[Mapping[str, Any]], today: date, count: int) -> Plot:
    """The bytes that the jobs of each day added to the repository."""
    days = _days(items, today, count)
    added = [(day, it["bytes_added"] if it else 0) for day, it in days]
    values = [Value(size, f"{day}: {in_bytes(size)}") for day, size in added]
    total, most = sum(it.value for it in values), max(it.value for it in values)
    return bars(f"{in_bytes(total)} were added in {count} days", in_bytes(most), _axis(days), values)


def growth(items: Iterable[Mapping[str, Any]], today: date, count: int) -> Plot:
    """The bytes that were added up to each day, and the backups that were made."""
    days, total, made, values = _days(items, today, count), 0, 0, []
    for day, it in days:
        total, made = total + (it["bytes_added"] if it else 0), made + (it["backups"] if it else 0)
        values.append(Value(total, f"{day}: {in_bytes(total)} and {many(made, 'backup')} since {days[0][0]}", "calm"))
    summary = f"{in_bytes(total)} and {many(made, 'backup')} came to it in {count} days"
    return bars(summary, in_bytes(total), _axis(days), values)
