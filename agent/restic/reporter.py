"""Sends a running job's progress and log to the server, limited in rate and size."""

import asyncio
import logging
from collections.abc import Callable

from agent.restic.output import Status
from wire.messages import JobCounted, JobLog, JobProgress, JobReport

log = logging.getLogger(__name__)

MAX_LOG_LINES = 5000
MAX_LOG_BYTES = 1 << 20
"""Limits on the log of one job. A last line says how many lines were left out."""
MAX_LISTED_LINES = 10_000
MAX_LISTED_BYTES = 4 << 20
"""The same limits for a job that lists snapshots or files: its log is the answer."""
BATCH_LINES = 500
BATCH_BYTES = 1 << 17
"""Limits on one JobLog, far below a frame's limit."""

Report = Callable[[JobReport], None]


class Reporter:
    """Reports a job's latest progress and new lines: at once, then at most every `interval_s` seconds."""

    def __init__(self, job_id: str, report: Report, interval_s: float) -> None:
        self._job_id = job_id
        self._report = report
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._progress: JobProgress | None = None
        self._lines: list[str] = []
        self._size = 0
        self._reported_lines = self._reported_bytes = self._left_out = 0
        self._max_lines, self._max_bytes = MAX_LOG_LINES, MAX_LOG_BYTES
        self._tenth = -1

    def allow_listing(self) -> None:
        """Allow a log of MAX_LISTED_LINES and MAX_LISTED_BYTES."""
        self._max_lines, self._max_bytes = MAX_LISTED_LINES, MAX_LISTED_BYTES

    def progress(self, status: Status) -> None:
        """Report this progress with the next report, unless newer progress replaces it."""
        self._progress = JobProgress(
            self._job_id,
            status.fraction,
            status.files_done,
            status.files_total,
            status.bytes_done,
            status.bytes_total,
        )
        self._schedule()

    def log(self, line: str) -> None:
        """Report this line of the log with the next report."""
        size = len(line.encode())
        full = self._reported_lines >= self._max_lines or self._reported_bytes + size > self._max_bytes
        if full or self._left_out:  # so that no shorter line follows a line that was left out
            self._left_out += 1
            return
        self._reported_lines += 1
        self._reported_bytes += size
        if len(self._lines) >= BATCH_LINES or self._size + size > BATCH_BYTES:
            self._flush_lines()
        self._lines.append(line)
        self._size += size
        self._schedule()

    def counted(self, counted: JobCounted) -> None:
        """Report at once what snapshots are in the repository."""
        self._report(counted)

    def close(self) -> None:
        """Report what is waiting, and how many lines were left out."""
        if self._left_out:
            self._lines.append(f"… {self._left_out} more lines are left out")
        self._flush()

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(self._next, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next = self._loop.time() + self._interval_s
        if self._progress is not None:
            self._report(self._progress)
            self._log_tenth(self._progress)
            self._progress = None
        self._flush_lines()

    def _log_tenth(self, progress: JobProgress) -> None:
        if (tenth := int(10 * progress.fraction)) != self._tenth:  # a line for each report would fill the log
            self._tenth = tenth
            facts = {"percent": round(100 * progress.fraction), "files": progress.files_done}
            log.info("progress", extra={"job": self._job_id, **facts, "bytes": progress.bytes_done})

    def _flush_lines(self) -> None:
        if self._lines:
            self._report(JobLog(self._job_id, self._lines))
            self._lines, self._size = [], 0
