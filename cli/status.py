"""Carries out `status`: the overview in a terminal."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import click
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cli.client import Client, Item
from cli.options import Access
from cli.rows import moment
from cli.terminal import print_rich, safe, say_json

_COLOURS = {"yes": "green", "unknown": "yellow", "no": "red", "red": "red", "amber": "yellow"}
_BARS = "▁▂▃▄▅▆▇█"


def show(access: Access, namespace: str | None, output: str) -> None:
    """Show the overview. Raises click.exceptions.Exit, with code 1, where anything is red."""
    with closing(Client(access)) as client:
        overview = client.request("GET", "/overview", namespace=namespace)
    if output == "json":
        say_json(overview)
    else:
        print_rich(Group(*_parts(overview)))
    if overview["answer"] == "no":
        raise click.exceptions.Exit(1)


def _parts(overview: Item) -> Iterator[RenderableType]:
    yield Text(safe(overview["sentence"]), style=f"bold {_COLOURS.get(overview['answer'], '')}")
    yield Text(_counts(overview["counts"]), style="dim")
    for section in overview["sections"]:
        title = f"{section.get('title', section['name'])} ({section['count']})"
        yield Text(f"\n{safe(title)}", style=f"bold {_COLOURS.get(section['severity'], '')}")
        yield _grid([[_who(it), it["reason"], " ".join(it["message"].split())] for it in section["items"]])
        if section["more"]:
            yield Padding(Text(f"and {section['more']} more"), (0, 0, 0, 2))
    if overview["running"]:
        yield Text(f"\nRunning ({overview['counts']['jobs_running']})", style="bold")
        yield _grid([_running(it) for it in overview["running"]])
    if overview["due"]:
        yield Text("\nDue next", style="bold")
        yield _grid([[it["schedule"], moment(it["at"]), f"on {_count(it['hosts'], 'host')}"] for it in overview["due"]])
    yield Text(f"\nAdded to repositories, by day (UTC): {_added(overview['days'])}")


def _counts(counts: Item) -> str:
    hosts = f"{_count(counts['hosts'], 'host')}: {counts['hosts_backed_up']} backed up"
    agents = f"{counts['hosts_connected']} connected, {counts['hosts_in_sync']} in sync"
    disabled = f" ({counts['schedules_disabled']} disabled)" if counts["schedules_disabled"] else ""
    return f"{hosts}, {agents}; {_count(counts['schedules'], 'Schedule')}{disabled}"


def _who(it: Item) -> str:
    name = "/".join(part for part in (it["namespace"], it["name"]) if part)
    return f"{it['kind']} {name}".rstrip()


def _running(job: Item) -> list[str]:
    done = f"{job['fraction']:.0%}" if job["fraction"] else ""
    since = f"since {moment(job['since'])}" if job["since"] else ""
    return [job["host"], job["schedule"] or job["kind"], f"{since} {done}".strip()]


def _added(days: Sequence[Item]) -> str:
    most = max((it["bytes_added"] for it in days), default=0)
    if not most:
        return "nothing"
    bars = "".join(_BARS[(len(_BARS) - 1) * it["bytes_added"] // most] for it in days)
    total = sum(it["bytes_added"] for it in days)
    return f"{bars} {size(total)} in {len(days)} days, {size(days[-1]['bytes_added'])} today"


def size(count: float) -> str:
    """Bytes for people, such as 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _grid(rows: Sequence[Sequence[str]]) -> RenderableType:
    """Rows of cells, indented; the last cell continues below itself where the terminal is narrow."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for at in range(len(rows[0])):
        grid.add_column(overflow="fold", no_wrap=at == 1)
    for row in rows:
        grid.add_row(*(Text(safe(cell)) for cell in row))
    return Padding(grid, (0, 0, 0, 2))
