"""Follows what changes on a server: waits for news from its stream of changes, and finds which items differ."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from cli.client import Client, Item, UnavailableError
from cli.terminal import note

PAUSE = 4.0
"""Minimum pause after a look at the server, as a multiple of how long the look took, so that watching is cheap."""
AGAIN_S = 2.0
"""Seconds after which a lost connection is tried again."""
_PASSING: Mapping[str, frozenset[str]] = {
    "hosts": frozenset({"last_seen", "clock_skew_seconds"}),
    "jobs": frozenset({"progress", "schedule", "repository"}),  # names of what was deleted are none
    "controllers": frozenset({"last_seen"}),
}
"""The fields of items that pass by all the time, and are no change, by the plural of the type."""
_News = frozenset[str] | Exception


def watch(
    client: Client, kinds: frozenset[str], namespace: str, look: Callable[[], None], every_s: float | None = None
) -> None:
    """Look at once, and whenever objects of these kinds (any, where `kinds` is empty) may have changed.

    There is also a look each `every_s`, and where nothing changed for some time, since an object can be overdue without
    news. A server that is gone for a while is waited for.
    """
    news: queue.Queue[_News] = queue.Queue()
    look()
    threading.Thread(target=_listen, args=(client, news, namespace or None), daemon=True).start()
    while True:
        if not concerns(news, kinds, every_s):
            continue
        began = time.monotonic()
        try:
            look()
        except UnavailableError as error:
            note(f"{error.format_message()}: waiting")
        time.sleep(PAUSE * (time.monotonic() - began))


def _listen(client: Client, news: "queue.Queue[_News]", namespace: str | None) -> None:
    """Put all news into a queue, also from a new stream where one ends; and the error that ends it for good."""
    told = False
    while True:
        try:
            for kinds in client.changes(namespace=namespace):
                news.put(kinds)
                told = False
        except UnavailableError as error:
            if not told:
                note(f"{error.format_message()}: waiting")
            told = True
        except Exception as error:  # noqa: BLE001 - the other thread raises it
            news.put(error)
            return
        time.sleep(AGAIN_S)


def concerns(news: "queue.Queue[_News]", kinds: frozenset[str], within_s: float | None) -> bool:
    """Wait for news, and take all that there is: whether it may be about these kinds, or did not come in time.

    Raises the error that ended the stream.
    """
    try:
        waiting = [news.get(timeout=within_s)]
    except queue.Empty:
        return True
    while not news.empty():
        waiting.append(news.get())
    for it in waiting:
        if isinstance(it, Exception):
            raise it
    return any(not it or not kinds or it & kinds for it in waiting if isinstance(it, frozenset))


class Watched:
    """What a watch has seen of a list. `plural`: the type of its items."""

    def __init__(self, plural: str) -> None:
        self._plural = plural
        self._passing = _PASSING.get(plural, frozenset())
        self._lasts = plural in ("jobs", "audit")  # of those the newest are listed, and none is deleted
        self._items: dict[object, Item] = {}

    def changed(self, items: Sequence[Item]) -> list[tuple[str, Item]]:
        """What happened since the last time, as (ADDED, MODIFIED or DELETED, item); of jobs the oldest first."""
        now = {self._key(item): item for item in items}
        found = []
        for key, item in reversed(now.items()) if self._lasts else now.items():
            before = self._items.get(key)
            if before is None:
                found.append(("ADDED", item))
            elif self._steady(before) != self._steady(item):
                found.append(("MODIFIED", item))
        if not self._lasts:
            found += [("DELETED", item) for key, item in self._items.items() if key not in now]
        self._items = now
        return found

    def _key(self, item: Item) -> object:
        if "metadata" in item:
            return item["metadata"]["uid"]
        if "reason" in item and "kind" in item and "id" not in item:  # a problem
            return item["kind"], item["name"], item["reason"]
        return item["id"] if "id" in item else item["name"]

    def _steady(self, item: Item) -> Mapping[str, object]:
        return {name: value for name, value in item.items() if name not in self._passing}
