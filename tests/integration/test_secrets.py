"""Promise 7: a repository's password is in restic's environment and encrypted in the store, and nowhere else."""

import asyncio
import base64
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import pytest

from server.api.news import listen
from server.api.operations import OPERATIONS
from tests.plain import NO_TLS

pytestmark = pytest.mark.anyio

LAMPLIGHTER = Path(sys.executable).with_name("lamplighter")
RESTIC = shutil.which("restic") or "restic"
PATIENCE_S = 60

PASSWORD = "h0rse-battery/staple+9"
WRONG = "wr0ng-battery/staple+8"
KEY = "AKIA-of-nobody/in+particular"
ENV = {"AWS_ACCESS_KEY_ID": "AKIDplanted0123456789", "AWS_SECRET_ACCESS_KEY": KEY}
MISPLACED = "m1splaced-battery/staple+7"
PLANTED = [PASSWORD, WRONG, MISPLACED, *ENV.values()]

MANIFESTS = f"""
apiVersion: v1
kind: Secret
metadata: {{name: backups}}
stringData: {{password: "{PASSWORD}"}}
---
apiVersion: v1
kind: Secret
metadata: {{name: keys}}
data: {{AWS_ACCESS_KEY_ID: {base64.b64encode(ENV["AWS_ACCESS_KEY_ID"].encode()).decode()},
  AWS_SECRET_ACCESS_KEY: {base64.b64encode(KEY.encode()).decode()}}}
---
apiVersion: lamplighter.dev/v1alpha1
kind: Repository
metadata: {{name: main}}
spec: {{url: "%(repository)s", init: true, passwordSecretRef: {{name: backups}}, envSecretRef: {{name: keys}}}}
---
apiVersion: lamplighter.dev/v1alpha1
kind: Schedule
metadata: {{name: etc}}
spec: {{kind: backup, cron: "0 2 29 2 *", repositoryRef: {{name: main}}, backup: {{paths: ["%(data)s"]}}}}
"""
BROKEN = {
    "indented.yaml": f"kind: Secret\n  stringData:\n password: {MISPLACED}\n",
    "quoted.yaml": f'kind: Secret\nstringData: {{password: "{MISPLACED}}}\n',
    "typed.yaml": f"apiVersion: v1\nkind: Secret\nmetadata: {{name: odd}}\nstringData: [{MISPLACED}]\n",
    "encoded.yaml": f"apiVersion: v1\nkind: Secret\nmetadata: {{name: plain}}\ndata: {{password: '{MISPLACED}!'}}\n",
    "variable.yaml": f"apiVersion: v1\nkind: Secret\nmetadata: {{name: path}}\nstringData: {{PATH: '{MISPLACED}'}}\n"
    "---\napiVersion: lamplighter.dev/v1alpha1\nkind: Repository\nmetadata: {name: path}\n"
    "spec: {url: /b, envSecretRef: {name: path}}\n",
    "url.yaml": "apiVersion: lamplighter.dev/v1alpha1\nkind: Repository\nmetadata: {name: url}\n"
    f"spec: {{url: 'rest:https://me:{MISPLACED}@127.0.0.1/'}}\n",
}
STAND_IN = f"""#!/bin/sh
{{ printf 'run\\n'; printf '%s\\n' "$@"; }} >> "$TMPDIR/argv"
env > "$TMPDIR/environ"
if [ -p "$TMPDIR/gate" ]; then read -r line < "$TMPDIR/gate"; fi
exec {RESTIC} "$@"
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Up:
    """`lamplighter up` on what is planted; restic stands behind a gate, and tells what it was given."""

    def __init__(self, folder: Path, log_format: str) -> None:
        self.folder, self.data = folder, folder / ".lamplighter"
        self.log = folder / "log"
        (folder / "resources").mkdir()
        (folder / "saved").mkdir()
        (folder / "saved" / "file").write_text("precious")
        (folder / "restic").write_text(STAND_IN)
        (folder / "restic").chmod(0o700)
        paths = {"repository": folder / "repository", "data": folder / "saved"}
        (folder / "resources" / "all.yaml").write_text(MANIFESTS % paths)
        for name, text in BROKEN.items():
            (folder / "resources" / name).write_text(text)
        self.env = os.environ | {
            "LAMPLIGHTER_LOG_FORMAT": log_format,
            "LAMPLIGHTER_LOG_LEVEL": "debug",
            "LAMPLIGHTER_HOST": "node-1",
            "LAMPLIGHTER_RESTIC": str(folder / "restic"),
            "TMPDIR": str(folder),
        }

    async def __aenter__(self) -> Self:
        argv: list[str | Path] = [LAMPLIGHTER, "up", "resources", "--listen", "127.0.0.1:0"]
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *argv, cwd=self.folder, env=self.env, stdout=log, stderr=log
            )
        await self.until(lambda: "ready" in self.log.read_text() and "http://" in self.log.read_text())
        self.url = "http://" + self.log.read_text().partition("http://")[2].split()[0].rstrip('",')
        headers = {"authorization": f"Bearer {(self.data / 'admin-token').read_text().strip()}"}
        self.api = httpx.AsyncClient(
            base_url=f"{self.url}/api/v1", headers=headers, timeout=PATIENCE_S, trust_env=False, verify=NO_TLS
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.api.aclose()
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def until(self, condition: Callable[[], bool]) -> bool:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):
                await asyncio.sleep(0.02)
        return found

    async def job(self, schedule: str, status: str) -> Any:
        """Run a schedule now: the job, once it has this status."""
        answer = await self.api.post(f"/schedules/default/{schedule}/run")
        (job,) = answer.raise_for_status().json()["items"]
        async with asyncio.timeout(PATIENCE_S):
            while (now := (await self.api.get(f"/jobs/{job['id']}")).json())["status"] != status:
                assert now["status"] in {"pending", "running"}, now
                await asyncio.sleep(0.05)
        return now

    async def synced(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = await self.api.get("/schedules/default/etc")
                if told.is_success and told.json()["status"]["hostsInSync"] == 1:
                    return
                await asyncio.sleep(0.05)

    async def enrolled(self, token: Any) -> str:
        """Run an agent of node-1 with this token until the server takes its key, which it returns."""
        own = {"LAMPLIGHTER_ENROL": token, "LAMPLIGHTER_DATA_DIR": "other", "LAMPLIGHTER_SERVER": self.url}
        with (self.folder / "agent-log").open("wb") as log:
            agent = await asyncio.create_subprocess_exec(
                LAMPLIGHTER, "agent", cwd=self.folder, env=self.env | own, stdout=log, stderr=log
            )
        await self.until(lambda: "connected" in (self.folder / "agent-log").read_text())
        agent.terminate()
        assert await agent.wait() == 0
        return (self.folder / "other" / "host-key").read_text().strip()

    async def answers(self, **known: Any) -> list[str]:
        """What every operation answers that only reads."""
        told = []
        for it in OPERATIONS:
            if it.method == "GET" and it.handler is not listen:
                path = it.path
                for name, value in known.items():
                    path = path.replace(f"{{{name}}}", value)
                told.append((await self.api.get(path)).text)
        return told

    def kept(self) -> dict[str, bytes]:
        """What every file of its data folder holds, but for the keys and tokens themselves; and a dump of the store."""
        files = [path for data in (self.data, self.folder / "other") for path in data.rglob("*") if path.is_file()]
        own = {"vault-key", "admin-token", "agent-token", "host-key"}
        kept = {str(path): path.read_bytes() for path in files if path.name not in own}
        with sqlite3.connect(f"file:{self.data / 'lamplighter.db'}?mode=ro", uri=True) as store:
            kept["dump"] = "\n".join(store.iterdump()).encode()
        store.close()
        return kept


def shapes(secret: str) -> set[Any]:
    """A secret as it stands, and as others may write it."""
    return {secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="), quote(secret, safe="").encode(),
            json.dumps(secret)[1:-1].encode(), secret.encode("utf-16-le"), secret.encode().hex().encode()}  # fmt: skip


def nowhere(places: dict[str, bytes], secrets: list[str]) -> None:
    """That none of the secrets is in any of these places (name: bytes)."""
    found = [
        (name, secret)
        for name, held in places.items()
        for secret in secrets
        for shape in shapes(secret)
        if shape in held
    ]
    assert found == []


def process_tree(pid: int) -> list[bytes]:
    """The command lines of a process and of all below it."""
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes()]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                lines += process_tree(int(child))
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_planted_secret_is_in_restics_environment_and_sealed_and_nowhere_else(
    tmp_path: Path, log_format: str
) -> None:
    async with Up(tmp_path, log_format) as up:
        await up.synced()
        answers = []

        # A backup, looked at from outside while it waits.
        os.mkfifo(tmp_path / "gate")
        backup = asyncio.create_task(up.job("etc", "succeeded"))
        await up.until((tmp_path / "environ").exists)
        argv = process_tree(up.process.pid)
        assert any(b"backup" in line for line in argv)
        gate = await asyncio.to_thread((tmp_path / "gate").open, "w")
        (tmp_path / "gate").unlink()
        gate.close()
        job = await backup
        environ = (tmp_path / "environ").read_text()
        assert f"RESTIC_PASSWORD={PASSWORD}\n" in environ
        assert f"AWS_SECRET_ACCESS_KEY={KEY}\n" in environ
        assert "LAMPLIGHTER" not in environ

        # One that fails, with a password that came by REST; and requests that put secrets where they do not belong.
        other = {"spec": {"url": str(tmp_path / "repository")}, "credentials": {"password": WRONG, "env": ENV}}
        schedule = {
            "kind": "backup",
            "cron": "@yearly",
            "repositoryRef": {"name": "wrong"},
            "backup": {"paths": ["/etc/apt"]},
        }
        answers += [
            await up.api.put("/repositories/default/wrong", json=other),
            await up.api.put("/schedules/default/wrong", json={"spec": schedule}),
        ]
        assert [answer.status_code for answer in answers] == [201, 201]
        failed = await up.job("wrong", "failed")
        assert "spec.passwordSecretRef" in failed["error"]
        for body in misplaced():
            answers.append(await up.api.put("/repositories/default/odd", content=body, headers=JSON))
            assert answers[-1].status_code in {400, 422}, answers[-1].text

        # An agent that gets a key of its own.
        token = (await up.api.post("/hosts/node-1/enrolments")).json()["token"]
        key = await up.enrolled(token)

        told = await up.answers(namespace="default", name="main", id=job["id"], snapshot=job["snapshot_id"][:8])
        told += [answer.text for answer in answers]
        live = up.kept()  # with the log of what is yet to be moved into the database
        assert any(name.endswith("-wal") for name in live)

    log = up.log.read_bytes()
    assert b"host enrolled" in log
    assert b"job failed" in log
    assert b"Traceback" not in log
    places = {
        "log": log + (tmp_path / "agent-log").read_bytes(),
        "argv": b"\n".join(argv) + (tmp_path / "argv").read_bytes(),
        "answers": "\n".join(told).encode(),
    }
    places |= live | {f"left {name}": held for name, held in up.kept().items()}
    nowhere(places, PLANTED)
    tokens = [(up.data / name).read_text().strip() for name in ("admin-token", "agent-token")]
    nowhere(places, [*tokens, token, key, (up.data / "vault-key").read_text().strip()])


JSON = {"content-type": "application/json"}


def misplaced() -> list[Any]:
    """Bodies of requests that hold a secret where none belongs."""
    url = {"spec": {"url": "/b"}}
    bodies = [
        {**url, "credentials": MISPLACED},
        {**url, "credentials": {"password": [MISPLACED]}},
        {**url, "credentials": {"password": {MISPLACED: MISPLACED}}},
        {**url, "credentials": {"env": {"PATH": MISPLACED}}},
        {**url, "credentials": {"env": {"AWS_REGION": [MISPLACED]}}},
        {**url, "credentials": {"password": MISPLACED + "\0"}},
        {**url, "credentials": {"password": MISPLACED * 300}},
        {"spec": {"url": f"rest:https://me:{MISPLACED}@127.0.0.1/"}},
        {"spec": {"url": "/b", "passwordSecretRef": MISPLACED}},
        {"spec": {"url": "/b", "password": MISPLACED}},
    ]
    return [*(json.dumps(body).encode() for body in bodies), json.dumps(bodies[0]).encode()[:-1]]
