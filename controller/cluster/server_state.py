"""The server's latest answers. Plain data, no I/O."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from controller.client import ControllerError
from controller.cluster.kube import Object
from controller.resources import Key

K = TypeVar("K")


class Answers(Generic[K]):
    """The server's latest answer for each key."""

    def __init__(self) -> None:
        self._answers: dict[K, Object] = {}
        self._newer: set[K] = set()

    def get(self, key: K) -> Object | None:
        """The latest answer for a key; None if the server has nothing, or was not asked."""
        return self._answers.get(key)

    def keys(self) -> set[K]:
        """The keys with an answer."""
        return set(self._answers)

    def put(self, key: K, answer: Object | None) -> None:
        """Keep an answer for a key; None if the server no longer has it."""
        self._newer.add(key)
        if answer is None:
            self._answers.pop(key, None)
        else:
            self._answers[key] = answer

    def begin(self) -> None:
        """Call before reading a list: answers from now on are newer than the list."""
        self._newer.clear()

    def replace(self, listed: Iterable[tuple[K, Object]], covers: Callable[[K], bool] = lambda _: True) -> None:
        """Replace the answers by a list that was read since `begin`. `covers`: whether the list would include a key."""
        kept = {key: it for key, it in self._answers.items() if key in self._newer or not covers(key)}
        self._answers = {key: it for key, it in listed if key not in self._newer} | kept


class ServerState:
    """The server's latest answers: `resources` by key, `hosts` by name, `one_shot` (Runs and Restores) by uid."""

    def __init__(self) -> None:
        self.resources: Answers[Key] = Answers()
        self.hosts: Answers[str] = Answers()
        self.one_shot: Answers[str] = Answers()
        self._unreachable: ControllerError | None = None

    @property
    def host_names(self) -> set[str]:
        """The hosts that the server knows."""
        return self.hosts.keys()

    @property
    def unreachable(self) -> ControllerError | None:
        """Why the server could not be reached in the last comparison; None if it was reached."""
        return self._unreachable

    def mark_unreachable(self, error: ControllerError) -> None:
        """The server cannot be reached."""
        self._unreachable = error

    def mark_reachable(self) -> None:
        """The server answers."""
        self._unreachable = None

    def check_reachable(self) -> None:
        """Raise the error if the server is unreachable, so that not every object makes a request to find that out."""
        if self._unreachable is not None:
            raise self._unreachable
