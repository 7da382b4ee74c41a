"""Each alert of the chart has a page that says what it means, where to look and how to mend it, and that is true."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import helm_python
import pytest
import yaml

from cli.main import main
from tests.chart import CHART, ROOT, Object, rendered, values
from tests.docs import RUNBOOKS, blocks, commands
from tests.exported import metric_names

GIVEN = {**values("monitoring"), "server": {"replicas": 3, "database": {"existingSecret": "lamplighter-database"}}}
PARTS = ["Meaning", "Look", "Mend"]
INDEX = "docs/runbooks/README.md"
KUBECTL = Path(sys.executable).with_name("kubectl")
CORE = {"nodes", "pods", "persistentvolumeclaims", "leases", "deployment/lamplighter-controller"}
"""What the pages speak of in a cluster beside our own resources."""


def rules(given: Object) -> dict[str, Any]:
    """The chart's alerts, by name."""
    (found,) = (it for it in rendered(given) if it["kind"] == "PrometheusRule")
    return {it["alert"]: it for it in found["spec"]["groups"][0]["rules"]}


ALERTS = rules(GIVEN)
NAMES = sorted(ALERTS)


def text(name: str) -> str:
    return (ROOT / f"docs/runbooks/{name}.md").read_text()


def typed(page: str) -> Iterator[list[str]]:
    """Every command of a page: those in its blocks, and those in a line of text that have arguments."""
    for block in blocks(page):
        yield from (shlex.split(it.text, comments=True) for it in commands(block))
    for inline in re.findall(r"`((?:lamplighter|kubectl) [^`]+)`", (ROOT / page).read_text()):
        yield shlex.split(inline)


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    assert [f"docs/runbooks/{name}.md" for name in NAMES] == [it for it in RUNBOOKS if it != INDEX]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_the_alert_means_where_to_look_and_how_to_mend_it(name: str) -> None:
    title, *parts = re.split(r"^## ", text(name), flags=re.MULTILINE)
    assert title == f"# {name}\n\n"
    assert [it.partition("\n")[0] for it in parts] == PARTS
    assert all(it.partition("\n")[2].strip() for it in parts)


def test_the_index_says_of_each_alert_what_the_chart_says() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \| (\S+) \|", (ROOT / INDEX).read_text(), re.MULTILINE)
    told = {name: (it["labels"]["severity"], it.get("for", "0m")) for name, it in ALERTS.items()}
    assert {name: (severity, after) for name, page, severity, after in listed if name == page} == told
    assert {severity for severity, _ in told.values()} == {"critical", "warning", "info"}


def test_an_alert_links_to_its_page_at_the_address_that_is_given_or_at_the_charts_home(tmp_path: Path) -> None:
    def links(given: Object) -> set[str]:
        return {it["annotations"]["runbook_url"].removesuffix(f"/{name}.md") for name, it in rules(given).items()}

    assert links(GIVEN) == {"docs/runbooks"}
    own = {"metrics": {"prometheusRule": {"enabled": True, "runbookUrl": "https://example.org/books/"}}}
    assert links(own) == {"https://example.org/books"}
    released = tmp_path / "lamplighter"
    released.mkdir()
    for part in CHART.iterdir():
        (released / part.name).symlink_to(part)
    (released / "Chart.yaml").unlink()
    made = yaml.safe_load((CHART / "Chart.yaml").read_text()) | {"home": "https://example.org/lamplighter"}
    (released / "Chart.yaml").write_text(yaml.safe_dump(made))
    with helm_python.Chart.load(released) as chart:
        files = chart.render(GIVEN, name="lamplighter", namespace="default")
    (found,) = (it for path, it in files.items() if path.endswith("monitoring.yaml"))
    assert f"https://example.org/lamplighter/blob/v{made['version']}/docs/runbooks/LamplighterOverdue.md" in found


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_each_metric_that_a_page_names_is_there_and_the_alerts_own_are_among_them(tmp_path: Path) -> None:
    exported = await metric_names(tmp_path)
    for name in NAMES:
        named = set(re.findall(r"\blamplighter_\w+", text(name)))
        assert named - exported == set(), name
        assert set(re.findall(r"lamplighter_\w+", ALERTS[name]["expr"])) <= named, name


@pytest.mark.parametrize("page", RUNBOOKS)
def test_each_command_of_a_page_is_one_of_ours_or_of_kubectl(page: str) -> None:
    assert {it[0] for it in typed(page)} <= {"lamplighter", "kubectl", "curl"}


LAMPLIGHTER = sorted({tuple(it[1:]) for page in RUNBOOKS for it in typed(page) if it[0] == "lamplighter"})


@pytest.mark.parametrize("arguments", LAMPLIGHTER, ids=" ".join)
def test_each_command_of_lamplighter_is_taken(arguments: tuple[str, ...]) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if arguments:
        command.make_context(command.name, list(arguments))  # raises click.UsageError


def test_each_command_of_kubectl_is_taken() -> None:
    """Up to the API server, which is not there."""
    crds = [yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")]
    own = {it["spec"]["names"][key] for it in crds for key in ("plural", "singular")}
    own |= {it["metadata"]["name"] for it in crds}  # in full, as a cluster may have other Alerts
    used = sorted({tuple(it[1:]) for page in RUNBOOKS for it in typed(page) if it[0] == "kubectl"})
    with ThreadPoolExecutor(4) as pool:
        said = dict(zip(used, pool.map(_refused, used), strict=True))
    assert {it: why for it, why in said.items() if "127.0.0.1:9" not in why} == {}
    assert [words for words in used if "logs" not in words and not (own | CORE).intersection(words)] == []


def _refused(arguments: tuple[str, ...]) -> str:
    nowhere = ["--server", "http://127.0.0.1:9", "--request-timeout", "5s"]
    command = [str(KUBECTL), *nowhere, *(re.sub(r"^[A-Z-]{3,}$", "x", it) for it in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"HOME": "/nowhere"}).stderr
