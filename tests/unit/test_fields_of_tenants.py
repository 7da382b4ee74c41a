"""Promise 8, field by field: whatever a tenant declares, its jobs reach no more than its namespace is granted.

Each field of a Schedule and of a Repository is in one of three classes: it names something outside of the manifest,
which a grant or the agent's operator must allow (REACHES); it is free text that restic only compares (FREE); or its
schema bounds it to values that name nothing. A new field that is in none of them fails here.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.restic import hooks
from server.access.vault import Vault
from server.fleet.catalog import Catalog
from server.jobs.fires import command_for
from server.resources.grants import NOTHING, Grant, Grants
from server.resources.manifests import parse_repository, parse_schedule
from server.resources.specs import LabelSelector
from server.store.rows import RepositoryRow, ScheduleRow
from tests.specs import BACKUP, COPY, GOOD_REPOSITORIES, GOOD_SCHEDULES
from wire.messages import CommandRun, Hooks

REACHES = {
    "Schedule backup.paths[]": "paths",
    "Schedule hostSelector.matchLabels": "hosts",
    "Schedule hostSelector.matchExpressions[].key": "hosts",
    "Schedule hostSelector.matchExpressions[].values[]": "hosts",
    "Schedule hooks.before[]": "allowed hooks",
    "Schedule hooks.after[]": "allowed hooks",
    "Schedule backup.command[]": "allowed hooks",
    "Schedule repositoryRef.name": "own namespace",
    "Schedule copy.fromRepositoryRef.name": "own namespace",
    "Schedule ping.urlSecretRef.name": "own namespace",
    "Schedule ping.urlSecretRef.key": "own namespace",
    "Repository url": "paths",
    "Repository passwordSecretRef.name": "own namespace",
    "Repository passwordSecretRef.key": "own namespace",
    "Repository envSecretRef.name": "own namespace",
}
"""What limits each field that names something outside of its manifest."""
FREE = {
    "Schedule backup.excludes[]": "a pattern, with which restic compares paths that it may read anyway",
    "Schedule backup.iexcludes[]": "a pattern, with which restic compares paths that it may read anyway",
    "Schedule backup.stdinFilename": "a file's name in the snapshot, without folders",
    "Schedule backup.tags[]": "a text that a snapshot gets; the tag that says whose it is cannot be chosen",
    "Schedule retention.tags[]": "a text with which restic compares tags in the tenant's own repository",
    "Schedule retention.keepTags[]": "a text with which restic compares tags in the tenant's own repository",
}
"""Why each of these texts, which may be any, reaches nothing."""
GRANTS = {
    "everything": Grant(host_identity=True),
    "a folder": Grant(LabelSelector({"pool": "a"}), ("/srv/a",)),
    "no path": Grant(path_prefixes=()),
}
ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 29, tzinfo=UTC)


def leaves(schema: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each field that has a value of its own, with its schema. `[]` stands for an item."""
    if "properties" in schema:
        for key, inner in schema["properties"].items():
            yield from leaves(inner, f"{name}{'' if name.endswith(' ') else '.'}{key}")
    elif schema.get("type") == "array":
        assert "maxItems" in schema, f"{name} has no limit"
        yield from leaves(schema["items"], f"{name}[]")
    else:
        yield name, schema


def spec_of(plural: str) -> Any:
    versions = yaml.safe_load((ROOT / "crds" / f"{plural}.yaml").read_text())["spec"]["versions"]
    return versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


FIELDS = dict([*leaves(spec_of("schedules"), "Schedule "), *leaves(spec_of("repositories"), "Repository ")])


def is_bounded(schema: Mapping[str, Any]) -> bool:
    """Whether a schema leaves only values that name nothing: switches, numbers within limits, words of a grammar."""
    match schema.get("type"):
        case "boolean":
            return True
        case "integer":
            return {"minimum", "maximum"} <= schema.keys()
        case "string":
            rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", ())]
            return "enum" in schema or ("maxLength" in schema and any("matches(" in it for it in rules))
    return False


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_each_field_is_bounded_or_something_is_known_to_limit_it(field: str) -> None:
    assert field in REACHES or field in FREE or is_bounded(FIELDS[field]), (
        f"{field} may be any text: bound it in its schema, or add to REACHES or FREE what limits it"
    )


STORAGE = {"url": "s3:https://h/b"}


def command(
    spec: dict[str, Any], grant: Grant, repository: dict[str, Any] = STORAGE, source: dict[str, Any] = STORAGE
) -> tuple[bool, CommandRun]:
    """Whether a Schedule may select hosts in a namespace with this grant, and the command that it becomes there.

    `source`: the Repository that a copy reads from.
    """
    parsed = parse_schedule({"metadata": {"name": "it", "namespace": "team"}, "spec": spec})
    catalog = Catalog(VAULT, Grants(namespaces={"team": grant}))
    for name, declared in (("main", repository), ("far", source)):
        where = parse_repository({"metadata": {"name": name}, "spec": declared}).raw_spec
        row = RepositoryRow(f"r-{name}", "team", name, {}, where, 1, NOW, NOW, None)
        catalog.put(repositories=[catalog.resolve(row)])
    placed = catalog.place(ScheduleRow("s1", "team", "it", {}, parsed.raw_spec, 1, NOW, NOW, NOW, NOW))
    return placed.granted != NOTHING, command_for(placed, "host-1", "j1", None)


VAULT = Vault([Vault.new_key()])


@pytest.mark.parametrize("granted", GRANTS)
@pytest.mark.parametrize("spec", GOOD_SCHEDULES, ids=str)
def test_no_field_of_a_schedule_widens_what_its_jobs_may_reach(spec: dict[str, Any], granted: str) -> None:
    grant = GRANTS[granted]
    may, made = command(spec, grant)
    assert (tuple(made.within), made.host_identity) == (grant.within, grant.host_identity)
    paths: Sequence[str] = spec.get("backup", {}).get("paths", ())
    assert may is all(map(grant.covers, paths))
    assert made.args[made.args.index("--") + 1 :] == list(paths) if paths else True


@pytest.mark.parametrize("granted", GRANTS)
@pytest.mark.parametrize("repository", GOOD_REPOSITORIES, ids=str)
def test_no_field_of_a_repository_does(repository: dict[str, Any], granted: str) -> None:
    grant = GRANTS[granted]
    may, made = command({**BACKUP, "backup": {"paths": ["/srv/a/b"]}}, grant, repository)
    assert (tuple(made.within), made.host_identity) == (grant.within, grant.host_identity)
    is_folder = repository["url"].startswith("/")
    assert may is (grant.everywhere or (grant.covers("/srv/a/b") and not is_folder))


@pytest.mark.parametrize("granted", GRANTS)
@pytest.mark.parametrize("url", ["/srv/a/far", "/srv/b/far", "rclone:far:b"])
def test_a_copy_neither_reads_nor_writes_what_is_not_granted(url: str, granted: str) -> None:
    grant, other = GRANTS[granted], {"url": url}
    may = url.startswith("/") and grant.covers(url)
    assert command(COPY, grant, source=other)[0] is may
    assert command(COPY, grant, repository=other)[0] is may


@pytest.mark.parametrize("program", ["/bin/sh", "sh", "../bin/true", "/bin/true/../sh", "/bin/tru"])
def test_no_field_runs_a_program_that_the_hosts_operator_does_not_allow(program: str) -> None:
    for around, fed in ((Hooks([program]), []), (Hooks(after=[program]), []), (Hooks(), [program])):
        with pytest.raises(hooks.HookError):
            hooks.check(around, fed, ["/bin/true"])
