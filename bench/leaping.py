"""`python -m bench.leaping COMMAND …` runs lamplighter; SIGUSR1 moves its server's clock a month ahead.

Rows of fires need many due times at once, and the server refuses a fire before its due time.
"""

import signal
import sys
from datetime import UTC, datetime, timedelta
from functools import partial

import server.app
from cli.main import main

_ahead = [timedelta()]


def clock() -> datetime:
    """The server's time."""
    return datetime.now(UTC) + _ahead[0]


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: _ahead.append(_ahead.pop() + timedelta(days=30)))
    server.app.serving = partial(server.app.serving, clock=clock)
    main(sys.argv[1:])
