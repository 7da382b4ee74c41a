"""restic's arguments: what a schedule says becomes a list in which no value is taken for an option."""

import json
import subprocess

import msgspec
import pytest

from server import commands
from server.specs import RepositorySpec, ScheduleSpec


def spec(**backup):
    whole = {"paths": ["/etc"], "excludes": [], "tags": [], "oneFileSystem": False, "excludeCaches": False} | backup
    return msgspec.convert(
        {
            "kind": "backup",
            "cron": "0 2 * * *",
            "timeZone": "UTC",
            "enabled": True,
            "hostSelector": {},
            "repositoryRef": {"name": "main"},
            "concurrencyPolicy": "Forbid",
            "missedRunPolicy": "RunOnce",
            "spreadSeconds": 0,
            "retry": {"limit": 0, "backoffSeconds": 0},
            "backup": whole,
        },
        ScheduleSpec,
    )


def test_a_plain_backup_says_whose_it_is():
    args = commands.run_args(spec(), "ns/etc", "node-1")
    assert args == ["backup", "--json", "--host=node-1", "--tag=lamplighter=ns/etc", "--", "/etc"]


def test_all_that_a_backup_can_say():
    said = spec(paths=["/a", "/b"], excludes=["*.tmp", "x y"], tags=["t"], oneFileSystem=True, excludeCaches=True)
    assert commands.run_args(said, "ns/etc", "node-1")[3:] == [
        "--one-file-system",
        "--exclude-caches",
        "--tag=lamplighter=ns/etc",
        "--tag=t",
        "--exclude=*.tmp",
        "--exclude=x y",
        "--",
        "/a",
        "/b",
    ]


def test_a_kind_that_is_not_run_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="'prune' is not run by this version: use one of backup"):
        commands.run_args(msgspec.structs.replace(spec(), kind="prune", backup=None), "ns/etc", "node-1")


def test_restic_takes_no_value_for_an_option(tmp_path):
    (tmp_path / "--repo=elsewhere").write_text("kept")
    (tmp_path / "--help").write_text("left out")
    said = spec(paths=["--repo=elsewhere", "--help"], tags=["--dry-run"], excludes=["--help", "-h"])
    env = {"RESTIC_REPOSITORY": str(tmp_path / "repository"), "RESTIC_PASSWORD": "x"}
    env |= {"RESTIC_CACHE_DIR": str(tmp_path / "cache")}  # restic leaves its cache out of a backup

    def restic(*args):
        return subprocess.run(["/usr/bin/restic", *args], cwd=tmp_path, env=env, check=True, capture_output=True).stdout

    restic(*commands.init_args(RepositorySpec("", init=True)))
    restic(*commands.run_args(said, "ns/etc", "node-1"))
    [snapshot] = json.loads(restic("snapshots", "--json"))
    files = [json.loads(line).get("path") for line in restic("ls", "--json", snapshot["id"]).splitlines()]
    assert (snapshot["hostname"], snapshot["tags"]) == ("node-1", ["lamplighter=ns/etc", "--dry-run"])
    assert files[1:] == ["/--repo=elsewhere"]


@pytest.mark.parametrize(("init", "args"), [(True, ["init"]), (False, None)])
def test_a_repository_is_created_where_that_is_allowed(init, args):
    assert commands.init_args(RepositorySpec("/backup", init)) == args


@pytest.mark.parametrize(
    ("url", "filled"),
    [
        ("s3:example.org/b", "s3:example.org/b"),
        ("/b/{namespace}/{host}", "/b/ns/node-1"),
        ("/{host}{host}{other}", "/node-1node-1{other}"),
    ],
)
def test_a_url_names_the_host_and_the_namespace(url, filled):
    assert commands.repository_url(RepositorySpec(url, init=False), "ns", "node-1") == filled
