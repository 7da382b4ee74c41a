"""Users find every field and every kind in the docs, and an agent runs every kind that a Schedule can have."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.core.machine import CAPABILITIES
from server.jobs.arguments import KINDS
from server.notify.situations import EVENT_OF
from server.resources.restic import OLDEST, OPTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/schedules.md").read_text()
ALERTS = (ROOT / "docs/alerts.md").read_text()
OF_KUBERNETES = {"operator", "values"}
"""Fields of a label selector, which Kubernetes' own documentation explains."""


def spec_of(plural: str) -> Any:
    """The schema of a resource's spec."""
    crd = yaml.safe_load((ROOT / "crds" / f"{plural}.yaml").read_text())
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def fields(schema: Any) -> Iterator[str]:
    """The names of all fields, at any depth."""
    for name, inner in schema.get("properties", {}).items():
        yield name
        yield from fields(inner)
    if isinstance(schema.get("items"), dict):
        yield from fields(schema["items"])


@pytest.mark.parametrize("plural", ["schedules", "repositories"])
def test_every_field_is_in_the_docs(plural: str) -> None:
    missing = {name for name in fields(spec_of(plural)) if not re.search(rf"\b{name}\b", PAGE)}
    assert missing - OF_KUBERNETES == set()


def test_the_docs_say_which_restic_each_field_needs() -> None:
    table = PAGE.partition("### Versions of restic")[2].partition("Where a host")[0]
    rows = {tuple(map(str.strip, line.split("|")[2:4])) for line in table.splitlines() if line.startswith("|")}
    needed = {
        (f"`{it.name}`", "{}.{}".format(*since))
        for it in OPTIONS
        for since in (it.since, *it.values.values())
        if since > OLDEST
    }
    assert needed == {(option, version) for option, version in rows if option.startswith("`")}
    assert "restic {}.{} and newer".format(*OLDEST) in PAGE


def test_every_field_and_every_event_of_an_alert_is_in_the_docs_and_no_reason_has_an_event_that_no_alert_knows() -> (
    None
):
    spec = spec_of("alerts")
    assert {name for name in spec["properties"] if f"| `{name}" not in ALERTS} == set()
    events = set(spec["properties"]["events"]["items"]["enum"])
    assert {event for event in events if f"| `{event}` |" not in ALERTS} == set()
    assert {*EVENT_OF.values(), "Controller"} == events


def test_every_kind_is_in_the_definition_in_the_docs_and_in_the_agent() -> None:
    assert set(spec_of("schedules")["properties"]["kind"]["enum"]) == KINDS
    assert {kind for kind in KINDS if f"| `{kind}` |" not in PAGE} == set()
    assert set(CAPABILITIES) >= KINDS
