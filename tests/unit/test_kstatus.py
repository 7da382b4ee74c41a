"""Flux, Helm and whoever reads statuses by kstatus see what is true of every kind, whatever happened before."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.client import ControllerError, FieldError, Refused, Unreachable
from controller.cluster.conditions import NotFoundError, is_answer, own
from controller.cluster.kube import KubeError
from controller.cluster.status import (
    UNANSWERED,
    SyncState,
    alert_status,
    host_status,
    repository_status,
    restore_status,
    run_status,
    schedule_status,
)
from server.resources.schema import definition
from tests.kstatus import kstatus

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
KINDS = {
    "schedules": schedule_status,
    "repositories": repository_status,
    "alerts": alert_status,
    "hosts": host_status,
    "runs": run_status,
    "restores": restore_status,
}
ERRORS: list[ControllerError | None] = [
    None,
    Unreachable("away"),
    Refused(422, "no", (FieldError("spec.cron", "never comes"),)),
    Refused(403, "no"),
    Refused(401, "no"),
    Refused(500, "no"),
    NotFoundError("SecretNotFound", "create it"),
    NotFoundError("RepositoryNotReady", "it is not in force"),
    KubeError(0, "no"),
]
REASONS = (
    "NoHosts",
    "NotGranted",
    "HostsNotGranted",
    "NoPassword",
    "HookNotAllowed",
    "NotSupported",
    "RunsFail",
    "Overdue",
)
FOREIGN = {"type": "example.org/Audited", "status": "True", "reason": "Audit", "message": ""}
JOB = {"reason": "", "error": "", "host": "a", "snapshot_id": "s", "files_processed": 3}
COUNTS = dict.fromkeys(("hosts", "pending", "running", "succeeded", "failed"), 0)


def problems(reasons: list[str]) -> list[dict[str, str]]:
    return [{"reason": it, "message": f"{it} of a"} for it in reasons]


SOME = st.lists(st.sampled_from(REASONS), max_size=2, unique=True).map(problems)
COUNT = st.integers(0, 2)
ANSWERS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "schedules": st.builds(
        lambda hosts, behind, refusing, told: {
            "spec": {},
            "status": {
                **dict.fromkeys(("hostsInSync", "hostsFailed", "hostsWithoutSuccess"), 0),
                "hosts": hosts,
                "hostsBehind": min(behind, hosts),
                "behind": [],
                "hostsRefusingHooks": min(refusing, hosts),
                "hostsUnsupported": min(refusing, hosts),
                "problems": told,
            },
        },
        COUNT,
        COUNT,
        COUNT,
        SOME,
    ),
    "repositories": SOME.map(lambda told: {"spec": {}, "status": {"problems": told}}),
    "alerts": SOME.map(lambda told: {"status": {"problems": told, "firing": 0, "waiting": 0, "dropped": 0}}),
    "hosts": st.builds(
        lambda connected, in_sync, told: {
            "connected": connected,
            "desired_version": 3,
            "applied_version": 3,
            "in_sync": in_sync,
            "agent_version": "1",
            "restic_version": "0.18.0",
            "last_seen": "2026-03-29T01:29:00Z",
            "problems": told,
        },
        st.booleans(),
        st.booleans(),
        SOME,
    ),
    "runs": st.sampled_from(("Pending", "Running", "Succeeded", "Failed")).map(
        lambda phase: {**COUNTS, "phase": phase, "reason": "", "message": "so far", "failures": ()}
    ),
    "restores": st.sampled_from(("pending", "running", "succeeded", "warning", "failed", "interrupted")).map(
        lambda status: {**JOB, "status": status}
    ),
}
STEPS = st.sampled_from(sorted(KINDS)).flatmap(
    lambda plural: st.tuples(
        st.just(plural),
        st.lists(st.tuples(st.sampled_from(ERRORS), st.none() | ANSWERS[plural]), min_size=1, max_size=4),
    )
)


@given(STEPS)
def test_an_object_is_current_just_when_it_is_as_declared_and_failed_just_when_a_person_must_act(
    steps: tuple[str, list[tuple[ControllerError | None, dict[str, Any] | None]]],
) -> None:
    plural, happened = steps
    status: dict[str, Any] = {"observedGeneration": UNANSWERED, "conditions": [FOREIGN]}
    answered = UNANSWERED
    for generation, (error, answer) in enumerate(happened, start=1):
        answered = generation if is_answer(error) else answered
        status = KINDS[plural](own(status), SyncState(answered if answered > 0 else None, error, answer), NOW)
        said = {it["type"]: it["status"] for it in status["conditions"]}
        seen = kstatus({"metadata": {"generation": generation}, "status": status})
        assert status["observedGeneration"] == answered
        assert {"Reconciling", "Stalled"} & said.keys() <= {it for it, how in said.items() if how == "True"}
        assert not {"Reconciling", "Stalled"} <= said.keys()
        if seen == "Current":
            assert error is None
            assert said["Ready"] == "True"
            assert status.get("phase", "Succeeded") == "Succeeded" or answer is None
        elif seen == "Failed":
            assert said["Ready"] == "False" or status["phase"] == "Failed"
        if isinstance(error, Unreachable):
            assert seen == "InProgress"
        if isinstance(error, Refused) and error.status == 422:
            assert seen == "Failed"
        status["conditions"].append(FOREIGN)


@pytest.mark.parametrize("plural", KINDS)
def test_nothing_is_current_before_it_was_looked_at(plural: str) -> None:
    (version,) = definition(plural)["versions"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert kstatus({"metadata": {"generation": 1}, "status": status["default"]}) == "InProgress"
    assert status["default"] == {"observedGeneration": UNANSWERED}


@pytest.mark.parametrize("plural", KINDS)
def test_who_applies_a_part_of_a_list_or_a_reference_owns_just_that(plural: str) -> None:
    (version,) = definition(plural)["versions"]
    root = version["schema"]["openAPIV3Schema"]["properties"]
    conditions = root["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
    references = {name: node for name, node in _fields(root["spec"]) if name.endswith("Ref")}
    assert all(it["x-kubernetes-map-type"] == "atomic" for it in references.values()), references
    assert references or plural == "hosts"


def _fields(node: dict[str, Any]) -> Any:
    for name, field in node.get("properties", {}).items():
        yield name, field
        yield from _fields(field)
