"""Words name objects as kubectl has it, a watch shows each change once, and versions too far apart are told."""

import gc
import queue

import pytest
from click.testing import CliRunner

from cli.commands import parts
from cli.main import main
from cli.types import HOST, JOB, REPOSITORY, SCHEDULE, TYPES, Target, Type, targets, untyped
from cli.versions import skew
from cli.watching import Watched, concerns


def host(name: str, **values: object) -> dict[str, object]:
    return {"name": name, "connected": True, "last_seen": "10:00", "clock_skew_seconds": 0.1, **values}


def test_each_change_of_an_item_is_told_once_and_no_passing_one() -> None:
    watched = Watched("hosts")
    assert watched.changed([host("a"), host("b")]) == [("ADDED", host("a")), ("ADDED", host("b"))]
    assert watched.changed([host("a", last_seen="10:01"), host("b", clock_skew_seconds=0.2)]) == []
    assert watched.changed([host("a", connected=False)]) == [
        ("MODIFIED", host("a", connected=False)),
        ("DELETED", host("b", clock_skew_seconds=0.2)),
    ]
    assert watched.changed([host("a", connected=False)]) == []


def test_jobs_come_oldest_first_and_those_that_others_push_off_the_list_are_not_deleted() -> None:
    watched = Watched("jobs")
    old, new, newer = ({"id": it, "status": "pending"} for it in ("1", "2", "3"))
    assert watched.changed([new, old]) == [("ADDED", old), ("ADDED", new)]
    assert watched.changed([newer, new]) == [("ADDED", newer)]


def test_news_that_came_meanwhile_is_taken_together() -> None:
    news: queue.Queue[frozenset[str] | Exception] = queue.Queue()
    for kinds in ({"hosts"}, {"runs"}):
        news.put(frozenset(kinds))
    assert concerns(news, frozenset({"runs"}), None)
    assert news.empty()
    news.put(frozenset({"hosts"}))
    assert not concerns(news, frozenset({"runs"}), None)
    news.put(frozenset())  # a sign of life: an object may be overdue by now
    assert concerns(news, frozenset({"runs"}), None)
    assert concerns(news, frozenset({"runs"}), 0.01)
    news.put(ValueError("gone"))
    with pytest.raises(ValueError, match="gone"):
        concerns(news, frozenset({"runs"}), None)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["hosts"], [Target(HOST)]),
        (["HOST", "a", "b"], [Target(HOST, ("a", "b"))]),
        (["sched,host,schedules"], [Target(SCHEDULE), Target(HOST)]),
        (["host/a", "job/1", "hosts/b"], [Target(HOST, ("a", "b")), Target(JOB, ("1",))]),
        (["schedules.lamplighter.dev/ns/etc"], [Target(SCHEDULE, ("ns/etc",))]),
    ],
)
def test_words_name_objects(words: list[str], found: list[Target]) -> None:
    assert targets(words) == found


def test_each_name_is_of_one_type() -> None:
    names = [name for type_ in TYPES for name in type_.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("client", "server", "remedy"),
    [
        ("0.1.0", "0.1.9", ""),
        ("0.1.0", "0.2.0", ""),
        ("0.2.0.dev1", "0.1.0", ""),
        ("0.1.0", "0.3.0", "upgrade this program"),
        ("0.3.0", "0.1.0", "upgrade the server"),
        ("1.0.0", "0.9.0", "upgrade the server"),
        ("0.1.0", "unknown", ""),
    ],
)
def test_versions_more_than_one_minor_apart_are_told(client: str, server: str, remedy: str) -> None:
    assert skew(client, server).endswith(remedy)
    assert bool(skew(client, server)) == bool(remedy)


@pytest.mark.parametrize(
    ("type_", "given", "name"),
    [
        (JOB, "job/80ce6932", "80ce6932"),
        (JOB, "80ce6932", "80ce6932"),
        (HOST, "host/web-1", "web-1"),
        (SCHEDULE, "schedule/shop/etc", "shop/etc"),
        (SCHEDULE, "sched/shop/etc", "shop/etc"),
        (SCHEDULE, "schedule/etc", "schedule/etc"),  # etc in namespace `schedule`
        (REPOSITORY, "host/shop/main", "host/shop/main"),
    ],
)
def test_a_command_about_one_object_takes_the_names_that_lists_print(type_: Type, given: str, name: str) -> None:
    assert untyped(type_, given) == name


def test_logs_take_a_job_as_lists_print_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("cli.jobs.logs", lambda _access, job, **_: asked.append(job))
    assert CliRunner().invoke(main, ["logs", "job/80ce6932"]).exit_code == 0
    assert asked == ["80ce6932"]


def test_what_a_part_leaves_is_collected_however_its_import_ends() -> None:
    with parts.importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), parts.importing():
        raise ModuleNotFoundError("sqlmodel")
    assert gc.isenabled()
