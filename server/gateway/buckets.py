"""Token buckets by name: how much of something each name may use at once, and how fast it may use more."""


class Buckets:
    """Buckets that hold `burst` when they are full, and are filled by `rate` a second. Only those not full are kept.

    Times are of one clock that never goes back, in seconds.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._full_at: dict[str, float] = {}  # when each that is not full will be
        self._sweep_at = 1024  # at so many, those that are full by now are let go

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, name: str, now: float, amount: float = 0.0) -> float:
        """Seconds until this name may use so much; 0 when it may."""
        missing = max(self._full_at.get(name, now) - now, 0.0)
        return max(missing - (self._burst - amount) / self._rate, 0.0)

    def use(self, name: str, amount: float, now: float) -> float:
        """Take so much, also more than is there; seconds until this name may use more."""
        if len(self._full_at) >= self._sweep_at:
            self._full_at = {it: at for it, at in self._full_at.items() if at > now}
            self._sweep_at = max(1024, 2 * len(self._full_at))
        self._full_at[name] = max(self._full_at.get(name, now), now) + amount / self._rate
        return self.wait(name, now)
