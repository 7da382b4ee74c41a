"""Log lines read well for people and parse as JSON for machines, and no content can forge one."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from cli import logs

JOB = "6bb6fd3216ce44e985ea4b93168a203d"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged() -> Iterator[Callable[..., str]]:
    """What one log call writes, in a form; the logging of the tests is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in list(root.manager.loggerDict)}

    def write(
        form: str,
        message: str,
        level: int = logging.INFO,
        *,
        terminal: bool = False,
        name: str = "agent.core",
        **facts: Any,
    ) -> str:
        stream = Terminal() if terminal else io.StringIO()
        root.handlers[:] = []
        logs.setup(form, "info", stream)
        logging.getLogger(name).log(level, message, extra=facts)
        return stream.getvalue()

    yield write
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)


def test_a_line_says_when_which_part_what_and_its_facts(logged: Callable[..., str]) -> None:
    line = logged("text", "fire", schedule="default/etc", missed=2)
    assert line[8:] == " agent      fire  schedule=default/etc missed=2\n"


def test_what_is_not_routine_says_so(logged: Callable[..., str]) -> None:
    assert "server     error: host lost" in logged("text", "host lost", logging.ERROR, name="server.gateway.endpoint")


@pytest.mark.parametrize(
    "job", [JOB, f"{JOB}-fc9b79c969691087", "6bb6fd32-16ce-44e9-85ea-4b93168a203d-fc9b79c969691087"]
)
def test_people_see_the_first_digits_of_an_id_and_machines_all(logged: Callable[..., str], job: str) -> None:
    assert logged("text", "job", job=job).endswith("job=6bb6fd32\n")
    assert json.loads(logged("json", "job", job=job))["job"] == job


def test_people_see_local_times_and_machines_utc(logged: Callable[..., str]) -> None:
    at = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert f"due={at.astimezone():%Y-%m-%dT%H:%M:%S}\n" in logged("text", "fire", due=at)
    assert f"due={datetime.now(UTC).astimezone():%H:}" in logged("text", "fire", due=datetime.now(UTC))
    assert json.loads(logged("json", "fire", due=at))["due"] == "2020-01-02T03:04:05+00:00"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ("", '""'),
        ('a="b"', r'"a=\"b\""'),
        ("über", "über"),
        ("\x1b[31mred", r'"\u001b[31mred"'),
        ("a\nforged line", r'"a\nforged line"'),
        ("\x9b31m", r'"\u009b31m"'),
    ],
)
def test_a_fact_can_neither_be_taken_for_another_nor_command_a_terminal(
    logged: Callable[..., str], value: str, shown: str
) -> None:
    assert logged("text", "said", reason=value).endswith(f"reason={shown}\n")


def test_only_a_terminal_gets_colours(logged: Callable[..., str]) -> None:
    assert "\x1b[" not in logged("text", "fire")
    assert "\x1b[36magent" in logged("text", "fire", terminal=True)


def test_json_is_one_object_a_line_with_its_traceback_inside() -> None:
    error = ValueError("broken\nin two")
    record = logging.makeLogRecord({"msg": "failed", "exc_info": (ValueError, error, None)})
    line = logs.Json().format(record)
    assert "\n" not in line
    assert json.loads(line)["error"] == "ValueError: broken\nin two"
