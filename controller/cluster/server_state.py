"""What the server last said: plain data, no I/O."""

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
        """What the server last said of a key; None where it has nothing, or was not asked."""
        return self._answers.get(key)

    def keys(self) -> set[K]:
        """All that the server has an answer for."""
        return set(self._answers)

    def put(self, key: K, answer: Object | None) -> None:
        """The server has answered for a key; None: it has nothing there any more."""
        self._newer.add(key)
        if answer is None:
            self._answers.pop(key, None)
        else:
            self._answers[key] = answer

    def begin(self) -> None:
        """A list is about to be read; answers from here on are newer than it."""
        self._newer.clear()

    def replace(self, listed: Iterable[tuple[K, Object]], covers: Callable[[K], bool] = lambda _: True) -> None:
        """Take in a list that was begun to be read at `begin`. `covers`: the keys that it speaks of."""
        kept = {key: it for key, it in self._answers.items() if key in self._newer or not covers(key)}
        self._answers = {key: it for key, it in listed if key not in self._newer} | kept


class ServerState:
    """The server as it last answered: `resources` by key, `hosts` by name, `one_shot` (Runs and Restores) by uid."""

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
        """Why the server could not be asked when everything was last to be compared; None where it could."""
        return self._unreachable

    def mark_unreachable(self, error: ControllerError) -> None:
        """The server cannot be asked."""
        self._unreachable = error

    def mark_reachable(self) -> None:
        """The server answers."""
        self._unreachable = None

    def check_reachable(self) -> None:
        """Raise why the server is away, so that not each object finds that out by a request of its own."""
        if self._unreachable is not None:
            raise self._unreachable
