"""The versions of restic that tests run: the one on PATH, and those that LAMPLIGHTER_TEST_RESTICS names.

LAMPLIGHTER_TEST_RESTICS holds paths of programs, with colons between, such as /opt/restic-0.19.1:/opt/restic-0.17.3.
"""

import os
import re
import subprocess
from functools import cache
from typing import NamedTuple

WHICH = "LAMPLIGHTER_TEST_RESTICS"


class Program(NamedTuple):
    """A restic. `version`: its number, such as (0, 18, 0)."""

    path: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


@cache
def programs() -> tuple[Program, ...]:
    """The programs there are, the oldest first."""
    paths = dict.fromkeys(["/usr/bin/restic", *filter(None, os.environ.get(WHICH, "").split(":"))])
    return tuple(sorted(map(_program, paths), key=lambda it: it.version))


def _program(path: str) -> Program:
    said = subprocess.run([path, "version"], check=True, capture_output=True, text=True).stdout
    found = re.match(r"restic ([\d.]+)", said)
    assert found, said
    return Program(path, tuple(map(int, found[1].split("."))))
