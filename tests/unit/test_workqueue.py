"""The controller's work queue does what a model made of plain lists does."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller.workqueue import WorkQueue

KEYS = st.sampled_from("abc")
BASE_S, MAX_S = 1.0, 5.0


class Model(RuleBasedStateMachine):
    """What waits, what is with a worker, and when what was put off is due, looked up the slow way."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue[str](BASE_S, MAX_S)
        self.now = 0.0
        self.waiting: list[str] = []
        self.again: list[str] = []
        self.working: list[str] = []
        self.later: dict[str, tuple[float, int]] = {}
        self.put_off, self.failed = 0, dict.fromkeys("abc", 0)

    def _add(self, key: str) -> None:
        if key in self.working and key not in self.again:
            self.again.append(key)
        elif key not in self.working and key not in self.waiting:
            self.waiting.append(key)

    def _put_off(self, key: str, delay_s: float) -> None:
        if delay_s <= 0:
            self._add(key)
        else:
            at = self.now + delay_s
            before = self.later.get(key)
            if before is None or at < before[0]:
                self.put_off += 1
                self.later[key] = (at, self.put_off)

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self._add(key)

    @rule(key=KEYS, delay_s=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.5]))
    def add_after(self, key: str, delay_s: float) -> None:
        self.queue.add_after(key, self.now, delay_s)
        self._put_off(key, delay_s)

    @rule(key=KEYS)
    def fail(self, key: str) -> None:
        self.queue.add_rate_limited(key, self.now)
        self._put_off(key, min(BASE_S * 2 ** self.failed[key], MAX_S))
        self.failed[key] += 1

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)
        self.failed[key] = 0

    @rule()
    def get(self) -> None:
        for due in sorted((key for key, (at, _) in self.later.items() if at <= self.now), key=self.later.__getitem__):
            del self.later[due]
            self._add(due)
        key = self.queue.get(self.now)
        assert (key is None) == (not self.waiting)
        if key is not None:
            assert key not in self.working
            assert key == self.waiting.pop(0)  # of those that came due meanwhile, the earliest first
            self.working.append(key)

    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        if self.working:
            key = data.draw(st.sampled_from(self.working))
            self.queue.done(key)
            self.working.remove(key)
            if key in self.again:
                self.again.remove(key)
                self.waiting.append(key)

    @rule(seconds=st.sampled_from([0.25, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def tells_what_it_holds(self) -> None:
        assert len(self.queue) == len({*self.waiting, *self.again, *self.later})
        assert self.queue.idle == (not (self.waiting or self.working or self.later))
        earliest = min((at for at, _ in self.later.values()), default=None)
        assert self.queue.next_at() == (float("-inf") if self.waiting else earliest)
        for key in "abc":
            assert (key in self.queue) == (key in [*self.waiting, *self.working])
            assert self.queue.failures(key) == self.failed[key]


TestAgainstAModel = Model.TestCase
TestAgainstAModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_key_that_fails_waits_ever_longer_up_to_a_bound_and_others_do_not() -> None:
    queue, now, gaps = WorkQueue[str](BASE_S, MAX_S), 0.0, []
    queue.add("bad")
    for _ in range(6):
        at = max(queue.next_at() or 0.0, now)
        gaps.append(at - now)
        now = at
        assert queue.get(now) == "bad"
        queue.add_rate_limited("bad", now)
        queue.done("bad")
        queue.add("good")
        assert queue.get(now) == "good"
        queue.forget("good")
        queue.done("good")
    assert gaps == [0, 1, 2, 4, 5, 5]
    queue.forget("bad")
    queue.add_rate_limited("bad", now)
    assert queue.next_at() == now + BASE_S


def test_a_key_that_fails_for_years_has_a_backoff_still() -> None:
    queue = WorkQueue[str](BASE_S, MAX_S)
    for failure in range(5000):
        queue.add_rate_limited("bad", failure * MAX_S)
        assert queue.get((failure + 1) * MAX_S) == "bad"
        queue.done("bad")
    assert queue.idle
