"""Carries out `restore`, `snapshots` and `ls`."""

import stat
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import click

from cli.client import Client, Item
from cli.jobs import files
from cli.logs import SHORT_ID
from cli.options import Access
from cli.rows import HELD_BY_HOST, held_by_host, moment, size
from cli.terminal import bars, note, print_table, say, say_json, say_yaml
from cli.types import full_name

POLL_S = 0.3
"""Seconds between two requests for a running restore's job."""
_TYPES = {"dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "file": stat.S_IFREG, "fifo": stat.S_IFIFO}
_TYPES |= {"dev": stat.S_IFBLK, "chardev": stat.S_IFCHR, "socket": stat.S_IFSOCK}


def restore(access: Access, repository: str, spec: Mapping[str, Any]) -> None:
    """Restore what `spec` says (a Restore's), and wait for its end. Raises click.ClickException when it failed."""
    client = Client(access)
    namespace, _, name = full_name(repository, access.namespace or "default").partition("/")
    path = f"/restores/{quote(namespace, safe='')}/{uuid.uuid4().hex}"
    job = client.request("PUT", path, body={"spec": {"repositoryRef": {"name": name}, **spec}})
    short = job["id"][:SHORT_ID]
    try:
        job = _followed(client, path, job)
    except KeyboardInterrupt:
        note(f"the restore goes on as job {short}: `lamplighter cancel {short}` ends it")
        raise
    if job["status"] not in ("succeeded", "warning"):
        raise click.ClickException(f"job {short} on {job['host']} {job['status']}: {job['error'] or 'see its log'}")
    if job["status"] == "warning":
        _warn(job["error"] or "not all of it was restored: see its log")
    snapshot, done = job["snapshot_id"][:SHORT_ID], f"{files(job['files_processed'])}, {size(job['bytes_processed'])}"
    where = f"{spec['target']} on {job['host']}"
    say(f"restored snapshot {snapshot} of {spec['sourceHost']} below {where}: {done}")


def _followed(client: Client, path: str, job: Item) -> Item:
    """Wait for a restore's job to end and return it. In a terminal, show its progress until then."""
    with bars() as shown:
        while job["status"] in ("pending", "running"):
            reported = job["progress"] or {}
            doing = f"waits for {job['waits_for']}" if job["waits_for"] else "restoring"
            done = f"{files(reported.get('files_done'))}, {size(reported.get('bytes_done'))}" if reported else ""
            shown.show("", doing, done, reported.get("fraction", 0) if reported else None)
            time.sleep(POLL_S)
            job = client.request("GET", path)
    return job


def snapshots(access: Access, repository: str, host: str | None, limit: int | None, output: str) -> None:
    """Show the snapshots in a repository, newest first."""
    items, truncated = _listed(Client(access), f"{_path(access, repository)}/snapshots", limit, host=host)
    if output in ("json", "yaml"):
        (say_json if output == "json" else say_yaml)({"items": items, "truncated": truncated})
    elif not items:
        note("no snapshots" + (f" of {host}" if host else ""))
    else:
        rows = [
            [it["id"][:SHORT_ID], moment(it["time"]), it["host"], ", ".join(it["tags"]) or "-", ", ".join(it["paths"])]
            for it in items
        ]
        print_table(("SNAPSHOT", "TIME", "HOST", "TAGS", "PATHS"), rows, {})
    if truncated:
        remedy = "keep fewer, with a Schedule of kind forget, or list them with restic" if host else "give --host"
        _warn(f"the repository holds more snapshots than can be listed, these are the newest: {remedy}")


def by_host(access: Access, repository: str, host: str | None, limit: int | None, output: str) -> None:
    """Show how many snapshots each host has in a repository, by name, as the server knows it."""
    items = list(Client(access).items(f"{_path(access, repository)}/hosts", limit, host=host))
    if output in ("json", "yaml"):
        (say_json if output == "json" else say_yaml)({"items": items})
    elif not items:
        note("no snapshots are known" + (f" of {host}" if host else ""))
    else:
        print_table(HELD_BY_HOST, [held_by_host(it) for it in items], {})


def folder(access: Access, repository: str, snapshot: str, path: str, host: str | None, output: str) -> None:
    """Show the files in a folder of a snapshot."""
    where = f"{_path(access, repository)}/snapshots/{quote(snapshot, safe='')}/files"
    items, truncated = _listed(Client(access), where, None, host=host, path=path)
    if output in ("json", "yaml"):
        (say_json if output == "json" else say_yaml)({"items": items, "truncated": truncated})
    elif not items:
        note(f"{path} is empty")
    else:
        rows = []
        for it in items:
            mode = stat.filemode(_TYPES.get(it["type"], 0) | int(it["mode"], 8))
            bytes_ = size(it["size"]) if it["type"] == "file" else "-"
            rows.append([mode, f"{it['uid']}:{it['gid']}", bytes_, moment(it["mtime"]), it["path"]])
        print_table(("MODE", "OWNER", "SIZE", "MODIFIED", "PATH"), rows, {})
    if truncated:
        _warn(f"{path} holds more files than can be listed: name a folder below it")


def _listed(client: Client, where: str, limit: int | None, **query: object) -> tuple[Sequence[Item], bool]:
    """All items of a list that a host made, and whether the host left some out."""
    found: list[Item] = []
    cursor = None
    with bars() as shown:
        while True:
            shown.show("", "a host reads the repository")
            left = 500 if limit is None else min(500, limit - len(found))
            page = client.request("GET", where, cursor=cursor, limit=left, **query)
            found += page["items"]
            cursor = page["next"]
            if cursor is None or len(found) == limit:
                return found, page["truncated"]


def _path(access: Access, repository: str) -> str:
    namespace, _, name = full_name(repository, access.namespace or "default").partition("/")
    return f"/repositories/{quote(namespace, safe='')}/{quote(name, safe='')}"


def _warn(text: str) -> None:
    note(f"Warning: {text}")


def when(text: str) -> str:
    """A time as RFC 3339; without a zone it is in this machine's. Raises click.BadParameter."""
    try:
        return datetime.fromisoformat(text).astimezone().isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a time such as 2026-03-29T02:00", param_hint="--before") from None
