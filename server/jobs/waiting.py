"""What a job waits for, and what is wrong with one that runs, as text for users. Plain data in and out."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from server.fleet.expected import span
from server.jobs.kinds import time_limit
from server.store.queue import MAX_AHEAD, WINDOW_CLOSED, WaitRow
from wire.messages import CommandRun


def waits_for(job: Mapping[str, Any], wait: WaitRow, repository: str, now: datetime, source: str = "") -> str:
    """What a waiting job waits for. `repository`: NAMESPACE/NAME of its repository; `source`: of the copied one."""
    if job["attempt"] == 1 and job["start_by"] is not None and job["start_by"] <= now:
        return "its end: it is too late to begin"
    if job["deferred"] and (job["attempt"] == 1 or job["reason"] == WINDOW_CLOSED):
        stopped = "" if job["attempt"] == 1 else ": it was stopped at the end of the last one, and goes on then"
        return f"its window, which opens at {job['not_before']:%Y-%m-%dT%H:%M:%SZ}{stopped}"
    if job["deferred"]:
        return f"retry at {job['not_before']:%Y-%m-%dT%H:%M:%SZ}"
    if why := _closed(job, wait):
        return why
    if not job["ready"]:
        return f"the run before it on host {job['host']}"
    count = wait.ahead
    if not count and source:
        count, repository = wait.from_ahead, source
    many = f"more than {MAX_AHEAD}" if count > MAX_AHEAD else str(count)
    return f"{many} job{'s' * (count != 1)} before it in repository {repository}"


def _closed(job: Mapping[str, Any], wait: WaitRow) -> str:
    """What a job waits for whose host takes none now; empty for others."""
    if wait.is_drained:
        return f"host {job['host']}, which is drained, until it is undrained"
    if not wait.is_online:
        return f"host {job['host']} to connect"
    if wait.stops:
        return f"the agent of host {job['host']}, which stops, to start again"
    if wait.is_paused:
        return "its Schedule to be resumed, which is paused since it failed on too many hosts"
    return "" if job["gate"] is None else _held_at(job["gate"], job["host"])


def _held_at(gate: str, host: str) -> str:
    """What a job waits for that is held back at a gate."""
    if gate.startswith("rollout/"):
        return "other hosts to be done: its Schedule runs on as many at once as rollout.maxConcurrentHosts says"
    return f"a job of host {host} to end, which runs as many at once as it may"


def problem_of(job: Mapping[str, Any], now: datetime) -> str:
    """What is wrong with a running job; empty if nothing is."""
    if job["status"] != "running" or job["hangs_at"] is None or job["hangs_at"] >= now:
        return ""
    limit = span(time_limit(_command.decode(job["command"])))
    return f"runs for longer than its limit of {limit}: its agent may hang; cancel it, or restart the agent"


_command = msgspec.json.Decoder(CommandRun)
