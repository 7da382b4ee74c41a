"""Every host gets the schedules whose selectors match its labels, and a plan names the hosts whose set changes."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from server.fleet.placement import PlacedSchedule, Placement, Plan, encoded_entry
from server.resources.manifests import schedule_spec
from server.resources.specs import Kind

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)


def placed(schedule_id: str = "a", revision: str = "1", **labels: str) -> PlacedSchedule:
    spec = schedule_spec(
        {
            "kind": "unlock",
            "cron": "0 * * * *",
            "timeZone": "UTC",
            "enabled": True,
            "hostSelector": {"matchLabels": labels},
            "repositoryRef": {"name": "main"},
            "concurrencyPolicy": "Forbid",
            "missedRunPolicy": "RunOnce",
            "spreadSeconds": 0,
            "retry": {"limit": 0, "backoffSeconds": 60},
        }
    )
    name = f"default/{schedule_id}"
    entry = encoded_entry(schedule_id, name, spec, NOON, revision)
    return PlacedSchedule(schedule_id, name, spec, "main", init=False, entry=entry)


@pytest.fixture
def fleet() -> Placement:
    fleet = Placement()
    for name, labels in {"db-1": {"tier": "db"}, "db-2": {"tier": "db"}, "web-1": {"tier": "web"}}.items():
        fleet.commit(fleet.plan_host(name, labels, NOON))
    return fleet


def put(fleet: Placement, *schedules: PlacedSchedule) -> Plan:
    plan = fleet.plan(schedules)
    fleet.commit(plan)
    return plan


def held(fleet: Placement, host: str) -> set[Any]:
    return set(fleet.hosts[host].entries.items)


def test_a_schedule_is_held_by_the_hosts_that_it_selects(fleet: Placement) -> None:
    assert set(put(fleet, placed(tier="db")).sets) == {"db-1", "db-2"}
    assert (held(fleet, "db-1"), held(fleet, "web-1")) == ({"a"}, set())


def test_an_empty_selector_selects_every_host(fleet: Placement) -> None:
    assert set(put(fleet, placed()).sets) == {"db-1", "db-2", "web-1"}


def test_a_changed_selector_moves_a_schedule(fleet: Placement) -> None:
    put(fleet, placed(tier="db"))
    assert set(put(fleet, placed(tier="web")).sets) == {"db-1", "db-2", "web-1"}
    assert (held(fleet, "db-1"), held(fleet, "web-1")) == (set(), {"a"})


def test_only_hosts_whose_set_changes_are_in_a_plan(fleet: Placement) -> None:
    put(fleet, placed(tier="db"))
    assert put(fleet, placed(tier="db")).sets == {}
    assert set(put(fleet, placed(tier="db", revision="2")).sets) == {"db-1", "db-2"}


def test_a_removed_schedule_is_held_by_none(fleet: Placement) -> None:
    put(fleet, placed(tier="db"), placed("b"))
    plan = fleet.plan(remove=["a"])
    fleet.commit(plan)
    assert (set(plan.sets), held(fleet, "db-1"), set(fleet.schedules)) == ({"db-1", "db-2"}, {"b"}, {"b"})


def test_the_backups_of_a_repository_are_also_those_of_the_ones_that_are_copied_into_it(fleet: Placement) -> None:
    def of_kind(kind: Kind, schedule_id: str, to: str = "main", source: str = "") -> PlacedSchedule:
        it = placed(schedule_id)
        spec = msgspec.structs.replace(it.spec, kind=kind)
        return msgspec.structs.replace(it, spec=spec, repository_id=to, from_repository_id=source)

    put(fleet, of_kind("backup", "a"), of_kind("backup", "b"), of_kind("backup", "c", "near"), placed("g"))
    put(fleet, of_kind("copy", "d", "near", "main"), of_kind("copy", "e", "far", "near"))
    put(fleet, of_kind("copy", "f", "main", "far"))  # in a circle
    assert fleet.backups_into("far") == fleet.backups_into("main") == ["default/a", "default/b", "default/c"]
    assert fleet.copy().backups_into("far") == fleet.backups_into("far")
    fleet.commit(fleet.plan(remove=["f", "d"]))
    assert (fleet.backups_into("main"), fleet.backups_into("far")) == (["default/a", "default/b"], ["default/c"])
    put(fleet, of_kind("copy", "e", "far", "main"))
    assert fleet.backups_into("far") == ["default/a", "default/b"]


def test_a_plan_changes_nothing_until_it_is_committed(fleet: Placement) -> None:
    fleet.plan([placed()])
    assert (held(fleet, "db-1"), fleet.schedules) == (set(), {})


def test_hosts_that_hold_the_same_share_one_set(fleet: Placement) -> None:
    put(fleet, placed(tier="db"))
    assert fleet.hosts["db-1"].entries is fleet.hosts["db-2"].entries is fleet.match({"tier": "db"})


def test_a_host_is_matched_with_all_that_is_there(fleet: Placement) -> None:
    put(fleet, placed(tier="db"), placed("b"), placed("c", tier="web"))
    assert set(fleet.match({"tier": "db"}).items) == {"a", "b"}


def test_a_schedule_knows_its_hosts(fleet: Placement) -> None:
    put(fleet, schedule := placed(tier="db"))
    assert fleet.matched(schedule) == ["db-1", "db-2"]
    assert fleet.matched(schedule, ["db-2", "web-1", "unknown"]) == ["db-2"]


def test_a_host_is_matched_as_a_plan_would_have_it(fleet: Placement) -> None:
    put(fleet, placed("a", tier="db"), placed("b", tier="db"), placed("c", tier="web"), placed("d"))
    put(fleet, placed("b", tier="web"))
    fleet.commit(fleet.plan(remove=["c"]))
    matched = {name: set(fleet.match(member.labels).items) for name, member in fleet.hosts.items()}
    assert matched == {name: held(fleet, name) for name in fleet.hosts}
    assert matched == {"db-1": {"a", "d"}, "db-2": {"a", "d"}, "web-1": {"b", "d"}}
