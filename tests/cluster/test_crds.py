"""A real API server refuses and fills in what the server does, and `kubectl get` shows the first answers."""

import re
from typing import Any
from uuid import uuid4

import pytest
from httpx import Client, Response

from server.resources.manifests import RESTORE as RESTORE_SCHEMA
from server.resources.manifests import parse_alert, parse_repository, parse_schedule
from tests.cluster.apiserver import Cluster
from tests.specs import (
    BACKUP,
    BAD_ALERTS,
    BAD_REPOSITORIES,
    BAD_RESTORES,
    BAD_SCHEDULES,
    GOOD_ALERTS,
    GOOD_REPOSITORIES,
    GOOD_RESTORES,
    GOOD_SCHEDULES,
    RESTORE,
    Bad,
    changed,
)

GROUP = "lamplighter.dev/v1alpha1"
KINDS = {
    "Schedule": "schedules",
    "Repository": "repositories",
    "Host": "hosts",
    "Run": "runs",
    "Restore": "restores",
    "Alert": "alerts",
}
RUN = {"scheduleRef": {"name": "etc"}}


@pytest.fixture
def objects(cluster: Cluster, namespace: str, definitions: None) -> "Objects":
    return Objects(cluster.http, namespace)


class Objects:
    """Objects of ours in one namespace, as `kubectl` would handle them."""

    def __init__(self, http: Client, namespace: str) -> None:
        self._http, self._namespace = http, namespace

    def path(self, kind: str, name: str = "") -> str:
        return f"/apis/{GROUP}/namespaces/{self._namespace}/{KINDS[kind]}" + (f"/{name}" if name else "")

    def create(self, kind: str, spec: dict[str, Any], name: str | None = None, **query: Any) -> Response:
        metadata = {"name": name or f"x-{uuid4().hex[:8]}", "namespace": self._namespace}
        body = {"apiVersion": GROUP, "kind": kind, "metadata": metadata, "spec": spec}
        return self._http.post(self.path(kind), json=body, params={"fieldValidation": "Strict", **query})

    def patch(self, kind: str, name: str, patch: dict[str, Any], subresource: str = "") -> Response:
        headers = {"content-type": "application/merge-patch+json"}
        path = self.path(kind, name) + (f"/{subresource}" if subresource else "")
        return self._http.patch(path, json=patch, headers=headers)

    def selected(self, kind: str, fields: str) -> list[str]:
        """The names that `kubectl get --field-selector` shows."""
        answer = self._http.get(self.path(kind), params={"fieldSelector": fields})
        assert answer.is_success, answer.text
        return [it["metadata"]["name"] for it in answer.json()["items"]]

    def table(self, kind: str) -> tuple[list[Any], list[dict[Any, Any]]]:
        """What `kubectl get` prints: titles of the columns that are always shown, and each row's cells by them."""
        headers = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
        table = self._http.get(self.path(kind), headers=headers).json()
        titles = [(at, it["name"]) for at, it in enumerate(table["columnDefinitions"]) if it["priority"] == 0]
        return [title for _, title in titles], [
            {title: row["cells"][at] for at, title in titles} for row in table["rows"]
        ]


def refusal(answer: Response) -> Any:
    """What a person reads of a refusal, and the fields that programs are told."""
    status = answer.json()
    assert status["kind"] == "Status", f"accepted: {answer.text}"
    assert answer.status_code in (400, 422)
    return status["message"]


def as_the_api_server_says(field: Any) -> tuple[Any, Any, str]:
    """A field as it is, a label by its key in brackets, and for a key that no label has, the map that it is in."""
    return field, field.replace("matchLabels.a", "matchLabels[a]"), re.sub(r"matchLabels\[.*", "matchLabels: ", field)


@pytest.mark.parametrize("spec", GOOD_SCHEDULES, ids=lambda spec: spec["kind"])
def test_a_good_schedule_is_accepted_and_completed_as_the_server_does(objects: Objects, spec: dict[str, Any]) -> None:
    answer = objects.create("Schedule", spec)
    assert answer.is_success, answer.text
    assert answer.json()["spec"] == parse_schedule({"metadata": {"name": "x"}, "spec": spec}).raw_spec


@pytest.mark.parametrize("spec", GOOD_REPOSITORIES, ids=lambda spec: spec["url"])
def test_a_good_repository_is_accepted_and_completed_as_the_server_does(objects: Objects, spec: dict[str, Any]) -> None:
    answer = objects.create("Repository", spec)
    assert answer.is_success, answer.text
    assert answer.json()["spec"] == parse_repository({"metadata": {"name": "x"}, "spec": spec}).raw_spec


@pytest.mark.parametrize("spec", GOOD_ALERTS)
def test_a_good_alert_is_accepted_and_completed_as_the_server_does(objects: Objects, spec: dict[str, Any]) -> None:
    answer = objects.create("Alert", spec)
    assert answer.is_success, answer.text
    assert answer.json()["spec"] == parse_alert({"metadata": {"name": "x"}, "spec": spec}).raw_spec


@pytest.mark.parametrize("spec", GOOD_RESTORES, ids=lambda spec: spec["target"])
def test_a_good_restore_is_accepted_and_completed_as_the_server_does(objects: Objects, spec: dict[str, Any]) -> None:
    answer = objects.create("Restore", spec)
    assert answer.is_success, answer.text
    assert answer.json()["spec"] == RESTORE_SCHEMA.complete(spec)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        pytest.param(kind, bad, id=f"{kind} {bad}")
        for kind, table in (
            ("Schedule", BAD_SCHEDULES),
            ("Repository", BAD_REPOSITORIES),
            ("Restore", BAD_RESTORES),
            ("Alert", BAD_ALERTS),
        )
        for bad in table
        if bad.by != "server"
    ],
)
def test_a_bad_spec_is_refused_by_the_api_server_too_which_names_the_field(
    objects: Objects, kind: str, bad: Bad
) -> None:
    said = refusal(objects.create(kind, bad.spec))
    assert any(field in said for field in as_the_api_server_says(bad.field))
    assert bad.by == "schema" or bad.detail in said


@pytest.mark.parametrize("bad", [it for it in BAD_SCHEDULES if it.by == "server"], ids=str)
def test_what_a_schema_cannot_tell_is_left_to_the_server(objects: Objects, bad: Bad) -> None:
    assert objects.create("Schedule", bad.spec).is_success


def test_a_host_is_its_own_node_or_none(objects: Objects) -> None:
    assert "must be the Host's own name" in refusal(objects.create("Host", {"nodeName": "other"}, "one"))
    assert objects.create("Host", {"nodeName": "one"}, "one").is_success
    assert objects.create("Host", {}, "two").is_success


def test_what_kind_of_machine_a_host_is_stays(objects: Objects) -> None:
    objects.create("Host", {}, "laptop")
    objects.create("Host", {"nodeName": "node"}, "node")
    assert "delete the Host and create it again" in refusal(
        objects.patch("Host", "laptop", {"spec": {"nodeName": "laptop"}})
    )
    assert "delete the Host and create it again" in refusal(objects.patch("Host", "node", {"spec": {"nodeName": None}}))
    assert objects.patch("Host", "node", {"metadata": {"labels": {"a": "b"}}}).is_success


def test_a_run_cannot_be_changed(objects: Objects) -> None:
    assert objects.create("Run", RUN, "now").json()["spec"] == {**RUN, "hostSelector": {}}
    assert "create another Run" in refusal(objects.patch("Run", "now", {"spec": {"scheduleRef": {"name": "home"}}}))
    assert "scheduleRef" in refusal(objects.create("Run", {}))
    for labels, says in (({"a b": "c"}, "a label's key is"), ({"a": "b c"}, "a label's value is")):
        assert says in refusal(objects.create("Run", RUN | {"hostSelector": {"matchLabels": labels}}))
    assert objects.patch("Run", "now", {"metadata": {"labels": {"a": "b"}}}).is_success


def test_a_restore_cannot_be_changed(objects: Objects) -> None:
    objects.create("Restore", RESTORE, "back")
    assert "create another Restore" in refusal(objects.patch("Restore", "back", {"spec": {"target": "/elsewhere"}}))
    assert objects.patch("Restore", "back", {"metadata": {"labels": {"a": "b"}}}).is_success


def test_kubectl_get_answers_the_first_question_of_each_kind(objects: Objects) -> None:
    objects.create("Schedule", BACKUP, "etc")
    status = {"hosts": 3, "hostsInSync": 2, "hostsFailed": 1, "nextScheduleTime": "2026-03-29T02:00:00Z"}
    times = {"lastTransitionTime": "2026-03-29T02:00:00Z"}
    said = {"status": "True", "reason": "Because", "message": "of it", **times}
    status["conditions"] = [{"type": type_, **said} for type_ in ("Ready", "Degraded")]
    shown = objects.patch("Schedule", "etc", {"status": status}, "status").json()["status"]
    assert shown == {"observedGeneration": -1, **status}
    titles, (row,) = objects.table("Schedule")
    counts = ["Hosts", "InSync", "Failed"]
    assert titles == ["Name", "Schedule", "Kind", *counts, "Last", "Next", "Ready", "Degraded", "Age"]
    assert row.pop("Age")
    assert row == {
        "Name": "etc",
        "Schedule": "0 2 * * *",
        "Kind": "backup",
        "Hosts": 3,
        "InSync": 2,
        "Failed": 1,
        "Last": None,
        "Next": "2026-03-29T02:00:00Z",
        "Ready": "True",
        "Degraded": "True",
    }
    objects.create("Host", {}, "laptop")
    assert objects.table("Host")[0] == ["Name", "Connected", "InSync", "Degraded", "Desired", "Applied", "Agent", "Age"]
    objects.create("Run", RUN, "now")
    assert objects.table("Run")[0] == ["Name", "Schedule", "Phase", "Hosts", "Succeeded", "Failed", "Age"]
    objects.create("Restore", RESTORE, "back")
    assert objects.table("Restore")[0] == ["Name", "Source", "Host", "Target", "Phase", "Files", "Age"]
    objects.create("Repository", {"url": "/b"}, "main")
    known = ["Name", "URL", "Init", "Ready", "Degraded", "Snapshots", "Newest", "Age"]
    assert objects.table("Repository")[0] == known


FIELDS = [
    ("Schedule", BACKUP, "spec.kind=backup,spec.suspend=false,spec.repositoryRef.name=main", "spec.enabled=false"),
    ("Repository", {"url": "/b"}, "spec.url=/b", "spec.url=/c"),
    ("Host", {"nodeName": "it"}, "spec.nodeName=it,status.connected=", "spec.nodeName=other"),
    ("Run", RUN, "spec.scheduleRef.name=etc", "status.phase=Failed"),
    ("Restore", RESTORE, "spec.repositoryRef.name=main,status.phase=", "spec.sourceHost=other"),
    ("Alert", GOOD_ALERTS[0], "spec.severity!=info,spec.scope!=x", "spec.secretRef.name=other"),
]


@pytest.mark.parametrize(("kind", "spec", "selects", "leaves"), FIELDS, ids=[it[0] for it in FIELDS])
def test_objects_are_selected_by_the_fields_that_people_filter_by(
    objects: Objects, kind: str, spec: dict[str, Any], selects: str, leaves: str
) -> None:
    assert objects.create(kind, spec, "it").is_success
    assert objects.selected(kind, selects) == ["it"]
    assert objects.selected(kind, leaves) == []


def test_kinds_are_found_by_short_names_and_category(cluster: Cluster, definitions: None) -> None:
    listed = {it["name"]: it for it in cluster.get(f"/apis/{GROUP}")["resources"]}
    assert listed["schedules"]["shortNames"] == ["sched"]
    assert listed["repositories"]["shortNames"] == ["repo"]
    for plural in KINDS.values():
        assert listed[plural]["categories"] == ["lamplighter"]
        assert f"{plural}/status" in listed


def test_a_status_is_written_apart_from_the_spec(objects: Objects) -> None:
    made = objects.create("Schedule", BACKUP, "etc").json()
    assert made["status"] == {"observedGeneration": -1}
    objects.patch("Schedule", "etc", {"status": {"hosts": 1}})
    told = objects.patch("Schedule", "etc", {"spec": changed(BACKUP, cron="@daily"), "status": {"hosts": 2}}, "status")
    assert (told.json()["spec"], told.json()["status"]) == (made["spec"], {"observedGeneration": -1, "hosts": 2})
    assert told.json()["metadata"]["generation"] == 1
