"""Patterns of files to leave out: those that restic would refuse, found before a job does.

Source: Go's path/filepath.Match, by which restic reads each part of a pattern (internal/filter, ValidatePatterns).
"""

import re
from collections.abc import Iterator, Sequence

from server.problems import FieldError

_IN_CLASS = r"(?:[^\\\]\-]|\\.)"
_PART = re.compile(rf"(?:[^\\\[]|\\.|\[(?:\^|(?!\^))(?:{_IN_CLASS}(?:-{_IN_CLASS})?)+\])*", re.DOTALL)


def pattern_errors(patterns: Sequence[object], field: str) -> Iterator[FieldError]:
    """The patterns that restic refuses, each named below `field`."""
    for at, pattern in enumerate(patterns):
        if isinstance(pattern, str) and not all(map(_PART.fullmatch, pattern.removeprefix("!").split("/"))):
            detail = "is no pattern: close each [ with ], and write \\[ or \\\\ where the character itself is meant"
            yield {"field": f"{field}[{at}]", "detail": detail}
