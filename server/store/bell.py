"""A bell: the writer's thread rings it when it has committed what other servers want to know, and a thread hears it."""

import contextlib
import socket


class Bell:
    """Rings that nobody has heard yet are one. `select` waits for it."""

    def __init__(self) -> None:
        self._heard, self._rung = socket.socketpair()
        self._heard.setblocking(False)
        self._rung.setblocking(False)

    def ring(self) -> None:
        """Ring. Any thread may call it."""
        with contextlib.suppress(OSError):  # it rings already, or it is closed
            self._rung.send(b".")

    def fileno(self) -> int:
        """What `select` waits for."""
        return self._heard.fileno()

    def silence(self) -> None:
        """It was heard."""
        with contextlib.suppress(OSError):
            self._heard.recv(65536)

    def close(self) -> None:
        """Free it."""
        self._heard.close()
        self._rung.close()
