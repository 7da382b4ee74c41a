"""A release has one version everywhere, and the wheel and the images hold every package."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from wire.version import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
CODE = [package for package in PACKAGES if (ROOT / package / "__init__.py").exists()]
"""Packages without crds/, which has definitions in YAML and no module."""
TOLD = [".github", "README.md", "docs", "examples", "helm", "images", "manifests"]
NAMED = re.compile(r"(?:lamplighter-(?:server|agent|\$part):|ref=v|kubernetes\.io/version: |agent=)(\d+\.\d+\.\d+)")
"""Where a text names the version: an image's tag, a tag of the repository, a label, an agent's hello."""


def test_hatch_reads_the_version_that_the_parts_tell() -> None:
    """The command line is that of hatchling, which `hatch version` asks too."""
    ran = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == __version__


def test_the_chart_has_the_version() -> None:
    chart = yaml.safe_load((ROOT / "helm/lamplighter/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_what_is_told_names_the_version() -> None:
    """After `hatch version NEW`, this lists each place that still names the old one."""
    files = [path for told in TOLD for path in [ROOT / told, *(ROOT / told).rglob("*")] if path.is_file()]
    texts = [path for path in files if path.suffix not in (".png", ".pyc")]
    found = {
        (str(path.relative_to(ROOT)), number): version
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for version in NAMED.findall(line)
    }
    assert found, "no place names a version any more: mend the pattern"
    assert not {place: version for place, version in found.items() if version != __version__}


def test_no_part_has_a_version_of_its_own() -> None:
    modules = [path for package in CODE for path in (ROOT / package).rglob("*.py")]
    own = re.compile(r"^__version__\b.*=", re.MULTILINE)
    assert [str(path.relative_to(ROOT)) for path in modules if own.search(path.read_text())] == ["wire/version.py"]


@pytest.mark.parametrize("package", CODE)
def test_a_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def test_the_images_take_every_package_and_no_tests() -> None:
    taken = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert taken >= {*PACKAGES, "LICENSE", "README.md", "constraints.txt", "pyproject.toml"}
    assert not taken & {"tests", "bench"}
