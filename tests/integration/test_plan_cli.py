"""`lamplighter plan` shows what applying a folder or files would do, and where each thing stands."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from cli import planned
from cli.main import main
from cli.plugin import plugin
from controller.client import Client
from controller.folder.follower import OWNER, FolderFollower
from controller.reconcile import OWNER_LABEL
from server.app import Running

pytestmark = pytest.mark.anyio

Plan = Callable[..., Awaitable[Result]]

REPOSITORY = """\
apiVersion: lamplighter.dev/v1alpha1
kind: Repository
metadata: {namespace: ns, name: main}
spec: {url: "s3:h/b", passwordSecretRef: {name: main}}
"""
SECRET = """\
---
apiVersion: v1
kind: Secret
metadata: {namespace: ns, name: main}
stringData: {password: hush}
"""
HOSTS = """\
apiVersion: lamplighter.dev/v1alpha1
kind: Host
metadata: {name: web-1}
---
apiVersion: lamplighter.dev/v1alpha1
kind: Host
metadata: {name: web-2}
"""


def schedule(name: str = "etc", cron: str = "0 2 * * *", repository: str = "main", more: str = "") -> str:
    return f"""\
apiVersion: lamplighter.dev/v1alpha1
kind: Schedule
metadata: {{namespace: ns, name: {name}}}
spec:
  kind: backup
  cron: "{cron}"
  repositoryRef: {{name: {repository}}}
  backup: {{paths: [/etc]}}
{more}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "main.yaml").write_text(REPOSITORY + SECRET)
    (folder / "etc.yaml").write_text(schedule())
    (folder / "hosts.yaml").write_text(HOSTS)
    return folder


@pytest.fixture
def plan(server: Running, tmp_path: Path) -> Plan:
    """Runs the command in a thread, while the server answers."""

    async def run(*words: object, stdin: str | bytes = "") -> Result:
        here = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{server.port}", "LAMPLIGHTER_DATA_DIR": str(tmp_path)}
        return await asyncio.to_thread(
            CliRunner().invoke, main, ["plan", *map(str, words)], input=stdin, env=here | {"NO_COLOR": "1"}
        )

    return run


async def applied(server: Running, folder: Path) -> None:
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        assert await FolderFollower(folder, client, OWNER).compare()


async def told(plan: Plan, *words: object) -> Any:
    return json.loads((await plan(*words, "-o", "json")).stdout)


async def test_a_new_folder_is_all_additions_and_an_applied_one_no_change(
    server: Running, folder: Path, plan: Plan
) -> None:
    result = await plan(folder)
    for line in (
        "  + Host web-1   (hosts.yaml:1)",
        "  + Schedule ns/etc   (etc.yaml:1)",
        "      hosts: 0 → 2 (+web-1, web-2)",
        "Plan: 4 to create.",
    ):
        assert line in result.stdout.splitlines()
    assert "hush" not in result.output
    await applied(server, folder)
    again = await plan(folder)
    assert (again.exit_code, again.stdout) == (0, "Plan: no changes.\n")


async def test_each_change_of_a_field_is_shown_with_what_it_does(server: Running, folder: Path, plan: Plan) -> None:
    await applied(server, folder)
    (folder / "etc.yaml").write_text(schedule(cron="0 3,4 * * *"))
    (folder / "main.yaml").write_text(REPOSITORY + SECRET.replace("hush", "tell"))
    result = await plan(folder)
    assert result.exit_code == 2
    lines = [it.strip() for it in result.stdout.splitlines()]
    assert 'spec.cron: "0 2 * * *" → "0 3,4 * * *"' in lines
    assert "credentials: changed" in lines
    assert [it for it in lines if it.startswith("runs in a day: 2 → 4 (4 new, at ")]
    assert "hush" not in result.output
    assert "tell" not in result.output


async def test_what_a_folder_no_longer_declares_goes_and_most_of_it_only_when_confirmed(
    server: Running, folder: Path, plan: Plan
) -> None:
    await applied(server, folder)
    (folder / "etc.yaml").unlink()
    result = await plan(folder)
    assert (result.exit_code, "  - Schedule ns/etc" in result.stdout.splitlines()) == (2, True)
    (folder / "hosts.yaml").unlink()
    emptied = await told(plan, folder)
    assert (emptied["exit_code"], emptied["changes"], len(emptied["withheld"])) == (1, [], 3)
    assert "--allow-empty confirms that" in (await plan(folder)).stdout
    assert planned.summary(emptied) == "3 deletions withheld"
    assert planned.summary({**emptied, "withheld": emptied["withheld"][:1]}) == "1 deletion withheld"
    confirmed = await told(plan, folder, "--allow-empty")
    assert (confirmed["exit_code"], len(confirmed["changes"])) == (2, 3)
    files = await told(plan, "-f", folder)
    assert (files["exit_code"], files["changes"]) == (0, [])


async def test_what_would_be_refused_is_told_with_its_line_and_the_rest_is_planned(folder: Path, plan: Plan) -> None:
    (folder / "bad.yaml").write_text(schedule("bad", cron="61 * * * *"))
    (folder / "lost.yaml").write_text(schedule("lost", repository="nowhere"))
    (folder / "twice.yaml").write_text(schedule())
    (folder / "torn.yaml").write_text("kind: [")
    result = await told(plan, folder)
    assert result["exit_code"] == 1
    places = {error["file"]: error["field"] for it in result["refused"] for error in it["errors"]}
    assert places == {"bad.yaml:6": "spec.cron", "lost.yaml:7": "spec.repositoryRef.name"}
    assert [it["file"] for it in result["mistakes"]] == ["torn.yaml:2:1", "twice.yaml:3"]
    assert {it["kind"] for it in result["changes"]} == {"Host", "Repository"}
    shown = (await plan(folder)).stdout
    assert "  ! Schedule ns/bad   (bad.yaml:6): spec.cron: minute '61' does not exist" in shown


async def test_what_another_owner_has_is_refused_to_a_folder_and_not_to_files(
    server: Running, api: httpx.AsyncClient, folder: Path, plan: Plan
) -> None:
    managed = {"metadata": {"labels": {OWNER_LABEL: "lamplighter-controller"}}, "spec": {"url": "s3:h/b"}}
    unlock = {"spec": {"kind": "unlock", "cron": "@daily", "repositoryRef": {"name": "main"}}}
    (await api.put("/repositories/ns/main", json=managed)).raise_for_status()
    (await api.put("/schedules/ns/etc", json=unlock)).raise_for_status()
    refused = (await told(plan, folder))["refused"]
    assert {(it["kind"], it["status"]) for it in refused} == {("Repository", 409), ("Schedule", 409)}
    files = await told(plan, "-f", folder / "main.yaml", "-f", folder / "etc.yaml")
    assert files["refused"] == []
    assert [field["field"] for it in files["changes"] for field in it["fields"] if "labels" in field["field"]] == []


async def test_files_come_from_stdin_too_and_their_secrets_may_be_elsewhere(plan: Plan) -> None:
    result = await plan("-f", "-", "-o", "json", stdin=REPOSITORY + "---\nkind: Deployment\nmetadata: {name: x}\n")
    answer = json.loads(result.stdout)
    assert (result.exit_code, [it["kind"] for it in answer["changes"]]) == (2, ["Repository"])
    assert [it["file"] for it in answer["ignored"]] == ["-:6"]


async def test_stdin_that_is_not_text_is_a_mistake_in_a_line(plan: Plan) -> None:
    result = await plan("-f", "-", stdin=b"kind: \xff\xfe\n")
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (1, True)
    assert "not UTF-8 text: save it as UTF-8" in result.output


async def test_a_pipe_is_read_as_a_file(plan: Plan, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    result, _ = await asyncio.gather(plan("-f", pipe, "-o", "json"), asyncio.to_thread(pipe.write_text, REPOSITORY))
    assert [it["kind"] for it in json.loads(result.stdout)["changes"]] == ["Repository"]


@pytest.mark.parametrize(
    "words", [(), ("--wrong",), ("nowhere",), ("-f", "nowhere.yaml"), ("-f", ".", "--prune"), ("-f", "-", "-o", "yaml")]
)
async def test_a_plan_that_cannot_be_made_never_looks_like_changes(plan: Plan, words: tuple[str, ...]) -> None:
    assert (await plan(*words)).exit_code == 1


def test_the_plugin_of_kubectl_plans_too() -> None:
    assert CliRunner().invoke(plugin, ["plan", "--help"]).exit_code == 0
    assert CliRunner().invoke(plugin, ["plan", "--wrong"]).exit_code == 1


async def test_markdown_shows_what_text_shows_and_calls_nobody(folder: Path, plan: Plan) -> None:
    (folder / "bad.yaml").write_text(schedule("bad", cron="@all|`x`"))
    shown = (await plan(folder, "-o", "markdown")).stdout
    assert shown.startswith("### Lamplighter plan: 4 to create, 1 refused\n")
    assert "| + | Schedule ns/etc |" in shown
    assert "@" not in shown
    assert "`" not in shown
    assert "\N{REPLACEMENT CHARACTER}" not in shown


def test_a_run_of_long_ago_is_shown_with_its_date_and_what_is_not_read_in_both_forms() -> None:
    runs = {"count": 1, "first": [{"host": "web-1", "due": "2026-02-28T02:00:00Z"}]}
    due = {"before": 1, "after": 0, "appearing": 0, "disappearing": 0, "appear_at": [], "disappear_at": []}
    nothing: dict[str, Any] = {"count": 0, "first": []}
    schedule = {"namespace": "ns", "name": "etc", "gained": nothing, "lost": nothing, "due": due, "spread_seconds": 0}
    told: dict[str, Any] = {it: [] for it in ("changes", "refused", "mistakes", "withheld", "repositories")}
    joining = {"count": 12, "first": [f"web-{number}" for number in range(10)]}
    of_schedule = {**schedule, "made_up": nothing, "dropped": runs, "joining": joining}
    told |= {"schedules": [of_schedule], "hosts": nothing}
    told |= {"begin": "2026-03-29T01:30:00Z", "ignored": [{"file": "x.yaml:1", "detail": "Pod is not read"}]}
    for lines in (planned.text_lines(told), planned.markdown_lines(told)):
        text = "\n".join(lines)
        assert "missed runs that would be lost: web-1 2026-02-28 02:00Z" in text
        assert "would run at once on 12 hosts that join: web-0, " in text
        assert "x.yaml:1: Pod is not read" in text


def test_markdown_of_a_huge_plan_fits_into_a_comment() -> None:
    change = {"action": "update", "kind": "Schedule", "namespace": "ns"}
    field = {"field": "spec.cron", "before": "|" * 500, "after": "@" * 500, "hidden": ""}
    changes = [{**change, "name": f"s{at}", "fields": [field] * 9} for at in range(2000)]
    parts = ("refused", "mistakes", "withheld", "ignored", "schedules", "repositories")
    empty: dict[str, Any] = {part: [] for part in parts}
    plan = {"changes": changes, "hosts": {"count": 0, "first": []}, "begin": "2026-03-29T01:30:00Z", **empty}
    text = "\n".join(planned.markdown_lines(plan))
    assert len(text) <= planned.MAX_MARKDOWN
    assert "more lines" in text
