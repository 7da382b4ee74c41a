"""A server follows a folder's files as they change, go wrong and go away, also after it was away itself."""

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.client import Client, ControllerError, Refused, Unreachable
from controller.folder.declarations import Reading, read
from controller.folder.follower import OWNER, FolderFollower, follow_folder
from controller.reconcile import OWNER_LABEL
from server.app import Config, Running, serving
from server.observe import controllers
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
PATIENCE_S = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(QUICKSTART, tmp_path / "folder"))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(Config(tmp_path / "data", port=0)) as running:
        yield running


@pytest.fixture
async def client(server: Running) -> AsyncIterator[Client]:
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        yield client


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[..., Any]:
    """What the controller logged: messages with their facts, since last asked."""
    caplog.set_level(logging.DEBUG, "controller")

    def take() -> list[Any]:
        standard = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}
        records = [record for record in caplog.records if record.name.startswith("controller")]
        caplog.clear()
        return [
            (record.getMessage(), {key: it for key, it in vars(record).items() if key not in standard})
            for record in records
        ]

    return take


@pytest.fixture
def follower(folder: Path, client: Client) -> FolderFollower:
    return FolderFollower(folder, client, OWNER)


@asynccontextmanager
async def watching(folder: Path, client: Client, **options: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(follow_folder(folder, client, **options))
    yield
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def held(client: Client, plural: str = "schedules") -> dict[str, Any]:
    return {item["metadata"]["name"]: item async for item in client.resources(plural)}


async def until(condition: Callable[..., Awaitable[bool]]) -> None:
    """Ask the server until a condition holds; other tasks have their turn at each request."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            pass


def edit(path: Path, old: str, new: str) -> None:
    """Save a file whole, as editors do."""
    text = path.read_text()
    assert old in text
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text.replace(old, new))
    draft.replace(path)


def messages(lines: Any) -> list[Any]:
    return [message for message, _ in lines]


async def test_the_quickstart_is_accepted_as_it_stands(
    follower: FolderFollower, client: Client, server: Running, told: Callable[..., Any]
) -> None:
    assert await follower.compare()
    etc = (await held(client))["etc"]
    local = (await held(client, "repositories"))["local"]
    assert etc["metadata"]["labels"] == local["metadata"]["labels"] == {OWNER_LABEL: OWNER}
    assert (local["spec"]["url"], local["spec"]["init"]) == (".lamplighter/repository/{host}", True)
    lines = told()
    assert messages(lines) == ["repository accepted", "schedule accepted", "folder compared"]
    accepted = dict(lines)["schedule accepted"]
    assert (accepted["schedule"], accepted["cron"]) == ("default/etc", "* * * * *")
    assert accepted["next"].tzinfo is not None
    assert "only-for-the-quickstart" not in str(lines)


async def test_a_second_comparison_puts_nothing_and_a_restart_writes_nothing(
    folder: Path, follower: FolderFollower, client: Client, server: Running, told: Callable[..., Any]
) -> None:
    async def audited() -> int:
        headers = {"Authorization": f"Bearer {server.admin_token}"}
        async with httpx.AsyncClient(base_url=client.url, headers=headers, verify=NO_TLS) as auditor:
            return len((await auditor.get("/api/v1/audit")).json()["items"])

    await follower.compare()
    before = await audited()
    told()
    await follower.compare()
    await FolderFollower(folder, client, OWNER).compare()
    assert before == await audited() == 2
    assert messages(told()) == ["folder compared"]


async def test_a_change_is_followed_and_a_deleted_file_too(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    await follower.compare()
    told()
    edit(folder / "schedule.yaml", "timeZone: UTC", "timeZone: Europe/Berlin")
    await follower.compare()
    assert (await held(client))["etc"]["spec"]["timeZone"] == "Europe/Berlin"
    for path in folder.iterdir():
        path.unlink()
    await FolderFollower(folder, client, OWNER, allow_empty=True).compare()
    assert await held(client) == await held(client, "repositories") == {}
    lines = [message for message in messages(told()) if message != "folder compared"]
    assert lines == ["schedule changed", "schedule deleted", "repository deleted"]


async def test_a_new_password_reaches_the_server(folder: Path, follower: FolderFollower, client: Client) -> None:
    await follower.compare()
    edit(folder / "secret.yaml", "only-for-the-quickstart", "another")
    await follower.compare()
    assert (await held(client, "repositories"))["local"]["metadata"]["generation"] == 2


async def test_a_secret_that_ends_with_a_newline_is_told_once_and_is_no_trouble(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    edit(folder / "secret.yaml", "password: only-for-the-quickstart", 'password: "hush\\n"')
    await follower.compare()
    await follower.compare()
    [facts] = [facts for message, facts in told() if message == "newline at the end of a secret left out"]
    assert (facts["repository"], facts["fields"]) == ("default/local", "password")
    assert facts["file"].startswith("repository.yaml")
    assert await state(client) == {}


async def test_what_others_changed_is_put_back(
    follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    await follower.compare()
    etc = (await held(client))["etc"]
    await client.put("schedules", "default", "etc", {**etc, "spec": etc["spec"] | {"enabled": False}})
    told()
    await follower.compare()
    assert (await held(client))["etc"]["spec"]["enabled"] is True
    assert messages(told()) == ["schedule changed"]


async def test_what_others_made_is_left_alone(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    theirs = {"metadata": {}, "spec": {"url": "/theirs"}}
    await client.put("repositories", "default", "theirs", theirs)
    await client.put("repositories", "default", "local", theirs)
    await follower.compare()
    await follower.compare()
    assert {name: it["spec"]["url"] for name, it in (await held(client, "repositories")).items()} == {
        "theirs": "/theirs",
        "local": "/theirs",
    }
    refused = [facts for message, facts in told() if message == "repository refused"]
    assert [facts["repository"] for facts in refused] == ["default/local"]


async def test_a_refusal_names_file_and_fields_once_and_the_old_schedule_runs_on(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    await follower.compare()
    told()
    edit(folder / "schedule.yaml", "hostSelector: {}", "hostSlector: {}\n  spreadSeconds: -1")
    await follower.compare()
    await follower.compare()
    lines = told()
    assert messages(lines) == ["schedule refused", "schedule refused"]
    text = (folder / "schedule.yaml").read_text().splitlines()
    line = next(number for number, line in enumerate(text, 1) if "hostSlector" in line)
    assert {(facts["field"], facts["file"], facts["document"]) for _, facts in lines} == {
        ("spec.hostSlector", f"schedule.yaml:{line}", "1"),
        ("spec.spreadSeconds", f"schedule.yaml:{line + 1}", "1"),
    }
    assert {facts["schedule"] for _, facts in lines} == {"default/etc"}
    assert (await held(client))["etc"]["spec"]["cron"] == "* * * * *"
    edit(folder / "schedule.yaml", "hostSlector: {}\n  spreadSeconds: -1", "hostSelector: {}\n  spreadSeconds: 1")
    await follower.compare()
    assert told()[-1] == ("schedule accepted now", {"schedule": "default/etc"})
    await follower.compare()
    assert told() == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("schedule.yaml", '"* * * * *"', '"61 * * * *"', ("schedule accepted now", {"schedule": "default/etc"})),
        ("schedule.yaml", '"* * * * *"', "* * * * *", ("file valid now", {"file": "schedule.yaml"})),
        ("schedule.yaml", "name: etc", "name: Etc_", ("file valid now", {"file": "schedule.yaml"})),
        ("repository.yaml", "url: .lam", "url: nfs:.lam", ("repository accepted now", {"repository": "default/local"})),
        ("repository.yaml", "name: local #", "name: slow #", ("file valid now", {"file": "repository.yaml"})),
        ("secret.yaml", "  password: only", "  password: 5 # only", ("file valid now", {"file": "secret.yaml"})),
    ],
)
async def test_what_was_refused_and_is_as_it_was_again_is_told(
    folder: Path,
    follower: FolderFollower,
    client: Client,
    told: Callable[..., Any],
    name: str,
    old: str,
    new: str,
    said: tuple[str, dict[str, str]],
) -> None:
    await follower.compare()
    told()
    edit(folder / name, old, new)
    await follower.compare()
    assert any("refused" in message for message in messages(told()))
    edit(folder / name, new, old)
    await follower.compare()
    assert [line for line in told() if not line[0].endswith((" changed", " compared"))] == [said]


async def test_what_was_refused_and_is_gone_is_not_called_right(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    wrong = (folder / "schedule.yaml").read_text().replace("* * * * *", "61 * * * *").replace("etc", "wrong")
    (folder / "wrong.yaml").write_text(wrong)
    (folder / "broken.yaml").write_text("{")
    await follower.compare()
    told()
    (folder / "wrong.yaml").unlink()
    (folder / "broken.yaml").unlink()
    await follower.compare()
    assert messages(told()) == ["folder compared"]


async def test_a_folder_that_can_be_read_again_is_told(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    folder.rename(folder.with_name("away"))
    await follower.compare()
    folder.with_name("away").rename(folder)
    told()
    await follower.compare()
    assert "folder read again" in messages(told())


async def test_a_file_that_goes_wrong_is_told_once_and_deletes_nothing(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    await follower.compare()
    told()
    edit(folder / "schedule.yaml", '"* * * * *"', "* * * * *")
    await follower.compare()
    await follower.compare()
    ((message, facts),) = told()
    assert message == "file refused"
    assert facts["file"].startswith("schedule.yaml:")
    assert "needs quotes" in facts["detail"]
    assert "etc" in await held(client)


async def test_after_a_restart_a_wrong_file_still_deletes_nothing(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    await follower.compare()
    (folder / "schedule.yaml").write_text("{")
    restarted = FolderFollower(folder, client, OWNER)
    await restarted.compare()
    assert "etc" in await held(client)
    assert "deleting nothing" in messages(told())


async def test_a_folder_that_is_gone_deletes_nothing(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any]
) -> None:
    await follower.compare()
    shutil.rmtree(folder)
    assert await follower.compare()
    assert "etc" in await held(client)
    assert "folder not read" in messages(told())


async def test_many_resources_are_followed_page_by_page(folder: Path, follower: FolderFollower, client: Client) -> None:
    text = (folder / "schedule.yaml").read_text()
    many = [text.replace("name: etc", f"name: etc-{at}") for at in range(600)]
    (folder / "many.yaml").write_text("---\n".join(many))
    await follower.compare()
    assert len(await held(client)) == 601
    (folder / "many.yaml").unlink()
    (folder / "allow-empty").touch()
    await follower.compare()
    assert len(await held(client)) == 1


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("left", [[], ["repository.yaml", "secret.yaml"], ["other.yaml"]], ids=len)
async def test_a_folder_that_declares_less_than_half_deletes_nothing_until_it_is_confirmed(
    folder: Path, follower: FolderFollower, client: Client, told: Callable[..., Any], left: list[str], restarted: bool
) -> None:
    text = (folder / "schedule.yaml").read_text()
    for name in ("home", "srv"):
        (folder / f"{name}.yaml").write_text(text.replace("name: etc", f"name: {name}"))
    await follower.compare()
    before = {name: it["metadata"] for name, it in (await held(client)).items()}
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    if "other.yaml" in left:  # as when another volume is mounted
        (folder / "other.yaml").write_text((QUICKSTART / "repository.yaml").read_text().replace("local", "other"))
    if restarted:
        follower = FolderFollower(folder, client, OWNER)
    told()
    await follower.compare()
    await follower.compare()
    assert {name: it["metadata"] for name, it in (await held(client)).items()} == before  # the next due time moves
    assert "local" in await held(client, "repositories")
    errors = [facts for message, facts in told() if message == "deleting nothing"]
    assert len(errors) == 2  # at each comparison: it is loud
    assert "--allow-empty" in errors[0]["detail"]
    assert "allow-empty in the folder" in errors[0]["detail"]
    (folder / "allow-empty").touch()
    await follower.compare()
    assert await held(client) == {}


async def test_half_of_a_folder_is_deleted_as_it_says(folder: Path, follower: FolderFollower, client: Client) -> None:
    await follower.compare()
    (folder / "schedule.yaml").unlink()
    await follower.compare()
    assert await held(client) == {}


@pytest.mark.parametrize("content", [None, "", "two\nlines", "t\u00f6ken"])
async def test_a_token_that_is_away_for_a_moment_ends_nothing(
    folder: Path, server: Running, client: Client, tmp_path: Path, content: str | None
) -> None:
    token = tmp_path / "token"
    token.write_text(server.admin_token)

    async def there() -> bool:
        return "etc" in await held(client)

    async with Client(f"http://127.0.0.1:{server.port}", token.read_text) as reading:
        follower = FolderFollower(folder, reading, OWNER)
        token.unlink()
        if content is not None:
            token.write_text(content)
        assert not await follower.compare()
        async with watching(folder, reading):
            token.write_text(server.admin_token)
            await until(there)


async def test_a_comparison_that_fails_for_an_unknown_reason_is_made_again(
    folder: Path, server: Running, client: Client, monkeypatch: pytest.MonkeyPatch, told: Callable[..., Any]
) -> None:
    fails = iter([ValueError("who would have thought"), OSError(28, "No space left on device")])

    def parse(*args: Any) -> Reading:
        for error in fails:
            raise error
        return read(*args)

    monkeypatch.setattr("controller.folder.follower.read", parse)

    async def there() -> bool:
        return "etc" in await held(client)

    async with watching(folder, client):
        await until(there)
    assert messages(told()).count("comparison failed, trying again") == 2


async def test_files_are_followed_as_they_change(folder: Path, client: Client) -> None:
    async def runs_at(cron: str | None) -> Any:
        return (await held(client)).get("etc", {}).get("spec", {}).get("cron") == cron

    async with watching(folder, client, resync_s=3600):
        await until(lambda: runs_at("* * * * *"))
        edit(folder / "schedule.yaml", "* * * * *", "*/5 * * * *")
        await until(lambda: runs_at("*/5 * * * *"))
        (folder / "schedule.yaml").unlink()
        await until(lambda: runs_at(None))


async def test_a_mounted_config_map_is_followed_as_kubernetes_swaps_it(tmp_path: Path, client: Client) -> None:
    mounted = tmp_path / "mounted"
    for version, cron in (("..1", "* * * * *"), ("..2", "*/5 * * * *")):
        shutil.copytree(QUICKSTART, mounted / version)
        edit(mounted / version / "schedule.yaml", "* * * * *", cron)
    (mounted / "..data").symlink_to("..1")
    for name in ("schedule.yaml", "repository.yaml", "secret.yaml"):
        (mounted / name).symlink_to(Path("..data", name))

    async def runs_at(cron: str) -> Any:
        return (await held(client)).get("etc", {}).get("spec", {}).get("cron") == cron

    async with watching(mounted, client, resync_s=3600):
        await until(lambda: runs_at("* * * * *"))
        (mounted / "..new").symlink_to("..2")
        (mounted / "..new").rename(mounted / "..data")
        await until(lambda: runs_at("*/5 * * * *"))


async def test_what_no_file_event_tells_is_found_by_comparing_again(folder: Path, client: Client) -> None:
    async def there() -> bool:
        return "etc" in await held(client)

    async with watching(folder, client, resync_s=0.05):
        await until(there)
        await client.delete("schedules", "default", "etc")
        await until(there)


async def test_a_server_that_is_away_is_told_once_and_followed_when_it_is_back(
    folder: Path, tmp_path: Path, told: Callable[..., Any]
) -> None:
    async with serving(Config(tmp_path / "data", port=0)) as running:
        url, token, port = f"http://127.0.0.1:{running.port}", running.admin_token, running.port
    async with Client(url, token) as client:
        follower = FolderFollower(folder, client, OWNER)
        assert not await follower.compare()
        assert not await follower.compare()
        assert messages(told()) == ["server not reached, trying again"]
        async with watching(folder, client), serving(Config(tmp_path / "data", port=port)):

            async def there() -> bool:
                return "etc" in await held(client)

            await until(there)


async def state(client: Client) -> dict[str, Any]:
    [found] = [it async for it in client.resources("controllers")]
    assert found["name"] == OWNER
    return {it["reason"]: it["message"] for it in found["problems"]}


async def test_what_is_wrong_with_a_folder_is_told_at_the_server_until_it_is_mended(
    folder: Path, follower: FolderFollower, client: Client
) -> None:
    await follower.compare()
    assert await state(client) == {}
    schedule = folder / "schedule.yaml"
    text = schedule.read_text()
    schedule.write_text(text.replace("* * * * *", "61 * * * *"))
    await follower.compare()
    found = await state(client)
    assert list(found) == ["ScheduleRefused"]
    assert "spec.cron" in found["ScheduleRefused"]
    schedule.write_text("kind: [")
    await follower.compare()
    assert "FileRefused" in await state(client)
    for path in folder.glob("*.yaml"):
        path.rename(path.with_suffix(".away"))
    await follower.compare()
    assert list(await state(client)) == ["DeletingNothing"]
    for path in folder.glob("*.away"):
        path.rename(path.with_suffix(".yaml"))
    schedule.write_text(text)
    await follower.compare()
    assert await state(client) == {}
    folder.rename(folder.with_name("elsewhere"))
    await follower.compare()
    assert list(await state(client)) == ["FolderNotRead"]


async def test_more_that_is_wrong_than_is_told_is_counted(
    folder: Path, follower: FolderFollower, client: Client
) -> None:
    for n in range(30):
        (folder / f"wrong{n:02}.yaml").write_text("kind: [")
    await follower.compare()
    found = await state(client)
    assert list(found) == ["FileRefused", "MoreProblems"]
    assert found["MoreProblems"].startswith("and 11 more")


async def test_a_folder_whose_controller_has_fallen_silent_is_told_also_after_a_restart_of_the_server(
    tmp_path: Path, folder: Path
) -> None:
    now = [datetime.now(UTC)]
    for told in (True, False):  # then the server starts anew, and nothing follows the folder
        async with (
            serving(Config(tmp_path / "data", port=0), lambda: now[0]) as server,
            Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client,
        ):
            if told:
                await FolderFollower(folder, client, OWNER).compare()
            now[0] += timedelta(minutes=4)
            assert await state(client) == {}
            now[0] += timedelta(minutes=2)
            assert list(await state(client)) == ["NotFollowing"]
            family = {it.name: it.samples for it in server.parts.registry.collect()}
            [sample] = family["lamplighter_controller_problem"]
            assert sample.labels == {"controller": OWNER, "reason": "NotFollowing"}


async def test_controllers_that_went_away_with_all_that_they_made_are_forgotten(tmp_path: Path) -> None:
    now = [datetime.now(UTC)]
    async with (
        serving(Config(tmp_path / "data", port=0), lambda: now[0]) as server,
        Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client,
    ):
        for n in range(controllers.MAX_CONTROLLERS):
            await client.report(f"c{n}", [])
        with pytest.raises(Unreachable, match="no more may"):
            await client.report("new", [])
        now[0] += timedelta(minutes=6)
        assert [it async for it in client.resources("controllers")] == []
        await client.report("new", [])
        assert [it["name"] async for it in client.resources("controllers")] == ["new"]


async def test_resources_that_no_folder_made_make_no_controller_missed(client: Client) -> None:
    spec = {"metadata": {"labels": {OWNER_LABEL: "terraform"}}, "spec": {"url": "/backup"}}
    await client.put("repositories", "ns", "main", spec)
    assert [it async for it in client.resources("controllers")] == []


def test_server_and_controller_mean_the_same_label() -> None:
    assert (controllers.OWNER_LABEL, controllers.FOLDER_OWNER) == (OWNER_LABEL, OWNER)


async def test_a_wrong_token_is_told_and_never_shown(folder: Path, server: Running, told: Callable[..., Any]) -> None:
    async with Client(f"http://127.0.0.1:{server.port}", "wrong-token") as client:
        assert not await FolderFollower(folder, client, OWNER).compare()
        lines = told()
        assert messages(lines) == ["server refuses the controller"]
        assert "wrong-token" not in str(lines) + repr(client)


# The client by itself.


async def test_a_problem_keeps_its_fields(client: Client) -> None:
    with pytest.raises(Refused) as refusal:
        await client.put("schedules", "default", "etc", {"metadata": {}, "spec": {"kind": "x"}})
    assert refusal.value.status == 422
    assert {error.field for error in refusal.value.errors} >= {"spec.kind", "spec.repositoryRef"}
    assert "spec.kind: " in str(refusal.value)


async def test_a_host_is_put_with_its_labels(client: Client) -> None:
    host = await client.put_host("node-1", {"a": "b"})
    assert (host["name"], host["labels"]) == ("node-1", {"a": "b"})


async def test_what_is_gone_may_be_deleted_again(client: Client) -> None:
    await client.delete("schedules", "default", "nowhere")


async def test_nobody_there_is_unreachable() -> None:
    async with Client("http://127.0.0.1:9", "token") as client:
        with pytest.raises(Unreachable, match="is the server running there"):
            await client.put_host("node-1", {})


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(200, text="<html>"), Refused),
        (httpx.Response(200, json={}), Refused),
        (httpx.Response(404, text="<html>"), Refused),
        (httpx.Response(500, json={"detail": "x"}), Refused),
        (httpx.Response(503, json={"detail": "x"}), Unreachable),
        (httpx.Response(429, text=""), Unreachable),
    ],
)
async def test_an_answer_that_is_not_ours_is_an_error_of_ours(
    answer: httpx.Response, error: type[Refused] | type[Unreachable]
) -> None:
    """No server of ours answers like that: what stands in for it is the transport alone."""
    client = Client("http://127.0.0.1", "token")
    client._http = httpx.AsyncClient(base_url=client.url, transport=httpx.MockTransport(lambda request: answer))
    async with client:
        with pytest.raises(error):
            await held(client)


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ControllerError, match="give one like"):
        Client("http://127.0.0.1:port", "token")


async def test_no_proxy_is_asked_for_this_machine(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HTTP_PROXY", "http://127.0.0.1:9")
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        assert await held(client) == {}


# Hosts.

DB = """apiVersion: lamplighter.dev/v1alpha1
kind: Host
metadata: {name: db-1, labels: {role: db}}
"""


async def hosts(client: Client) -> dict[str, Any]:
    return {item["name"]: item["labels"] async for item in client.resources("hosts")}


async def test_a_host_is_declared_changed_and_forgotten(follower: FolderFollower, client: Client, folder: Path) -> None:
    path = folder / "hosts.yaml"
    path.write_text(DB)
    await follower.compare()
    assert await hosts(client) == {"db-1": {"role": "db", OWNER_LABEL: OWNER}}
    path.write_text(DB.replace("role: db", "role: web"))
    await follower.compare()
    assert await hosts(client) == {"db-1": {"role": "web", OWNER_LABEL: OWNER}}
    path.unlink()
    await follower.compare()
    assert await hosts(client) == {}


async def test_a_host_that_came_by_itself_can_be_declared_and_keeps_what_machine_it_is(
    follower: FolderFollower, client: Client, folder: Path, told: Callable[..., Any]
) -> None:
    await client.put_host("db-1", {"kubernetes.io/os": "linux", "role": "none"})
    await client.put_host("other", {OWNER_LABEL: "someone"})
    (folder / "hosts.yaml").write_text(f"{DB}---\n{DB.replace('db-1', 'other')}")
    await follower.compare()
    found = await hosts(client)
    assert found["db-1"] == {"kubernetes.io/os": "linux", "role": "db", OWNER_LABEL: OWNER}
    assert found["other"] == {OWNER_LABEL: "someone"}
    assert any("exists at the server with another owner" in str(facts) for _, facts in told())
    await follower.compare()
    assert "host changed" not in messages(told())  # what is so already is not put again


async def test_hosts_that_nobody_declared_are_left_alone(follower: FolderFollower, client: Client) -> None:
    await client.put_host("web-1", {"role": "web"})
    await follower.compare()
    assert await hosts(client) == {"web-1": {"role": "web"}}
