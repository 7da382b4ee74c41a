"""docs/architecture is true: every file and every function that it names is there."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "adding.md", "memory.md")
NAMED = re.compile(
    r"`((?:agent|bench|cli|controller|crds|cron|helm|listener|server|tests|wire)/[\w./-]*)(?:::([\w.]+))?`"
)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_every_function_that_a_page_names_is_there(page: str) -> None:
    named = NAMED.findall((ROOT / "docs" / "architecture" / page).read_text())
    assert named
    for path, function in named:
        assert (ROOT / path).exists(), path
        it = importlib.import_module(path.removesuffix(".py").replace("/", ".")) if function else None
        for part in function.split(".") if function else ():
            it = getattr(it, part)
