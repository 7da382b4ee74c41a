"""What one restic process printed: reported to the server as it arrives, and kept as far as the outcome needs it."""

from collections import deque
from collections.abc import Callable, Collection

from agent.restic.outcome import NAMED_PATHS
from agent.restic.output import (
    LogLine,
    Status,
    Summary,
    Unreadable,
    clipped,
    count_of_errors,
    is_left_out,
    read_line,
    remaining_bytes,
)
from agent.restic.reporter import Reporter

MAX_TAIL = 50
"""Lines of stderr, the last ones, that are kept to say why restic failed."""


class Transcript:
    """What one restic process printed.

    `answer` and `expected`: see `Job.restic`. `all_expected`: whether restic failed only on what was left out on
    purpose. `stderr`: its last lines, without the repository's secrets. `heard`: these lines with them, to tell what is
    wrong and never shown: a secret may be a word of restic's own. `unreadable`: the number of paths that were not read;
    `paths`: the first of them. `capabilities`: files whose capabilities were left out. `remaining`: the bytes that a
    prune left. `holds_fatal`: whether lines of
    stderr from the first fatal error on, with which restic ends, are only reported once `release` is called.
    """

    def __init__(
        self,
        reporter: Reporter,
        redact: Callable[[str], str],
        answer: Callable[[bytes], None] | None,
        expected: Collection[str] | None,
        *,
        holds_fatal: bool = False,
    ) -> None:
        self._held: deque[str] = deque(maxlen=MAX_TAIL)
        self._holds_fatal = holds_fatal
        self._reporter = reporter
        self._redact = redact
        self._answer = answer
        self._expected = expected
        self._left_out = self.capabilities = 0
        self.all_expected = False
        self.stderr: deque[str] = deque(maxlen=MAX_TAIL)
        self.heard: deque[str] = deque(maxlen=MAX_TAIL)
        self.summary: Summary | None = None
        self.remaining: int | None = None
        self.unreadable = 0
        self.paths: list[str] = []

    def take(self, fd: int, line: bytes) -> None:
        """A line arrived on stdout (1) or stderr (2)."""
        if fd == 1 and self._answer is not None:
            self._answer(line)
            return
        if self._expected is not None and is_left_out(line, self._expected):
            self._left_out += 1
            self.capabilities += b"security.capability" in line
            return
        if (
            self._left_out and count_of_errors(line) == self._left_out
        ):  # restic counts only what was left out on purpose
            self.all_expected = True
            return
        match read_line(line):
            case Status() as status:
                self._reporter.progress(status)
            case Summary() as summary:
                self.summary = summary
            case (Unreadable(text) | LogLine(text)) as said:
                if isinstance(said, Unreadable):
                    self.unreadable += 1
                    if len(self.paths) < NAMED_PATHS:
                        self.paths.append(self._redact(said.path))
                if fd == 1 and (left := remaining_bytes(text)) is not None:
                    self.remaining = left
                if fd == 2:
                    self.heard.extend(map(clipped, text.splitlines()))
                for part in map(clipped, self._redact(text).splitlines()):
                    self._report(fd, part)

    def _report(self, fd: int, line: str) -> None:
        if fd == 2:
            self.stderr.append(line)
        if fd == 2 and self._holds_fatal and (self._held or line.startswith("Fatal:")):
            self._held.append(line)
        else:
            self._reporter.log(line)

    def release(self) -> None:
        """Report the lines that were held."""
        self._holds_fatal = False
        while self._held:
            self._reporter.log(self._held.popleft())
