"""A review by the cluster is remembered for its time and no longer, and a pod finds its API server."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.access.cache import Cache
from server.access.kubernetes import KubernetesError, in_cluster

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Asked:
    """Answers what it is told to, when it is told to, and counts how often it was asked."""

    def __init__(self) -> None:
        self.times = 0
        self.answer: bool | Exception = True
        self.may = asyncio.Event()
        self.may.set()

    async def __call__(self) -> bool:
        self.times += 1
        await self.may.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def now() -> list[Any]:
    return [0.0]


@pytest.fixture
def cache(now: list[Any]) -> Cache[Any, Any]:
    return Cache(lambda answer: 60 if answer else 10, 3, lambda: now[0])


@pytest.mark.parametrize(("answer", "kept_s"), [(True, 60), (False, 10)])
async def test_an_answer_is_believed_for_its_time(
    cache: Cache[Any, Any], now: list[Any], answer: bool, kept_s: int
) -> None:
    asked = Asked()
    asked.answer = answer
    assert await cache.get("a", asked) is answer
    now[0] = kept_s - 0.1
    assert await cache.get("a", asked) is answer
    assert asked.times == 1
    now[0] = kept_s
    await cache.get("a", asked)
    assert asked.times == 2


async def test_many_who_ask_at_once_cause_one_question(cache: Cache[Any, Any]) -> None:
    asked = Asked()
    assert await asyncio.gather(*(cache.get("a", asked) for _ in range(100))) == [True] * 100
    assert asked.times == 1


async def test_a_failure_is_told_to_all_who_wait_and_not_kept(cache: Cache[Any, Any]) -> None:
    asked = Asked()
    asked.answer = KubernetesError("gone")
    told = await asyncio.gather(*(cache.get("a", asked) for _ in range(3)), return_exceptions=True)
    assert told == [asked.answer] * 3
    asked.answer = True
    assert await cache.get("a", asked)


async def test_one_who_goes_away_takes_the_answer_from_nobody(cache: Cache[Any, Any]) -> None:
    asked = Asked()
    asked.may.clear()
    first, second = (asyncio.ensure_future(cache.get("a", asked)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    asked.may.set()
    assert await second
    assert (first.cancelled(), asked.times) == (True, 1)


async def test_the_oldest_makes_room(cache: Cache[Any, Any]) -> None:
    asked = Asked()
    for key in "abcd":
        await cache.get(key, asked)
    for key in "bcd":
        await cache.get(key, asked)
    assert asked.times == 4
    await cache.get("a", asked)
    assert asked.times == 5


def test_a_pod_finds_its_api_server(tmp_path: Path) -> None:
    found = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert (found.url, found.token_file, found.ca_file) == (
        "https://[fd00::1]:6443",
        tmp_path / "token",
        tmp_path / "ca.crt",
    )


def test_outside_of_a_cluster_the_remedy_is_told() -> None:
    with pytest.raises(KubernetesError, match="--kubernetes-api"):
        in_cluster({})
