"""Promise 10, to people and programs elsewhere: real receivers are told what is wrong, whatever is killed, and once.

`NoHosts` is a trouble that two requests begin and end: a Schedule that selects no host, and a host that it selects.
"""

import asyncio
import hashlib
import hmac
import json
import os
import random
import shutil
import signal
import sys
from asyncio.subprocess import Process
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.servers import free_port
from server.app import Config, Running, serving
from server.notify import notifier
from tests.integration.clock import Clock
from tests.integration.conftest import Connect, DataFolders, Declare, Until
from tests.integration.receivers import GONE, Mailbox, Receiver, mailbox, receiving
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
KEY = "whsec_" + b64encode(b"k" * 32).decode()
NOWHERE = "Schedule/ns/etc/NoHosts"
HURRIED = "import server.notify.notifier as n; from datetime import timedelta; n.QUIET = timedelta()"
LAMPLIGHTER = f"{HURRIED}; from cli.main import main; main()"
DIES_BEFORE_SENDING = (
    "import os, server.notify.delivery as d; d._fitting = lambda rows, _: os._exit(9) if rows else []; " + LAMPLIGHTER
)
"""The server that is gone between a decision and its delivery."""
DIES_AFTER_SENDING = f"import os, server.notify.delivery as d; d.Attempt = lambda *_: os._exit(9); {LAMPLIGHTER}"
"""The server that is gone between a delivery and what it notes of it."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alerts may tell again at once."""
    monkeypatch.setattr(notifier, "QUIET", timedelta())


async def alert(api: httpx.AsyncClient, *urls: str, name: str = "on-call", **spec: Any) -> httpx.Response:
    credentials = {"urls": urls, "signingKey": KEY}
    body = {"spec": {"secretRef": {"name": "on-call"}, **spec}, "credentials": credentials}
    return await api.put(f"/alerts/ns/{name}", json=body)


async def status(api: httpx.AsyncClient, name: str = "on-call") -> dict[str, Any]:
    found: dict[str, Any] = (await api.get(f"/alerts/ns/{name}")).raise_for_status().json()["status"]
    return found


def nowhere(name: str = "etc") -> tuple[str, str]:
    return name, f"Schedule/ns/{name}/NoHosts"


async def test_a_webhook_is_told_what_is_wrong_signed_and_when_it_is_over(
    api: httpx.AsyncClient, declare: Declare, receiver: Receiver, until: Until, hurried: None
) -> None:
    (await alert(api, receiver.url)).raise_for_status()
    await declare(hostSelector={"matchLabels": {"tier": "db"}})

    async def told() -> bool:
        return ("firing", NOWHERE) in receiver.told()

    await until(told)
    call = receiver.calls[-1]
    assert call.path == "/hook"
    assert call.headers["content-type"] == "application/json"
    content = f"{call.id}.{call.headers['webhook-timestamp']}.".encode() + call.content
    signature = b64encode(hmac.new(b64decode(KEY.removeprefix("whsec_")), content, hashlib.sha256).digest()).decode()
    assert call.headers["webhook-signature"] == f"v1,{signature}"
    said = json.loads(call.content)
    assert (said["type"], said["data"]["alert"], said["data"]["severity"]) == (
        "lamplighter.alert",
        "ns/on-call",
        "warning",
    )
    (await api.put("/hosts/node-1", json={"labels": {"tier": "db"}})).raise_for_status()

    async def over() -> bool:
        return ("resolved", NOWHERE) in receiver.told()

    await until(over)

    async def shown() -> bool:
        its = await status(api)
        return "lastDeliveryTime" in its and (its["firing"], its["waiting"], its["problems"]) == (0, 0, [])

    await until(shown)
    assert receiver.copies == 0


async def test_what_a_receiver_does_not_take_is_sent_again_and_the_status_says_why(
    api: httpx.AsyncClient, declare: Declare, receiver: Receiver, until: Until, clock: Clock
) -> None:
    answers = iter([503, GONE, 302])
    receiver.status = lambda _: next(answers, 200)
    (await alert(api, receiver.url)).raise_for_status()
    await declare(hostSelector={"matchLabels": {"tier": "db"}})
    for why in ("it answered 503 Service Unavailable", "the connection failed", "a redirect, which is not followed"):

        async def said(why: str = why) -> bool:
            return any(why in it["message"] for it in (await status(api))["problems"])

        await until(said)
        assert (await status(api))["waiting"] == 1
        clock.ahead += timedelta(minutes=2)

    async def taken() -> bool:
        return bool(receiver.taken)

    await until(taken)
    assert len({call.id for call in receiver.calls}) == 1
    assert {call.path for call in receiver.calls} == {"/hook"}


async def test_that_an_alert_tells_nobody_is_told_by_the_overview(
    api: httpx.AsyncClient, declare: Declare, receiver: Receiver, until: Until
) -> None:
    (await alert(api, f"http://127.0.0.1:{free_port()}/nothing")).raise_for_status()
    await alert(api, receiver.url, name="blind", selector={"matchLabels": {"tier": "db"}})
    await alert(api, receiver.url, name="off", selector={"matchLabels": {"tier": "db"}}, enabled=False)
    await declare(hostSelector={"matchLabels": {"tier": "db"}})

    async def told() -> bool:
        overview = (await api.get("/overview")).json()
        items = [it for section in overview["sections"] if section["name"] == "alerts" for it in section["items"]]
        assert overview["answer"] == "no"
        told = {(it["kind"], it["name"], it["reason"]) for it in items}
        return told == {("Alert", "on-call", "NotDelivered"), ("Alert", "blind", "SelectsNothing")}

    await until(told)
    assert [it["reason"] for it in (await status(api, "blind"))["problems"]] == ["SelectsNothing"]
    assert (await status(api, "off"))["problems"] == []


async def test_a_dead_url_holds_up_no_other(
    api: httpx.AsyncClient, declare: Declare, receiver: Receiver, until: Until
) -> None:
    (await alert(api, f"http://127.0.0.1:{free_port()}/nothing", receiver.url)).raise_for_status()
    await declare(hostSelector={"matchLabels": {"tier": "db"}})

    async def told() -> bool:
        return bool(receiver.taken) and bool((await status(api))["problems"])

    await until(told)


async def test_what_comes_while_nothing_takes_messages_is_in_the_next_one(
    server: Running,
    api: httpx.AsyncClient,
    declare: Declare,
    receiver: Receiver,
    until: Until,
    clock: Clock,
    hurried: None,
) -> None:
    receiver.status = lambda _: 503
    (await alert(api, receiver.url)).raise_for_status()
    names = [f"s-{at}" for at in range(6)]
    for name in names:
        await declare(name, hostSelector={"matchLabels": {"tier": "db"}})
        await server.parts.notifier.look()
    (await api.delete("/schedules/ns/s-5")).raise_for_status()
    await server.parts.notifier.look()
    assert (await status(api))["waiting"] == 1
    receiver.status = lambda _: 200
    clock.ahead += timedelta(minutes=2)

    async def all_told() -> bool:
        return len(receiver.told()) == 5

    await until(all_told)
    assert sorted(receiver.told()) == [("firing", nowhere(name)[1]) for name in names[:5]]
    assert len(receiver.taken) == 2


async def test_many_hosts_of_a_schedule_are_one_message(
    api: httpx.AsyncClient, declare: Declare, receiver: Receiver, until: Until, clock: Clock
) -> None:
    for at in range(40):
        await api.put(f"/hosts/node-{at}", json={"labels": {}})
    await declare(successWithin="1h")
    (await alert(api, receiver.url, events=["Overdue"])).raise_for_status()
    clock.ahead += timedelta(hours=2)
    await api.put("/hosts/more", json={"labels": {}})  # something happens

    async def told() -> bool:
        return bool(receiver.taken)

    await until(told)
    [item] = receiver.taken[0].items
    assert (item["key"], item["hostCount"], len(item["hosts"])) == ("Schedule/ns/etc/NeverRan", 40, 10)
    assert len(receiver.calls) == 1


async def test_mail_comes_by_apprise_and_again_when_it_was_refused(
    api: httpx.AsyncClient,
    declare: Declare,
    until: Until,
    clock: Clock,
    hurried: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with mailbox() as box:
        box.refuse = True
        where = f"127.0.0.1:{box.port}?mode=insecure&from=lamp@example.org&to=on-call@example.org"
        (await alert(api, f"mailto://{where}")).raise_for_status()
        await declare(hostSelector={"matchLabels": {"tier": "db"}})

        async def refused() -> bool:
            return any("mailto:// did not take it" in it["message"] for it in (await status(api))["problems"])

        await until(refused)
        box.refuse = False
        clock.ahead += timedelta(minutes=2)
        mail = await until(lambda: arrived(box))
        assert mail["to"] == "on-call@example.org"
        assert mail["subject"] == "[warning] Lamplighter ns/on-call: 1 firing"
        assert "FIRING NoHosts: Schedule ns/etc" in box.texts[-1]
    assert str(box.port) not in caplog.text


async def arrived(box: Mailbox) -> Any:
    return box.mails[-1] if box.mails else None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("no url at all", "is not a URL"),
        ("https://", "is not a URL"),
        ("nosuchservice://user:hunter2@example.org", "is not understood by Apprise"),
        ("syslog://_", "would act on the server's own machine"),
        ("slack://A/B/C?template=/etc/hunter2", "can name a file"),
        ("mailto://a:hunter2@example.org?pgpkey=/etc/shadow", "can name a file"),
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(
    api: httpx.AsyncClient, url: str, why: str
) -> None:
    answer = await alert(api, "https://example.org/ok", url)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == "credentials.urls[1]"
    assert why in error["detail"]
    assert "hunter2" not in answer.text


async def test_where_messages_go_is_in_no_answer_no_log_and_not_plain_in_the_store(
    api: httpx.AsyncClient, tmp_path: Path, data_folders: DataFolders, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await alert(api, "https://user:hunter2@example.org/token-1234")
    assert answer.is_success
    shown = [answer, await api.get("/alerts"), await api.get("/alerts/ns/on-call"), await api.get("/audit")]
    stored = repr([data_folders.rows(tmp_path, table) for table in ("alerts", "audit_log", "deliveries")])
    for text in (*(it.text for it in shown), stored, caplog.text):
        assert "hunter2" not in text
        assert "token-1234" not in text
        assert KEY not in text


async def test_an_alert_is_put_changed_and_deleted_as_other_objects_are(api: httpx.AsyncClient) -> None:
    first = await alert(api, "https://example.org/1")
    assert first.status_code == 201
    same = await alert(api, "https://example.org/1")
    assert (same.status_code, same.headers["etag"]) == (200, first.headers["etag"])
    other = await alert(api, "https://example.org/2")
    assert other.json()["metadata"]["generation"] == 2
    stale = await api.delete("/alerts/ns/on-call", headers={"if-match": first.headers["etag"]})
    assert stale.status_code == 412
    lines = (await api.get("/audit", params={"object_kind": "Alert"})).json()["items"]
    assert [it["detail"]["credentials"] for it in lines] == ["changed", "changed"]
    assert (await api.delete("/alerts/ns/on-call")).status_code == 204
    assert (await api.get("/alerts/ns/on-call")).status_code == 404


async def test_a_deleted_schedule_is_not_told_to_be_well(
    api: httpx.AsyncClient, declare: Declare, receiver: Receiver, until: Until, hurried: None
) -> None:
    (await alert(api, receiver.url)).raise_for_status()
    await declare(hostSelector={"matchLabels": {"tier": "db"}})

    async def told() -> bool:
        return bool(receiver.taken)

    await until(told)
    (await api.delete("/schedules/ns/etc")).raise_for_status()

    async def over() -> bool:
        return ("resolved", NOWHERE) in receiver.told()

    await until(over)
    assert "no longer watched" in receiver.taken[-1].items[0]["message"]


async def test_a_host_that_is_gone_is_told_when_it_was_gone_for_long(
    api: httpx.AsyncClient, connect: Connect, receiver: Receiver, until: Until, clock: Clock, hurried: None
) -> None:
    (await alert(api, receiver.url, events=["HostGone"], after="10m")).raise_for_status()
    async with connect("node-1"):

        async def here() -> bool:
            return bool((await api.get("/hosts/node-1")).json().get("connected"))

        await until(here)
    gone_at = clock()

    async def told() -> bool:
        clock.ahead += timedelta(minutes=1)
        await api.put("/hosts/node-1", json={"labels": {"at": str(int(clock().timestamp()))}})  # something happens
        return bool(receiver.taken)

    await until(told)
    [item] = receiver.taken[0].items
    assert (item["key"], item["hosts"]) == ("Host///NotConnected", ["node-1"])
    sent_at = datetime.fromtimestamp(int(receiver.taken[0].headers["webhook-timestamp"]), UTC)
    assert sent_at - gone_at >= timedelta(minutes=9)


async def test_a_heartbeat_comes_while_all_is_well_and_falls_silent_when_anything_is_red(
    tmp_path: Path, connect: Connect, receiver: Receiver, until: Until
) -> None:
    url = tmp_path / "heartbeat-url"
    url.write_text(receiver.url + "\n")
    config = Config(tmp_path / "watched", port=0, heartbeat_url_file=url, heartbeat_seconds=0.05)
    async with serving(config) as server:
        headers = {"authorization": f"Bearer {server.admin_token}"}
        there = f"http://127.0.0.1:{server.port}/api/v1"
        async with httpx.AsyncClient(base_url=there, headers=headers, verify=NO_TLS) as api:
            (await api.put("/hosts/node-1", json={"labels": {"host": "etc"}})).raise_for_status()
            assert receiver.calls == []  # nothing backs it up, which is red
            await trouble(api, "etc")
            async with connect("node-1", to=server, token=server.agent_token) as agent:
                await agent.follow()

                async def beats() -> bool:
                    return len(receiver.calls) >= 3

                await until(beats)
                (await api.put("/hosts/node-1", json={"labels": {}})).raise_for_status()
                await asyncio.sleep(0.2)  # what was on its way
                count = len(receiver.calls)
                await asyncio.sleep(0.5)
                assert len(receiver.calls) == count


# Pings.


async def pinged(api: httpx.AsyncClient, url: str, name: str = "etc") -> httpx.Response:
    await api.put("/repositories/ns/main", json={"spec": {"url": "/b"}, "credentials": {"password": "open sesame"}})
    backup = {"kind": "backup", "cron": "0 2 * * *", "backup": {"paths": ["/etc"]}, "repositoryRef": {"name": "main"}}
    body = {"spec": {**backup, "ping": {"urlSecretRef": {"name": "s"}}}, "credentials": {"pingUrl": url}}
    return await api.put(f"/schedules/ns/{name}", json=body)


async def test_a_schedule_pings_when_a_run_begins_goes_well_and_fails(
    api: httpx.AsyncClient, connect: Connect, receiver: Receiver, until: Until
) -> None:
    (await pinged(api, f"http://127.0.0.1:{receiver.port}/ping/{{host}}")).raise_for_status()
    async with connect("node-1") as agent:
        await agent.follow()
        for status, at in (("succeeded", "2026"), ("failed", "2027")):
            (await api.post("/schedules/ns/etc/run")).raise_for_status()
            job = await agent.hears("command.run")
            await agent.say("job.accepted", job_id=job["job_id"])

            async def started(count: int = len(receiver.calls) + 1) -> bool:
                return len(receiver.calls) >= count

            await until(started)
            end = {"status": status, "finished_at": f"{at}-01-01T00:00:00Z", "error": "no space left"}
            await agent.say("job.finished", job_id=job["job_id"], **end)
            await agent.hears("job.confirmed")

            async def over(count: int = len(receiver.calls) + 1) -> bool:
                return len(receiver.calls) >= count

            await until(over)
    there = "/ping/node-1"
    assert [call.path for call in receiver.calls] == [f"{there}/start", there, f"{there}/start", f"{there}/fail"]
    assert receiver.calls[-1].content == b"failed: no space left"


async def test_the_url_of_a_ping_is_checked_and_shown_nowhere(
    api: httpx.AsyncClient, tmp_path: Path, data_folders: DataFolders, caplog: pytest.LogCaptureFixture
) -> None:
    refused = await pinged(api, "mailto://hunter2@example.org")
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "credentials.pingUrl"
    answer = (await pinged(api, "https://example.org/hunter2")).raise_for_status()
    again = (await pinged(api, "https://example.org/hunter2")).raise_for_status()
    assert again.headers["etag"] == answer.headers["etag"]
    shown = [refused, answer, await api.get("/schedules"), await api.get("/schedules/ns/etc"), await api.get("/audit")]
    stored = repr([data_folders.rows(tmp_path, table) for table in ("schedules", "audit_log")])
    assert all("hunter2" not in text for text in (*(it.text for it in shown), stored, caplog.text))


# Kills.


class Server:
    """`lamplighter server` as a process that is killed now and then."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self._environment, self.port = folder, environment, free_port()
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, program: str = LAMPLIGHTER) -> None:
        args = ("server", "--data-dir", str(self.folder), "--listen", f"127.0.0.1:{self.port}", "--drain-seconds", "0")
        env = os.environ | self._environment
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, *args), cwd=ROOT, env=env, stderr=log
            )
        async with asyncio.timeout(60):
            while not await self._is_ready():
                assert self.process.returncode in (None, 9)
                if self.process.returncode == 9:
                    return
                await asyncio.sleep(0.05)

    async def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            async with httpx.AsyncClient(verify=NO_TLS) as client:
                return (await client.get(f"{self.url}/readyz")).is_success
        return False

    async def kill(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    def api(self) -> httpx.AsyncClient:
        token = (self.folder / "admin-token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        return httpx.AsyncClient(base_url=f"{self.url}/api/v1", headers=headers, timeout=60, verify=NO_TLS)


@pytest.fixture
async def killed(tmp_path: Path, data_folders: DataFolders) -> AsyncIterator[Server]:
    server = Server(tmp_path, data_folders.environment(tmp_path))
    await server.start()
    yield server
    await server.kill()


async def trouble(api: httpx.AsyncClient, name: str) -> None:
    backup = {"kind": "backup", "cron": "0 2 * * *", "backup": {"paths": ["/etc"]}, "repositoryRef": {"name": "main"}}
    await api.put("/repositories/ns/main", json={"spec": {"url": "/b"}, "credentials": {"password": "open sesame"}})
    spec = {**backup, "hostSelector": {"matchLabels": {"host": name}}}
    (await api.put(f"/schedules/ns/{name}", json={"spec": spec})).raise_for_status()


@pytest.mark.slow
@pytest.mark.parametrize("program", [DIES_BEFORE_SENDING, DIES_AFTER_SENDING], ids=["before sending", "after sending"])
async def test_a_server_that_dies_with_a_message_has_the_next_one_send_it_by_its_key(
    killed: Server, receiver: Receiver, until: Until, program: str
) -> None:
    async with killed.api() as api:
        (await alert(api, receiver.url, events=["NotRunning"])).raise_for_status()
    await killed.kill()
    await killed.start(program)
    with suppress(httpx.TransportError):
        async with killed.api() as api:
            await trouble(api, "etc")
    assert killed.process is not None
    async with asyncio.timeout(60):
        assert await killed.process.wait() == 9
    await killed.start()

    async def told() -> bool:
        return len(receiver.taken) == (2 if program == DIES_AFTER_SENDING else 1)

    await until(told)
    assert receiver.told() == [("firing", NOWHERE)]


@pytest.mark.slow
async def test_nothing_is_lost_and_nothing_storms_while_the_server_is_killed_again_and_again(
    killed: Server, receiver: Receiver, until: Until
) -> None:
    rng, names, kills = random.Random(11), [f"s-{at}" for at in range(8)], 0
    receiver.status = lambda _: 200 if rng.random() < 0.7 else 503
    with mailbox() as box:
        where = f"127.0.0.1:{box.port}?mode=insecure&from=lamp@example.org&to=on-call@example.org"
        async with killed.api() as api:
            (await alert(api, receiver.url, f"mailto://{where}", events=["NotRunning"])).raise_for_status()
        for name in names:
            async with killed.api() as api:
                await trouble(api, name)
                await asyncio.sleep(rng.uniform(0.2, 1.5))
                if rng.random() < 0.5:
                    await killed.kill()
                    await killed.start()
                    kills += 1
        receiver.status = lambda _: 200

        async def all_told() -> bool:
            return {key for kind, key in receiver.told() if kind == "firing"} >= {nowhere(it)[1] for it in names}

        await until(all_told)

        async def all_mailed() -> bool:
            said = "\n".join(box.texts)
            return all(f"Schedule ns/{name}\n" in said for name in names)

        await until(all_mailed)
    assert sorted(key for _, key in receiver.told()) == sorted(nowhere(it)[1] for it in names)  # each once
    assert receiver.copies <= kills
    assert len(box.mails) <= len(names) + kills


@pytest.mark.slow
async def test_the_next_leader_tells_what_one_that_was_killed_left_untold_and_no_more(
    tmp_path: Path, postgresql: str, receiver: Receiver, until: Until
) -> None:
    """Three servers: the first leader dies between telling and storing that, the second one whenever it is."""
    names = [f"s-{at}" for at in range(4)]
    one, two, three = [Server(tmp_path / it, {"LAMPLIGHTER_DATABASE": postgresql}) for it in ("1", "2", "3")]
    with mailbox() as box:
        where = f"127.0.0.1:{box.port}?mode=insecure&from=lamp@example.org&to=on-call@example.org"
        one.folder.mkdir()
        await one.start(DIES_AFTER_SENDING)
        try:
            for other in (two, three):
                shutil.copytree(one.folder, other.folder)
                await other.start()
            async with two.api() as api:
                (await alert(api, receiver.url, f"mailto://{where}", events=["NotRunning"])).raise_for_status()
                await trouble(api, names[0])
            assert one.process is not None
            async with asyncio.timeout(60):
                assert await one.process.wait() == 9
            for name in names[1:3]:
                async with three.api() as api:
                    await trouble(api, name)

            async def some_told() -> bool:
                return len({key for _, key in receiver.told()}) >= 2

            await until(some_told)
            leader, last = (two, three) if "alert tells" in (two.folder / "log").read_text() else (three, two)
            await leader.kill()
            async with last.api() as api:
                await trouble(api, names[3])

            async def all_told() -> bool:
                told, mailed = {key for _, key in receiver.told()}, "\n".join(box.texts)
                is_mailed = all(f"Schedule ns/{name}\n" in mailed for name in names)
                return is_mailed and told >= {nowhere(it)[1] for it in names}

            await until(all_told)
        finally:
            for server in (one, two, three):
                if server.process is not None:
                    await server.kill()
    assert sorted(receiver.told()) == [("firing", nowhere(it)[1]) for it in names]  # each once
    assert receiver.copies <= 2
    assert len(box.mails) <= len(names) + 2
