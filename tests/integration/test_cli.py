"""`lamplighter` answers, acts and refuses as a person expects, as real processes against a real server."""

import asyncio
import json
import os
import pty
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml

from cli.options import checked_url
from controller.client import Client
from server.app import Config, Running, serving
from server.store import hosts as host_statements
from server.store.engine import Store
from server.store.jobs import jobs_finished, record_jobs
from server.store.logs import log_lines
from server.store.rows import JobRow
from tests.integration.conftest import PATIENCE_S, Connect, Lamplighter, Until
from tests.plain import NO_TLS
from wire.messages import JobFinished
from wire.version import __version__

pytestmark = pytest.mark.anyio

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")
NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
JOBS = ("aa" + "0" * 30, "ab" + "0" * 30, "cd" + "0" * 30)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    """A server with two hosts, a schedule on one of them, and a job of each kind of end."""
    await seed(tmp_path)
    async with serving(Config(tmp_path, port=0, keep_jobs_days=10_000)) as running:
        async with Client(f"http://127.0.0.1:{running.port}", running.admin_token) as client:
            await client.put_host("node-1", {"role": "db"})
            await client.put_host("node-2", {})
            body = manifest("Repository", {"url": "/backup/{host}"}) | {"credentials": {"password": "open sesame"}}
            await client.put("repositories", "default", "main", body)
            spec = {"kind": "backup", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}}
            spec |= {"backup": {"paths": ["/etc"]}, "hostSelector": {"matchLabels": {"role": "db"}}}
            await client.put("schedules", "default", "etc", manifest("Schedule", spec))
        yield running


@pytest.fixture
async def lamplighter(server: Running, tmp_path: Path) -> Lamplighter:
    """Runs a command to its end: its exit code, stdout and stderr."""

    async def run(*words: str, **variables: Any) -> tuple[int | None, str, str]:
        here = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{server.port}", "LAMPLIGHTER_DATA_DIR": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(
            LAMPLIGHTER, *words, env=os.environ | here | variables, stdout=-1, stderr=-1, cwd=tmp_path
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    return run


WRONG_URLS = [
    *("127.0.0.1:8700", "localhost:8700", "localhost", "//localhost", "http:/x", "http://", "http://:8700", "", " "),
    *("http://a:99999", "http://a:x", "http://a:0", "http://[::1", "ws://a", "ftp://a", "http://a?b=c", "http://a#b"),
    *("http://127.0.0.1:8700/api/v1", "http://127.0.0.1:8700/api/v1/", "https://a/agent"),
    *("http://me:hush@a", "http://me@a", "me:hush@a", "http://me:hush/@a"),
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_what_is_no_url_of_a_server_is_told_without_what_may_be_a_password(url: str) -> None:
    with pytest.raises(click.ClickException, match=r"--server .*give one like https://") as raised:
        checked_url(url)
    assert "hush" not in raised.value.message


@pytest.mark.parametrize("url", ["http://127.0.0.1:8700", "https://a.example/", "http://[::1]:1", "https://a/backup"])
def test_a_url_of_a_server_is_taken_as_it_is(url: str) -> None:
    assert checked_url(url) == url


async def test_what_was_found_wrong_is_shown_also_where_the_server_then_gives_no_answer(
    lamplighter: Lamplighter,
) -> None:
    """A database that hangs is told by the probe alone."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readline()).startswith(b"GET /readyz "):
            body = b'{"detail": "the database did not answer within 5 s"}'
            writer.write(b"HTTP/1.1 503 x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as hanging:
        url = f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}"
        code, out, _ = await lamplighter("get", "problems", LAMPLIGHTER_SERVER=url)
    rows = [line.split(maxsplit=3) for line in out.splitlines()[1:]]
    assert (code, [row[2] for row in rows]) == (1, ["NotWriting", "NoAnswer"])
    assert "the database did not answer within 5 s" in rows[0][3]


def manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "metadata": {}, "spec": spec}


def command(job_id: str) -> str:
    return json.dumps({"job_id": job_id, "kind": "backup", "args": []})


async def seed(data: Path) -> None:
    store = Store.open(data / "lamplighter.db")
    rows = [
        JobRow(
            id_, "node-1", "backup", "schedule", "default/etc", "s1", NOW + timedelta(days=day), 0, command(id_), NOW
        )
        for day, id_ in enumerate(JOBS)
    ]
    await store.write(record_jobs, rows)
    end = NOW + timedelta(seconds=83)
    await store.write(jobs_finished, [JobFinished(JOBS[0], "succeeded", end, NOW, 0, "5eed" * 16)])
    await store.write(jobs_finished, [JobFinished(JOBS[1], "failed", end, NOW, 12, error="wrong\npassword")])
    await store.write(log_lines, (JOBS[1], NOW, ["Fatal: wrong password", "\x1b]0;pwned\x07"]))
    await store.close()


def table(out: str) -> list[Any]:
    """Rows of cells, from columns that are three blanks apart."""
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in out.splitlines()]


async def test_get_hosts_tells_who_holds_what_it_should(
    lamplighter: Lamplighter,
) -> None:
    code, out, err = await lamplighter("get", "hosts")
    assert (code, err) == (0, "")
    assert table(out) == [
        ["NAME", "CONNECTED", "DESIRED", "APPLIED", "INSYNC", "SCHEDULES", "AGENT", "LAST-SEEN", "PROBLEM"],
        ["node-1", "no", "1", "0", "no", "1", "-", "never", "-"],
        ["node-2", "no", "0", "0", "no", "0", "-", "never", "-"],
    ]


async def test_get_hosts_tells_which_are_drained_and_which_still_run_jobs(
    lamplighter: Lamplighter, connect: Connect
) -> None:
    async with connect("node-1") as agent:
        await agent.follow()
        await lamplighter("run", "etc")
        await agent.hears("command.run")
        for host in ("node-1", "node-2"):
            assert (await lamplighter("drain", host, "--no-wait"))[0] == 0
        _, *rows = table((await lamplighter("get", "hosts"))[1])
        assert [row[:2] for row in rows] == [["node-1", "yes,draining"], ["node-2", "no,drained"]]


async def test_get_schedules_answers_what_kubectl_would(
    lamplighter: Lamplighter,
) -> None:
    head, row = table((await lamplighter("get", "schedules"))[1])
    assert head[:8] == ["NAMESPACE", "NAME", "KIND", "CRON", "HOSTS", "INSYNC", "FAILED", "OVERDUE"]
    assert head[8:] == ["LAST", "OLDEST-SUCCESS", "NEXT", "PROBLEM"]
    assert row[:10] == ["default", "etc", "backup", "0 2 * * *", "1", "0", "0", "0", "-", "never"]
    assert row[10].startswith("in ")
    assert row[11:] == ["-"]


async def test_get_jobs_shows_the_snapshot_or_the_error(
    lamplighter: Lamplighter,
) -> None:
    head, *rows = table((await lamplighter("get", "jobs", "--status", "succeeded"))[1])
    assert head == ["JOB", "HOST", "SCHEDULE", "KIND", "STATUS", "DUE", "STARTED", "DURATION", "SNAPSHOT/ERROR"]
    ((*job, due, _, took, snapshot),) = rows
    assert job == [JOBS[0][:8], "node-1", "default/etc", "backup", "succeeded"]
    assert (due, took, snapshot) == (f"{NOW.astimezone():%Y-%m-%dT%H:%M:%S}", "1m23s", "5eed5eed")
    failed = table((await lamplighter("get", "jobs", "--status", "failed"))[1])[1]
    assert failed[-1] == "wrong password"


async def test_get_limits_and_filters_jobs(lamplighter: Lamplighter) -> None:
    found = json.loads((await lamplighter("get", "jobs", "-o", "json", "-n", "2", "--host", "node-1"))[1])["items"]
    assert [job["id"] for job in found] == [JOBS[2], JOBS[1]]
    assert await lamplighter("get", "jobs", "--host", "node-9") == (0, "", "no jobs match\n")
    assert (await lamplighter("get", "jobs", "--schedule", "etc"))[2] == "no jobs match\n"


async def test_get_as_json_is_what_rest_answers(lamplighter: Lamplighter, server: Running) -> None:
    for what in ("repositories", "audit"):
        code, out, _ = await lamplighter("get", what, "-o", "json")
        items = json.loads(out)["items"]
        assert code == 0
        assert items
    assert {item["object_name"] for item in items} == {"node-1", "node-2", "default/main", "default/etc"}


async def test_run_makes_a_job_for_each_host_that_is_selected(
    lamplighter: Lamplighter,
) -> None:
    code, out, _ = await lamplighter("run", "etc")
    assert code == 0
    job = json.loads((await lamplighter("get", "jobs", "-o", "json", "-n", "1"))[1])["items"][0]
    assert out == f"job {job['id'][:8]} on node-1\n"
    assert (job["actor_kind"], job["status"], job["scheduled_at"]) == ("user", "pending", None)
    assert table((await lamplighter("get", "jobs", "-n", "1"))[1])[1][2] == "default/etc"
    code, _, err = await lamplighter("run", "etc", "--host", "node-2")
    assert (code, err) == (1, "Error: hosts: default/etc does not select node-2\n")


async def test_cancel_ends_the_job_whose_first_digits_are_given(
    lamplighter: Lamplighter,
) -> None:
    assert await lamplighter("cancel", "CD") == (0, f"job {JOBS[2][:8]} on node-1 is cancelled\n", "")
    code, _, err = await lamplighter("cancel", "cd")
    assert code == 1
    assert "has ended already: cancelled" in err


async def test_logs_tell_what_restic_said_and_how_it_ended_and_command_no_terminal(
    lamplighter: Lamplighter,
) -> None:
    code, out, err = await lamplighter("logs", "ab0")
    assert (code, out) == (0, "Fatal: wrong password\n�]0;pwned�\n")
    assert err == f"job {JOBS[1][:8]} on node-1: failed, wrong password\n"


@pytest.mark.parametrize(
    ("digits", "said"),
    [
        ("a", "several jobs begin with a: give more digits, as of ab000000 (backup on node-1, failed), aa000000 ("),
        ("ffff", "no job begins with ffff"),
    ],
)
async def test_digits_that_name_no_job_or_several_are_told(lamplighter: Lamplighter, digits: str, said: str) -> None:
    code, out, err = await lamplighter("logs", digits)
    assert (code, out) == (1, "")
    assert said in err


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LAMPLIGHTER_SERVER", "http://127.0.0.1:1", "lamplighter up"),
        ("LAMPLIGHTER_SERVER", "ftp://127.0.0.1", "--server"),
        ("LAMPLIGHTER_SERVER", "http://[", "--server"),
        *(("LAMPLIGHTER_SERVER", url, "give one like https://") for url in WRONG_URLS[:2]),
        ("LAMPLIGHTER_DATA_DIR", "/nonexistent", "--data-dir"),
        ("LAMPLIGHTER_TOKEN_FILE", "wrong", "--token-file"),
        ("LAMPLIGHTER_TOKEN_FILE", "empty", "--token-file"),
    ],
)
async def test_what_is_wrong_is_said_in_a_line_with_the_remedy(
    lamplighter: Lamplighter,
    tmp_path: Path,
    variable: str,
    value: str,
    said: str,
) -> None:
    (tmp_path / "wrong").write_text("not-the-token\n")
    (tmp_path / "empty").write_text("\n")
    code, out, err = await lamplighter("get", "hosts", **{variable: value})
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("Error: ")
    assert said in err


async def test_jobs_of_one_run_or_of_like_names_are_told_apart_by_what_is_shown(
    lamplighter: Lamplighter, server: Running
) -> None:
    headers = {"authorization": f"Bearer {server.admin_token}"}
    url = f"http://127.0.0.1:{server.port}/api/v1"
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, verify=NO_TLS) as api:
        for host in ("node-2", "node-3", "node-4"):
            await api.put(f"/hosts/{host}", json={"labels": {"role": "db"}})
        for run in ("2026-03-29-a", "2026-03-29-b"):
            asked = await api.put(f"/runs/default/{run}", json={"schedule": "etc"})
            assert asked.json()["hosts"] == 4
            again = await api.put(f"/runs/default/{run}", json={"schedule": "etc"})
            assert again.json() == asked.json() == (await api.get(f"/runs/default/{run}")).json()
            restore = {"repositoryRef": {"name": "main"}, "sourceHost": "node-1", "target": "/srv"}
            (await api.put(f"/restores/default/{run}", json={"spec": restore})).raise_for_status()
    rows = table((await lamplighter("get", "jobs"))[1])[1:]
    assert len({row[0] for row in rows}) == len(rows) == 3 + 2 * (4 + 1)
    for short, host, *_ in rows[:5]:
        assert (await lamplighter("cancel", short))[1] == f"job {short} on {host} is cancelled\n"


async def test_as_many_digits_are_shown_as_tell_jobs_apart(lamplighter: Lamplighter, server: Running) -> None:
    like = ["ef" * 6 + last * 20 for last in "12"]
    rows = [JobRow(id_, "node-1", "backup", "user", "a", None, None, 0, command(id_), NOW) for id_ in like]
    await server.parts.services.store.write(record_jobs, rows)
    shown = [row[0] for row in table((await lamplighter("get", "jobs"))[1])[1:]]
    assert sorted(shown) == sorted(id_[:13] for id_ in (*JOBS, *like))
    assert f"{like[0][:13]} (backup on node-1, pending)" in (await lamplighter("logs", "efefefef"))[2]
    assert (await lamplighter("logs", like[0][:13]))[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("agent",), "--enrol-token-file"),
        (("agent", "--token-file", "nothing"), "--enrol-token-file"),
        (("agent", "--enrol-token-file", "empty"), "lamplighter enrol HOST"),
        (("controller", "."), "--token-file"),
    ],
)
async def test_a_part_without_a_token_says_how_it_gets_one(
    lamplighter: Lamplighter,
    tmp_path: Path,
    words: tuple[str, ...],
    said: str,
) -> None:
    (tmp_path / "empty").write_text("")
    code, out, err = await lamplighter(*words, LAMPLIGHTER_DATA_DIR=str(tmp_path / "other"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "a/b/c"), "'a/b/c' is not a valid name: give NAME (in namespace default) or NAMESPACE/NAME"),
        (("run", "ns/"), "'ns/' is not a valid name"),
        (("snapshots", "/main"), "'/main' is not a valid name"),
        (("get", "jobs", "--schedule", ""), "'' is not a valid name"),
        (("get", "jobs", "--schedule", "Etc"), "'Etc' is not a valid name"),
        (("logs", ""), "JOB is empty: give the first digits of a job's id"),
        (("cancel", " "), "JOB is empty"),
        (
            ("server", "--data-dir", "other", "--listen", "127.0.0.1:0", "--metrics-listen", "1"),
            "--metrics-listen '1' is not ADDRESS:PORT",
        ),
    ],
)
async def test_a_name_that_is_none_is_refused_where_it_was_typed(
    lamplighter: Lamplighter, words: tuple[str, ...], said: str
) -> None:
    code, out, err = await lamplighter(*words)
    assert code is not None
    assert (code > 0, out, "Traceback" in err) == (True, "", False)
    assert said in err


async def test_jobs_of_a_schedule_that_was_deleted_are_found_by_its_uid(
    lamplighter: Lamplighter, server: Running
) -> None:
    job = (await lamplighter("run", "etc"))[1].split()[1]
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        [uid] = [it["metadata"]["uid"] async for it in client.resources("schedules")]
        await client.delete("schedules", "default", "etc")
    rows = table((await lamplighter("get", "jobs", "--schedule", uid))[1])[1:]
    assert [row[0] for row in rows] == [job]


async def test_get_says_that_there_is_more_than_it_shows(
    lamplighter: Lamplighter,
) -> None:
    for what in ("jobs", "audit"):
        items = json.loads((await lamplighter("get", what, "-o", "json"))[1])["items"]
        code, out, err = await lamplighter("get", what, "-n", str(len(items) - 1))
        assert (code, len(table(out)) - 1) == (0, len(items) - 1)
        assert err == f"only the newest {len(items) - 1} are shown: give a larger --limit to see older ones\n"
        assert (await lamplighter("get", what, "-n", str(len(items))))[2] == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hosts", "--status", "failed"), "--status: not for hosts, only for jobs"),
        (("schedules", "--host", "a", "--schedule", "etc"), "--host and --schedule: not for schedules, only for jobs"),
        (("repositories", "-n", "5"), "--limit: not for repositories, only for jobs and audit"),
        (("audit", "--host", "a"), "--host: not for audit, only for jobs"),
        (("problems", "-n", "5"), "--limit: not for problems, only for jobs and audit"),
    ],
)
async def test_a_filter_that_does_not_apply_is_refused(
    lamplighter: Lamplighter, words: tuple[str, ...], said: str
) -> None:
    code, out, err = await lamplighter("get", *words)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("controller", ".", "--namespace", "ns"), "--namespace: for a cluster, not for DIR"),
        (("controller", ".", "--host-namespace", "ns"), "--host-namespace: for a cluster"),
        (("controller", ".", "--no-lease"), "--lease: for a cluster"),
        (("controller", "--allow-empty"), "--allow-empty: for DIR, not for a cluster"),
        (("server", "--tls-key", "file"), "--tls-key: only with --tls-cert"),
        (("server", "--kubernetes-api", "https://api"), "--kubernetes-api: only with --auth kubernetes"),
        (("server", "--agent-service-account", "a/b"), "--agent-service-account: only with --auth kubernetes"),
        (("server", "--auth", "kubernetes", "--kubernetes-ca-file", "file"), "only with --kubernetes-api"),
        (("agent", "--enrol", "t", "--enrol-token-file", "file"), "--enrol-token-file: --enrol gives a token already"),
        (("keys", ".", "--secret", "s", "--config-map", "c"), "--config-map: only with --tls-name"),
    ],
)
async def test_an_option_that_would_mean_nothing_is_refused(
    lamplighter: Lamplighter,
    tmp_path: Path,
    words: tuple[str, ...],
    said: str,
) -> None:
    (tmp_path / "file").write_text("token")
    (tmp_path / "admin-token").write_text("token")
    code, out, err = await lamplighter(*words)
    assert (code, out) == (2, "")
    assert said in err


async def test_get_problems_tells_all_that_is_wrong_and_its_exit_code_too(
    lamplighter: Lamplighter, server: Running
) -> None:
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        spec = {"kind": "prune", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}}
        spec |= {"hostSelector": {"matchLabels": {"role": "none"}}}
        await client.put("schedules", "default", "nowhere", manifest("Schedule", spec))
        code, out, _ = await lamplighter("get", "problems")
        assert (code, [row[:3] for row in table(out)]) == (
            1,
            [
                ["KIND", "NAME", "REASON"],
                ["Schedule", "default/nowhere", "NoHosts"],
                ["Host", "node-1", "NotConnected"],
                ["Host", "node-2", "NotConnected"],
            ],
        )
        await client.report("lamplighter-folder", [{"reason": "FolderNotRead", "message": "/srv: not mounted"}])
        code, out, _ = await lamplighter("get", "problems")
        assert (code, table(out)[2]) == (1, ["Controller", "lamplighter-folder", "FolderNotRead", "/srv: not mounted"])
        await client.report("lamplighter-folder", [])
        await client.delete("schedules", "default", "nowhere")
        for host in ("node-1", "node-2"):
            await client.delete_host(host)
        await client.delete("schedules", "default", "etc")
    assert await lamplighter("get", "problems") == (0, "", "no problems\n")


async def test_a_port_for_metrics_that_is_taken_is_told_in_a_line(lamplighter: Lamplighter, server: Running) -> None:
    taken = f"127.0.0.1:{server.port}"
    code, _, err = await lamplighter(
        "server", "--data-dir", "other", "--listen", "127.0.0.1:0", "--metrics-listen", taken
    )
    assert (code, "Traceback" in err, f"--metrics-listen {taken}: Address already in use" in err) == (1, False, True)


async def test_a_running_job_shows_since_when(
    lamplighter: Lamplighter, server: Running, connect: Connect, until: Until
) -> None:
    await lamplighter("run", "etc")
    async with connect("node-1") as agent:
        await agent.follow()
        for _ in range(2):
            await agent.say("job.accepted", job_id=(await agent.hears("command.run"))["job_id"])

        async def running() -> list[Any]:
            return table((await lamplighter("get", "jobs", "--status", "running"))[1])[1:]

        [row, *_] = await until(running)
    assert row[-1].startswith("since ")
    assert row[-2][-1] == "s"  # how long it has been at it


async def test_a_host_whose_clock_is_wrong_and_a_schedule_that_it_left_out_are_told(
    lamplighter: Lamplighter, server: Running, connect: Connect
) -> None:
    late = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    async with connect("node-1", now=late) as agent:
        entries = (await agent.follow())["schedules"]
        left_out = [{"schedule_id": entries[0]["id"], "reason": "no such zone"}]
        await agent.say("schedule.ack", version=agent.version, digest=agent.digest, left_out=left_out)
        await agent.say("schedule.fire", schedule_id="nothing", scheduled_at=NOW.isoformat())
        while (await agent.hear())["type"] != "schedule.refused":
            pass  # what came before it is stored by now
        row = table((await lamplighter("get", "hosts"))[1])[1]
    assert row[:2] == ["node-1", "yes"]
    assert row[4] == "no"
    assert "EntriesLeftOut: its agent cannot put in force: default/etc (no such zone)" in row[-1]
    assert "ClockSkew: its clock is 300 s behind the server's" in row[-1]


async def test_a_long_error_is_the_last_thing_in_its_line_whole_where_it_is_piped(
    tmp_path: Path, server: Running, lamplighter: Lamplighter
) -> None:
    job = (await lamplighter("run", "etc"))[1].split()[1]
    ids = [it["id"] for it in json.loads((await lamplighter("get", "jobs", "-o", "json"))[1])["items"]]
    [job_id] = [it for it in ids if it.startswith(job)]
    error = "cannot open " + "/very/long/path" * 40
    end = JobFinished(job_id, "failed", NOW, error=error)
    await server.parts.reports.finish("node-1", [end])
    _, out, _ = await lamplighter("get", "jobs", COLUMNS="80")
    head, *rows = out.splitlines()
    assert next(row for row in rows if row.startswith(job)).endswith(f"   {error}")
    others = [row for row in [head, *rows] if not row.startswith(job)]
    assert len(rows) == 4
    assert max(map(len, others)) < 160
    assert all(row == row.rstrip() for row in [head, *rows])


async def test_a_host_is_created_and_deleted(
    lamplighter: Lamplighter,
) -> None:
    code, out, err = await lamplighter("create", "host", "db-1", "--label", "role=db", "--label", "a.b/c=")
    assert (code, err) == (0, "")
    assert "lamplighter enrol db-1" in out
    [host] = [
        it for it in json.loads((await lamplighter("get", "hosts", "-o", "json"))[1])["items"] if it["name"] == "db-1"
    ]
    assert host["labels"] == {"role": "db", "a.b/c": ""}
    assert (await lamplighter("enrol", "db-1"))[0] == 0
    code, _, err = await lamplighter("create", "host", "db-1", "--label", "role=web")
    assert (code, "already" in err) == (1, True)
    assert await lamplighter("delete", "host", "db-1") == (0, "host db-1 is deleted\n", "")
    code, _, err = await lamplighter("delete", "host", "db-1")
    assert (code, err) == (1, "Error: there is no host 'db-1': there are node-1, node-2\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("db-1", "--label", "role"), 2, "KEY=VALUE"),
        (("db-1", "--label", "a=b", "--label", "a=c"), 2, "each KEY once"),
        (("db-1", "--label", "a b=c"), 1, "a label's key"),
        (("Db_1",), 1, "DNS name"),
    ],
)
async def test_a_host_that_cannot_be_is_refused(
    lamplighter: Lamplighter, words: tuple[str, ...], code: int, said: str
) -> None:
    found, out, err = await lamplighter("create", "host", *words)
    assert (found, out) == (code, "")
    assert said in err


@pytest.mark.parametrize("words", [("get", "nothing"), ("get", "jobs", "-n", "0"), ("run",), ("up", "/nonexistent")])
async def test_what_cannot_be_meant_is_a_usage_error(lamplighter: Lamplighter, words: tuple[str, ...]) -> None:
    code, out, err = await lamplighter(*words)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: ")


async def test_a_part_that_cannot_start_says_why_in_a_line(
    lamplighter: Lamplighter, server: Running, tmp_path: Path
) -> None:
    taken = f"127.0.0.1:{server.port}"
    code, _, err = await lamplighter("server", "--listen", taken, "--data-dir", tmp_path / "other")
    assert code == 1
    assert err.splitlines()[-1].endswith("is another server running? Choose another with --listen")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("httpx", ("get", "jobs"), "cli"),
        ("httpx", ("restore", "main", "--host", "web-1", "--target", "/srv"), "cli"),
        ("httpx", ("snapshots", "main"), "cli"),
        ("httpx", ("create", "host", "web-1"), "cli"),
        ("websockets", ("agent",), "agent"),
        ("starlette", ("server",), "server"),
        ("psycopg", ("server", "--database", "postgresql+psycopg://127.0.0.1:1/x"), "postgresql"),
        ("watchfiles", ("controller", "."), "controller"),
        ("uvicorn", ("up", "."), "all"),
    ],
)
async def test_a_command_whose_extra_is_not_installed_says_which_in_a_line(
    lamplighter: Lamplighter,
    tmp_path: Path,
    missing: str,
    words: tuple[str, ...],
    extra: str,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{missing!r}] = None\n")
    code, out, err = await lamplighter(*words, PYTHONPATH=str(tmp_path), LAMPLIGHTER_LISTEN="127.0.0.1:0")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("Error: ")
    assert f"needs the Python package {missing}: install Lamplighter with the extra `{extra}`" in err
    assert "Traceback" not in err


# Objects, as people know commands from kubectl.


async def test_objects_are_named_as_kubectl_names_them(
    lamplighter: Lamplighter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rows(*words: str) -> list[str]:
        code, out, err = await lamplighter("get", *words)
        assert (code, err) == (0, ""), words
        return [row[0] for row in table(out)[1:]]

    assert (await lamplighter("get", "sched,hosts"))[1].splitlines()[2] == ""
    monkeypatch.setattr(host_statements, "list_hosts", None)  # one object is asked for, and no list of all
    for words in (("host", "node-1"), ("hosts.lamplighter.dev", "node-1"), ("host/node-1",)):
        assert await rows(*words) == ["node-1"]
    assert await rows("hosts", "node-2", "node-1") == ["node-2", "node-1"]
    assert await rows("repo/main") == await rows("repository", "default/main") == ["default"]
    assert await rows("sched", "etc", "-n", "default", "-A") == ["default"]
    assert await rows("job", "aa", "cd0") == [JOBS[0][:8], JOBS[2][:8]]
    code, _, err = await lamplighter("get", "hots")
    assert (code, "'hots'" in err, "hosts (host), schedules (schedule, sched)" in err) == (2, True, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("host/node-1", "node-2"), "'node-2': after TYPE/NAME, give each object as TYPE/NAME"),
        (("hosts,jobs", "a"), "names are of one type"),
        (("problem/a",), "`get problems` lists them all"),
        (("audit", "-o", "name"), "only for what has names"),
        (("jobs", "-l", "a=b"), "--selector: not for jobs, only for hosts and schedules and repositories and alerts"),
        (("hosts", "node-1", "-l", "a=b"), "--selector: not with names"),
        (("hosts,jobs", "--watch"), "--watch: of one type at a time"),
        (("hosts", "--output-watch-events"), "only with --watch"),
        (("hosts", "-n", "No"), "'No' is not the name of a namespace"),
        (("jobs", "-n", "0"), "give a number from 1 on"),
    ],
)
async def test_what_cannot_be_asked_for_is_said(lamplighter: Lamplighter, words: tuple[str, ...], said: str) -> None:
    code, out, err = await lamplighter("get", *words)
    assert (code, out) == (2, "")
    assert said in err


async def test_what_is_not_there_is_told_with_what_there_is(lamplighter: Lamplighter) -> None:
    code, out, err = await lamplighter("get", "hosts", "nod-2", "node-1")
    assert (code, [row[0] for row in table(out)]) == (1, ["NAME", "node-1"])
    assert err == "Error: there is no host 'nod-2': there are node-2, node-1\n"
    code, out, err = await lamplighter("describe", "schedule", "etcd")
    assert (code, out, err) == (1, "", "Error: there is no Schedule default/etcd: there is default/etc\n")


async def test_formats_say_the_same(lamplighter: Lamplighter) -> None:
    listed = json.loads((await lamplighter("get", "schedules", "-o", "json"))[1])
    assert yaml.safe_load((await lamplighter("get", "schedules", "-o", "yaml"))[1]) == listed
    assert json.loads((await lamplighter("get", "schedule", "etc", "-o", "json"))[1]) == listed["items"][0]
    names = [(await lamplighter("get", what, "-o", "name"))[1].split() for what in ("hosts", "sched", "jobs")]
    assert names == [["host/node-1", "host/node-2"], ["schedule/default/etc"], [f"job/{it}" for it in reversed(JOBS)]]
    assert (await lamplighter("get", *names[0], "-o", "name"))[1].split() == names[0]
    head, row = table((await lamplighter("get", "hosts", "-l", "role=db", "-o", "wide"))[1])
    assert head[-4:] == ["CLOCK", "AGE", "LABELS", "PROBLEM"]
    assert (row[0], row[-2]) == ("node-1", "role=db")
    assert [row[-2] for row in table((await lamplighter("get", "jobs", "-o", "wide"))[1])[1:]] == list(reversed(JOBS))
    assert (await lamplighter("get", "hosts", "-l", "role=web"))[2] == "no hosts match\n"


async def test_a_namespace_narrows_lists_and_completes_names(lamplighter: Lamplighter, server: Running) -> None:
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        await client.put("repositories", "other", "main", manifest("Repository", {"url": "/backup/{host}"}))
        spec = {"kind": "prune", "cron": "0 2 * * *", "repositoryRef": {"name": "main"}}
        await client.put("schedules", "other", "tidy", manifest("Schedule", spec))
    names = (await lamplighter("get", "sched,repo", "--namespace", "other", "-o", "name"))[1].split()
    assert names == ["schedule/other/tidy", "repository/other/main"]
    assert len((await lamplighter("get", "sched", "-n", "other", "-A", "-o", "name"))[1].split()) == 2
    assert (await lamplighter("get", "sched", "tidy", "-n", "other", "-o", "name"))[1].split() == names[:1]
    job = (await lamplighter("run", "tidy", "-n", "other", "--host", "node-1"))[1].split()[1]
    assert [row[0] for row in table((await lamplighter("jobs", "-n", "other"))[1])[1:]] == [job]
    code, out, _ = await lamplighter("get", "problems", "-n", "other")
    assert (code, [row[1:3] for row in table(out)[1:]]) == (
        1,
        [["other/tidy", "NoPassword"], ["other/main", "NoPassword"]],
    )


async def test_describe_tells_all_that_is_known(lamplighter: Lamplighter) -> None:
    await lamplighter("run", "etc")
    sections = {
        "host/node-1": [
            "role=db",
            "In sync:",
            "desired 1, applied 0",
            "Entries:",
            "default/etc",
            "Problems:",
            "Recent jobs:",
            "Changes:",
            "create",
        ],
        "sched/etc": [
            "1 selected, 1 without a success",
            "Next due:",
            "Due within 24 hours:",
            "Spec:",
            "cron: 0 2 * * *",
            "user/admin",
            "run",
        ],
        "repo/main": ["Verified:", "url: /backup/{host}", "Used by:", "default/etc", "Recent jobs:", "pending"],
        f"job/{JOBS[1][:8]}": [
            "Status:",
            "failed",
            "wrong password",
            "Attempts:",
            "Log",
            "Fatal: wrong password",
            "Exit code:",
        ],
    }
    code, out, err = await lamplighter("describe", *sections)
    assert (code, err) == (0, "")
    for (name, wanted), shown in zip(sections.items(), out.split("\n\n"), strict=True):
        assert [it for it in wanted if it not in shown] == [], f"{name}:\n{shown}"
    assert (await lamplighter("describe", "hosts"))[1].count("Name:") == 2


async def test_an_alert_is_an_object_like_others(lamplighter: Lamplighter, server: Running) -> None:
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        await client.put("alerts", "default", "on-call", manifest("Alert", {"secretRef": {"name": "on-call"}}))
    assert (await lamplighter("get", "al", "-o", "name"))[1] == "alert/default/on-call\n"
    head, row = table((await lamplighter("get", "alert", "on-call"))[1])
    assert (head[:4], row[:2]) == (["NAMESPACE", "NAME", "SEVERITY", "FIRING"], ["default", "on-call"])
    assert "Firing:" in (await lamplighter("describe", "alert/on-call"))[1]
    assert await lamplighter("delete", "alert", "on-call") == (0, "alert default/on-call is deleted\n", "")


async def test_events_are_what_happened_in_order(lamplighter: Lamplighter) -> None:
    code, out, _ = await lamplighter("events", "-o", "json")
    items = json.loads(out)["items"]
    assert (code, [it["at"] for it in items]) == (0, sorted(it["at"] for it in items))
    by_object = {(it["object"], it["reason"]): it for it in items}
    assert by_object[f"job/{JOBS[1][:8]}", "Failed"]["type"] == "Warning"
    assert by_object[f"job/{JOBS[1][:8]}", "Failed"]["message"] == "backup of default/etc on node-1: wrong password"
    assert by_object["schedule/default/etc", "Created"]["message"] == "by user admin"
    rows = table((await lamplighter("events", "--for", f"job/{JOBS[0]}"))[1])
    assert [row[1:4] for row in rows[1:]] == [["Normal", it, f"job/{JOBS[0][:8]}"] for it in ("Started", "Succeeded")]
    about = json.loads((await lamplighter("events", "--for", "repo/main", "-o", "json"))[1])["items"]
    assert {it["object"] for it in about} == {"repository/default/main"}
    warnings = json.loads((await lamplighter("events", "--types", "Warning", "-o", "json"))[1])["items"]
    assert [it["reason"] for it in warnings] == ["Failed"]
    assert len(table((await lamplighter("events", "--limit", "2"))[1])) == 3


async def test_delete_takes_any_declared_type_and_says_who_brings_it_back(
    lamplighter: Lamplighter, server: Running
) -> None:
    code, _, err = await lamplighter("delete", "repo", "main")
    assert (code, "default/etc" in err) == (1, True)
    assert await lamplighter("delete", "schedule/etc", "repo/main", "host/node-2") == (
        0,
        "schedule default/etc is deleted\nrepository default/main is deleted\nhost node-2 is deleted\n",
        "",
    )
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        owned = manifest("Repository", {"url": "/a"})
        owned["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "lamplighter-folder"}
        await client.put("repositories", "default", "owned", owned)
    code, out, err = await lamplighter("delete", "repo", "owned")
    assert (code, out) == (0, "repository default/owned is deleted\n")
    assert err.startswith("Warning: lamplighter-folder declares it, and creates it again")
    for words in (("jobs", JOBS[0][:8]), ("hosts",)):
        assert (await lamplighter("delete", *words))[0] == 2


async def test_both_versions_are_told(lamplighter: Lamplighter) -> None:
    code, out, err = await lamplighter("version")
    assert (code, out, err) == (0, f"Client version: {__version__}\nServer version: {__version__}\n", "")
    both = json.loads((await lamplighter("version", "-o", "json"))[1])
    assert both == {"client": {"version": __version__}, "server": {"version": __version__}}
    code, out, err = await lamplighter("version", LAMPLIGHTER_SERVER="http://127.0.0.1:1")
    assert (code, out, "no server answers" in err) == (1, f"Client version: {__version__}\n", True)
    assert (await lamplighter("version", "--client", LAMPLIGHTER_SERVER="http://127.0.0.1:1"))[0] == 0


# What is followed.


@pytest.fixture
async def started(
    server: Running, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[asyncio.subprocess.Process]]]:
    """Starts a command that goes on until it is interrupted."""
    running: list[asyncio.subprocess.Process] = []

    async def start(*words: str) -> asyncio.subprocess.Process:
        here = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{server.port}", "LAMPLIGHTER_DATA_DIR": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(LAMPLIGHTER, *words, env=os.environ | here, stdout=-1, stderr=-1)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def heard(process: asyncio.subprocess.Process) -> str:
    """Its next line."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return (await process.stdout.readline()).decode().rstrip("\n")


async def test_a_watch_shows_what_changes_until_it_is_interrupted(
    started: Callable[..., Awaitable[asyncio.subprocess.Process]], server: Running
) -> None:
    watching = await started("get", "hosts", "-w", "--output-watch-events")
    heading, *rows = [await heard(watching) for _ in range(3)]
    assert [line.split()[:2] for line in (heading, *rows)] == [
        ["EVENT", "NAME"],
        ["ADDED", "node-1"],
        ["ADDED", "node-2"],
    ]
    async with Client(f"http://127.0.0.1:{server.port}", server.admin_token) as client:
        await client.put_host("node-3", {})
        assert (await heard(watching)).split()[:2] == ["ADDED", "node-3"]
        await client.put_host("node-2", {"role": "web"})
        changed = await heard(watching)
        assert changed.split()[:2] == ["MODIFIED", "node-2"]
        assert changed.index("node-2") == heading.index("NAME")
        await client.delete_host("node-3")
        assert (await heard(watching)).split()[:2] == ["DELETED", "node-3"]
    watching.send_signal(signal.SIGINT)
    assert await watching.wait() == 130


async def test_a_job_is_followed_to_its_end(
    started: Callable[..., Awaitable[asyncio.subprocess.Process]],
    lamplighter: Lamplighter,
    server: Running,
    connect: Connect,
) -> None:
    await lamplighter("cancel", "cd")
    happening = await started("events", "--watch", "-o", "json")
    job = (await lamplighter("run", "etc"))[1].split()[1]
    following = await started("logs", "-f", job)
    async with connect("node-1") as agent:
        await agent.follow()
        job_id = (await agent.hears("command.run"))["job_id"]
        await agent.say("job.accepted", job_id=job_id)
        await agent.say("job.log", job_id=job_id, lines=["one"])
        assert await heard(following) == "one"
        await agent.say("job.log", job_id=job_id, lines=["two", "three"])
        assert [await heard(following) for _ in range(2)] == ["two", "three"]
        now = datetime.now(UTC).isoformat()
        await agent.say(
            "job.finished", job_id=job_id, status="succeeded", started_at=now, finished_at=now, snapshot_id="5eed" * 16
        )
        out, err = await following.communicate()
    assert (following.returncode, out) == (0, b"")
    assert err.decode() == f"job {job} on node-1: succeeded, 5eed5eed\n"
    said = [await heard(happening)]
    while said[-1] != f'  "object": "job/{job}",' or said[-2] != '  "reason": "Succeeded",':
        said.append(await heard(happening))


async def test_running_jobs_are_bars_in_a_terminal(
    lamplighter: Lamplighter, server: Running, connect: Connect, tmp_path: Path
) -> None:
    await lamplighter("cancel", "cd")
    job = (await lamplighter("run", "etc"))[1].split()[1]
    ours, theirs = pty.openpty()
    here = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{server.port}", "LAMPLIGHTER_DATA_DIR": str(tmp_path)}
    env = os.environ | here | {"COLUMNS": "160", "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(
        *(LAMPLIGHTER, "jobs", "--follow"), env=env, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = ""

    async def shows(*texts: str) -> None:
        nonlocal shown
        async with asyncio.timeout(PATIENCE_S):
            while not all(text in shown for text in texts):
                shown += (await asyncio.to_thread(os.read, ours, 65536)).decode(errors="replace")
        shown = ""

    try:
        await shows("DURATION", job, "pending")
        async with connect("node-1") as agent:
            await agent.follow()
            job_id = (await agent.hears("command.run"))["job_id"]
            await agent.say("job.accepted", job_id=job_id)
            await agent.say("job.progress", job_id=job_id, fraction=0.5, files_done=5, bytes_done=2048)
            await shows(f"job {job} on node-1: backup", "5 files, 2 KiB")
            now = datetime.now(UTC).isoformat()
            await agent.say("job.finished", job_id=job_id, status="succeeded", started_at=now, finished_at=now)
            await shows("succeeded")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


@pytest.mark.parametrize(
    "words",
    [
        *("get jobs --watch", "logs -f aa", "status", "run etc"),
        *("restore main --host a --target /tmp/a", "drain a", "create host a"),
    ],
)
async def test_ctrl_c_ends_a_command_that_waits_for_an_answer_without_a_word(words: str, tmp_path: Path) -> None:
    (tmp_path / "admin-token").write_text("a")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        here = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        env = os.environ | here | {"LAMPLIGHTER_DATA_DIR": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(LAMPLIGHTER, *words.split(), env=env, stdout=-1, stderr=-1)
        ended = asyncio.create_task(process.communicate())
        asking = asyncio.create_task(asyncio.get_running_loop().sock_accept(silent))
        await asyncio.wait([ended, asking], return_when="FIRST_COMPLETED")
        assert not ended.done(), ended.result()
        with asking.result()[0]:
            process.send_signal(signal.SIGINT)
            assert (await ended, process.returncode) == ((b"", b""), 130)


# Completion.


async def test_bash_completes_types_and_names_and_is_silent_without_a_server(
    lamplighter: Lamplighter, server: Running, tmp_path: Path
) -> None:
    code, script, _ = await lamplighter("completion", "bash")
    assert code == 0
    (tmp_path / "completion").write_text(script)

    async def completed(*words: str, **variables: str) -> list[str]:
        typed = " ".join(shlex.quote(word) for word in ("lamplighter", *words))
        command = (
            f"source completion; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _lamplighter_completion lamplighter"
        )
        here = {"LAMPLIGHTER_SERVER": f"http://127.0.0.1:{server.port}", "LAMPLIGHTER_DATA_DIR": str(tmp_path)}
        path = {"PATH": f"{LAMPLIGHTER.parent}:{os.environ['PATH']}"}
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", command + r"; printf '%s\n' ${COMPREPLY[@]}"),
            env=os.environ | here | path | variables,
            cwd=tmp_path,
            stdout=-1,
            stderr=-1,
        )
        out, err = await process.communicate()
        assert err == b""
        return out.decode().split()

    assert "sched" in await completed("get", "s")
    assert await completed("get", "host", "node-") == ["node-1", "node-2"]
    assert await completed("describe", "host/node-") == ["host/node-1", "host/node-2"]
    assert await completed("run", "") == ["etc"]
    assert await completed("logs", "a") == [JOBS[1][:8], JOBS[0][:8]]
    assert await completed("get", "jobs", "-n", "d") == ["default"]
    assert await completed("get", "host", "", LAMPLIGHTER_SERVER="http://127.0.0.1:1") == []
    assert await completed("get", "host", "", LAMPLIGHTER_DATA_DIR="/nonexistent") == []
