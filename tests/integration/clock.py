"""The wall clock of a server under test: right, until a due time is fired, which it then has come to."""

from datetime import UTC, datetime, timedelta


class Clock:
    """Goes on as time does, from wherever it was set to."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def reach(self, at: datetime) -> None:
        """Have it be that time by now, unless it is later already."""
        self.ahead += max(timedelta(), at - self())


def due(days: int = 0, hour: int = 2, minute: int = 0) -> str:
    """A due time of a schedule that is due at that time every day, as agents write it: of tomorrow, or days later."""
    tomorrow = datetime.now(UTC) + timedelta(days=1 + days)
    return f"{tomorrow:%Y-%m-%d}T{hour:02}:{minute:02}:00Z"
