"""Exclude patterns: finds those that restic would refuse, before a job fails with them.

Source: Go's path/filepath.Match, by which restic reads each part of a pattern (internal/filter, ValidatePatterns).
restic reads patterns from an exclude file. One with a line break must be on its command line instead.
"""

import re
from collections.abc import Iterator, Sequence

from server.errors import FieldError

MAX_BROKEN = 64 << 10
"""Maximum bytes, in UTF-8, of all patterns with line breaks together. They are on restic's command line, which has
2 MiB together with an environment of up to 1 MiB (execve(2))."""
_IN_CLASS = r"(?:[^\\\]\-]|\\.)"
_PART = re.compile(rf"(?:[^\\\[]|\\.|\[(?:\^|(?!\^))(?:{_IN_CLASS}(?:-{_IN_CLASS})?)+\])*", re.DOTALL)


def pattern_errors(patterns: Sequence[object], field: str) -> Iterator[FieldError]:
    """An error for each pattern that restic refuses, or that is too long for its command line, below `field`."""
    broken = 0
    for at, pattern in enumerate(patterns):
        if not isinstance(pattern, str):
            continue
        if not all(map(_PART.fullmatch, pattern.removeprefix("!").split("/"))):
            detail = "is not a valid pattern: close each [ with ], and write \\[ or \\\\ for the character itself"
            yield {"field": f"{field}[{at}]", "detail": detail}
        if "\n" in pattern:
            broken += len(pattern.encode(errors="surrogatepass"))
            if broken > MAX_BROKEN:
                detail = f"makes all patterns with line breaks longer than {MAX_BROKEN} bytes: write ? for a line break"
                yield {"field": f"{field}[{at}]", "detail": detail}
