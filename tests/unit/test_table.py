"""Tables fit any width: first the end of the last cell is cut, then names."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import table

COLUMNS = ("JOB", "HOST", "SCHEDULE", "KIND", "STATUS", "DUE", "STARTED", "DURATION", "SNAPSHOT/ERROR")
OPTIONAL = ("DUE", "KIND", "STARTED")
AT = "2026-03-29T01:30:00"
ERROR = "wrong password or no key found: the repository was made with another one, restore the Secret " * 5
ROWS = [
    ["aa000000", "node-1.example.org", "default/etc", "backup", "succeeded", AT, AT, "1m23s", "5eed5eed"],
    ["ab000000", "node-2.example.org", "default/home", "backup", "failed", AT, AT, "3s", ERROR.strip()],
]

words = st.text(string.ascii_lowercase + "-", min_size=1, max_size=30)
rows = st.lists(st.tuples(words, words, words, st.text(string.ascii_lowercase + " ", max_size=500)), max_size=5)


@settings(deadline=None)
@given(rows, st.integers(40, 200))
def test_no_line_is_longer_than_the_terminal_is_wide(given: list[tuple[str, str, str, str]], width: int) -> None:
    found = table.lines(("A", "B", "C", "D"), [[*it[:3], it[3].strip()] for it in given], width, ("B",))
    assert max(map(len, found)) <= width
    assert all(line == line.rstrip() for line in found)


@settings(deadline=None)
@given(rows)
def test_each_row_is_one_line_in_full_where_it_is_piped(given: list[tuple[str, str, str, str]]) -> None:
    cells = [[*it[:3], " ".join(it[3].split())] for it in given]
    found = table.lines(("A", "B", "C", "D"), cells)
    assert len(found) == 1 + len(cells)
    assert [line.split(maxsplit=3) for line in found[1:]] == [[cell for cell in it if cell] for it in cells]


def test_at_80_columns_a_job_keeps_its_names_and_its_error_goes_on_below() -> None:
    found = table.lines(COLUMNS, ROWS, 80, OPTIONAL)
    assert [line.split() for line in found[:4]] == [
        ["JOB", "HOST", "SCHEDULE", "STATUS", "DURATION"],
        ["SNAPSHOT/ERROR"],
        ["aa000000", "node-1.example.org", "default/etc", "succeeded", "1m23s", "5eed5eed"],
        ["ab000000", "node-2.example.org", "default/home", "failed", "3s"],
    ]
    assert found[4].startswith("    wrong password or no key found")
    assert len(found) == 4 + table.MAX_LINES
    assert found[-1].endswith("…")


def test_in_a_wide_terminal_nothing_is_left_out() -> None:
    found = table.lines(COLUMNS, ROWS, 700, OPTIONAL)
    assert found[0].split() == list(COLUMNS)
    assert found[2].endswith(ERROR.strip())


@pytest.mark.parametrize("width", [None, 30, 80])
def test_a_table_of_one_column_is_a_list(width: int | None) -> None:
    assert table.lines(("NAME",), [["a"], ["b"]], width) == ["NAME", "a", "b"]
