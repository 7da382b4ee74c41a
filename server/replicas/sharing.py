"""Runs what makes this server one of several, while it serves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial

from server.jobs.dispatcher import Dispatcher
from server.replicas import trimming
from server.replicas.agents import Balance
from server.replicas.direct import Direct
from server.replicas.follower import Follower
from server.replicas.leader import Leader
from server.replicas.members import Members
from server.store.engine import Store


@asynccontextmanager
async def sharing(
    store: Store,
    members: Members,
    leader: Leader,
    follower: Follower,
    balance: Balance,
    dispatcher: Dispatcher,
    clock: Callable[[], datetime],
) -> AsyncIterator[None]:
    """While entered, this server is one of those that share the store; one that has it alone does nothing here.

    Raises, in a group, what following the others raises: then this server does not know any more what is declared.
    """
    if store.direct is None or store.bell is None:
        yield
        return
    direct = Direct(store.direct, store.server, store.bell, follower.wake, leader.elected, store.lose)
    direct.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            always = (members.beat(), members.watch(), follower.follow(), balance.follow())
            leading = (partial(_lead, dispatcher), partial(trimming.follow, store, clock))
            work = (*always, *(leader.while_leading(it) for it in leading))
            running = [tasks.create_task(it) for it in work]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()
    finally:
        await direct.close()


async def _lead(dispatcher: Dispatcher) -> None:
    """Have the dispatcher see to what is due, until cancelled."""
    dispatcher.lead()
    try:
        await asyncio.Event().wait()
    finally:
        dispatcher.follow()
