"""Makes a server follow a folder: reads the files, and corrects what differs at the server.

`follow_folder` repeats that whenever a file changes, and at regular intervals.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from controller.client import Client, ControllerError, Refused, Unreachable
from controller.folder.declarations import File, Reading, read
from controller.folder.dedup_logger import DedupLogger, LogEvent
from controller.folder.files import FolderError, notice, read_texts
from controller.folder.metrics import FolderMetrics
from controller.folder.problems import (
    failing,
    file_events,
    file_subject,
    log_facts,
    newline_events,
    refusals,
    reported,
    resource_subject,
)
from controller.reconcile import Delete, Outcome, Put, Reconciler, Withheld, observe
from controller.resources import FOLDER_PLURALS

log = logging.getLogger(__name__)

OWNER = "lamplighter-folder"
CONFIRMATION = "allow-empty"
"""The file in a folder that confirms the deletion of most of the resources."""
MAX_NAMED = 5
"""The most resources that a message names."""
RESYNC_S = 60.0
"""Seconds between full comparisons, even if no file has changed."""
RETRY_S, MAX_RETRY_S = 0.5, 30.0
"""Seconds before an unreachable server is tried again: the first time, and at most."""


async def follow_folder(
    folder: Path,
    client: Client,
    *,
    owner: str = OWNER,
    resync_s: float = RESYNC_S,
    allow_empty: bool = False,
    metrics: FolderMetrics | None = None,
) -> None:
    """Make a server follow a folder until cancelled.

    It compares when a file changes, every `resync_s` seconds, and, with a growing pause, while the server cannot be
    reached or a comparison fails. `allow_empty`: see FolderFollower.
    """
    changed = asyncio.Event()
    follower = FolderFollower(folder, client, owner, allow_empty=allow_empty, metrics=metrics)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(notice(folder, changed, RESYNC_S), name="notice files")
        await asyncio.sleep(0)  # start watching before files are read
        retry_s = RETRY_S
        while True:
            changed.clear()
            reached = await _compared(follower)
            pause_s, retry_s = (resync_s, RETRY_S) if reached else (retry_s, min(2 * retry_s, MAX_RETRY_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await changed.wait()


async def _compared(follower: "FolderFollower") -> bool:
    """Compare once; whether it succeeded. An exception is logged, so that the next comparison takes place."""
    try:
        return await follower.compare()
    except Exception:
        log.exception("comparison failed, trying again")
        return False


class FolderFollower:
    """Compares a folder with a server, corrects the server, and logs the results.

    If the folder declares less than half of what the server has from it, nothing is deleted until `allow_empty`, or a
    file CONFIRMATION in the folder, confirms that: its volume may not be mounted.
    """

    def __init__(
        self,
        folder: Path,
        client: Client,
        owner: str,
        *,
        allow_empty: bool = False,
        metrics: FolderMetrics | None = None,
    ) -> None:
        self._folder = folder
        self._client = client
        self._owner = owner
        self._metrics = metrics or FolderMetrics()
        self._allow_empty = allow_empty
        self._reconciler = Reconciler(client, owner, FOLDER_PLURALS)
        self._files: Mapping[Path, File] = {}
        self._problems = DedupLogger()
        self._count: tuple[int, ...] = ()

    async def compare(self) -> bool:
        """Read the folder, correct the server, and report problems to it. Returns whether the server was reached."""
        reached = await self._compare()
        problems = self._problems.errors()
        self._metrics.compared(reached, [it.reason for it in problems])
        if reached:
            try:
                await self._client.report(self._owner, reported(problems))
            except ControllerError as error:  # the next comparison reports it again
                log.debug("state not reported", extra={"detail": error})
        return reached

    async def _compare(self) -> bool:
        try:
            texts = await asyncio.to_thread(read_texts, self._folder)
            confirmed = self._allow_empty or await asyncio.to_thread(os.path.exists, self._folder / CONFIRMATION)
        except FolderError as error:
            self._problems.log("folder", [failing(logging.ERROR, "folder not read", error, "folder read again")])
            return True
        self._problems.log("folder", [])
        reading = await asyncio.to_thread(read, texts, self._files)
        self._files = reading.files
        self._problems.log("secrets", newline_events(reading))
        self._problems.log("files", file_events(reading), {file_subject(str(path)) for path in reading.files})
        try:
            outcomes = await self._reconciler.reconcile(reading.declared._replace(may_delete_most=confirmed))
        except Unreachable as error:
            return self._unreachable(error)
        except Refused as error:
            refused = failing(
                logging.ERROR, "server refuses the controller", error, "server accepts the controller now"
            )
            self._problems.log("server", [refused])
            return False
        for outcome in outcomes:
            _log_done(outcome)
        self._warn_of_withheld(outcomes)
        self._problems.log(
            "refused", refusals(outcomes, reading), {resource_subject(key) for key in reading.declared.resources}
        )
        lost = next((it.error for it in outcomes if isinstance(it.error, Unreachable)), None)
        if lost is not None:
            return self._unreachable(lost)
        self._problems.log("server", [])
        self._sum_up(reading)
        return True

    def _warn_of_withheld(self, outcomes: Sequence[Outcome]) -> None:
        """Log, at each comparison, the deletions that are withheld because they are too many."""
        kept = [(it.change.key, it.error.owned) for it in outcomes if isinstance(it.error, Withheld)]
        if kept:
            detail = (
                f"{len(kept)} of {kept[0][1]} resources that the server has from {self._folder} are no longer declared "
                f"there: is it mounted? They stay in force. To delete them, give --allow-empty, or create a file "
                f"{CONFIRMATION} in the folder"
            )
            named = ", ".join(f"{key.kind} {key}" for key, _ in kept[:MAX_NAMED])
            facts = log_facts(folder=self._folder, detail=detail, first=named)
            self._problems.log("withheld", [])  # so that it is logged again
            self._problems.log("withheld", [LogEvent(logging.ERROR, "deleting nothing", facts)])
        else:
            self._problems.log("withheld", [])

    def _unreachable(self, error: Unreachable) -> bool:
        event = failing(logging.WARNING, "server not reached, trying again", error, "server reached again")
        self._problems.log("server", [event])
        return False

    def _sum_up(self, reading: Reading) -> None:
        """Log how much is declared, if that has changed."""
        kinds = [key.kind for key in reading.declared.resources]
        count = (kinds.count("Schedule"), kinds.count("Repository"), kinds.count("Alert"), len(reading.files))
        if count != self._count:
            schedules, repositories, alerts, files = count
            facts = {"folder": self._folder, "files": files, "schedules": schedules, "repositories": repositories}
            log.info("folder compared", extra=facts | ({"alerts": alerts} if alerts else {}))
        self._count = count


def _log_done(outcome: Outcome) -> None:
    """Log, at level debug, what was accepted, changed or deleted. The server logs it at level info."""
    if outcome.error is not None:
        return
    change, answer = outcome.change, outcome.answer or {}
    key = change.key
    what = key.kind.lower()
    facts: dict[str, object] = {what: str(key)}
    if isinstance(change, Delete):
        log.debug("%s deleted", what, extra=facts)
    elif outcome.was is None or observe(answer) != outcome.was:
        log.debug("%s %s", what, "accepted" if outcome.was is None else "changed", extra=facts | _about(change, answer))


def _about(change: Put, answer: Mapping[str, Any]) -> dict[str, object]:
    """Facts about an accepted Schedule for the log: its cron, and its next due time."""
    if change.key.kind != "Schedule":
        return {}
    spec = answer["spec"]
    due = answer.get("status", {}).get("nextScheduleTime")
    crons = spec.get("cron") or "; ".join(spec["crons"])
    return {"cron": crons, "next": datetime.fromisoformat(due) if due else "never"}
