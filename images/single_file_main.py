"""The first module of the agent as one file: loads compiled modules from the file, and runs `lamplighter`.

The system's loader takes a compiled module from a file alone. So each is written to a file in memory (memfd_create(2)):
nothing is unpacked to a disk, which may be read-only or mounted with noexec.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from zipimport import zipimporter

OLDEST = (3, 11)


class CompiledFinder:
    """Finds compiled modules in the file, for this Python and machine.

    Their files in memory stay open: the system's loader knows a file by its path, which has the descriptor's number.
    """

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._get_data = zipimporter(archive).get_data

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The module; None if the file does not have it."""
        for suffix in EXTENSION_SUFFIXES:
            try:
                content = self._get_data("/".join((self._archive, *name.split("."))) + suffix)
            except OSError:
                continue
            memory = os.memfd_create(name)
            os.write(memory, content)
            place = f"/proc/self/fd/{memory}"
            return spec_from_file_location(name, place, loader=ExtensionFileLoader(name, place))
        return None


def run() -> None:
    """Run what a person typed."""
    ours = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info < OLDEST:
        sys.exit(f"lamplighter needs Python {OLDEST[0]}.{OLDEST[1]} or newer, and this is {ours}")
    archive = sys.path[0] = str(Path(sys.path[0]).resolve())  # absolute, for the programs that the agent starts
    sys.meta_path.append(CompiledFinder(archive))
    try:
        import msgspec  # noqa: F401, PLC0415 - only now can its compiled module be found

        from cli.main import main  # noqa: PLC0415
    except ModuleNotFoundError as error:
        machine = os.uname().machine
        sys.exit(f"{archive} has no {error.name} for {ours} on {machine}: get the file that was built for these")
    main(prog_name="lamplighter")


run()
