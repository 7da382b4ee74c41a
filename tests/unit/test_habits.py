"""That what is checked before a commit is what `make test` checks."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_a_commit_passes_the_checks_of_make_test():
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^test: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    commands = re.findall(r"\$\(BIN\)/(.*)", recipe[1])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = [command for command in commands if not command.startswith("pytest ")]
    assert checks == [hook["entry"].removeprefix(".venv/bin/") for hook in hooks]
