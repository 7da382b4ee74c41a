"""A pattern that restic refuses is refused when it is declared; one that restic accepts is accepted."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from server.resources.patterns import MAX_BROKEN, pattern_errors
from tests.conftest import NewRepository

RESTIC = shutil.which("restic") or ""
GOOD = ["*", "**/a", "a?", "[a]", "[^a-z]b", "\\[a", "[\\]]", "!a", "a]", "[[]", "[a\\-z]", "/x/**/*.o", "[é]", "a b"]
BAD = ["[", "[a", "a/[b/c]", "[]", "[]a]", "[^]", "[-a]", "[a-]", "a\\", "!["]


def test_a_bad_pattern_is_named_by_its_field() -> None:
    found = [error["field"] for error in pattern_errors([*GOOD, *BAD], "spec.backup.excludes")]
    assert found == [f"spec.backup.excludes[{len(GOOD) + at}]" for at in range(len(BAD))]


def test_patterns_with_line_breaks_which_no_file_of_patterns_holds_are_bounded_in_bytes() -> None:
    size, broken = 4096, "\n" + "é" * 2047 + "x"
    fits = MAX_BROKEN // size
    patterns = [broken] * fits + ["é" * 4096] * 200
    assert list(pattern_errors(patterns, "f")) == []
    found = list(pattern_errors([*patterns, "a\nb", "c"], "f"))
    assert [error["field"] for error in found] == [f"f[{len(patterns)}]"]
    assert "write ? for a line break" in found[0]["detail"]


@pytest.mark.skipif(not RESTIC, reason="needs restic")
def test_restic_says_the_same(tmp_path: Path, new_repository: NewRepository) -> None:
    env = {"PATH": os.environ["PATH"], "RESTIC_PASSWORD": "p", "RESTIC_REPOSITORY": str(tmp_path / "repository")}
    new_repository(tmp_path / "repository", "p")

    def refuses(pattern: str) -> bool:
        argv = [RESTIC, "--no-cache", "backup", "--dry-run", f"--exclude={pattern}", str(tmp_path)]
        return "invalid pattern" in subprocess.run(argv, env=env, capture_output=True, check=False, text=True).stderr

    assert [pattern for pattern in GOOD if refuses(pattern)] == []
    assert [pattern for pattern in BAD if not refuses(pattern)] == []
