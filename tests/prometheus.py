"""A real Prometheus that scrapes the servers of a test, and promtool; both are in Debian's package `prometheus`."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bench.servers import free_port
from tests.chart import Object, rendered
from tests.plain import NO_TLS

JOB = "lamplighter-metrics"
"""The job of the chart's ServiceMonitor, which its alerts name."""
MISSING = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
REASON = f"no {' and no '.join(MISSING)}: apt-get install prometheus"
needs_prometheus = pytest.mark.skipif(bool(MISSING), reason=REASON)

Labels = frozenset[tuple[str, str]]


def rules(given: Object) -> list[Object]:
    """The chart's groups of alerts, with these values."""
    (found,) = (it for it in rendered(given) if it["kind"] == "PrometheusRule")
    groups: list[Object] = found["spec"]["groups"]
    return groups


def promtool(*arguments: object) -> str:
    """What promtool says. Raises CalledProcessError when it finds a mistake."""
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass
class Prometheus:
    """A running Prometheus, by its API."""

    api: httpx.AsyncClient

    async def query(self, expression: str) -> list[Any]:
        """The result of an instant query. Raises AssertionError with the reason when it is not valid."""
        answer = (await self.api.get("/query", params={"query": expression})).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        result: list[Any] = answer["data"]["result"]
        return result

    async def samples(self) -> dict[Labels, str]:
        """All that was scraped and is not stale: values by labels."""
        found = await self.query(f'{{job="{JOB}"}}')
        return {frozenset(it["metric"].items()): it["value"][1] for it in found}

    async def alerts(self) -> list[Any]:
        """The alerts that fire, or will when what they tell of has lasted."""
        found: list[Any] = (await self.api.get("/alerts")).json()["data"]["alerts"]
        return found

    async def scraped(self, *, up: int = 1) -> None:
        """Wait until every target was scraped after now, and then every rule evaluated on that.

        `up`: 0 if no target answers. A scrape that came to another end, as one that took too long, does not count.
        """
        targets = f'up{{job="{JOB}"}}'
        other = f"min_over_time({targets}[1s]) != {up} or max_over_time({targets}[1s]) != {up}"
        async with asyncio.timeout(60):
            while True:
                await self._newer_than_now(f"timestamp({targets})")
                await self._newer_than_now("prometheus_rule_group_last_evaluation_timestamp_seconds")
                if not await self.query(other):
                    return

    async def _newer_than_now(self, times: str) -> None:
        began = time.time()
        while not await self.query(f"min({times}) > {began}"):
            await asyncio.sleep(0.1)


@asynccontextmanager
async def running(folder: Path, groups: Sequence[Object], *targets: str) -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes these ADDRESS:PORTs twice a second, with these rules."""
    folder.mkdir()
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": list(groups)}))
    listen, every = f"127.0.0.1:{free_port()}", "500ms"
    scraped = [(JOB, targets), ("prometheus", [listen])]
    config = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {"job_name": job, "honor_labels": True, "static_configs": [{"targets": list(of)}]} for job, of in scraped
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus", *options, f"--web.listen-address={listen}", stdout=log, stderr=log
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://{listen}/api/v1", trust_env=False, verify=NO_TLS) as api:
            await _ready(f"http://{listen}/-/ready", api, process, folder)
            yield Prometheus(api)
    finally:
        process.kill()
        await process.wait()


async def _ready(url: str, api: httpx.AsyncClient, process: asyncio.subprocess.Process, folder: Path) -> None:
    async with asyncio.timeout(60):
        while True:
            assert process.returncode is None, (folder / "log").read_text()
            try:
                if (await api.get(url)).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


def series(labels: Iterable[tuple[str, str]]) -> str:
    """Labels in the notation of series."""
    given = dict(labels)
    name = given.pop("__name__")
    inner = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(given.items()))
    return f"{name}{{{inner}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def input_series(before: Mapping[Labels, str], after: Mapping[Labels, str], minutes: int) -> list[Object]:
    """Real samples as promtool takes them, one a minute: one of before the trouble, then those of it."""

    def values(labels: Labels) -> str:
        lasting = f"{after[labels]}+0x{minutes}" if labels in after else "stale"
        return f"{before.get(labels, '_')} {lasting}"

    return [{"series": series(it), "values": values(it)} for it in sorted({*before, *after}, key=sorted)]
