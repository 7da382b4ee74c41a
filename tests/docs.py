"""What README and docs tell people to type, and a shell that types it: the tests of docs are made of these."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Self

from markdown_it import MarkdownIt

from cli.options import this_host

ROOT = Path(__file__).parents[1]
RUNBOOKS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/runbooks").glob("*.md"))
"""Their commands are for a fleet in trouble: tests/unit/test_runbooks.py checks them."""
PAGES = [name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).is_file()] + sorted(
    {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")} - set(RUNBOOKS)
)
"""By their paths in the checkout."""

PATIENCE_S = 180
"""What takes longer than this will not come."""


@dataclass(frozen=True)
class Block:
    """A block of a page: `language` is "" for one that is indented, or does not name its own."""

    page: str
    line: int
    language: str
    text: str


@dataclass
class Command:
    """What is typed, over several lines perhaps, and the lines that the page shows below it."""

    where: str
    text: str
    sample: list[str] = field(default_factory=list)


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """All of a page's, in order."""
    found = [it for it in MarkdownIt().parse((ROOT / page).read_text()) if it.type in ("fence", "code_block")]
    return tuple(Block(page, (it.map or [0])[0] + 1, it.info.strip(), it.content) for it in found)


def commands(block: Block) -> list[Command]:
    """What a console block has behind each `$ `, with the lines that continue it, and below it as its output."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            found.append(Command(f"{block.page}:{number}", line[2:]))
        elif found and not found[-1].sample and _goes_on(found[-1].text):
            found[-1].text += f"\n{line}"
        elif line and found:
            found[-1].sample.append(line)
        elif line:
            raise AssertionError(f"{block.page}:{number}: a command begins with '$ ', and this is below none: {line}")
    return found


def needs_cluster(block: Block) -> bool:
    """Whether it is about one: all of docs/kubernetes, and what else says kubectl or helm."""
    return block.page.startswith("docs/kubernetes/") or bool(
        re.search(r"^\$ (kubectl|helm) ", block.text, re.MULTILINE)
    )


def shape(line: str) -> str:
    """A line without what differs from run to run: times, ids, numbers, units and the values of `key=value`."""
    line = re.sub(r'=("[^"]*"|\S+)', "=", " ".join(line.split()))
    line = re.sub(r"\b[0-9a-f]{8}\b|\d[\d.,:]*", "0", line)
    line = re.sub(r"\b0 files\b", "0 file", line)
    return re.sub(r"\b[KMG]i?B\b", "B", line)


def check_sample(wanted: list[str], seen: list[str]) -> None:
    """Each line that is shown came, whatever the order. Of a table, its columns came, and a row like each shown."""
    if not wanted:
        return
    if all(it == it.upper() for it in cells(wanted[0])):
        assert seen, f"the page shows a table: {wanted[0]}, and nothing came"
        assert cells(seen[0]) == cells(wanted[0])
        missing = [line for line in wanted[1:] if row(line) not in [row(it) for it in seen[1:]]]
    else:
        missing = [line for line in wanted if shape(line) not in [shape(it) for it in seen]]
    assert not missing, "the page shows:\n" + "\n".join(missing) + "\nnot:\n" + "\n".join(seen)


def cells(line: str) -> list[str]:
    """What a line of a table holds."""
    return re.split(r"\s{2,}", line.strip())


def row(line: str) -> list[str]:
    """A row of a table, each cell without what differs from run to run: as `shape`, but a time stays one, and an id."""
    patterns = {
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d|\b\d\d:\d\d:\d\d\b": "TIME",
        r"\b(\d+[dhms]){1,2}\b": "SPAN",
        r"\b[0-9a-f]{8}\b": "ID",
        rf"\b{re.escape(this_host())}\b": "vm",  # as the pages call this machine
    }
    for pattern, kind in patterns.items():
        line = re.sub(pattern, kind, line)
    return [shape(cell) for cell in cells(line)]


def checkout(folder: Path) -> Path:
    """A copy of all that is tracked, as a clone has it, with the virtual environment of this checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    for name in listed.stdout.rstrip("\0").split("\0"):
        if os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
            # Older than the environment, so that make does not take that for one of other versions.
            os.utime(folder / name, (0, 0), follow_symlinks=False)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


def free_port() -> int:
    """One of this machine's that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Shell:
    """A bash in a folder, in which commands are typed one after the other, as a person does.

    `transcript` is all that they said. What was started in the background is ended with the shell.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.transcript = folder, ""
        self._background: list[tuple[int, Path]] = []
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],  # noqa: S607
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.run("shopt -s expand_aliases; set -m")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_background()
        self._kill()
        self._process.communicate()

    def run(self, command: str) -> tuple[int, list[str]]:
        """Its exit code and the lines that it wrote."""
        assert self._process.stdin is not None
        mark = f"--- {time.monotonic_ns()}"
        self._process.stdin.write(f"eval {shlex.quote(command)} </dev/null\nprintf '%s %s\\n' {shlex.quote(mark)} $?\n")
        self._process.stdin.flush()
        too_late = threading.Timer(PATIENCE_S, self._kill)
        too_late.start()
        try:
            lines, code = self._until(mark)
        finally:
            too_late.cancel()
        self.transcript += "".join(f"{line}\n" for line in lines)
        return code, lines

    def start(self, command: str, ready: str) -> list[str]:
        """Start it in the background, and wait for a line with this shape; the lines so far."""
        log = self.folder / f".log-{len(self.transcript)}-{len(self._background)}"
        code, lines = self.run(f"eval {shlex.quote(command)} >{shlex.quote(str(log))} 2>&1 & echo $!")
        assert code == 0, lines
        self._background.append((int(lines[-1]), log))
        deadline = time.monotonic() + PATIENCE_S
        while True:
            said = log.read_text() if log.exists() else ""
            if any(shape(ready) in shape(line) for line in said.splitlines()):
                return said.splitlines()
            alive = self.run(f"kill -0 {lines[-1]}")[0] == 0
            assert alive, f"it ended:\n{said}"
            assert time.monotonic() < deadline, f"no line like {ready!r} within {PATIENCE_S} s:\n{said}"
            time.sleep(0.05)

    def end_background(self) -> None:
        """End what runs in the background, as Ctrl-C does, the last first."""
        while self._background:
            pid, _ = self._background.pop()
            self.run(f"kill -TERM -- -{pid}; wait {pid}")

    def logs(self) -> str:
        """What runs in the background has said."""
        return "\n".join(log.read_text() for _, log in self._background)

    def _kill(self) -> None:
        """End all that was started here. Each command is a process group of its own, and all are in one session."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it ended meanwhile
                if path.read_text().rpartition(")")[2].split()[3] == str(self._process.pid):  # proc(5), session
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def _until(self, mark: str) -> tuple[list[str], int]:
        lines: list[str] = []
        for line in self._lines():
            before, found, code = line.partition(mark)
            if found:
                return [*lines, *([before] if before else [])], int(code)
            lines.append(line)
        raise AssertionError("the shell ended, or this took too long:\n" + "\n".join(lines))

    def _lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.rstrip("\n")


def _goes_on(text: str) -> bool:
    if text.endswith("\\"):
        return True
    try:
        shlex.split(text, comments=True)
    except ValueError:  # a quotation that is open
        return True
    return False
