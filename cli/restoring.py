"""What a person types to get files back: `restore`, `snapshots` and `ls`."""

import stat
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import click

from cli.ask import Item, Server, full_name, moment
from cli.logs import SHORT_ID
from cli.options import Access
from cli.terminal import note, print_table, progress, say, say_json

LOOK_S = 0.3
"""Seconds between two looks at a restore that runs."""
_TYPES = {"dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "file": stat.S_IFREG, "fifo": stat.S_IFIFO}
_TYPES |= {"dev": stat.S_IFBLK, "chardev": stat.S_IFCHR, "socket": stat.S_IFSOCK}


def restore(access: Access, repository: str, spec: Mapping[str, Any]) -> None:
    """Restore what a Restore's spec says, and follow it to its end. Raises click.ClickException when it fails."""
    server = Server(access)
    namespace, _, name = full_name(repository).partition("/")
    path = f"/restores/{quote(namespace, safe='')}/{uuid.uuid4().hex}"
    job = server.ask("PUT", path, body={"spec": {"repositoryRef": {"name": name}, **spec}})
    short = job["id"][:SHORT_ID]
    try:
        job = _followed(server, path, job)
    except KeyboardInterrupt:
        note(f"it goes on as job {short}: `lamplighter cancel {short}` ends it")
        raise click.exceptions.Exit(130) from None
    if job["status"] not in ("succeeded", "warning"):
        raise click.ClickException(f"job {short} on {job['host']} {job['status']}: {job['error'] or 'see its log'}")
    if job["status"] == "warning":
        _warn(job["error"] or "not all of it was restored: see its log")
    snapshot, files, size = job["snapshot_id"][:SHORT_ID], job["files_processed"], _size(job["bytes_processed"])
    where = f"{spec['target']} on {job['host']}"
    say(f"restored snapshot {snapshot} of {spec['sourceHost']} below {where}: {_files(files)}, {size}")


def _followed(server: Server, path: str, job: Item) -> Item:
    """A restore's job once it has ended; until then, in a terminal, how far it is."""
    with progress() as show:
        while job["status"] in ("pending", "running"):
            told = job["progress"] or {}
            doing = f"waits for {job['waits_for']}" if job["waits_for"] else "restores"
            done = f"{_files(told.get('files_done'))}, {_size(told.get('bytes_done', 0))}" if told else ""
            show(doing, done, told.get("fraction", 0) if told else None)
            time.sleep(LOOK_S)
            job = server.ask("GET", path)
    return job


def snapshots(access: Access, repository: str, host: str | None, limit: int | None, output: str) -> None:
    """Show the snapshots in a repository, newest first."""
    items, truncated = _listed(Server(access), f"{_path(repository)}/snapshots", limit, host=host)
    if output == "json":
        say_json({"items": items, "truncated": truncated})
    elif not items:
        note("no snapshots" + (f" of {host}" if host else ""))
    else:
        rows = [
            [it["id"][:SHORT_ID], moment(it["time"]), it["host"], ", ".join(it["tags"]) or "-", ", ".join(it["paths"])]
            for it in items
        ]
        print_table(("SNAPSHOT", "TIME", "HOST", "TAGS", "PATHS"), rows, {})
    if truncated:
        remedy = "have a Schedule of kind forget leave fewer, or run restic there" if host else "give --host"
        _warn(f"there are more than can be listed, and only the newest are: {remedy}")


def files(access: Access, repository: str, snapshot: str, path: str, host: str | None, output: str) -> None:
    """Show what a folder of a snapshot holds."""
    where = f"{_path(repository)}/snapshots/{quote(snapshot, safe='')}/files"
    items, truncated = _listed(Server(access), where, None, host=host, path=path)
    if output == "json":
        say_json({"items": items, "truncated": truncated})
    elif not items:
        note(f"{path} is empty")
    else:
        print_table(("MODE", "OWNER", "SIZE", "MODIFIED", "PATH"), [_file(it) for it in items], {})
    if truncated:
        _warn("there is more than can be listed: name a folder in it")


def _file(item: Item) -> list[str]:
    mode = stat.filemode(_TYPES.get(item["type"], 0) | int(item["mode"], 8))
    size = _size(item["size"]) if item["type"] == "file" else "-"
    return [mode, f"{item['uid']}:{item['gid']}", size, moment(item["mtime"]), item["path"]]


def _listed(server: Server, where: str, limit: int | None, **query: object) -> tuple[Sequence[Item], bool]:
    """What a host lists, page by page, and whether that is not all there is."""
    found: list[Item] = []
    cursor = None
    while True:
        left = 500 if limit is None else min(500, limit - len(found))
        page = server.ask("GET", where, cursor=cursor, limit=left, **query)
        found += page["items"]
        cursor = page["next"]
        if cursor is None or len(found) == limit:
            return found, page["truncated"]


def _path(repository: str) -> str:
    namespace, _, name = full_name(repository).partition("/")
    return f"/repositories/{quote(namespace, safe='')}/{quote(name, safe='')}"


def _files(count: int | None) -> str:
    return f"{count or 0} file{'s' * (count != 1)}"


def _size(count: int | None) -> str:
    """Bytes in their largest unit, as restic writes them."""
    size, unit = float(count or 0), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"


def _warn(text: str) -> None:
    note(f"Warning: {text}")


def when(text: str) -> str:
    """A time that a person gave, with its zone; without one, it is this machine's. Raises click.BadParameter."""
    try:
        return datetime.fromisoformat(text).astimezone().isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time like 2026-03-29T02:00", param_hint="--before") from None
