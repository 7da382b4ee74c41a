"""Promise 10: the overview tells of every reason that anything can have, and its sentence is true."""

import ast
import re
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.requests import Request

from server.agents.session import HostProblem
from server.api.operations import OPERATIONS
from server.jobs.outcomes import REPOSITORY_REASONS
from server.observe.fleet import STATES, group
from server.observe.host_days import Bits
from server.observe.overview import (
    AMBER,
    SECTIONS,
    TITLES,
    Counts,
    Facts,
    HostTroubles,
    RepositoryFacts,
    ScheduleFacts,
    overview,
)
from server.observe.problems import Access, AlertFacts, Coverage, Problem, repository_problems
from server.store.rollouts import Pause

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 29, 3, tzinfo=UTC)
COUNTS = Counts(
    hosts=3,
    hosts_connected=3,
    hosts_in_sync=3,
    hosts_backed_up=3,
    hosts_waiting=0,
    schedules=1,
    schedules_disabled=0,
    repositories=1,
    jobs_running=0,
)


def coverage(**more: Any) -> Coverage:
    empty: dict[str, Any] = dict.fromkeys(Coverage._fields, ())
    numbers = ("in_sync", "failed", "warned", "not_granted", "overdue", "never_succeeded", "never_ran")
    good = {
        "hosts": 3,
        "enabled": True,
        "has_password": True,
        "denied": "",
        "no_host": "",
        "forgets_too_little": "",
        "errors": {},
    }
    within = {"within": NOW - NOW.replace(hour=1), "refused_hooks": {}, "unsupported": {}, "pause": None}
    return Coverage(**empty | dict.fromkeys(numbers, 0) | good | within | more)


def facts(**more: Any) -> Facts:
    schedule = ScheduleFacts("ns", "etc", "backup", coverage(), None)
    verified = RepositoryFacts("ns", "main", [], verified=True, must_be=True)
    good = Facts(NOW, "", "", COUNTS, 0, [schedule], [verified], [], [], [], [])
    return good._replace(**more)


def of_schedule(**more: Any) -> Facts:
    return facts(schedules=[ScheduleFacts("ns", "etc", "backup", coverage(**more), None)])


def of_repository(*problems: Problem, verified: bool = True) -> Facts:
    return facts(repositories=[RepositoryFacts("ns", "main", problems, verified, must_be=verified)])


def of_hosts(reason: str) -> Facts:
    return facts(hosts=[HostTroubles(reason, 30, [(f"h{at:02}", "it is so") for at in range(20)])])


ACCESS = Access("", has_password=True)
FROM = {
    "Overdue": of_schedule(overdue=2, overdue_names=["a", "b"], late_names=["a", "b"]),
    "NeverRan": of_schedule(overdue=2, never_ran=2, never_ran_names=["a", "b"]),
    "RunsFail": of_schedule(failed=1, failed_names=["a"]),
    "RunsHang": of_schedule(hanging=["a"]),
    "RunsIncomplete": of_schedule(warned=1, warned_names=["a"]),
    "HookNotAllowed": of_schedule(refused_hooks={"/bin/freeze": ["a"]}),
    "ForgetsTooLittle": of_schedule(forgets_too_little="there is no backup"),
    "NotSupported": of_schedule(unsupported={"its restic is too old": ["a"]}),
    "Paused": of_schedule(pause=Pause(NOW, 2, ["a", "b"])),
    "NoHosts": of_schedule(hosts=0, no_host="there is none"),
    "HostsNotGranted": of_schedule(not_granted=1, not_granted_names=["a"]),
    "NotGranted": of_schedule(denied="spec.url: no"),
    "NoPassword": of_schedule(has_password=False),
    "Disabled": of_schedule(enabled=False),
    "NothingDeclared": facts(schedules=[]),
    "NotWriting": facts(refuses="the disk is full"),
    "NotFollowing": facts(controllers=[("folder", [Problem("NotFollowing", "it is silent")])]),
    "NotDelivered": facts(alerts=[AlertFacts("ns", "on-call", NOW, "it answered 503", selects=True)]),
    "SelectsNothing": facts(alerts=[AlertFacts("ns", "on-call", None, "", selects=False)]),
    "NeverVerified": of_repository(verified=False),
    "NotVerified": of_repository(*repository_problems(ACCESS, None, 1, None, NOW.replace(day=1), NOW)),
    **{it: of_repository(Problem(it, "it is so")) for it in sorted(REPOSITORY_REASONS)},
    **{it: of_hosts(it) for it in ("NotConnected", "NotInSync", "NoBackup", "EntriesLeftOut")},
    **{it: of_hosts(it) for it in ("DuplicateAgent", "ClockSkew", "StoreEmpty")},
}
"""For each reason, facts from which it follows."""


def reasons_in_the_code() -> set[str]:
    """The first arguments of all problems that the server makes, and the reasons that have a list of their own."""
    found = set(REPOSITORY_REASONS)
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name.endswith("Problem") and isinstance(first := node.args[0] if node.args else None, ast.Constant):  # type: ignore[attr-defined]
                found.add(str(first.value))
    hints = HostProblem.__annotations__["reason"]
    return found | set(get_args(hints)) | {"NotConnected", "NotInSync", "NoBackup", "NothingDeclared", "NotWriting"}


def test_every_reason_has_a_section_and_every_section_a_title() -> None:
    known = set(chain.from_iterable(SECTIONS.values()))
    assert reasons_in_the_code() == known == FROM.keys()
    assert TITLES.keys() == SECTIONS.keys()
    assert list(SECTIONS)[:6] == ["overdue", "failed", "never_ran", "offline", "out_of_sync", "not_verified"]
    _, _, page = (ROOT / "docs/api.md").read_text().partition("| section | reasons |")
    for name, reasons in SECTIONS.items():
        row = re.search(rf"^\| `{name}`.*$", page, re.MULTILINE)
        assert row is not None
        assert all(f"`{it}`" in row[0] for it in reasons), name


def test_a_section_is_called_alike_everywhere() -> None:
    """REST gives the titles, so the command line and the pages have none of their own."""
    for reason, facts in FROM.items():
        assert all(it.title == TITLES[it.name] for it in overview(facts).sections), reason
    for path in [*(ROOT / "cli").rglob("*.py"), *(ROOT / "server/web").rglob("*.*")]:
        if path.suffix in {".py", ".html"}:
            assert "Never verified" not in path.read_text(), path


@pytest.mark.parametrize("reason", FROM)
def test_each_reason_appears(reason: str) -> None:
    found = overview(FROM[reason])
    told = {it.reason: section for section in found.sections for it in section.items}
    assert reason in told
    is_red = told[reason].name not in AMBER
    assert told[reason].severity == ("red" if is_red else "amber")
    assert found.answer == ("no" if is_red else found.answer)
    assert not found.sentence.startswith("Yes") or not is_red


def test_what_is_not_named_is_counted() -> None:
    [section] = overview(of_hosts("NotConnected")).sections
    assert (section.count, len(section.items), section.more) == (30, 20, 10)
    failing = [coverage(failed=at + 1, failed_names=["a"]) for at in range(25)]
    schedules = [ScheduleFacts("ns", f"s{at:02}", "backup", it, None) for at, it in enumerate(failing)]
    [section] = overview(facts(schedules=schedules)).sections
    assert (section.count, len(section.items), section.more) == (25 * 26 // 2, 20, 5)
    assert section.items[0].name == "s24"


ALL = "all 3 hosts are backed up in time"
LATE = {"overdue": 2, "overdue_names": ["a", "b"], "late_names": ["a", "b"]}
SENTENCES = [
    (facts(), "yes", f"Yes: {ALL}."),
    (of_schedule(warned=1, warned_names=["a"]), "yes", f"Yes: {ALL} (1 run left something undone)."),
    (of_repository(verified=False), "yes", f"Yes: {ALL} (1 repository was never verified)."),
    (of_hosts("NotConnected"), "no", f"Not all is well, though {ALL} (30 hosts are offline)."),
    (
        of_schedule(**LATE)._replace(counts=Counts(3, 3, 3, 1, 0, 1, 0, 1, 0)),
        "no",
        "No: 2 of 3 hosts are not backed up in time (2 runs are overdue).",
    ),
    (
        facts(counts=Counts(3, 3, 3, 2, 1, 1, 0, 1, 0)),
        "unknown",
        "Not yet: 1 of 3 hosts is without a backup still, and none is overdue.",
    ),
    (
        facts(awaited=2),
        "unknown",
        f"It seems so: {ALL}, but the server has just started, and 2 of 3 hosts are not back yet.",
    ),
    (
        facts(refuses="the disk is full"),
        "no",
        "Nobody can tell: the server cannot write its store, so nothing that happens is recorded.",
    ),
    (facts(schedules=[]), "no", "Nothing is backed up: no Schedule of kind backup is declared."),
    (of_schedule(enabled=False), "no", "Nothing is backed up: the only Schedule of kind backup is disabled."),
    (of_schedule(hosts=0), "no", "Nothing is backed up: no host has an enabled Schedule of kind backup."),
    (facts(counts=Counts(0, 0, 0, 0, 0, 1, 0, 1, 0)), "no", "Nothing is backed up: there is no host."),
]


@pytest.mark.parametrize(("known", "answer", "said"), SENTENCES, ids=lambda it: it if isinstance(it, str) else "")
def test_the_sentence_is_true(known: Facts, answer: str, said: str) -> None:
    found = overview(known)
    assert found.sentence == said
    assert found.answer == answer


def test_a_days_worst_end_counts_once_for_each_host() -> None:
    both, later = Bits(0b0111, 0b0010, 0b0100), Bits(0b0011, 0b0001, 0b0010)
    states = dict.fromkeys(STATES, frozenset[str]()) | {"failed": frozenset("a"), "offline": frozenset("ab")}
    found = group("east", frozenset("abcd"), 0b1111, states, [both, both | later])
    assert found.states == {"failed": 1, "offline": 2, "good": 2}
    assert [(it.succeeded, it.warned, it.failed, it.none) for it in found.days] == [(1, 1, 1, 1), (0, 1, 2, 1)]
    assert [both.worst(at) for at in range(4)] == ["succeeded", "warned", "failed", "none"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/overview", "/fleet"])
async def test_who_may_list_one_namespace_may_ask_for_that_one_alone(path: str) -> None:
    [operation] = [it for it in OPERATIONS if it.path == path]
    for query, namespace in ((b"namespace=ns", "ns"), (b"", ""), (b"namespace=", "")):
        request = Request({"type": "http", "query_string": query, "headers": []})
        needed = await operation.permissions(None, request)  # type: ignore[arg-type]
        assert {(it.verb, it.namespace, it.name) for it in needed} == {("list", namespace, "")}
        assert {it.resource for it in needed} == {"schedules", "repositories", "hosts", "runs"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
