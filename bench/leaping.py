"""`python -m bench.leaping COMMAND …`: the lamplighter command, whose server's clock leaps a month ahead at SIGUSR1.

A due time may not be fired before it has come by the server's clock, and rows of fires have many of them come at once.
"""

import signal
import sys
from datetime import UTC, datetime, timedelta
from functools import partial

import server.app
from cli.main import main

_ahead = [timedelta()]


def clock() -> datetime:
    """What the clock shows."""
    return datetime.now(UTC) + _ahead[0]


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: _ahead.append(_ahead.pop() + timedelta(days=30)))
    server.app.serving = partial(server.app.serving, clock=clock)
    main(sys.argv[1:])
