"""Whether a deletion may have gone unseen, by what watches list when they begin. Plain data, no I/O.

What was deleted before a watch began goes unsaid. So where a watch lists what others have listed before it, or where a
list leaves out what was there, everything is to be compared.
"""

from collections.abc import Collection

from controller.resources import Key


class Listings:
    """What watches have told of. Times are seconds of one monotonic clock.

    `within_s`: seconds between an object that a watch lists and the end of its list.
    """

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._told: set[Key] = set()
        self._ends_at: float | None = None

    @property
    def ends_at(self) -> float | None:
        """When the lists that have begun have ended; None where none has begun."""
        return self._ends_at

    def begin(self, now: float) -> None:
        """Watches are beginning to list what is there."""
        self._ends_at = now + self._within_s

    def on_event(self, key: Key) -> None:
        """A watch has told of an object."""
        self._told.add(key)

    def on_listed(self, key: Key, now: float) -> bool:
        """A watch has listed an object. Whether it was told of before: this is not the first list."""
        self.begin(now)
        is_again = key in self._told
        self._told.add(key)
        return is_again

    def forget(self, key: Key) -> None:
        """An object is gone."""
        self._told.discard(key)

    def omits(self, keys: Collection[Key], now: float) -> bool:
        """Whether lists that have ended by now leave out any of these."""
        if self._ends_at is None or now < self._ends_at:
            return False
        self._ends_at = None
        return not self._told.issuperset(keys)
