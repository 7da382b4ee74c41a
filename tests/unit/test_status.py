"""A status says what is true: conditions with reasons and transitions, and messages that name the remedy."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controller.client import FieldError, Refused, Unreachable
from controller.cluster.conditions import NotFoundError, may_pass
from controller.cluster.credentials import newline_note
from controller.cluster.kube import KubeError
from controller.cluster.status import (
    Notice,
    SyncState,
    alert_status,
    host_status,
    notices,
    repository_status,
    restore_status,
    run_status,
    schedule_status,
)

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
HOST = {
    "connected": True,
    "desired_version": 3,
    "applied_version": 3,
    "in_sync": True,
    "agent_version": "1",
    "restic_version": "0.18.0",
    "last_seen": "2026-03-29T01:29:00Z",
    "problems": [],
}
COUNTS = {"hosts": 0, "pending": 0, "running": 0, "succeeded": 0, "failed": 0}


def seen(*problems: str, spec: dict[str, Any] | None = None, **told: Any) -> dict[str, Any]:
    counts = {"hosts": 0, "hostsInSync": 0, "hostsFailed": 0, "hostsOverdue": 0, "hostsWithoutSuccess": 0}
    counts |= {"hostsRefusingHooks": 0, "hostsUnsupported": 0, "hostsBehind": 0}
    named = [{"reason": reason, "message": f"{reason} of a"} for reason in problems]
    return {"spec": spec or {}, "status": {**counts, "behind": [], "problems": named, **told}}


def schedule(
    old: dict[str, Any] | None = None,
    error: Unreachable | Refused | NotFoundError | KubeError | None = None,
    told: dict[str, Any] | None = None,
    now: datetime = NOW,
    generation: int | None = 1,
) -> dict[str, Any]:
    return schedule_status(old or {}, SyncState(generation, error, told), now)


def host(old: dict[str, Any], now: datetime = NOW, *problems: str, **told: Any) -> dict[str, Any]:
    named = [{"reason": reason, "message": f"{reason}!"} for reason in problems]
    return host_status(old, SyncState(1, None, {**HOST, **told, "problems": named}), now)


def condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    (found,) = [it for it in status["conditions"] if it["type"] == type_]
    assert isinstance(found, dict)
    return found


def states(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {it["type"]: (it["status"], it["reason"]) for it in status["conditions"]}


FOREIGN = "the answer is not from a Lamplighter server: does the URL point to one?"


@pytest.mark.parametrize(
    ("error", "ready", "progress"),
    [
        (None, ("True", "Accepted"), None),
        (Unreachable("away"), ("Unknown", "ServerUnreachable"), "Reconciling"),
        (Refused(422, "no", (FieldError("spec.cron", "never comes"),)), ("False", "Invalid"), "Stalled"),
        (
            Refused(422, "no", (FieldError("spec.repositoryRef.name", "none"),)),
            ("False", "RepositoryNotFound"),
            "Reconciling",
        ),
        (Refused(403, "no"), ("False", "NotGranted"), "Stalled"),
        (Refused(401, "no"), ("False", "Unauthorized"), "Reconciling"),
        (Refused(404, "no"), ("False", "ScheduleNotFound"), "Reconciling"),
        (Refused(409, "no"), ("False", "Conflict"), "Reconciling"),
        (Refused(500, "no"), ("False", "ServerError"), "Reconciling"),
        (Refused(404, FOREIGN), ("False", "ServerError"), "Reconciling"),
        (Refused(401, FOREIGN), ("False", "Unauthorized"), "Reconciling"),
        (NotFoundError("SecretNotFound", "create it"), ("False", "SecretNotFound"), "Reconciling"),
        (NotFoundError("RepositoryNotReady", "it is not"), ("False", "RepositoryNotReady"), "Reconciling"),
        (NotFoundError("SecretNotText", "put text there"), ("False", "SecretNotText"), "Stalled"),
        (KubeError(0, "no"), ("False", "KubernetesUnreachable"), "Reconciling"),
        (KubeError(403, "no"), ("False", "Failed"), "Stalled"),
    ],
)
def test_a_reason_says_why_a_declaration_is_not_in_force_and_who_has_to_act(
    error: Unreachable | Refused | NotFoundError | KubeError | None, ready: tuple[str, str], progress: str | None
) -> None:
    going_on = {} if progress is None else {progress: ("True", ready[1])}
    assert states(schedule(error=error)) == {"Ready": ready, **going_on}
    assert states(repository_status({}, SyncState(1, error, None), NOW)) == {"Ready": ready, **going_on}
    assert not may_pass(error) or progress == "Reconciling"


def test_a_message_names_just_the_fields_that_are_wrong() -> None:
    refused = Refused(422, "the request is not allowed", (FieldError("spec.cron", "never comes"),))
    assert condition(schedule(error=refused), "Ready")["message"] == "spec.cron: never comes"


@pytest.mark.parametrize(
    ("told", "states_"),
    [
        (seen(), {"InSync": ("Unknown", "NoHosts")}),
        (seen("NoHosts"), {"Ready": ("False", "NoHosts"), "Degraded": ("True", "NoHosts")}),
        (seen("NotGranted"), {"Ready": ("False", "NotGranted"), "Granted": ("False", "NotGranted")}),
        (seen("HostsNotGranted"), {"Ready": ("False", "HostsNotGranted"), "Degraded": ("True", "HostsNotGranted")}),
        (seen("HostsNotGranted", hosts=1), {"Ready": ("True", "Accepted"), "Granted": ("False", "HostsNotGranted")}),
        (seen("HostsNotGranted", hosts=1), {"Degraded": ("False", "RunsSucceed")}),
        (seen(hosts=2, hostsInSync=2), {"InSync": ("True", "AllHosts"), "Ready": ("True", "Accepted")}),
        (seen(hosts=2, hostsInSync=1), {"InSync": ("False", "HostsBehind"), "Ready": ("True", "Accepted")}),
        (seen(hosts=2, hostsBehind=1), {"Ready": ("False", "HostsBehind"), "Reconciling": ("True", "HostsBehind")}),
        (seen("NoHosts"), {"Reconciling": ("True", "NoHosts")}),
        (seen("NoPassword", hosts=1), {"Ready": ("False", "NoPassword"), "Stalled": ("True", "NoPassword")}),
        (seen(hosts=2), {"Degraded": ("False", "RunsSucceed")}),
        (seen(hosts=2, hostsWithoutSuccess=1), {"Degraded": ("False", "NotOverdue")}),
        (seen("RunsFail", hosts=2), {"Degraded": ("True", "RunsFail"), "Ready": ("True", "Accepted")}),
        (seen("Overdue", "RunsFail", hosts=2), {"Degraded": ("True", "Overdue")}),
        (seen(), {"Degraded": ("False", "NoHosts")}),
        (seen(spec={"enabled": False}), {"Ready": ("True", "Accepted"), "Degraded": ("False", "Disabled")}),
        (
            seen("Paused", hosts=2, hostsInSync=2),
            {"Paused": ("True", "RunsFail"), "Degraded": ("True", "Paused"), "Ready": ("True", "Accepted")},
        ),
        (seen(spec={"enabled": False}, hosts=2), {"Degraded": ("False", "Disabled")}),
        (seen(spec={"suspend": True}, hosts=2), {"Degraded": ("False", "Suspended"), "Ready": ("True", "Accepted")}),
        (seen("HookNotAllowed", hosts=2, hostsRefusingHooks=2), {"Ready": ("False", "HookNotAllowed")}),
        (seen("HookNotAllowed", hosts=2, hostsRefusingHooks=1), {"Ready": ("True", "Accepted")}),
        (seen("NotSupported", hosts=2, hostsUnsupported=2), {"Ready": ("False", "NotSupported")}),
        (seen("NotSupported", hosts=2, hostsUnsupported=1), {"Ready": ("True", "Accepted")}),
        (seen("HookNotAllowed", hosts=2, hostsRefusingHooks=1), {"Degraded": ("True", "HookNotAllowed")}),
    ],
)
def test_what_the_server_tells_becomes_conditions(told: Any, states_: dict[str, tuple[str, str]]) -> None:
    assert states_.items() <= states(schedule(told=told)).items()


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ({"problems": []}, ("True", "NothingTold")),
        ({"problems": [], "lastDeliveryTime": "2026-03-29T01:29:00Z"}, ("True", "Delivered")),
        ({"problems": [{"reason": "NotDelivered", "message": "it answered 503"}]}, ("False", "NotDelivered")),
    ],
)
def test_an_alert_says_whether_its_messages_arrive(told: dict[str, Any], state: tuple[str, str]) -> None:
    made = alert_status({}, SyncState(1, None, {"status": {"firing": 2, "waiting": 1, "dropped": 0, **told}}), NOW)
    ready, delivering = made["conditions"]
    assert (ready["status"], (delivering["status"], delivering["reason"])) == ("True", state)
    assert (made["firing"], made["waiting"], made["observedGeneration"]) == (2, 1, 1)
    gone = alert_status(made, SyncState(None, Unreachable("away"), None), NOW)
    assert [it["status"] for it in gone["conditions"]] == ["Unknown", "True", delivering["status"]]


def test_all_that_is_wrong_is_in_the_message_within_bounds() -> None:
    told = seen("Overdue", "RunsFail", hosts=2)
    assert condition(schedule(told=told), "Degraded")["message"] == "Overdue of a; RunsFail of a"
    told["status"]["problems"][0]["message"] = "x" * 100_000
    assert len(condition(schedule(told=told), "Degraded")["message"]) == 2048


def test_some_hosts_are_named_and_the_rest_counted() -> None:
    status = schedule(told=seen(hosts=9, hostsInSync=4, outOfSync=["a", "b"]))
    assert condition(status, "InSync")["message"] == "5 of 9 hosts do not hold it: a, b and 3 more"


@pytest.mark.parametrize("error", [Refused(422, "no"), NotFoundError("SecretNotFound", "x"), Unreachable("away")])
def test_what_is_not_in_force_is_never_in_sync(error: Refused | NotFoundError | Unreachable) -> None:
    fine = schedule(told=seen(hosts=2, hostsInSync=2))
    status = schedule(fine, error=error, told=seen(hosts=2, hostsInSync=2), now=LATER)
    assert states(status)["InSync"] == ("Unknown", "NotAccepted")
    assert "stays in force on 2 of 2 hosts" in condition(status, "InSync")["message"]


def test_a_generation_is_told_once_it_was_answered() -> None:
    away = schedule(error=Unreachable("away"), generation=None)
    assert away["observedGeneration"] == -1
    assert "observedGeneration" not in condition(away, "Ready")
    known = schedule(away, told=seen(hosts=1), generation=3)
    assert known["observedGeneration"] == condition(known, "InSync")["observedGeneration"] == 3
    again = schedule(known, error=Unreachable("away"), generation=None)
    assert again["observedGeneration"] == condition(again, "Ready")["observedGeneration"] == 3


def test_a_transition_has_its_time_and_a_state_that_stays_keeps_it() -> None:
    first = schedule(told=seen(hosts=1))
    second = schedule(first, told=seen(hosts=2), now=LATER, generation=2)
    assert condition(first, "InSync")["lastTransitionTime"] == "2026-03-29T01:30:00Z"
    assert condition(second, "InSync")["lastTransitionTime"] == "2026-03-29T01:30:00Z"
    assert condition(second, "InSync")["observedGeneration"] == second["observedGeneration"] == 2
    third = schedule(second, told=seen(hosts=2, hostsInSync=2), now=LATER)
    assert condition(third, "InSync")["lastTransitionTime"] == "2026-03-29T01:35:00Z"
    assert condition(third, "Ready")["lastTransitionTime"] == "2026-03-29T01:30:00Z"


def test_the_same_again_is_the_same_status() -> None:
    told = seen(hosts=2, hostsInSync=1, nextScheduleTime="2026-03-30T02:00:00Z")
    first = schedule(told=told)
    assert schedule(first, told=told, now=LATER) == first


def test_of_a_server_that_is_away_the_last_that_was_known_stays() -> None:
    known = schedule(told=seen(hosts=2, hostsInSync=1, lastScheduleTime="2026-03-29T01:00:00Z"))
    away = schedule(known, error=Unreachable("away"), now=LATER)
    gone = {"Ready": ("Unknown", "ServerUnreachable"), "Reconciling": ("True", "ServerUnreachable")}
    assert states(away) == {**states(known), **gone}
    assert away["hosts"] == 2
    assert away["lastScheduleTime"] == known["lastScheduleTime"]


def test_a_host_s_sign_of_life_alone_is_not_worth_a_write() -> None:
    first = host({})
    assert states(first) == {
        "Ready": ("True", "Connected"),
        "InSync": ("True", "Proved"),
        "Degraded": ("False", "AgentWell"),
    }
    assert host(first, LATER, last_seen="2026-03-29T01:34:00Z") is first
    gone = host(first, LATER, connected=False, last_seen="2026-03-29T01:34:00Z")
    assert gone["lastSeen"] == "2026-03-29T01:34:00Z"
    assert states(gone)["Ready"] == ("False", "Disconnected")


def test_what_is_wrong_with_a_host_is_told() -> None:
    assert states(host({}, NOW, "EntriesLeftOut"))["InSync"] == ("False", "EntriesLeftOut")
    assert states(host({}, NOW, "EntriesLeftOut"))["Degraded"] == ("False", "AgentWell")
    assert states(host({}, NOW, "DuplicateAgent", "ClockSkew"))["Degraded"] == ("True", "DuplicateAgent")
    assert (
        condition(host({}, NOW, "DuplicateAgent", "ClockSkew"), "Degraded")["message"] == "DuplicateAgent!; ClockSkew!"
    )


def test_a_host_that_the_server_does_not_know_yet_waits() -> None:
    status = host_status({}, SyncState(None, None, None), NOW)
    assert states(status) == {"Ready": ("False", "Unknown"), "Reconciling": ("True", "Unknown")}


def run(phase: str, reason: str = "", failures: list[dict[str, str]] | tuple[()] = (), **counts: int) -> dict[str, Any]:
    told = {**COUNTS, **counts, "phase": phase, "reason": reason, "message": "so far", "failures": failures}
    return run_status({}, SyncState(1, None, told), NOW)


@pytest.mark.parametrize(
    ("phase", "reason", "complete", "failed"),
    [
        ("Pending", "", ("False", "Pending"), ("False", "Pending")),
        ("Running", "", ("False", "Running"), ("False", "Running")),
        ("Succeeded", "", ("True", "Succeeded"), ("False", "Succeeded")),
        ("Failed", "RunsFail", ("False", "RunsFail"), ("True", "RunsFail")),
        ("Failed", "NoHosts", ("False", "NoHosts"), ("True", "NoHosts")),
    ],
)
def test_a_run_becomes_complete_or_failed_and_never_both(
    phase: str, reason: str, complete: tuple[str, str], failed: tuple[str, str]
) -> None:
    status = run(phase, reason)
    assert status["phase"] == phase
    assert (states(status)["Complete"], states(status)["Failed"]) == (complete, failed)
    assert [it.type for it in notices({}, status)] == {"Failed": ["Warning"], "Succeeded": ["Normal"]}.get(phase, [])


def test_a_run_that_failed_says_where_and_why_first() -> None:
    failures = [
        {"host": "a", "status": "failed", "reason": "WrongPassword", "error": "wrong\n password"},
        {"host": "b", "status": "interrupted", "reason": "", "error": "the agent stopped while the job ran"},
        {"host": "c", "status": "failed", "reason": "", "error": "x" * 4096},
    ]
    message = condition(run("Failed", "RunsFail", failures, hosts=9, failed=7), "Failed")["message"]
    assert message.startswith(
        "so far: a (WrongPassword: wrong password); b (Interrupted: the agent stopped while the job ran); c (Failed: x"
    )
    assert message.endswith("; and 4 more")
    assert len(message) < 600


@pytest.mark.parametrize(("status", "error"), [("succeeded", ""), ("warning", "not everything could be read")])
def test_a_restore_that_brought_no_file_back_says_so(status: str, error: str) -> None:
    job = {"status": status, "reason": "", "error": error, "host": "a", "snapshot_id": "s", "files_processed": 0}
    complete = condition(restore_status({}, SyncState(1, None, job), NOW), "Complete")
    assert (complete["status"], complete["reason"]) == ("True", "NoFiles")
    assert complete["message"].startswith(error)
    assert "no file" in complete["message"]


@pytest.mark.parametrize(
    ("status", "reason", "phase", "complete", "failed"),
    [
        ("pending", "", "Pending", ("False", "Pending"), ("False", "Pending")),
        ("succeeded", "", "Succeeded", ("True", "Succeeded"), ("False", "Succeeded")),
        ("warning", "", "Succeeded", ("True", "Succeeded"), ("False", "Succeeded")),
        ("failed", "NoSnapshot", "Failed", ("False", "NoSnapshot"), ("True", "NoSnapshot")),
        ("failed", "", "Failed", ("False", "Failed"), ("True", "Failed")),
        ("timed_out", "", "Failed", ("False", "TimedOut"), ("True", "TimedOut")),
        ("cancelled", "", "Failed", ("False", "Cancelled"), ("True", "Cancelled")),
        ("interrupted", "", "Failed", ("False", "Interrupted"), ("True", "Interrupted")),
    ],
)
def test_a_restore_becomes_complete_or_failed_with_the_host_and_the_reason(
    status: str, reason: str, phase: str, complete: tuple[str, str], failed: tuple[str, str]
) -> None:
    job: dict[str, Any] = {"status": status, "reason": reason, "error": "so it is", "host": "node-1"}
    job |= {"id": "1", "snapshot_id": "s", "files_processed": 3}
    told = restore_status({}, SyncState(1, None, job), NOW)
    assert (told["phase"], states(told)["Complete"], states(told)["Failed"]) == (phase, complete, failed)
    if phase == "Failed":
        assert condition(told, "Failed")["message"] == f"node-1 ({reason or failed[1]}: so it is)"


def test_a_person_is_told_of_trouble_that_begins_and_of_its_end_once() -> None:
    fine = schedule(told=seen(hosts=1))
    failing = schedule(fine, told=seen("RunsFail", hosts=1))
    assert notices({}, fine) == []
    (begun,) = notices(fine, failing)
    assert begun == Notice("Warning", "RunsFail", "RunsFail of a")
    assert notices(failing, failing) == []
    assert [it.type for it in notices(failing, fine)] == ["Normal"]


def test_nobody_is_told_of_hosts_that_do_not_hold_a_change_yet() -> None:
    fine, behind = schedule(told=seen(hosts=2)), schedule(told=seen(hosts=2, hostsBehind=2, behind=["a", "b"]))
    assert notices(fine, behind) == notices(behind, fine) == []
    assert condition(behind, "Ready")["message"].endswith("; not yet held by a, b, though online")
    refused = schedule(error=Refused(422, "no"))
    assert [it.type for it in notices(refused, behind)] == ["Normal"]  # which ends the trouble


def test_a_person_is_told_of_another_reason_but_not_of_a_server_that_is_away() -> None:
    missing = schedule(error=NotFoundError("SecretNotFound", "create it"))
    wrong = schedule(missing, error=Refused(422, "no"))
    assert [it.reason for it in notices(missing, wrong)] == ["Invalid"]
    assert notices({}, schedule(error=Unreachable("away"))) == []


def repository(*problems: dict[str, str], spec: dict[str, Any] | None = None, **told: Any) -> dict[str, Any]:
    opened = {"passwordSecretRef": {"name": "secret"}}
    return {"spec": opened if spec is None else spec, "status": {"problems": list(problems), **told}}


def test_a_repository_is_degraded_while_something_is_wrong_with_it_which_is_noticed() -> None:
    assert states(repository_status({}, SyncState(1, None, repository()), NOW))["Degraded"] == ("False", "Usable")
    wrong = {"reason": "WrongPassword", "message": "wrong password (on node-1)"}
    problem = {"reason": "WrongPassword", "message": "wrong password", "host": "node-1", "at": "2026-03-29T01:29:00Z"}
    status = repository_status({}, SyncState(1, None, repository(wrong, problem=problem)), NOW)
    assert states(status)["Degraded"] == ("True", "WrongPassword")
    assert status["problem"] == problem
    assert Notice("Warning", "WrongPassword", "wrong password (on node-1)") in notices({}, status)


def test_a_note_on_a_secret_is_told_where_all_is_well() -> None:
    note = newline_note({"password": "hush\n", "env": {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s\r\n"}})
    status = repository_status({}, SyncState(1, None, repository(), note), NOW)
    message = condition(status, "Ready")["message"]
    assert message.endswith("; the newline at the end of password, AWS_SECRET_ACCESS_KEY in its Secret is left out")
    assert states(status)["Ready"][0] == "True"
    assert newline_note(None) == newline_note({"password": "hush"}) == ""


@pytest.mark.parametrize("reason", ["NoPassword", "NotGranted"])
def test_a_repository_that_no_job_can_use_is_not_ready_and_says_what_to_do(reason: str) -> None:
    status = repository_status({}, SyncState(1, None, repository({"reason": reason, "message": "the remedy"})), NOW)
    assert states(status)["Ready"] == ("False", reason)
    assert condition(status, "Ready")["message"] == "the remedy"
