"""Every commit passes the checks, and workflows may do only what they need."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def test_a_commit_passes_the_checks_of_make_test() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^test: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    commands = re.findall(r"\$\(BIN\)/(.*)", recipe[1])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = [command for command in commands if not command.startswith("pytest ")]
    assert checks == [hook["entry"].removeprefix(".venv/bin/") for hook in hooks]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_no_action_that_its_owner_can_exchange(path: Path) -> None:
    """A commit cannot be moved, as a tag or a branch can; the comment says which version the commit is."""
    used = [line for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    assert [line for line in used if not re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_change_nothing_but_where_a_job_says_so(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] in ({}, {"contents": "read"})
    writing = {
        name: job["permissions"] for name, job in workflow["jobs"].items() if "write" in str(job.get("permissions"))
    }
    assert set(writing) <= {"images", "chart", "publish"}


def test_a_tag_alone_starts_a_release() -> None:
    """YAML 1.1 reads the key `on` as true."""
    assert yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())[True] == {"push": {"tags": ["v*"]}}
