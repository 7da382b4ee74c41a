"""Argo CD shows the health that our statuses tell, by the scripts in contrib/argocd, in the Lua that it runs (5.1)."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime  # type: ignore[import-untyped]

from controller.client import FieldError, Refused, Unreachable
from controller.cluster.status import (
    Status,
    SyncState,
    alert_status,
    host_status,
    repository_status,
    restore_status,
    run_status,
    schedule_status,
)

SCRIPTS = Path(__file__).parents[2] / "contrib/argocd/resource_customizations/lamplighter.dev"
NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
BAD = {"reason": "RunsFail", "message": "it went wrong"}
KINDS: dict[str, Callable[[Status, SyncState, datetime], Status]] = {
    "Schedule": schedule_status,
    "Repository": repository_status,
    "Alert": alert_status,
    "Host": host_status,
    "Run": run_status,
    "Restore": restore_status,
}


def schedule(*problems: dict[str, str], behind: int = 0) -> dict[str, Any]:
    counts = dict.fromkeys(("hostsFailed", "hostsWithoutSuccess", "hostsRefusingHooks", "hostsUnsupported"), 0)
    counts |= {"hosts": 2, "hostsInSync": 2 - behind, "hostsBehind": behind}
    return {"spec": {}, "status": {**counts, "behind": ["a"][:behind], "problems": list(problems)}}


def host(last_seen: str, *, connected: bool) -> dict[str, Any]:
    versions = {"desired_version": 3, "applied_version": 3, "agent_version": "1", "restic_version": "0.18.0"}
    return {**versions, "connected": connected, "in_sync": True, "last_seen": last_seen, "problems": []}


def run(phase: str) -> dict[str, Any]:
    counts = dict.fromkeys(("hosts", "pending", "running", "succeeded", "failed"), 0)
    return {**counts, "phase": phase, "reason": "", "message": "so far", "failures": ()}


def restore(status: str) -> dict[str, Any]:
    return {"status": status, "reason": "", "error": "", "host": "a", "snapshot_id": "s", "files_processed": 3}


def alert(*problems: dict[str, str]) -> dict[str, Any]:
    return {"status": {"firing": 0, "waiting": 0, "dropped": 0, "problems": list(problems)}}


def repository(*problems: dict[str, str]) -> dict[str, Any]:
    return {"spec": {}, "status": {"problems": list(problems)}}


SEEN = "2026-03-29T01:29:00Z"
STATES = [
    ("Schedule", {}, schedule(), "Healthy"),
    ("Schedule", {}, schedule(behind=1), "Progressing"),
    ("Schedule", {}, schedule(BAD), "Degraded"),
    ("Schedule", {"suspend": True}, schedule(), "Suspended"),
    ("Schedule", {"enabled": False}, schedule(), "Suspended"),
    ("Repository", {}, repository(), "Healthy"),
    ("Repository", {}, repository(BAD), "Degraded"),
    ("Alert", {}, alert(), "Healthy"),
    ("Alert", {}, alert(BAD), "Degraded"),
    ("Host", {}, host(SEEN, connected=True), "Healthy"),
    ("Host", {}, host(SEEN, connected=False), "Degraded"),
    ("Host", {}, host("", connected=False), "Progressing"),
    ("Run", {}, run("Running"), "Progressing"),
    ("Run", {}, run("Succeeded"), "Healthy"),
    ("Run", {}, run("Failed"), "Degraded"),
    ("Restore", {}, restore("running"), "Progressing"),
    ("Restore", {}, restore("succeeded"), "Healthy"),
    ("Restore", {}, restore("failed"), "Degraded"),
]


def health(kind: str, spec: dict[str, Any], status: Status, generation: int = 1) -> str:
    """The health of an object, as Argo CD finds it: `obj` is the object, and the script returns status and message."""
    lua = LuaRuntime()
    lua.globals().obj = lua.table_from(
        {"metadata": {"generation": generation}, "spec": spec, "status": status}, recursive=True
    )
    found = lua.execute((SCRIPTS / kind / "health.lua").read_text())
    assert found.message
    return str(found.status)


@pytest.mark.parametrize(
    ("kind", "spec", "answer", "expected"), STATES, ids=lambda it: it if isinstance(it, str) else ""
)
def test_what_the_server_answers_is_shown(
    kind: str, spec: dict[str, Any], answer: dict[str, Any], expected: str
) -> None:
    assert health(kind, spec, KINDS[kind]({}, SyncState(1, None, answer), NOW)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_healthy_before_its_present_generation_was_answered(kind: str) -> None:
    assert health(kind, {}, {"observedGeneration": -1}) == "Progressing"
    away = KINDS[kind]({}, SyncState(None, Unreachable("away"), None), NOW)
    assert health(kind, {}, away) == "Progressing"
    refused = KINDS[kind]({}, SyncState(1, Refused(422, "no", (FieldError("spec.cron", "never comes"),)), None), NOW)
    assert health(kind, {}, refused) == "Degraded"
    assert health(kind, {}, refused, generation=2) == "Progressing"


def test_each_kind_has_a_script() -> None:
    assert {it.name for it in SCRIPTS.iterdir()} == KINDS.keys()
