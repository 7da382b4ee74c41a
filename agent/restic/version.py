"""Which version of restic this host has, for the agent's hello."""

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from agent.restic import process
from agent.sandbox.confine import Launch

ANSWER_S = 10.0
"""Seconds in which restic must tell its version: a program that hangs must not keep the agent from connecting."""
_VERSION = re.compile(rb"restic (\d{1,9}(?:\.\d{1,9}){1,3})")


class Installed:
    """The restic of this host. `program`: a name on PATH, or a path. `env`: the agent's environment."""

    def __init__(self, program: str, env: Mapping[str, str] | None = None) -> None:
        self._program = program
        self._env = os.environ if env is None else env
        self._seen: tuple[str, int, int, int] | None = None
        self._version = ""

    async def version(self) -> str:
        """The version, such as 0.18.0; empty where no restic runs. restic is asked once for each file in its place."""
        path = shutil.which(self._program, path=self._env.get("PATH"))
        seen = None if path is None else _identity(path)
        if path is None or seen is None:
            return ""
        if seen != self._seen or not self._version:
            self._seen, self._version = seen, await self._ask(path)
        return self._version

    async def _ask(self, path: str) -> str:
        """The version that a program tells; empty when it tells none."""
        said: list[bytes] = []
        env = {name: self._env[name] for name in ("PATH", "HOME") if name in self._env}
        argv = process.launched(Launch(), [path, "version"])
        try:
            async with asyncio.timeout(ANSWER_S):
                await process.run(argv, env, lambda fd, line: said.append(line), lambda exit_code: None)
        except (TimeoutError, OSError, ValueError):
            return ""
        found = next((it for line in said if (it := _VERSION.match(line))), None)
        return "" if found is None else found[1].decode()


def _identity(path: str) -> tuple[str, int, int, int] | None:
    """What changes when another file is put in a program's place; None where there is none."""
    try:
        about = Path(path).stat()
    except OSError:
        return None
    return path, about.st_ino, about.st_mtime_ns, about.st_size
