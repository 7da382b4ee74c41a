"""Finds out whether watches may have missed a deletion, from what they list when they start. Plain data, no I/O.

A watch does not report what was deleted before it started. So everything must be compared when a watch lists an object
that was known before, or when a list omits a known object.
"""

from collections.abc import Collection

from controller.resources import Key


class Listings:
    """The objects that watches have listed or reported. Times are seconds of one monotonic clock.

    `within_s`: a list counts as complete when no object was listed for so many seconds.
    """

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._told: set[Key] = set()
        self._ends_at: float | None = None

    @property
    def ends_at(self) -> float | None:
        """When the started lists count as complete; None if none has started."""
        return self._ends_at

    def begin(self, now: float) -> None:
        """Watches are starting to list objects."""
        self._ends_at = now + self._within_s

    def on_event(self, key: Key) -> None:
        """A watch has reported an object."""
        self._told.add(key)

    def on_listed(self, key: Key, now: float) -> bool:
        """A watch has listed an object. Returns whether it was known before, so that this is not the first list."""
        self.begin(now)
        is_again = key in self._told
        self._told.add(key)
        return is_again

    def forget(self, key: Key) -> None:
        """An object was deleted."""
        self._told.discard(key)

    def omits(self, keys: Collection[Key], now: float) -> bool:
        """Whether lists that are complete by now omit any of these keys. It is true once for each list."""
        if self._ends_at is None or now < self._ends_at:
            return False
        self._ends_at = None
        return not self._told.issuperset(keys)
