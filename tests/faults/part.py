"""`python -m tests.faults.part CLOCK COMMAND …`: the lamplighter command with a clock from a file, and less patience.

What a part does is not changed: only how long it waits before it does it, so that a round takes seconds.
"""

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import agent.core.clock
import agent.journal
import agent.link
import agent.scheduler
import agent.service
from tests.faults.clock import Clock


def hurry() -> None:
    """Have links and journals try again soon."""
    agent.link.FIRST_DELAY_S, agent.link.LONGEST_DELAY_S = 0.1, 1.0
    agent.link.OPEN_S, agent.link.PING_S = 4.0, 2.5
    agent.journal.RETRY_S = 0.3
    agent.core.clock.TRUST = timedelta(seconds=10)
    agent.scheduler.CLOCK_CHECK_S = 0.05  # a fast clock is to be looked at more often, too


def _use(clock: Callable[[], datetime]) -> None:
    """Have the parts take this for the wall clock."""
    import server.app  # noqa: PLC0415
    import server.gateway.endpoint  # noqa: PLC0415
    import server.jobs.dispatcher  # noqa: PLC0415 - an agent needs none of these
    import server.store.database  # noqa: PLC0415
    import server.transport.connections  # noqa: PLC0415

    agent.service.utc_now = clock
    server.app.serving = partial(server.app.serving, clock=clock)
    server.jobs.dispatcher.MAX_SLEEP_S, server.jobs.dispatcher.STORE_AGAIN_S = 0.1, 0.3
    server.gateway.endpoint.HELLO_S, server.transport.connections.PING_S = 4.0, 2.5
    server.store.database.BUSY_TIMEOUT_MS = 500


if __name__ == "__main__":
    from cli.main import main

    hurry()
    if sys.argv[2] == "agent":
        agent.service.utc_now = Clock(Path(sys.argv[1]))
    else:
        _use(Clock(Path(sys.argv[1])))
    main(sys.argv[2:])
