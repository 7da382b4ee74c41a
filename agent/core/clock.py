"""The time that decides what is due, when the host's clock may be wrong."""

from datetime import UTC, datetime, timedelta

AHEAD = timedelta(minutes=1)
"""How far the host's clock may be ahead of the server's before the server's clock decides what is due."""
TRUST = timedelta(hours=1)
"""How long a reading of the server's clock is used; after that, the next fire asks for a new one."""


class HostClock:
    """The host's clock, corrected by how far the server found it to be ahead.

    The correction ends after TRUST, since the server's clock may have been the wrong one. The server may give it again.
    """

    def __init__(self) -> None:
        self._shown: datetime | None = None  # the last reading of the host's clock
        self._ahead = timedelta()
        self._trusted_until = datetime.min.replace(tzinfo=UTC)  # by the host's clock

    def now(self, shown: datetime) -> datetime:
        """The corrected time. `shown`: what the host's clock shows. Setting that clock back reduces the correction."""
        if self._shown is not None and shown < self._shown:
            ahead = self._ahead - (self._shown - shown)
            self._ahead = ahead if ahead > AHEAD else timedelta()
            self._trusted_until = min(self._trusted_until, shown + TRUST)
        elif shown >= self._trusted_until:
            self._ahead = timedelta()
        self._shown = shown
        return shown - self._ahead

    def compare(self, shown: datetime, server_time: datetime) -> timedelta | None:
        """Follow the server's clock from now on. Returns how far the host's is ahead if that changed by more than
        AHEAD."""
        ahead = max(shown - server_time, timedelta())
        changed = abs(ahead - self._ahead) > AHEAD
        self._ahead = ahead if ahead > AHEAD else timedelta()
        self._trusted_until = shown + TRUST
        return ahead if changed else None

    def shown_at(self, due: datetime) -> datetime:
        """What the host's clock will show when the corrected time is `due`."""
        return min(due + self._ahead, max(due, self._trusted_until))
