"""A connection between an agent and a server: it keeps order, and may delay, repeat a frame, or break."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from tests.simulation.clock import SECOND

if TYPE_CHECKING:
    from tests.simulation.server import Server
    from tests.simulation.world import Agent, World


class Pipe:
    """Two ordered streams. `session`: its number on its server."""

    def __init__(self, world: "World", agent: "Agent", server: "Server", session: int) -> None:
        self.world, self.agent, self.server, self.session = world, agent, server, session
        self.open = True
        self.welcomed = False
        self.unread: list[Sequence[object]] = []
        self._last = [world.now, world.now]

    def carry(self, side: int, deliver: Callable[[Sequence[object]], None], messages: Sequence[object]) -> None:
        """Deliver a frame at the other side (0: the server, 1: the agent), later, in order, sometimes twice."""
        if not self.open:
            return
        world = self.world
        rng = world.rng
        delay = rng.random() * 0.05 if rng.random() < 0.99 else rng.random() * 20
        for _ in range(2 if rng.random() < world.duplicates else 1):
            at = self._last[side] = max(self._last[side], world.now + timedelta(seconds=delay))
            world.at(at, lambda: deliver(messages) if self.open else None)

    def to_agent(self, messages: Sequence[object]) -> None:
        """Send the agent a frame."""
        self.carry(1, self.agent.receive, messages)

    def to_server(self, messages: Sequence[object]) -> None:
        """Send the server a frame."""
        self.carry(0, partial(self.server.receive, self), messages)

    def cut(self) -> None:
        """Break the connection; each side notices in its own time."""
        if not self.open:
            return
        self.open = False
        self.agent.ails()
        rng, world = self.world.rng, self.world
        world.at(world.now + rng.random() * 40 * SECOND, lambda: self.agent.lost(self))
        world.at(world.now + rng.random() * 40 * SECOND, lambda: self.server.lost(self))

    def close(self) -> None:
        """The server closes the connection, behind what it has sent."""
        if self.open:
            self.agent.ails()
            self.carry(1, lambda _: self._closed(), ())
            self.server.lost(self)

    def _closed(self) -> None:
        self.open = False
        self.agent.lost(self)
