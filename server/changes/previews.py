"""Previews of Restores: what one would write, and where, from the list of the files in the snapshot.

Whether files exist at the target is not looked at: without `overwrite`, a restore refuses a target that is not empty.
"""

import posixpath
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from msgspec import Struct

from server.changes.listings import File, Listings, Question, Snapshot
from server.changes.restores import Restores
from server.errors import NotFound
from server.resources import manifests
from server.resources.specs import RestoreSpec
from server.store.tables import Actor


class Written(Struct, frozen=True):
    """A file, folder or other node of a snapshot, and the path at which a restore writes it."""

    path: str
    to: str
    type: str
    size: int
    mtime: str


class RestorePreview(Struct, frozen=True):
    """What a restore would write.

    `snapshot`: the id of the snapshot. `host`: where it writes, below `target`. `files`, `folders`, `others`, `bytes`:
    how many there are; at least that many if `truncated`, when the list was cut. `items`: the first of them, by path.
    """

    snapshot: str
    host: str
    target: str
    files: int
    folders: int
    others: int
    bytes: int
    items: list[Written]
    truncated: bool


class Previews:
    """Answers what Restores would write."""

    def __init__(self, restores: Restores, listings: Listings) -> None:
        self._restores = restores
        self._listings = listings

    async def preview(self, actor: Actor, namespace: str, manifest: Mapping[str, Any], limit: int) -> RestorePreview:
        """What a Restore would write, with its first `limit` paths. It is checked as one that is asked for.

        Raises what `Restores.restore` and `Listings.page` raise, and NotFound if the snapshot lacks a path.
        """
        spec = manifests.parse_restore(manifest)
        _, host, _ = self._restores.check(namespace, spec)
        question = Question(namespace, spec.repository_ref.name, spec.source_host)
        snapshot = spec.snapshot
        if snapshot == "latest":
            found = await self._listings.whole(actor, question)
            snapshot = _latest([it for it in found.items if isinstance(it, Snapshot)], spec)
        below = tuple(posixpath.normpath(path) for path in spec.paths)
        listing = await self._listings.whole(actor, question._replace(snapshot=snapshot, below=below))
        files = [it for it in listing.items if isinstance(it, File)]
        there = {it.path for it in files}
        if not listing.truncated and (missing := [path for path in below if path != "/" and path not in there]):
            raise NotFound(f"snapshot {snapshot[:8]} does not hold {', '.join(missing[:5])}: list its files")
        return _preview(snapshot, host, spec.target, files, limit, truncated=listing.truncated)


def _latest(snapshots: Sequence[Snapshot], spec: RestoreSpec) -> str:
    """The id of the snapshot that the agent would take: the newest that may hold the paths. Raises NotFound."""
    for it in snapshots:
        holds = all(any(_lies_in(path, root) or _lies_in(root, path) for root in it.paths) for path in spec.paths)
        if holds and (spec.before is None or it.time <= spec.before):
            return it.id
    raise NotFound(f"no snapshot of {spec.source_host} matches: list the snapshots, and choose one of them")


def _lies_in(path: str, root: str) -> bool:
    path, root = posixpath.normpath(path), posixpath.normpath(root)
    return path == root or path.startswith(root.rstrip("/") + "/")


def _preview(
    snapshot: str, host: str, target: str, files: Sequence[File], limit: int, *, truncated: bool
) -> RestorePreview:
    items = [
        Written(it.path, posixpath.join(target, it.path.lstrip("/")), it.type, it.size, it.mtime)
        for it in islice(files, limit)
    ]
    count = {kind: sum(it.type == kind for it in files) for kind in ("file", "dir")}
    others = len(files) - sum(count.values())
    size = sum(it.size for it in files if it.type == "file")
    return RestorePreview(snapshot, host, target, count["file"], count["dir"], others, size, items, truncated)
