"""The pages of snapshots: their list, the files of one, files found by name; and restores, with a preview.

A host reads the repository for each of these pages, so that they are not live.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from server.errors import Invalid
from server.web.asking import if_allowed
from server.web.page import Page
from server.web.templates import url

LIMIT = "100"
"""How many snapshots or files are on a page."""
SHOWN = "200"
"""How many paths of a preview are shown."""
MAX_PATHS = 256
"""Maximum paths of a restore."""


async def show_snapshots(page: Page) -> Response:
    """Show the snapshots in a repository, of one host or of all."""
    here, host = _repository(page), page.query.get("host", "")
    repository = await page.get(*here)
    per_host = "{host}" in repository["spec"]["url"]
    found = None
    if host or not per_host:
        found = await page.get(*here, "snapshots", host=host, limit=LIMIT, cursor=page.query.get("cursor"))
    hosts = await if_allowed(page.get("hosts", limit="500"))
    values = {"repository": repository, "per_host": per_host, "found": found, "hosts": hosts, "host": host}
    return page.show("snapshots.html", **values, query=page.query)


async def show_snapshot(page: Page) -> Response:
    """Show a folder of a snapshot, or the files in it with a name."""
    here, snapshot, query = _repository(page), page.path["snapshot"], page.query
    asked = {"host": query.get("host"), "limit": LIMIT, "cursor": query.get("cursor")}
    name, path = query.get("name", "").strip(), query.get("path") or "/"
    if name:
        files = await page.get(*here, "snapshots", snapshot, "find", name=name, **asked)
    else:
        files = await page.get(*here, "snapshots", snapshot, "files", path=path, **asked)
    hosts = await if_allowed(page.get("hosts", limit="500"))
    values = {"snapshot": snapshot, "files": files, "path": path, "name": name, "above": _above(path), "hosts": hosts}
    return page.show("snapshot.html", **values, host=query.get("host", ""), query=query)


def _above(path: str) -> list[tuple[str, str]]:
    """The folders above a path and the path itself, from the root on: (name, path)."""
    parts = [it for it in path.split("/") if it]
    return [("/", "/"), *((part, "/" + "/".join(parts[: at + 1])) for at, part in enumerate(parts))]


async def preview_restore(page: Page) -> Response:
    """Show what a restore would write, and the form that asks for it."""
    spec = _spec(page)
    id_ = secrets.token_hex(16)
    namespace = page.path["namespace"]
    preview = await page.send("POST", "restores", namespace, id_, "preview", body={"spec": spec}, limit=SHOWN)
    spec = {**spec, "snapshot": preview["snapshot"]}
    back = url("snapshots", namespace, page.path["name"], page.path["snapshot"], host=spec["sourceHost"])
    return page.show("restore.html", id=id_, spec=spec, preview=preview, back=back)


async def restore(page: Page) -> Response:
    """Ask for a restore, and show its job. The same form again is the same restore."""
    id_ = page.form.get("id", "")
    job = await page.send("PUT", "restores", page.path["namespace"], id_, body={"spec": _spec(page)})
    return page.see("jobs", job["id"])


def _repository(page: Page) -> tuple[str, str, str]:
    return "repositories", page.path["namespace"], page.path["name"]


def _spec(page: Page) -> Mapping[str, Any]:
    """The spec of the restore that a form describes. Raises Invalid."""
    form = page.form
    paths = [path for path in form.getlist("path") if path]
    if len(paths) > MAX_PATHS:
        raise Invalid.field("paths", f"choose at most {MAX_PATHS} paths, or the folder that holds them")
    spec: dict[str, Any] = {
        "repositoryRef": {"name": page.path["name"]},
        "sourceHost": form.get("source", "").strip(),
        "snapshot": page.path["snapshot"],
        "target": form.get("target", "").strip(),
        "overwrite": form.get("overwrite") == "yes",
    }
    given = {"host": form.get("host", "").strip(), "paths": paths}
    return spec | {name: value for name, value in given.items() if value}
