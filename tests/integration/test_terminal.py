"""No text from a host, a manifest or a program can command a terminal or forge a line."""

import ast
import asyncio
import json
import logging
import os
import pty
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli import logs, terminal
from server.app import Config, Running, serving
from server.store.audit import record_audit
from server.store.engine import Store
from server.store.hosts import upsert_hosts
from server.store.jobs import jobs_finished, record_jobs
from server.store.logs import log_lines
from server.store.rows import AuditRow, HostRow, JobRow
from wire.messages import JobFinished

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")
NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
UNPRINTABLE = [c for c in map(chr, range(sys.maxunicode + 1)) if not c.isprintable() and not "\ud800" <= c <= "\udfff"]
STORED = "".join(c for c in UNPRINTABLE if "\0" < c <= "\uffff" or "\U000e0000" <= c <= "\U000e00ff")
"""All that is no letter and no sign in the plane that is in use, and the tags; PostgreSQL stores no NUL."""
ATTACKS = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b31m",
    "\x1bP+q\x1b\\",
    "a\rb",
    "a\nError: b",
    "\u202egpj",
    "\u2066",
    STORED,
]
JOB = "ab" + "0" * 30
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    """A server whose store holds, in each place for text of others, what a terminal must not get."""
    store = Store.open(tmp_path / "lamplighter.db")
    hosts = [HostRow(f"host{attack[:40]}", {"label": attack}, NOW, NOW, 0, "") for attack in ATTACKS]
    await asyncio.gather(*(store.write(upsert_hosts, host) for host in hosts))
    command = json.dumps({"job_id": JOB, "kind": "backup", "args": ["backup", STORED]})
    ids = [JOB, *(f"cd{number:030}" for number in range(len(ATTACKS)))]
    jobs = [
        JobRow(id_, attack[:40], "backup", "schedule", attack[:40], "s", NOW + timedelta(days=at), 0, command, NOW)
        for at, (id_, attack) in enumerate(zip(ids, [STORED, *ATTACKS], strict=True))
    ]
    await store.write(record_jobs, jobs)
    ends = [JobFinished(id_, "failed", NOW, NOW, 1, error=attack) for id_, attack in zip(ids[1:], ATTACKS, strict=True)]
    await store.write(jobs_finished, [JobFinished(JOB, "failed", NOW, NOW, 1, error=STORED), *ends])
    await store.write(log_lines, (JOB, NOW, ATTACKS))
    audit = [AuditRow(NOW, "agent", it[:40], "create", "Host", it[:40], {}) for it in ATTACKS]
    await asyncio.gather(*(store.write(record_audit, line) for line in audit))
    await store.close()
    async with serving(Config(tmp_path, port=0, keep_jobs_days=10_000)) as running:
        yield running


@pytest.fixture
def lamplighter(server: Running, tmp_path: Path) -> Callable[..., Awaitable[str]]:
    """Runs a command to its end, and answers what it wrote: on two pipes, or in a terminal."""
    here = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{server.port}", "LAMPLIGHTER_DATA_DIR": str(tmp_path)}

    async def run(*words: str, in_terminal: bool = False, **variables: str) -> str:
        env = os.environ | here | {"COLUMNS": "120", "TERM": "xterm"} | variables
        if not in_terminal:
            process = await asyncio.create_subprocess_exec(LAMPLIGHTER, *words, env=env, stdout=-1, stderr=-1)
            return b"".join(await process.communicate()).decode()
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(LAMPLIGHTER, *words, env=env, stdout=theirs, stderr=theirs)
        os.close(theirs)
        reading = asyncio.to_thread(read_all, ours)
        (shown, _) = await asyncio.gather(reading, process.wait())
        return shown.decode().replace("\r\n", "\n")

    return run


def read_all(descriptor: int) -> bytes:
    found = []
    try:
        while some := os.read(descriptor, 65536):
            found.append(some)
    except OSError:  # how the end of a terminal is told
        pass
    os.close(descriptor)
    return b"".join(found)


def unprintable(shown: str) -> set[str]:
    return {c for c in shown if not c.isprintable()} - {"\n", "\t"}


COMMANDS = [
    ("get", "hosts"),
    ("get", "jobs"),
    ("get", "audit"),
    ("logs", "ab"),
    ("get", "jobs", "-o", "json"),
    ("get", "jobs", "-o", "yaml"),
    ("get", "hosts", "-o", "wide"),
    ("get", "hosts", "-o", "name"),
    ("describe", "hosts"),
    ("describe", "job", "ab"),
    ("events",),
    ("logs", "\x1b[31m\n\u202e"),
    ("run", "x", "--host", "\x1b[31m\nError:"),
    ("get", "\x1b]0;x\x07"),
]


@pytest.mark.anyio
async def test_no_command_shows_what_could_command_a_terminal(lamplighter: Callable[..., Awaitable[str]]) -> None:
    piped = await asyncio.gather(*(lamplighter(*words) for words in COMMANDS))
    for words, shown in zip(COMMANDS, piped, strict=True):
        assert shown, words
        assert not unprintable(shown), words
    for words in COMMANDS[1:4]:
        shown = COLOUR.sub("", await lamplighter(*words, in_terminal=True))
        assert not unprintable(shown), words


@pytest.mark.anyio
async def test_a_row_stays_one_line_and_json_loses_nothing(lamplighter: Callable[..., Awaitable[str]]) -> None:
    shown = await lamplighter("get", "hosts")
    assert len(shown.splitlines()) == 1 + len(ATTACKS)
    found = json.loads(await lamplighter("get", "jobs", "-o", "json"))["items"]
    assert {job["error"] for job in found} == set(ATTACKS)
    assert yaml.safe_load(await lamplighter("get", "jobs", "-o", "yaml"))["items"] == found
    assert await lamplighter("logs", "\x1b[31m\nError: b") == (
        "Error: no job begins with \ufffd[31m\ufffdError: b: `lamplighter get jobs` lists them\n"
    )


@pytest.mark.anyio
async def test_a_terminal_gets_colours_unless_it_or_its_user_wants_none(
    lamplighter: Callable[..., Awaitable[str]],
) -> None:
    for variables, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)):
        shown = await lamplighter("get", "jobs", in_terminal=True, **variables)
        assert bool(COLOUR.search(shown)) == is_coloured, variables
    assert not COLOUR.search(await lamplighter("get", "jobs", in_terminal=True, TERM="dumb"))
    assert not COLOUR.search(await lamplighter("get", "jobs"))


@pytest.mark.anyio
async def test_a_table_fits_its_terminal_unless_it_is_to_be_wide(lamplighter: Callable[..., Awaitable[str]]) -> None:
    lines = COLOUR.sub("", await lamplighter("get", "hosts", in_terminal=True, COLUMNS="80")).splitlines()
    assert max(map(len, lines)) <= 80
    wide = COLOUR.sub("", await lamplighter("get", "hosts", "-o", "wide", in_terminal=True, COLUMNS="80")).splitlines()
    assert len(wide) == 1 + len(ATTACKS)
    assert max(map(len, wide)) > 80


@given(st.text(st.characters(exclude_categories=())))
def test_text_made_safe_is_printable_and_as_long_and_json_says_the_same(text: str) -> None:
    assert terminal.safe(text).isprintable()
    assert len(terminal.safe(text)) == len(text)
    assert text.isprintable() == (terminal.safe(text) == text or "\ufffd" in text)
    line = terminal.escaped(json.dumps({"text": text}, ensure_ascii=False))
    assert line.isprintable()
    assert json.loads(line) == {"text": text}


@pytest.mark.parametrize("form", [logs.Text(color=False), logs.Json()])
def test_logs_are_safe_whether_it_is_the_message_a_fact_or_a_traceback(form: logs.Text | logs.Json) -> None:
    everything = "".join(UNPRINTABLE)
    error = ValueError(everything)
    record = logging.makeLogRecord(
        {"name": "agent", "levelno": 20, "msg": everything, "exc_info": (ValueError, error, None), "fact": everything}
    )
    assert not unprintable(form.format(record))


def test_an_error_that_nobody_expected_is_told_safely(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.excepthook(ValueError, ValueError("".join(UNPRINTABLE)), None)
    shown = capsys.readouterr().err
    assert shown.startswith("ValueError: ")
    assert not unprintable(shown)


def test_nothing_else_writes_to_a_terminal() -> None:
    """The agent's small programs write to pipes that the agent reads, and to nothing else."""
    writers = {"echo", "secho", "print", "Console", "stdout", "stderr"}
    found = set()
    for part in ("cli", "controller", "cron", "listener", "server", "wire"):
        for path in Path(part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(node, "attr", getattr(node, "id", ""))
                if name in writers and isinstance(node, (ast.Attribute, ast.Name)):
                    found.add((str(path), name))
    assert {it for it in found if it[0] != "cli/terminal.py"} == {
        ("cli/cluster.py", "stdout"),  # these two are pipes from kubectl
        ("cli/cluster.py", "stderr"),
        ("cli/logs.py", "stderr"),  # where its formatters write
    }


@pytest.mark.parametrize("write", [terminal.say, terminal.write, terminal.say_json, terminal.say_yaml])
def test_output_that_cannot_be_written_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[str], None]
) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(click.ClickException, match="stdout cannot be written: No space left on device"):
            write("text")
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
