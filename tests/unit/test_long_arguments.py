"""Arguments that are too long for a command line reach restic in files and mean the same."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.restic.arguments import LIMIT, by_files
from tests.conftest import NewRepository

RESTIC = shutil.which("restic") or ""
NAMES = ["a", " a", "a ", "a\\", "#a", "$HOME", "$$", "!a", "a$b", "[a", "a\u00a0", "$b", "b", "\ufeffa"]
PATTERNS = [
    "*a",
    " a",
    "a ",
    "a\\ ",
    "\\#a",
    "#a",
    "$HOME",
    "$$",
    "\\$*",
    "a$b",
    "$[b]",
    "[#]*",
    "a\u00a0",
    "\ufeffa",
    " *",
    "* ",
    "\\[a",
]


def written(args: Any) -> tuple[list[str], dict[str, Any]]:
    files: dict[str, Any] = {}
    return by_files(args, lambda: Path("/f"), files.__setitem__), files


def test_short_arguments_and_other_commands_stay_as_they_are() -> None:
    for args in (["backup", "--json", "--exclude=a", "--", "/b"], ["ls", "--", "latest", *["/" + "x" * 4000] * 50]):
        assert written(args) == (args, {})


def test_long_ones_go_into_files() -> None:
    paths = [f"/{at}" + "x" * 4000 for at in range(LIMIT // 4000 + 1)] + ["/a\nb", "/ c"]
    args, files = written(["backup", "--json", "--exclude=$a ", "--exclude=a\nb", "--tag=t", "--", *paths])
    files_used = ["--exclude-file=/f/patterns", "--files-from-raw=/f/paths"]
    assert args == ["backup", "--json", "--exclude=a\nb", "--tag=t", *files_used]
    assert files["paths"].decode().split("\0") == [*paths, ""]
    assert files["patterns"] == b"\n$$a[ ]"


@pytest.mark.skipif(not RESTIC, reason="needs restic")
def test_a_line_of_a_file_means_what_the_option_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_repository: NewRepository
) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": "a", "RESTIC_PASSWORD": "p", "RESTIC_REPOSITORY": str(tmp_path / "repo")}
    (tmp_path / "src").mkdir()
    for name in NAMES:
        (tmp_path / "src" / name).touch()

    def restic(*args: str) -> str:
        done = subprocess.run([RESTIC, "--no-cache", *args], env=env, capture_output=True, check=True, text=True)
        return done.stdout

    def kept(*args: str) -> list[str]:
        said = restic("backup", "-v", "-v", "--dry-run", *args, "src")
        found = (line.partition(", ")[0].split("/src/", 1) for line in said.splitlines() if line.startswith("new"))
        return sorted(parts[1] for parts in found if len(parts) == 2 and parts[1])

    def backup(pattern: str) -> list[str]:
        return ["backup", f"--exclude={pattern}", "--"]

    def write(name: str, data: bytes) -> None:
        (tmp_path / name).write_bytes(data)

    new_repository(tmp_path / "repo", "p")
    monkeypatch.chdir(tmp_path)
    for pattern in PATTERNS:
        by_files([*backup(pattern), "/x" * LIMIT], lambda: tmp_path, write)
        by_option = kept(f"--exclude={pattern}")
        assert kept(f"--exclude-file={tmp_path / 'patterns'}") == by_option, pattern
        assert len(by_option) < len(NAMES), pattern  # it does leave something out
