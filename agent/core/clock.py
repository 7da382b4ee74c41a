"""The time by which due times count, where the host's clock may be wrong."""

from datetime import UTC, datetime, timedelta

AHEAD = timedelta(minutes=1)
"""How far the host's clock may be ahead of the server's before due times count by the server's."""
TRUST = timedelta(hours=1)
"""How long the server's clock counts before a fire asks for it again."""


class HostClock:
    """What the host's clock shows, less how far it is ahead of the server's, once the server has said so.

    After TRUST the host's clock counts again until the server says so anew: the server's clock may have been the wrong
    one.
    """

    def __init__(self) -> None:
        self._shown: datetime | None = None  # what the host's clock showed last
        self._ahead = timedelta()
        self._trusted_until = datetime.min.replace(tzinfo=UTC)  # by the host's clock

    def now(self, shown: datetime) -> datetime:
        """The time that counts. A clock that is set back is so much less ahead."""
        if self._shown is not None and shown < self._shown:
            ahead = self._ahead - (self._shown - shown)
            self._ahead = ahead if ahead > AHEAD else timedelta()
            self._trusted_until = min(self._trusted_until, shown + TRUST)
        elif shown >= self._trusted_until:
            self._ahead = timedelta()  # the server's clock may have been the wrong one, and set right
        self._shown = shown
        return shown - self._ahead

    def compare(self, shown: datetime, server_time: datetime) -> timedelta | None:
        """Go by the server's clock from now on. How far the host's is ahead, if that has changed by more than AHEAD."""
        ahead = max(shown - server_time, timedelta())
        changed = abs(ahead - self._ahead) > AHEAD
        self._ahead = ahead if ahead > AHEAD else timedelta()
        self._trusted_until = shown + TRUST
        return ahead if changed else None

    def shown_at(self, due: datetime) -> datetime:
        """What the host's clock shows when `due` has come."""
        return min(due + self._ahead, max(due, self._trusted_until))
