"""Tests that Ctrl-C at any line of progress bars puts them away and gives the terminal its cursor back."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from rich import live

from cli import terminal

_SHOW_CURSOR = "\x1b[?25h"
_HIDE_CURSOR = "\x1b[?25l"
_FILES = {live.__file__, terminal.__file__}


def _show() -> None:
    with terminal.bars() as bars:
        bars.show("a", "backup", "5 files", 0.5)
        with bars.aside():
            terminal.note("succeeded")
        bars.show("b", "prune")
        bars.keep([])


_Line = tuple[str, int]


@contextmanager
def _ctrl_c(at: _Line | None) -> Iterator[dict[_Line, None]]:
    """Send SIGINT as this line of the bars' code begins for the first time. Yields the lines that began, in order."""
    begun: dict[_Line, None] = {}

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename not in _FILES:
            return None
        line = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and line not in begun:
            begun[line] = None
            if line == at:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield begun
    finally:
        sys.settrace(before)


def test_ctrl_c_at_any_line_ends_bars_and_shows_the_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    with _ctrl_c(at=None) as lines:
        _show()
    assert _HIDE_CURSOR in capsys.readouterr().err
    for line in lines:
        with pytest.raises(KeyboardInterrupt), _ctrl_c(line):
            _show()
        told = capsys.readouterr().err
        assert told.rfind(_SHOW_CURSOR) >= told.rfind(_HIDE_CURSOR), line
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        for thread in threading.enumerate():
            if type(thread).__module__ == live.__name__:
                thread.join()  # for ever, if nothing told it to end
