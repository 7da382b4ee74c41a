"""Label selectors select as Kubernetes' do, and names and labels are what Kubernetes allows."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.resources import selectors
from server.resources.specs import LabelSelector

HOST = {"role": "db", "zone": "a", "empty": ""}


def selects(selector: dict[str, dict[str, str]], labels: dict[str, str] | None = None) -> bool:
    return selectors.selector_matches(msgspec.convert(selector, LabelSelector), HOST if labels is None else labels)


def one(operator: str, key: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True),
        ({"matchLabels": {}}, True),
        ({"matchLabels": {"role": "db"}}, True),
        ({"matchLabels": {"role": "db", "zone": "a"}}, True),
        ({"matchLabels": {"role": "db", "zone": "b"}}, False),
        ({"matchLabels": {"absent": ""}}, False),
        (one("In", "role", "web", "db"), True),
        (one("In", "role", "web"), False),
        (one("In", "absent", "web"), False),
        (one("NotIn", "role", "web"), True),
        (one("NotIn", "role", "web", "db"), False),
        (one("NotIn", "absent", "web"), True),
        (one("Exists", "empty"), True),
        (one("Exists", "absent"), False),
        (one("DoesNotExist", "absent"), True),
        (one("DoesNotExist", "empty"), False),
        ({"matchLabels": {"role": "db"}, **one("In", "zone", "b")}, False),
        ({"matchLabels": {"role": "db"}, **one("In", "zone", "a")}, True),
    ],
)
def test_all_of_a_selector_must_hold(selector: dict[str, dict[str, str]], selected: bool) -> None:
    assert selects(selector) is selected


def test_the_empty_selector_selects_a_host_without_labels() -> None:
    assert selects({}, {})


@pytest.mark.parametrize(
    ("name", "dns_name", "dns_label"),
    [
        ("a", True, True),
        ("node-1", True, True),
        ("node-1.example.org", True, False),
        ("a" * 63, True, True),
        ("a" * 64, True, False),
        ("a" * 253, True, False),
        ("a" * 254, False, False),
        ("", False, False),
        ("A", False, False),
        ("-a", False, False),
        ("a-", False, False),
        ("a..b", False, False),
        ("a_b", False, False),
        ("a\n", False, False),
    ],
)
def test_names_are_those_of_rfc_1123(name: str, dns_name: bool, dns_label: bool) -> None:
    assert (selectors.is_dns_name(name), selectors.is_dns_label(name)) == (dns_name, dns_label)


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("role", True),
        ("Role_1.x-y", True),
        ("example.org/role", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("", False),
        ("/role", False),
        ("example.org/", False),
        ("Example.org/role", False),
        ("a/b/c", False),
        ("-role", False),
        ("role\n", False),
    ],
)
def test_a_labels_key_is_a_name_with_or_without_a_prefix(key: str, allowed: bool) -> None:
    assert selectors.is_label_key(key) is allowed


@pytest.mark.parametrize(("value", "allowed"), [("", True), ("a" * 63, True), ("a" * 64, False), ("a b", False)])
def test_a_labels_value_is_empty_or_a_name(value: str, allowed: bool) -> None:
    assert selectors.is_label_value(value) is allowed


def test_what_is_wrong_with_labels_is_named() -> None:
    wrong = selectors.label_errors({"ok": "fine", "a b": "x", "n": 1, "long": "x" * 64}, "labels")
    fields = [error["field"] for error in wrong]
    assert (len(fields), fields[1:]) == (3, ["labels.n", "labels.long"])
    assert [error["field"] for error in selectors.label_errors([], "labels")] == ["labels"]


def test_what_no_label_can_be_is_named_in_a_selector() -> None:
    selector = {"matchLabels": {"role": "a b"}, **one("In", "-x", "ok", "not ok")}
    assert [error["field"] for error in selectors.selector_errors(selector, "spec.hostSelector")] == [
        "spec.hostSelector.matchLabels.role",
        "spec.hostSelector.matchExpressions[0].key",
        "spec.hostSelector.matchExpressions[0].values[1]",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" ", []),
        ("role=db", [("role", "In", ("db",))]),
        ("role==db, zone != a", [("role", "In", ("db",)), ("zone", "NotIn", ("a",))]),
        ("a in (b, c),d notin (e)", [("a", "In", ("b", "c")), ("d", "NotIn", ("e",))]),
        ("in,!notin", [("in", "Exists", ()), ("notin", "DoesNotExist", ())]),
        ("example.org/role=", [("example.org/role", "In", ("",))]),
    ],
)
def test_a_selector_is_read_as_kubectl_reads_it(text: str, found: list[Any]) -> None:
    assert [(it.key, it.operator, it.values) for it in selectors.parse_selector(text)] == found


@pytest.mark.parametrize(
    "text", ["=", "a=b=c", "a b", "a in b", "a in (b", "!a=b", "-x", "a=b c", "a>1", ",a", "a=(b)"]
)
def test_a_selector_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as tier=db|a label's"):
        list(selectors.parse_selector(text))


@given(st.from_regex(selectors.SELECTOR, fullmatch=True))
def test_a_selector_is_read_as_it_is_described(text: str) -> None:
    assert all(selectors.is_label_key(it.key) for it in selectors.parse_selector(text))
