"""What statuses say: conditions with their reasons, transitions, what a person is to notice, and patches."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.client import FieldError, Refused, Unreachable
from controller.kube import KubeError
from controller.status import (
    NotFoundError,
    Notice,
    host_status,
    notices,
    patch,
    repository_status,
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
    "last_seen": "2026-03-29T01:29:00Z",
}
COUNTS = {"hosts": 0, "pending": 0, "running": 0, "succeeded": 0, "failed": 0}


def seen(**told):
    return {"status": {"hosts": 0, "hostsInSync": 0, "hostsFailed": 0, **told}}


def schedule(old=None, error=None, told=None, now=NOW, generation=1):
    return schedule_status(old or {}, generation, error, told, now)


def condition(status, type_):
    (found,) = [it for it in status["conditions"] if it["type"] == type_]
    return found


def states(status):
    return {it["type"]: (it["status"], it["reason"]) for it in status["conditions"]}


@pytest.mark.parametrize(
    ("error", "ready"),
    [
        (None, ("True", "Accepted")),
        (Unreachable("away"), ("Unknown", "ServerUnreachable")),
        (Refused(422, "no", (FieldError("spec.cron", "never comes"),)), ("False", "Invalid")),
        (Refused(422, "no", (FieldError("spec.repositoryRef.name", "none"),)), ("False", "RepositoryNotFound")),
        (Refused(403, "no"), ("False", "NotGranted")),
        (Refused(401, "no"), ("False", "Unauthorized")),
        (Refused(404, "no"), ("False", "ScheduleNotFound")),
        (Refused(409, "no"), ("False", "Conflict")),
        (Refused(500, "no"), ("False", "ServerError")),
        (NotFoundError("SecretNotFound", "create it"), ("False", "SecretNotFound")),
        (KubeError(0, "no"), ("False", "Failed")),
    ],
)
def test_a_reason_says_why_a_declaration_is_not_in_force(error, ready):
    assert states(schedule(error=error))["Ready"] == ready
    assert states(repository_status({}, 1, error, None, NOW))["Ready"] == ready


def test_a_message_names_just_the_fields_that_are_wrong():
    refused = Refused(422, "the request is not allowed", (FieldError("spec.cron", "never comes"),))
    assert condition(schedule(error=refused), "Ready")["message"] == "spec.cron: never comes"


@pytest.mark.parametrize(
    ("told", "type_", "state"),
    [
        ({}, "InSync", ("True", "NoHosts")),
        ({"hosts": 2, "hostsInSync": 2}, "InSync", ("True", "AllHosts")),
        ({"hosts": 2, "hostsInSync": 1}, "InSync", ("False", "HostsBehind")),
        ({"hosts": 2}, "Degraded", ("False", "RunsSucceed")),
        ({"hosts": 2, "hostsFailed": 1}, "Degraded", ("True", "RunsFail")),
        ({"hosts": 1, "hostsNotGranted": 2}, "Granted", ("False", "HostsNotGranted")),
    ],
)
def test_what_the_server_counts_becomes_conditions(told, type_, state):
    assert states(schedule(told=seen(**told)))[type_] == state


def test_some_hosts_are_named_and_the_rest_counted():
    told = seen(hosts=9, hostsInSync=4, outOfSync=["a", "b"], hostsFailed=1, failed=["c"])
    status = schedule(told=told)
    assert condition(status, "InSync")["message"] == "5 of 9 hosts do not hold it: a, b and 3 more"
    assert condition(status, "Degraded")["message"] == "the last run failed on 1 of 9 hosts: c"


def test_a_transition_has_its_time_and_a_state_that_stays_keeps_it():
    first = schedule(told=seen(hosts=1))
    second = schedule(first, told=seen(hosts=2), now=LATER, generation=2)
    assert condition(first, "InSync")["lastTransitionTime"] == "2026-03-29T01:30:00Z"
    assert condition(second, "InSync")["lastTransitionTime"] == "2026-03-29T01:30:00Z"
    assert condition(second, "InSync")["observedGeneration"] == second["observedGeneration"] == 2
    third = schedule(second, told=seen(hosts=2, hostsInSync=2), now=LATER)
    assert condition(third, "InSync")["lastTransitionTime"] == "2026-03-29T01:35:00Z"
    assert condition(third, "Ready")["lastTransitionTime"] == "2026-03-29T01:30:00Z"


def test_the_same_again_is_the_same_status():
    told = seen(hosts=2, hostsInSync=1, nextScheduleTime="2026-03-30T02:00:00Z")
    first = schedule(told=told)
    assert schedule(first, told=told, now=LATER) == first


def test_of_a_server_that_is_away_the_last_that_was_known_stays():
    known = schedule(told=seen(hosts=2, hostsInSync=1, lastScheduleTime="2026-03-29T01:00:00Z"))
    away = schedule(known, error=Unreachable("away"), now=LATER)
    assert states(away) == {**states(known), "Ready": ("Unknown", "ServerUnreachable")}
    assert away["hosts"] == 2
    assert away["lastScheduleTime"] == known["lastScheduleTime"]


def test_a_host_s_sign_of_life_alone_is_not_worth_a_write():
    first = host_status({}, 1, None, HOST, NOW)
    assert states(first) == {"Ready": ("True", "Connected"), "InSync": ("True", "Proved")}
    assert host_status(first, 1, None, {**HOST, "last_seen": "2026-03-29T01:34:00Z"}, LATER) is first
    gone = host_status(first, 1, None, {**HOST, "connected": False, "last_seen": "2026-03-29T01:34:00Z"}, LATER)
    assert gone["lastSeen"] == "2026-03-29T01:34:00Z"
    assert states(gone)["Ready"] == ("False", "Disconnected")


def test_a_host_that_the_server_does_not_know_yet_waits():
    assert states(host_status({}, 1, None, None, NOW)) == {"Ready": ("False", "Unknown")}


@pytest.mark.parametrize(
    ("counts", "phase", "complete"),
    [
        ({"hosts": 2, "pending": 2}, "Pending", ("False", "Pending")),
        ({"hosts": 2, "pending": 1, "running": 1}, "Running", ("False", "Running")),
        ({"hosts": 2, "pending": 1, "failed": 1}, "Running", ("False", "Running")),
        ({"hosts": 2, "succeeded": 2}, "Succeeded", ("True", "Succeeded")),
        ({"hosts": 2, "succeeded": 1, "failed": 1}, "Failed", ("True", "Failed")),
        ({}, "Succeeded", ("True", "Succeeded")),
    ],
)
def test_a_run_is_as_far_as_its_hosts(counts, phase, complete):
    status = run_status({}, 1, None, {**COUNTS, **counts}, NOW)
    assert status["phase"] == phase
    assert states(status)["Complete"] == complete


def test_a_person_is_told_of_trouble_that_begins_and_of_its_end_once():
    fine = schedule(told=seen(hosts=1))
    failing = schedule(fine, told=seen(hosts=1, hostsFailed=1, failed=["a"]))
    assert notices({}, fine) == []
    (begun,) = notices(fine, failing)
    assert begun == Notice("Warning", "RunsFail", "the last run failed on 1 of 1 hosts: a")
    assert notices(failing, failing) == []
    assert [it.type for it in notices(failing, fine)] == ["Normal"]


def test_a_person_is_told_of_another_reason_but_not_of_a_server_that_is_away():
    missing = schedule(error=NotFoundError("SecretNotFound", "create it"))
    wrong = schedule(missing, error=Refused(422, "no"))
    assert [it.reason for it in notices(missing, wrong)] == ["Invalid"]
    assert notices({}, schedule(error=Unreachable("away"))) == []


VALUES = st.none() | st.booleans() | st.integers(0, 3) | st.text(max_size=3) | st.lists(st.integers(0, 3), max_size=2)
STATUSES = st.dictionaries(st.sampled_from("abcdef"), VALUES.filter(lambda it: it is not None), max_size=6)


@given(STATUSES, STATUSES)
def test_a_patch_makes_one_status_the_other_and_holds_no_more_than_that(old, new):
    made = patch(old, new)
    merged = {name: it for name, it in {**old, **made}.items() if it is not None}  # RFC 7386
    assert merged == new
    assert all(old.get(name) != it for name, it in made.items())


def repository(days=None, age_days=0, **told):
    created = (NOW - timedelta(days=age_days)).isoformat()
    spec = {"verifyWithinDays": days} if days else {}
    return {"metadata": {"creationTimestamp": created}, "spec": spec, "status": told}


def ago(days):
    return (NOW - timedelta(days=days)).isoformat()


PROBLEM = {"reason": "WrongPassword", "message": "wrong password", "host": "node-1", "at": ago(0)}


@pytest.mark.parametrize(
    ("told", "degraded"),
    [
        (repository(), ("False", "Usable")),
        (repository(problem=PROBLEM), ("True", "WrongPassword")),
        (repository(days=7, age_days=6), ("False", "Usable")),
        (repository(days=7, age_days=8), ("True", "NotVerified")),
        (repository(days=7, age_days=99, lastVerified=ago(6)), ("False", "Usable")),
        (repository(days=7, age_days=99, lastVerified=ago(8)), ("True", "NotVerified")),
        (repository(age_days=99, lastVerified=ago(98)), ("False", "Usable")),
    ],
)
def test_a_repository_is_degraded_while_it_cannot_be_used_or_was_not_verified_in_time(told, degraded):
    assert states(repository_status({}, 1, None, told, NOW))["Degraded"] == degraded


def test_what_made_a_repository_unusable_is_told_with_the_host_and_noticed():
    status = repository_status({}, 1, None, repository(problem=PROBLEM), NOW)
    assert status["problem"] == PROBLEM
    assert Notice("Warning", "WrongPassword", "wrong password (on node-1)") in notices({}, status)
