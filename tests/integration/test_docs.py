"""README and docs are true: each page's commands are typed in order, and what the page shows comes."""

import configparser
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from cli.main import main
from cli.options import this_host
from controller.folder.declarations import read
from server.resources.manifests import parse_repository, parse_restore, parse_schedule
from tests.chart import rendered
from tests.docs import PAGES, Block, Shell, blocks, check_sample, checkout, commands, free_port, needs_cluster
from tests.specs import BACKUP

pytestmark = pytest.mark.slow

LASTING = {
    r"make run$": "",
    r"lamplighter up ": "agent schedules in force  schedules=1 next=default/etc due=",
    r"lamplighter server ": "cli ready  listen= data=",
    r"lamplighter controller ": "controller folder compared  folder= files=3 schedules=1 repositories=1",
    r"\S*lamplighter agent ": "agent connected  url=",
    r"lamplighter get .*--watch": "JOB  HOST  SCHEDULE  KIND  STATUS  DUE  STARTED  DURATION  SNAPSHOT/ERROR",
}
"""What does not end by itself, and the line from which on it is at work; "" for the last that the page shows."""

LISTENING = r"lamplighter (up|server) (?!.*--replica-name)"
"""What takes the place of what listens already, as a person stops that first."""

DATABASE = "postgresql+psycopg://lamplighter:…@db.example.org/lamplighter"
"""The PostgreSQL of the pages."""

IMPOSSIBLE = r"pg_dump |sudo|LAMPLIGHTER_TEST_RESTICS="
"""What needs programs of other versions, or changes the whole machine."""

DRY = r"make (test|hooks|coverage|format|bench|faults|pictures|agent-file)\b"
"""What takes minutes, or changes a repository of git: make says whether it knows how."""

WAITS = {r"lamplighter run ": "while lamplighter get jobs | grep -E 'pending|running'; do sleep 0.1; done"}
"""What a person waits for before the next command."""

QUICKSTART = ["alias lamplighter=.venv/bin/lamplighter", "lamplighter up examples/quickstart", "lamplighter run etc"]
BEFORE = {
    "docs/api.md": QUICKSTART,
    "docs/cli.md": QUICKSTART,
    "docs/high-availability.md": QUICKSTART[:1],
    "docs/operations.md": QUICKSTART,
    "docs/plan.md": QUICKSTART[:2],
    "docs/restore.md": [
        "alias lamplighter=.venv/bin/lamplighter",
        "mkdir fleet && cp examples/kubernetes/{secret,repository,schedule}.yaml fleet",
        "sed -i 's|url: /|url: |' fleet/repository.yaml",
        "lamplighter up fleet --host web-1",
        "lamplighter run etc",
    ],
}
"""What a page takes as done."""

HERE = [page for page in PAGES if any(it.language == "console" and not needs_cluster(it) for it in blocks(page))]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "LAMPLIGHTER_LISTEN": address,
        "LAMPLIGHTER_SERVER": f"http://{address}",
        **{f"SERVER_{number}": f"127.0.0.1:{free_port()}" for number in (1, 2)},
        "HOME": str(tmp_path / "home"),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip means yes by it
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    with Shell(checkout(tmp_path / "checkout"), environment) as shell:
        yield shell


def real(text: str, shell: Shell) -> str:
    """With what stands for an id that is known by now, and for an address and folders that tests leave alone."""
    ids = {"JOB": r"^job (\w+) on", "79766175": r"^([0-9a-f]{8}) .* lamplighter=default/etc"}
    for placeholder, pattern in ids.items():
        found = re.findall(pattern, shell.transcript, re.MULTILINE)
        text = re.sub(rf"\b{placeholder}\b", found[-1], text) if found else text
    text = elsewhere(text.replace("http://127.0.0.1:8700", "$LAMPLIGHTER_SERVER").replace(DATABASE, "$DATABASE"), shell)
    text = re.sub(r"127\.0\.0\.1:871(\d)", r"$SERVER_\1", text)
    installed = rf"PYTHONPATH={sysconfig.get_path('purelib')} \1"  # where the wheel's dependencies are
    return re.sub(r"^(\S+/opt/\S+/lamplighter )", installed, text)


def elsewhere(text: str, shell: Shell) -> str:
    """With folders of a whole machine below the test's."""
    return re.sub(r"(?<![\w/])/(srv|opt|var/lib)/", rf"{shell.folder}/\1/", text)


def type_in(shell: Shell, text: str, sample: Sequence[str] = (), where: str = "before") -> None:
    """Type a command and check what comes of it. Raises AssertionError with the place, the command and the output."""
    typed = real(text, shell)
    try:
        if ready := [line for pattern, line in LASTING.items() if re.match(pattern, text)]:
            if re.match(LISTENING, text):
                shell.end_background()
            seen = shell.start(typed, ready[0] or sample[-1])
        else:
            code, seen = shell.run(f"make -n {typed.removeprefix('make ')}" if re.match(DRY, text) else typed)
            assert code == 0, f"exit code {code}:\n" + "\n".join(seen)
        check_sample([elsewhere(line, shell) for line in sample], seen)
        for wait in (wait for pattern, wait in WAITS.items() if re.match(pattern, text)):
            assert shell.run(wait)[0] == 0
    except AssertionError as error:
        raise AssertionError(f"{where}: $ {text}\n{error}\n{shell.logs()}") from None


@pytest.mark.parametrize("page", HERE)
def test_each_command_of_a_page_does_what_the_page_says(
    page: str, shell: Shell, request: pytest.FixtureRequest
) -> None:
    if any(DATABASE in it.text and not needs_cluster(it) for it in blocks(page) if it.language == "console"):
        shell.run(f"DATABASE={shlex.quote(request.getfixturevalue('postgresql'))}")
    for text in BEFORE.get(page, ()):
        type_in(shell, text)
    for block in blocks(page):
        if block.language == "console" and not needs_cluster(block):
            for command in commands(block):
                if not re.match(IMPOSSIBLE, command.text):
                    type_in(shell, command.text, command.sample, command.where)


def test_a_mistake_in_a_folder_is_told_as_the_first_schedule_shows(shell: Shell) -> None:
    [shown] = [it.text.strip() for it in blocks("docs/first-schedule.md") if it.language == "text"]
    shell.run("cp -r examples/quickstart backups")
    shell.run("""sed -i 's/cron: .*/cron: "0 25 * * *"/' backups/schedule.yaml""")
    seen = shell.start(".venv/bin/lamplighter up backups", shown)
    before, _, _ = shown.partition("…")
    assert any(before in line for line in seen), f"not {before}\n{shell.logs()}"


SHOWN = ["NAME   CONNECTED   SEEN      CRON        ID", "vm     yes         3s ago    * * * * *   32bf713d"]


@pytest.mark.parametrize(
    ("row", "is_like"),
    [
        ("vm  yes  1m20s ago  * * * * *  aaaaaaaa", True),
        (f"{this_host()}  yes  3s ago  * * * * *  00000000", True),
        ("vm  no  3s ago  * * * * *  aaaaaaaa", False),
        ("vm  yes  never  * * * * *  aaaaaaaa", False),
        ("vm  yes  22:51:50  * * * * *  aaaaaaaa", False),
        ("vm  yes  3s ago  * * * * *  -", False),
        ("vm  yes  3s ago  0 2 * * *  aaaaaaaa", False),
        ("vm  yes  3s ago  * * * * *", False),
    ],
)
def test_a_row_that_a_page_shows_is_compared_cell_by_cell(row: str, is_like: bool) -> None:
    check_sample(SHOWN, [SHOWN[0], "other  no  never  -  -", row if is_like else SHOWN[1]])
    if not is_like:
        with pytest.raises(AssertionError, match="the page shows"):
            check_sample(SHOWN, [SHOWN[0], "other  no  never  -  -", row])


def test_each_line_that_a_page_shows_must_come() -> None:
    shown = ["22:51:50 cli ready  url=http://a", "22:51:51 server pushed  host=vm"]
    check_sample(shown, ["1:1:1 server pushed  host=b", "other", "2:2:2 cli ready  url=x"])
    with pytest.raises(AssertionError, match="server pushed"):
        check_sample(shown, shown[:1])
    with pytest.raises(AssertionError, match="nothing came"):
        check_sample(SHOWN, [])


@pytest.mark.parametrize("page", PAGES)
def test_each_block_says_what_it_is(page: str) -> None:
    known = {"console", "yaml", "ini", "json", "mermaid", "text"}
    assert [f"{page}:{it.line}" for it in blocks(page) if it.language not in known] == []
    assert [f"{page}:{it.line}" for it in blocks(page) if it.language == "console" and not commands(it)] == []


MANIFESTS = {"Schedule": parse_schedule, "Repository": parse_repository, "Restore": parse_restore}
YAML = [(page, it) for page in PAGES for it in blocks(page) if it.language == "yaml"]


@pytest.mark.parametrize(("page", "block"), YAML, ids=[f"{page}:{it.line}" for page, it in YAML])
def test_what_is_shown_in_yaml_is_taken(page: str, block: Block) -> None:
    for shown in yaml.safe_load_all(block.text):
        if set(shown) == {"spec"}:  # a part of a Schedule
            instead = {"cron"} if "crons" in shown["spec"] else set()
            base = {name: it for name, it in BACKUP.items() if name not in instead}
            parse_schedule({"metadata": {"name": "shown"}, "spec": base | shown["spec"]})
        elif shown.get("kind") in MANIFESTS:
            MANIFESTS[shown["kind"]](shown)
        elif "kind" in shown:
            assert list(read({Path("shown.yaml"): block.text}).errors) == []
        elif "resources" not in shown:  # what is no kustomization
            rendered(shown)


UNITS = [(page, it) for page in PAGES for it in blocks(page) if it.language == "ini"]


@pytest.mark.parametrize(("page", "block"), UNITS, ids=[f"{page}:{it.line}" for page, it in UNITS])
def test_a_unit_is_one_that_systemd_takes(page: str, block: Block, tmp_path: Path) -> None:
    unit = tmp_path / "lamplighter.service"
    program = shutil.which("true")
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", block.text))
    parsed = configparser.ConfigParser(strict=False)
    parsed.read_string(block.text.replace("\\\n", ""))
    _, command, *arguments = parsed["Service"]["ExecStart"].split()
    taken = {name for parameter in main.commands[command].params for name in parameter.opts}
    assert {it for it in arguments if it.startswith("--")} <= taken
    if verify := shutil.which("systemd-analyze"):
        done = subprocess.run([verify, "verify", unit], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
