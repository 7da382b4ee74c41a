"""Patterns of files to leave out: those that restic would refuse, found before a job does.

Source: Go's path/filepath.Match, by which restic reads each part of a pattern (internal/filter, ValidatePatterns).
Patterns go to restic by a file, but for those that hold a line break: its exclude files are read by lines.
"""

import re
from collections.abc import Iterator, Sequence

from server.errors import FieldError

MAX_BROKEN = 64 << 10
"""Bytes, in UTF-8, of all patterns together that hold a line break: they stand on restic's command line, which holds
2 MiB with an environment of up to 1 MiB (execve(2))."""
_IN_CLASS = r"(?:[^\\\]\-]|\\.)"
_PART = re.compile(rf"(?:[^\\\[]|\\.|\[(?:\^|(?!\^))(?:{_IN_CLASS}(?:-{_IN_CLASS})?)+\])*", re.DOTALL)


def pattern_errors(patterns: Sequence[object], field: str) -> Iterator[FieldError]:
    """The patterns that restic refuses, or that its command line does not hold, each named below `field`."""
    broken = 0
    for at, pattern in enumerate(patterns):
        if not isinstance(pattern, str):
            continue
        if not all(map(_PART.fullmatch, pattern.removeprefix("!").split("/"))):
            detail = "is no pattern: close each [ with ], and write \\[ or \\\\ where the character itself is meant"
            yield {"field": f"{field}[{at}]", "detail": detail}
        if "\n" in pattern:
            broken += len(pattern.encode(errors="surrogatepass"))
            if broken > MAX_BROKEN:
                detail = f"makes the patterns with line breaks longer than {MAX_BROKEN} bytes: write ? for a line break"
                yield {"field": f"{field}[{at}]", "detail": detail}
