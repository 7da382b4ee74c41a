"""What holds for all tests, and what several folders of them share."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.integration.crafted import Crafted

settings.register_profile("lamplighter", deadline=None)  # a loaded machine takes its time
settings.load_profile("lamplighter")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, most of which wait: while one worker waits the others work, and none waits alone."""
    items.sort(key=lambda it: it.get_closest_marker("slow") is None)


NewRepository = Callable[[Path, str], None]


@pytest.fixture(scope="session")
def new_repository(tmp_path_factory: pytest.TempPathFactory) -> NewRepository:
    """Puts a repository without snapshots at a path. restic made it, and its password opens it at once."""
    made: dict[str, Path] = {}

    def new(path: Path, password: str) -> None:
        if password not in made:
            place = tmp_path_factory.mktemp("made") / "repository"
            env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": str(place), "RESTIC_PASSWORD": password}
            argv = [shutil.which("restic") or "restic", "--no-cache", "init"]
            subprocess.run(argv, env=env, capture_output=True, check=True)
            Crafted(place, password).cheapen(password)
            made[password] = place
        shutil.copytree(made[password], path)

    return new
