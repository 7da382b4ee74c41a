"""Builds the agent as one file that Python runs: `python -m images.single_file FILE [WHEEL …]`.

The file is a zip of Lamplighter's parts and of the packages that the agent needs, as they are installed here, with
`single_file_main` as its first module (zipapp, in Python's library reference). Compiled modules are for one release of
Python and one kind of machine; each WHEEL adds its own, so that the file runs on more of them.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from packaging.requirements import Requirement

from wire.version import __version__

ROOT = Path(__file__).parents[1]
PARTS = ("agent", "cli", "cron", "listener", "wire")
"""The folders of Lamplighter that `lamplighter agent` imports."""
SHEBANG = b"#!/usr/bin/python3 -IS\n"
"""The system's Python, without anything that is installed on the host: all is in the file."""
COMPILED = ".so"
LEFT_OUT = (".pyi", ".pyc", ".c", ".pyx", "py.typed", "direct_url.json", "RECORD", "INSTALLER", "REQUESTED")
METADATA = f"Metadata-Version: 2.1\nName: lamplighter\nVersion: {__version__}\n"


def build(file: Path, wheels: list[Path]) -> None:
    """Write the file. It is the same, byte by byte, whenever it is built from the same versions."""
    content: dict[str, bytes] = {
        "__main__.py": (ROOT / "images/single_file_main.py").read_bytes(),
        f"lamplighter-{__version__}.dist-info/METADATA": METADATA.encode(),
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    for path in (path for part in PARTS for path in (ROOT / part).rglob("*.py")):
        content[str(path.relative_to(ROOT))] = path.read_bytes()
    for name in sorted(needed("lamplighter", {"agent"}) - {"lamplighter"}):
        content.update(installed(name))
    for wheel in wheels:
        with ZipFile(wheel) as packed:
            content.update({name: packed.read(name) for name in packed.namelist() if name.endswith(COMPILED)})
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(SHEBANG)
        with ZipFile(out, "w", ZIP_DEFLATED) as packed:
            for name, data in sorted(content.items()):
                packed.writestr(ZipInfo(name), data, ZIP_DEFLATED)
    file.chmod(0o755)


def needed(name: str, extras: set[str]) -> set[str]:
    """This package and all that it needs with these extras, as they are installed here."""
    found = {name}
    for requirement in map(Requirement, distribution(name).requires or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            found |= needed(requirement.name, requirement.extras)
    return found


def installed(name: str) -> Iterator[tuple[str, bytes]]:
    """The files of an installed package, by their place in its folder of packages."""
    for path in distribution(name).files or ():
        if ".." not in path.parts and not path.name.endswith(LEFT_OUT):
            yield str(path), path.read_binary()


if __name__ == "__main__":
    build(Path(sys.argv[1]), [Path(wheel) for wheel in sys.argv[2:]])
