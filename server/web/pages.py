"""The table of pages: what is at which path."""

from collections.abc import Sequence
from typing import NamedTuple

from server.web import hosts, jobs, overview, repositories, schedules, snapshots, trails
from server.web.page import Handler


class PageRoute(NamedTuple):
    """A page. `path`: as Starlette writes it; its parts are in `Page.path`."""

    method: str
    path: str
    handler: Handler


_SNAPSHOTS, _SNAPSHOT = "/snapshots/{namespace}/{name}", "/snapshots/{namespace}/{name}/{snapshot}"

PAGES: Sequence[PageRoute] = (
    PageRoute("GET", "/", overview.show_overview),
    PageRoute("GET", "/fleet", overview.show_fleet),
    PageRoute("GET", "/hosts/{name}", hosts.show_host),
    PageRoute("GET", "/schedules/{namespace}/{name}", schedules.show_schedule),
    PageRoute("POST", "/schedules/{namespace}/{name}/run", schedules.run_schedule),
    PageRoute("POST", "/schedules/{namespace}/{name}/resume", schedules.resume_schedule),
    PageRoute("GET", "/jobs", jobs.show_jobs),
    PageRoute("GET", "/jobs/{id}", jobs.show_job),
    PageRoute("GET", "/jobs/{id}/log", jobs.show_log),
    PageRoute("POST", "/jobs/{id}/cancel", jobs.cancel_job),
    PageRoute("POST", "/jobs/{id}/again", jobs.run_again),
    PageRoute("GET", "/repositories/{namespace}/{name}", repositories.show_repository),
    PageRoute("GET", _SNAPSHOTS, snapshots.show_snapshots),
    PageRoute("GET", _SNAPSHOT, snapshots.show_snapshot),
    PageRoute("POST", f"{_SNAPSHOT}/preview", snapshots.preview_restore),
    PageRoute("POST", f"{_SNAPSHOT}/restore", snapshots.restore),
    PageRoute("GET", "/audit", trails.show_audit),
    PageRoute("GET", "/problems", trails.show_problems),
)
