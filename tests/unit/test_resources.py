"""A wrong manifest is refused in clear words, defaults are filled in, and a selector selects the right hosts."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, cast

import msgspec
import pytest
import yaml
from cel_expr_python import cel  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import cron
from server.api.openapi import document
from server.api.operations import BODIES, OPERATIONS
from server.api.routing import PREFIX
from server.errors import Invalid
from server.fleet.placement import encoded_entry
from server.resources.manifests import (
    MAX_PATHS_BYTES,
    SCHEDULE,
    Alert,
    Credentials,
    Repository,
    Schedule,
    is_enabled,
    parse_alert,
    parse_repository,
    parse_restore,
    parse_schedule,
    repository_spec,
    schedule_spec,
)
from server.resources.schema import Schema
from server.resources.selectors import is_dns_label, is_dns_name, is_label_key, is_label_value, selector_matches
from server.resources.specs import LabelSelector, Requirement, RestoreSpec
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
    Bad,
    changed,
)
from wire.entries import parse_entry


def schedule(spec: dict[str, Any] = BACKUP, **changes: Any) -> dict[str, Any]:
    return {"metadata": {"name": "etc"}, "spec": changed(spec, **changes)}


def repository(url: str = "/backup/{host}", **others: Any) -> dict[str, Any]:
    return {"metadata": {"name": "main"}, "spec": {"url": url}, **others}


def errors(
    manifest: dict[str, Any],
    parse: Callable[[object], Alert]
    | Callable[[object], Repository]
    | Callable[[object], RestoreSpec]
    | Callable[[object], Schedule] = parse_schedule,
) -> dict[str, Any]:
    with pytest.raises(Invalid) as refusal:
        parse(manifest)
    return {error["field"]: error["detail"] for error in refusal.value.errors}


# What is accepted, and filled in.


def test_a_short_schedule_is_completed_with_the_defaults_of_its_definition() -> None:
    parsed = parse_schedule(schedule())
    assert (parsed.namespace, parsed.name, parsed.labels) == ("default", "etc", {})
    assert parsed.raw_spec == {
        "kind": "backup",
        "cron": "0 2 * * *",
        "timeZone": "UTC",
        "enabled": True,
        "suspend": False,
        "stopAtEnd": False,
        "runOnJoin": False,
        "hostSelector": {},
        "repositoryRef": {"name": "main"},
        "backup": {"paths": ["/etc"], "excludes": [], "tags": [], "oneFileSystem": False, "excludeCaches": False},
        "concurrencyPolicy": "Forbid",
        "missedRunPolicy": "RunOnce",
        "spreadSeconds": 0,
        "timeoutSeconds": 86400,
        "retry": {"limit": 0, "backoffSeconds": 60},
    }


def test_a_spec_is_read_as_typed_values_that_equal_those_of_a_stored_row() -> None:
    parsed = parse_schedule(schedule(spreadSeconds=60, timeoutSeconds=5, hostSelector={"matchLabels": {"a": "b"}}))
    assert parsed.spec == schedule_spec(parsed.raw_spec)
    assert (parsed.spec.repository, parsed.spec.spread_seconds, parsed.spec.timeout_seconds) == ("main", 60, 5)
    assert parsed.spec.host_selector.match_labels == {"a": "b"}
    assert parsed.spec.backup is not None
    assert parsed.spec.backup.paths == ("/etc",)


@pytest.mark.parametrize(
    ("fields", "runs"),
    [
        ({}, True),
        ({"enabled": False}, False),
        ({"suspend": True}, False),
        ({"enabled": False, "suspend": True}, False),
        ({"enabled": True, "suspend": False}, True),
    ],
)
def test_a_schedule_runs_when_it_is_enabled_and_not_suspended(fields: dict[str, Any], runs: bool) -> None:
    parsed = parse_schedule(schedule(**fields))
    assert parsed.spec.enabled == is_enabled(parsed.raw_spec) == runs
    entry = encoded_entry("id", "ns/etc", parsed.spec, datetime(2026, 3, 29, tzinfo=UTC), "r")
    assert parse_entry(entry.raw).enabled == runs
    assert not runs or is_enabled({key: it for key, it in parsed.raw_spec.items() if key != "suspend"})  # stored before


def test_parsing_leaves_the_manifest_as_it_was_and_completing_twice_changes_nothing() -> None:
    manifest = schedule()
    again = parse_schedule({"metadata": {"name": "etc"}, "spec": parse_schedule(manifest).raw_spec})
    assert manifest == schedule()
    assert again == parse_schedule(manifest)


def test_null_counts_as_absent_as_in_kubernetes() -> None:
    assert parse_schedule(schedule(timeZone=None, retention=None)).raw_spec["timeZone"] == "UTC"
    assert errors(schedule(cron=None)).keys() == {"spec.cron"}


def test_defaults_are_not_shared_between_resources() -> None:
    one, other = parse_schedule(schedule()).raw_spec, parse_schedule(schedule()).raw_spec
    one["retry"]["limit"] = 9
    one["backup"]["tags"].append("x")
    assert (other["retry"]["limit"], other["backup"]["tags"]) == (0, [])


@pytest.mark.parametrize("kind", ["prune", "unlock", "check", "verify"])
def test_kinds_without_a_block_need_none(kind: str) -> None:
    assert parse_schedule(schedule(kind=kind, backup=...)).spec.kind == kind


def test_what_the_server_tells_of_a_resource_can_be_sent_back() -> None:
    told = {
        "apiVersion": "lamplighter.dev/v1alpha1",
        "kind": "Schedule",
        "metadata": {"namespace": "ns", "name": "etc", "uid": "1", "generation": 3, "labels": {"a": ""}},
        "spec": BACKUP,
        "status": {"observedGeneration": 3},
    }
    assert parse_schedule(told).labels == {"a": ""}


def test_a_repository_carries_its_credentials_and_never_shows_them() -> None:
    credentials = {"password": "hush", "env": {"AWS_ACCESS_KEY_ID": "hush"}}
    parsed = parse_repository(repository(credentials=credentials))
    assert parsed.credentials == msgspec.convert(credentials, Credentials)
    assert "hush" not in repr(parsed)
    assert parsed.spec == repository_spec({"url": "/backup/{host}", "init": False})
    assert parse_repository(repository()).credentials is None


def test_the_key_of_a_password_has_a_default() -> None:
    spec = {"url": "/b", "passwordSecretRef": {"name": "s"}}
    reference = parse_repository({**repository(), "spec": spec}).spec.password_secret_ref
    assert reference is not None
    assert reference.key == "password"


# What is refused, and in which words.


@pytest.mark.parametrize("bad", BAD_SCHEDULES, ids=str)
def test_a_wrong_schedule_has_its_field_named_with_the_remedy(bad: Bad) -> None:
    found = errors(schedule(bad.spec))
    assert found.keys() == {bad.field}
    assert bad.detail in found[bad.field]


@pytest.mark.parametrize("bad", BAD_REPOSITORIES, ids=str)
def test_a_wrong_repository_has_its_field_named_with_the_remedy(bad: Bad) -> None:
    found = errors({"metadata": {"name": "main"}, "spec": bad.spec}, parse_repository)
    assert found.keys() == {bad.field}
    assert bad.detail in found[bad.field]


@pytest.mark.parametrize("bad", BAD_ALERTS, ids=str)
def test_a_wrong_alert_has_its_field_named_with_the_remedy(bad: Bad) -> None:
    found = errors({"metadata": {"name": "on-call"}, "spec": bad.spec}, parse_alert)
    assert found.keys() == {bad.field}
    assert bad.detail in found[bad.field]


@pytest.mark.parametrize("bad", BAD_RESTORES, ids=str)
def test_a_wrong_restore_has_its_field_named_with_the_remedy(bad: Bad) -> None:
    found = errors({"metadata": {"name": "back"}, "spec": bad.spec}, parse_restore)
    assert found.keys() == {bad.field}
    assert bad.detail in found[bad.field]


@pytest.mark.parametrize("letter", ["a", "ß", "\N{FIRE}"])
def test_the_paths_of_a_restore_fit_a_command_line_together(letter: str) -> None:
    def back(more: int) -> dict[str, Any]:
        paths = [f"/{letter * (1023 // len(letter.encode()))}"] * 255
        left = MAX_PATHS_BYTES - sum(len(path.encode()) for path in paths)
        spec = {"repositoryRef": {"name": "main"}, "sourceHost": "a", "target": "/b"}
        return {"metadata": {"name": "back"}, "spec": {**spec, "paths": [*paths, "/" + "a" * (left - 1 + more)]}}

    assert len(parse_restore(back(0)).paths) == 256
    found = errors(back(1), parse_restore)
    assert found.keys() == {"spec.paths"}
    assert "at most 262144 bytes long together, not 262145: name the folders that hold them" in found["spec.paths"]


@pytest.mark.parametrize("spec", GOOD_ALERTS)
def test_a_good_alert_is_accepted(spec: dict[str, Any]) -> None:
    parsed = parse_alert({"metadata": {"name": "on-call"}, "spec": spec})
    assert parsed.raw_spec == {**parsed.raw_spec, **spec}
    assert parsed.spec.send_resolved is spec.get("sendResolved", True)


@pytest.mark.parametrize("spec", GOOD_RESTORES, ids=lambda spec: spec["target"])
def test_a_good_restore_is_accepted(spec: dict[str, Any]) -> None:
    assert parse_restore({"metadata": {"name": "back"}, "spec": spec}).target == spec["target"]


@pytest.mark.parametrize("spec", GOOD_SCHEDULES, ids=lambda spec: spec["kind"])
def test_a_good_schedule_is_accepted(spec: dict[str, Any]) -> None:
    assert parse_schedule(schedule(spec)).spec.kind == spec["kind"]


@pytest.mark.parametrize("spec", GOOD_REPOSITORIES, ids=lambda spec: spec["url"])
def test_a_good_repository_is_accepted(spec: dict[str, Any]) -> None:
    assert parse_repository({"metadata": {"name": "main"}, "spec": spec}).spec.url == spec["url"]


@pytest.mark.parametrize(
    ("changes", "field", "detail"),
    [
        ({"backup": {"paths": ["/a\ud800"]}}, "spec.backup.paths[0]", "lone surrogate"),
        ({"spreadSeconds": 2**70}, "spec.spreadSeconds", "must be at most 86400"),
    ],
)
def test_what_is_no_good_json_is_refused_too(changes: dict[str, Any], field: str, detail: str) -> None:
    assert detail in errors(schedule(**changes))[field]


def test_all_that_is_wrong_is_told_at_once() -> None:
    manifest = schedule(cron="x", timeZone="x", crn="x", backup={"paths": ["etc"]})
    manifest |= {"sepc": {}, "apiVersion": "v1", "kind": "Job"}
    manifest["metadata"] = {"name": "Etc", "namespace": "a.b", "labels": {"-": "", "a": 1}, "lables": {}}
    assert errors(manifest).keys() == {
        "sepc",
        "apiVersion",
        "kind",
        "metadata.name",
        "metadata.namespace",
        "metadata.labels[-]",
        "metadata.labels.a",
        "metadata.lables",
        "spec.cron",
        "spec.timeZone",
        "spec.crn",
        "spec.backup.paths[0]",
    }


def test_a_misspelt_kind_brings_no_follow_up_errors() -> None:
    assert errors(schedule(kind="bakcup", backup=...)).keys() == {"spec.kind"}


@pytest.mark.parametrize("manifest", [None, [], "x", 5])
def test_what_is_no_object_is_refused(manifest: str | int | list[Any] | None) -> None:
    with pytest.raises(Invalid, match="must be an object"):
        parse_schedule(manifest)


def test_missing_parts_are_named() -> None:
    assert errors({}).keys() == {"metadata", "spec"}
    assert errors({"metadata": [], "spec": []}).keys() == {"metadata", "spec"}


@pytest.mark.parametrize(
    ("credentials", "field"),
    [
        ("hush", "credentials"),
        ({"hush": "hush"}, "credentials"),
        ({"password": 5}, "credentials.password"),
        ({"password": "hush\0"}, "credentials.password"),
        ({"password": "hush" * 2000}, "credentials.password"),
        ({"env": ["hush"]}, "credentials.env"),
        ({"env": {"A B": "hush"}}, "credentials.env"),
        ({"env": {"RESTIC_PASSWORD_COMMAND": "hush"}}, "credentials.env"),
        ({"env": {"AWS_REGION": ["hush"]}}, "credentials.env.AWS_REGION"),
        ({"env": {f"A{at}": "hush" for at in range(65)}}, "credentials.env"),
    ],
)
def test_wrong_credentials_are_refused_without_being_repeated(credentials: str | dict[str, Any], field: str) -> None:
    found = errors(repository(credentials=credentials), parse_repository)
    assert found.keys() == {field}
    assert "hush" not in str(found)


def test_errors_are_bounded_whatever_is_sent() -> None:
    many = {f"{'x' * 5000}{at}": 1 for at in range(200)}
    with pytest.raises(Invalid) as refusal:
        parse_schedule({**many, "metadata": {"name": "etc"}, "spec": BACKUP | many})
    assert len(refusal.value.errors) <= 200
    assert all(len(error["field"]) < 400 for error in refusal.value.errors)


FIELD = st.sampled_from(["name", "paths", "matchLabels", "matchExpressions", "values", "keepLast", "limit", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELD, inner, max_size=2),
    max_leaves=4,
)


SPEC_FIELD = st.sampled_from([*BACKUP, "retention", "hostSelector", "retry", "timeZone", "check"])


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first calls compile the CEL rules
@given(st.dictionaries(SPEC_FIELD, JSON, max_size=4))
def test_any_spec_is_accepted_or_refused_and_nothing_else(spec: dict[Any, Any]) -> None:
    with contextlib.suppress(Invalid):
        parse_schedule({"metadata": {"name": "etc"}, "spec": spec})


PART = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(
            ["", "*", "0", "1", "7", "12", "13", "24", "31", "59", "60", "007", "jan", "Mon", "sat", "foo", "L", "é"]
        ),
        st.sampled_from(["", "", "", "-7", "-59", "-sat", "-dec", "-", "W", "#2"]),
        st.sampled_from(["", "", "", "/2", "/0", "/100", "/", "/2/2"]),
    ),
)
FIELD_TEXT = st.just("*") | st.lists(PART, min_size=1, max_size=2).map(",".join)
SEPARATOR = st.sampled_from([" ", " ", " ", "  ", "\t", "\n"])
CRON_TEXT = st.builds(
    str.join, SEPARATOR, st.lists(FIELD_TEXT, min_size=5, max_size=5) | st.lists(FIELD_TEXT, max_size=7)
)


LEFT_TO_THE_SERVER = re.compile("ends before it begins|never comes")


@settings(max_examples=300)
@given(CRON_TEXT | st.text("*1-,/ @\tjan=", max_size=16))
def test_the_rules_refuse_all_that_is_no_expression_but_for_two_things_and_of_the_rest_only_tabs(text: Any) -> None:
    told = SCHEDULE.errors(BACKUP | {"cron": text})
    reason = wrong_by_grammar(text)
    assert bool(told) == ("\t" in text or reason != "") or LEFT_TO_THE_SERVER.search(reason)


def wrong_by_grammar(text: Any) -> str:
    try:
        cron.parse(text)
    except cron.CronError as error:
        return str(error)
    return ""


# The definitions themselves: what the API server asks of them.


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}[]")


def definition(plural: str) -> Any:
    return yaml.safe_load((files("crds") / f"{plural}.yaml").read_text())


ROOTS = {
    plural: definition(plural)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for plural in ("schedules", "repositories", "hosts", "runs", "restores")
}
SPECS = [
    pytest.param(node, id=plural + path)
    for plural, root in ROOTS.items()
    for path, node in nodes(root["properties"]["spec"])
]


@pytest.mark.parametrize("plural", ROOTS)
def test_a_definition_is_named_as_kubernetes_wants_it(plural: str) -> None:
    crd = definition(plural)
    assert crd["metadata"]["name"] == f"{plural}.{crd['spec']['group']}"
    assert crd["spec"]["names"]["plural"] == plural
    assert crd["spec"]["names"]["categories"] == ["lamplighter"]
    assert crd["spec"]["versions"][0]["subresources"] == {"status": {}}


@pytest.mark.parametrize("plural", ROOTS)
def test_a_schema_is_structural(plural: str) -> None:
    allowed = {
        "type",
        "format",
        "description",
        "default",
        "enum",
        "required",
        "properties",
        "items",
        "minimum",
        "maximum",
    }
    allowed |= {"additionalProperties", "minLength", "maxLength", "minItems", "maxItems", "maxProperties"}
    for path, node in nodes(ROOTS[plural]):
        assert node["type"] in ("object", "array", "string", "integer", "boolean"), path
        assert all(key in allowed or key.startswith("x-kubernetes-") for key in node), path
        assert set(node.get("required", ())) <= node.get("properties", {}).keys(), path


@pytest.mark.parametrize("node", SPECS)
def test_every_value_is_bounded_so_that_rules_have_a_known_cost(node: dict[str, Any]) -> None:
    bound = {"string": "maxLength", "array": "maxItems", "integer": "maximum"}.get(node["type"])
    assert bound is None or bound in node or "enum" in node
    assert "additionalProperties" not in node or "maxProperties" in node


@pytest.mark.parametrize("node", SPECS)
def test_every_default_is_valid(node: dict[str, Any]) -> None:
    for name, field in node.get("properties", {}).items():
        if "default" in field:
            inner = Schema(field)
            assert inner.errors(inner.complete(field["default"])) == [], name


@pytest.mark.parametrize("node", [param for param in SPECS if "x-kubernetes-validations" in cast(Any, param.values[0])])
def test_every_rule_compiles_and_says_the_remedy(node: dict[str, Any]) -> None:
    environment = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN})
    for rule in node["x-kubernetes-validations"]:
        environment.compile(rule["rule"])
        assert "\n" not in rule["message"]
        assert rule.get("fieldPath", "").removeprefix(".") in {"", *node.get("properties", ())}


# Selectors.


def selects(labels: dict[str, str], **selector: Any) -> bool:
    return selector_matches(LabelSelector(**selector), labels)


def test_an_empty_selector_selects_everything() -> None:
    assert selects({})
    assert selects({"a": "b"})


def test_all_parts_of_a_selector_must_hold() -> None:
    exists = (Requirement("c", "Exists"),)
    assert selects({"a": "b", "c": ""}, match_labels={"a": "b"}, match_expressions=exists)
    assert not selects({"a": "b"}, match_labels={"a": "b"}, match_expressions=exists)
    assert not selects({"c": ""}, match_labels={"a": "b"}, match_expressions=exists)


MEANINGS: dict[str, Callable[[bool, bool], bool]] = {
    "In": lambda present, listed: present and listed,
    "NotIn": lambda present, listed: not (present and listed),
    "Exists": lambda present, listed: present,
    "DoesNotExist": lambda present, listed: not present,
}


@pytest.mark.parametrize("operator", MEANINGS)
@pytest.mark.parametrize("value", [None, "", "x", "y", "z"])
@pytest.mark.parametrize("values", [it for n in (1, 2, 3) for it in itertools.permutations(("", "x", "y"), n)])
def test_an_operator_means_what_it_means_in_kubernetes(
    operator: Any, value: str | None, values: tuple[str, ...]
) -> None:
    labels = {"other": "x"} | ({} if value is None else {"key": value})
    listed = values if operator in ("In", "NotIn") else ()
    meant = MEANINGS[operator](value is not None, value in listed)
    assert selects(labels, match_expressions=(Requirement("key", operator, listed),)) == meant


NAME = st.text("aZ0-_.", min_size=1, max_size=70)


@given(st.dictionaries(NAME, NAME, max_size=4), NAME, NAME)
def test_match_labels_is_in_with_one_value(labels: dict[Any, Any], key: str, value: str) -> None:
    for wanted in ({key: value}, dict(list(labels.items())[:1])):
        meant = all(labels.get(name) == it for name, it in wanted.items())
        requirements = tuple(Requirement(name, "In", (it,)) for name, it in wanted.items())
        assert selects(labels, match_labels=wanted) == selects(labels, match_expressions=requirements) == meant


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (
            is_label_key,
            ["a", "a.b_c-D", "example.org/a", "a" * 63],
            ["", "-a", "a-", "/a", "A.org/a", "a/b/c", "a" * 64, "a\n"],
        ),
        (is_label_value, ["", "a", "a.b_c-D", "1", "a" * 63], ["-", "a b", "a/b", "a" * 64, "a\n"]),
        (is_dns_name, ["a", "a.b", "a-b.c1", "a" * 253], ["", ".", "a.", "a..b", "-a", "A", "a_b", "a" * 254, "a\n"]),
        (is_dns_label, ["a", "a-b", "a" * 63], ["", "a.b", "a" * 64]),
    ],
)
def test_names_are_those_of_kubernetes(check: Callable[[str], bool], right: list[str], wrong: list[str]) -> None:
    assert [name for name in right if not check(name)] == []
    assert [name for name in wrong if check(name)] == []


@pytest.mark.parametrize(
    ("given", "kept"), [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a\r", "a\r"), (" a ", " a "), ("a", "a")]
)
def test_one_final_newline_of_a_secret_is_cut_off_and_told(given: str, kept: str) -> None:
    credentials = {"password": given, "env": {"AWS_ACCESS_KEY_ID": given}}
    parsed = parse_repository(repository(credentials=credentials))
    assert parsed.credentials is not None
    assert (parsed.credentials.password, parsed.credentials.env) == (kept, {"AWS_ACCESS_KEY_ID": kept})
    assert parsed.trimmed == (("password", "env.AWS_ACCESS_KEY_ID") if given != kept else ())


@pytest.mark.parametrize("password", ["", "\n", "\r\n"])
def test_an_empty_password_is_refused(password: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_repository(repository(credentials={"password": password}))
    assert [error["field"] for error in caught.value.errors] == ["credentials.password"]


@pytest.mark.parametrize("status", ["Ready", [], 1, True])
def test_a_status_that_is_no_object_is_refused_though_none_is_read(status: str | int | bool | list[Any]) -> None:
    manifest = {"metadata": {"name": "main"}, "spec": {"url": "/backup"}, "status": status}
    with pytest.raises(Invalid) as refused:
        parse_repository(manifest)
    assert [it["field"] for it in refused.value.errors] == ["status"]
    assert parse_repository({**manifest, "status": {"phase": "x"}}) == parse_repository({**manifest, "status": None})


@pytest.mark.parametrize("password", ["", "\n", "\r\n", "\n\n", "x", "x\n", None])
def test_the_description_takes_the_passwords_that_are_taken(password: str | None) -> None:
    described = document(OPERATIONS, BODIES, PREFIX)["components"]["schemas"]["RepositoryPut"]["properties"]
    manifest = {"metadata": {"name": "main"}, "spec": {"url": "/backup"}, "credentials": {"password": password}}
    try:
        parse_repository(manifest)
        taken = True
    except Invalid:
        taken = False
    assert Draft202012Validator(described["credentials"]).is_valid(manifest["credentials"]) is taken
