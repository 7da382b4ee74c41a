"""Each kind of job becomes a list of restic's arguments, and restic takes no value in it for an option."""

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.jobs import arguments as commands
from server.resources.manifests import parse_repository, parse_schedule
from server.resources.restic import copy_options, quantity, repository_options, unknown
from server.resources.specs import RepositorySpec, ScheduleSpec
from wire.messages import Hooks, Verify


def spec(**backup: Any) -> ScheduleSpec:
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


def test_a_plain_backup_says_whose_it_is() -> None:
    args = commands.run_args(spec(), "ns/etc", "node-1")
    assert args == ["backup", "--json", "--host=node-1", "--tag=lamplighter=ns/etc", "--", "/etc"]


def test_all_that_a_backup_can_say() -> None:
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


def test_what_a_program_prints_is_named_and_its_argv_goes_to_the_agent_apart() -> None:
    said = of_kind("backup", backup={"command": ["/bin/dump", "--all"], "tags": ["t"], "stdinFilename": "all.sql"})
    assert commands.run_args(said, "ns/etc", "node-1") == [
        *("backup", "--json", "--host=node-1", "--tag=lamplighter=ns/etc", "--tag=t"),
        *("--stdin-from-command", "--stdin-filename=all.sql"),
    ]
    assert commands.stdin_command(said) == ["/bin/dump", "--all"]
    assert commands.hooks_part(said, "ns/etc") == Hooks([], [], "ns/etc")
    plain = of_kind("backup", backup={"command": ["/bin/dump"]})
    assert commands.run_args(plain, "ns/etc", "node-1")[-1] == "--stdin-filename=stdin"


def test_what_newer_restics_and_other_fields_add_to_a_backup() -> None:
    said = spec(
        iexcludes=["*.TMP"],
        excludeLargerThan="2Ki",
        excludeIfPresent=[".no", "T:x"],
        withAtime=True,
        noScan=True,
        skipIfUnchanged=True,
        readConcurrency=8,
        compression="max",
        packSize="64Mi",
    )
    assert commands.run_args(said, "ns/etc", "node-1")[3:-2] == [
        *("--with-atime", "--no-scan", "--skip-if-unchanged", "--read-concurrency=8", "--compression=max"),
        *("--pack-size=64", "--exclude-larger-than=2048", "--tag=lamplighter=ns/etc"),
        *("--exclude-if-present=.no", "--exclude-if-present=T:x", "--iexclude=*.TMP"),
    ]


def test_a_repositorys_options_are_those_of_all_its_jobs() -> None:
    limits = {"limitUploadKiB": 10, "limitDownloadKiB": 20, "cleanupCache": True}
    said = {"url": "/b", "compression": "off", "packSize": "4Mi", **limits}
    found = repository_options(parse_repository({"metadata": {"name": "it"}, "spec": said}).spec)
    assert found == [
        "--compression=off",
        "--pack-size=4",
        "--limit-upload=10",
        "--limit-download=20",
        "--cleanup-cache",
    ]
    assert repository_options(RepositorySpec("/b", init=False)) == []


@pytest.mark.parametrize(
    ("version", "args", "why"),
    [
        ("0.14.0", ["--no-scan"], "restic 0.14.0 does not know spec.backup.noScan, which needs 0.15"),
        ("0.15.0", ["--no-scan", "--read-concurrency=3"], ""),
        (
            "0.16",
            ["--skip-if-unchanged"],
            "restic 0.16 does not know spec.backup.skipIfUnchanged, which needs 0.17",
        ),
        ("0.18.1", ["--compression=better"], "restic 0.18.1 does not know compression: better, which needs 0.19"),
        ("0.19.0-dev", ["--compression=better"], ""),
        ("0.14.0", ["--compression=max", "--tag=--no-scan", "--", "--no-scan"], ""),
        ("", ["--no-scan"], ""),
        ("1.0", ["--no-scan"], ""),
    ],
)
def test_what_a_restic_does_not_know_is_told_by_the_name_of_the_field(version: str, args: list[str], why: str) -> None:
    assert unknown(version, args).partition(": remove")[0].partition(": update")[0] == why


def of_kind(kind: str, **blocks: Any) -> ScheduleSpec:
    manifest = {"kind": kind, "cron": "@daily", "repositoryRef": {"name": "main"}, **blocks}
    return parse_schedule({"metadata": {"name": "it"}, "spec": manifest}).spec


POLICY = {
    "keepLast": 1,
    "keepHourly": 2,
    "keepDaily": 3,
    "keepWeekly": 4,
    "keepMonthly": 5,
    "keepYearly": 6,
    "keepWithin": "1y6m",
    "keepTags": ["a", "-b"],
}
KEPT = [
    *("--keep-last=1", "--keep-hourly=2", "--keep-daily=3", "--keep-weekly=4", "--keep-monthly=5", "--keep-yearly=6"),
    *("--keep-within=1y6m", "--keep-tag=a", "--keep-tag=-b"),
]

MADE = ["--tag=lamplighter=ns/a", "--tag=lamplighter=ns/b"]


@pytest.mark.parametrize(
    ("said", "args"),
    [
        (of_kind("forget", retention=POLICY), ["forget", "--host=node-1", *MADE, *KEPT]),
        (of_kind("forget", retention={"keepLast": 1, "allHosts": True}), ["forget", *MADE, "--keep-last=1"]),
        (
            of_kind("forget", retention={"keepLast": 1, "prune": True}),
            ["forget", "--host=node-1", *MADE, "--keep-last=1", "--prune"],
        ),
        (
            of_kind("forget", retention={"keepLast": 1, "tags": ["a", "-b"], "groupBy": ["tags", "host"]}),
            ["forget", "--host=node-1", "--tag=a", "--tag=-b", "--group-by=tags,host", "--keep-last=1"],
        ),
        (
            of_kind("forget", retention={"keepLast": 1, "allTags": True, "groupBy": []}),
            ["forget", "--host=node-1", "--group-by=", "--keep-last=1"],
        ),
        (
            of_kind("forget", retention={"keepLast": 1, "prune": True}, pruneOptions={"maxUnused": "unlimited"}),
            ["forget", "--host=node-1", *MADE, "--keep-last=1", "--prune", "--max-unused=unlimited"],
        ),
        (
            of_kind("prune", pruneOptions={"maxUnused": "2Gi", "maxRepackSize": "1Mi"}),
            ["prune", "--max-unused=2147483648", "--max-repack-size=1048576"],
        ),
        (of_kind("prune", pruneOptions={"maxUnused": "2.5%"}), ["prune", "--max-unused=2.5%"]),
        (of_kind("prune"), ["prune"]),
        (of_kind("check"), ["check"]),
        (of_kind("check", check={"readDataSubset": "1/7"}), ["check", "--read-data-subset=1/7"]),
        (of_kind("unlock"), ["unlock"]),
        (of_kind("copy", copy={"fromRepositoryRef": {"name": "far"}}), ["copy"]),
        (of_kind("verify"), ["ls", "--json", "--host=node-1", "--", "latest"]),
    ],
)
def test_every_kind_says_no_more_than_its_spec(said: ScheduleSpec, args: list[str]) -> None:
    assert commands.run_args(said, "ns/it", "node-1", ["ns/a", "ns/b"]) == args


def test_a_forget_looks_at_the_snapshots_of_the_backups_that_there_are_and_never_at_all_of_them() -> None:
    said = of_kind("forget", retention={"keepLast": 1})
    assert commands.run_args(said, "ns/it", "node-1")[2:] == ["--tag=lamplighter=ns/it", "--keep-last=1"]
    many = [f"ns/b{at}" for at in range(300)]
    found = commands.run_args(said, "ns/it", "node-1", many)[2:-1]
    assert found == [f"--tag=lamplighter={name}" for name in many[: commands.MAX_BACKUPS]]


def test_a_copy_is_no_faster_than_either_repository_allows_and_packs_as_the_one_that_it_writes_to() -> None:
    bare = RepositorySpec("/b", init=False)
    to = RepositorySpec("/b", init=False, compression="max", limit_upload_kib=10, limit_download_kib=30)
    source = RepositorySpec("/b", init=False, pack_size="64Mi", limit_upload_kib=20, limit_download_kib=15)
    assert copy_options(to, source) == ["--compression=max", "--limit-upload=10", "--limit-download=15"]
    assert copy_options(bare, source) == ["--limit-upload=20", "--limit-download=15"]
    assert copy_options(bare, bare) == []


def test_a_verification_is_bounded_by_its_spec_or_by_the_defaults() -> None:
    assert commands.verify_part(of_kind("verify")) == Verify(20, 100 << 20)
    assert commands.verify_part(of_kind("verify", verify={"files": 5, "maxBytes": "2Ki"})) == Verify(5, 2048)
    assert commands.verify_part(of_kind("check")) is None


def test_hooks_go_with_the_name_of_their_schedule() -> None:
    assert commands.hooks_part(of_kind("prune", hooks={"before": ["/a", "b"]}), "ns/it") == Hooks(
        ["/a", "b"], [], "ns/it"
    )
    assert commands.hooks_part(of_kind("prune", hooks={}), "ns/it") is None


@pytest.mark.parametrize(
    ("text", "count"), [("1", 1), ("10Ki", 10240), ("3Mi", 3 << 20), ("4Gi", 4 << 30), ("1Ti", 1 << 40)]
)
def test_a_quantity_is_a_number_with_a_unit_of_kubernetes(text: str, count: int) -> None:
    assert quantity(text) == count


def test_a_kind_that_is_not_run_is_refused_with_those_that_are() -> None:
    said = msgspec.structs.replace(spec(), kind="rewrite")
    with pytest.raises(ValueError, match="'rewrite' is not run by this version: use one of backup, check"):
        commands.run_args(said, "ns/etc", "node-1")


def test_restic_takes_no_value_for_an_option(tmp_path: Path) -> None:
    (tmp_path / "--repo=elsewhere").write_text("kept")
    (tmp_path / "--help").write_text("left out")
    said = spec(paths=["--repo=elsewhere", "--help"], tags=["--dry-run"], excludes=["--help", "-h"])
    env = {"RESTIC_REPOSITORY": str(tmp_path / "repository"), "RESTIC_PASSWORD": "x"}
    env |= {"RESTIC_CACHE_DIR": str(tmp_path / "cache")}  # restic leaves its cache out of a backup

    def restic(*args: Any) -> bytes:
        return subprocess.run(["/usr/bin/restic", *args], cwd=tmp_path, env=env, check=True, capture_output=True).stdout

    restic(*(commands.init_args(init=True) or ()))
    restic(*commands.run_args(said, "ns/etc", "node-1"))
    [snapshot] = json.loads(restic("snapshots", "--json"))
    files = [json.loads(line).get("path") for line in restic("ls", "--json", snapshot["id"]).splitlines()]
    assert (snapshot["hostname"], snapshot["tags"]) == ("node-1", ["lamplighter=ns/etc", "--dry-run"])
    assert files[1:] == ["/--repo=elsewhere"]


@pytest.mark.parametrize(("init", "args"), [(True, ["init"]), (False, None)])
def test_a_repository_is_created_where_that_is_allowed(init: bool, args: list[str] | None) -> None:
    assert commands.init_args(init) == args
    assert commands.init_args(init, "copy") == (["init", "--copy-chunker-params"] if init else None)
    assert commands.init_args(init, "prune") is None


@pytest.mark.parametrize(
    ("url", "filled"),
    [
        ("s3:example.org/b", "s3:example.org/b"),
        ("/b/{namespace}/{host}", "/b/ns/node-1"),
        ("/{host}{host}{other}", "/node-1node-1{other}"),
    ],
)
def test_a_url_names_the_host_and_the_namespace(url: str, filled: str) -> None:
    assert commands.repository_url(RepositorySpec(url, init=False), "ns", "node-1") == filled
