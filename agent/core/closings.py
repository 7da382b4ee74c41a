"""When the windows close of jobs that are not to run beyond them."""

from datetime import datetime, timedelta

from agent.core.timetable import NEVER


class Closings:
    """When jobs that run are to be stopped, by what the host's clock shows.

    The server says in how many seconds that is: so a wrong clock does not matter, nor that the server is away then.
    While the host sleeps, its clock goes on. A clock that is set back puts nothing off.
    """

    def __init__(self) -> None:
        self._at: dict[str, datetime] = {}
        self._shown: datetime | None = None

    @property
    def next_at(self) -> datetime:
        """When the first of them is due; NEVER without any."""
        return min(self._at.values(), default=NEVER)

    def put(self, job_id: str, after_s: int | None, shown: datetime) -> None:
        """A job is to be stopped after so many seconds, in place of what was said before; None: not at all."""
        self._look(shown)
        if after_s is None:
            self.drop(job_id)
        else:
            self._at[job_id] = shown + timedelta(seconds=after_s)

    def drop(self, job_id: str) -> None:
        """A job has ended."""
        self._at.pop(job_id, None)

    def due(self, shown: datetime) -> list[str]:
        """The jobs that are to be stopped now, each of them once."""
        self._look(shown)
        its = [job_id for job_id, at in self._at.items() if at <= shown]
        for job_id in its:
            self.drop(job_id)
        return its

    def _look(self, shown: datetime) -> None:
        if self._shown is not None and (back := self._shown - shown) > timedelta():
            self._at = {job_id: at - back for job_id, at in self._at.items()}
        self._shown = shown
