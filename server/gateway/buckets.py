"""Token buckets by name: each name may use a burst at once, and after that a rate per second."""


class Buckets:
    """One bucket for each name. A full bucket holds `burst` units, and `rate` units a second fill it up again.

    Times are seconds of a clock that is never set back. Full buckets use no memory.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._full_at: dict[str, float] = {}  # when each bucket will be full again
        self._sweep_at = 1024  # how many buckets there may be before the full ones are removed

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, name: str, now: float, amount: float = 0.0) -> float:
        """Seconds until a name may use `amount` units; 0 when it may now."""
        missing = max(self._full_at.get(name, now) - now, 0.0)
        return max(missing - (self._burst - amount) / self._rate, 0.0)

    def use(self, name: str, amount: float, now: float) -> float:
        """Take units from a bucket, even more than it holds. Returns the seconds until the name may use more."""
        if len(self._full_at) >= self._sweep_at:
            self._full_at = {it: at for it, at in self._full_at.items() if at > now}
            self._sweep_at = max(1024, 2 * len(self._full_at))
        self._full_at[name] = max(self._full_at.get(name, now), now) + amount / self._rate
        return self.wait(name, now)
