"""The runner makes snapshots that restore, tells outcomes apart, and leaves nothing behind, with real restic."""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from array import array
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.restic import process
from agent.restic import reporter as news_of_jobs
from agent.restic.context import Timing
from agent.restic.runner import Runner
from tests.conftest import NewRepository
from wire.messages import CommandRun, JobEnd, JobLog, JobProgress, JobReason, JobReport, Repository

RESTIC = shutil.which("restic") or "restic"

pytestmark = pytest.mark.anyio

INIT = ["--json", "init"]
PASSWORD = "correct horse battery"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to back up."""
    made = tmp_path / "data"
    made.mkdir()
    (made / "größe.txt").write_text("a letter\n")
    (made / "noise").write_bytes(os.urandom(100_000))
    return made


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository("r1", "ns/main", str(tmp_path / "repository"), PASSWORD)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Runner]:
    """A runner, of restic or of a program that stands for one."""

    def made(script: str | None = None, env: dict[str, str] | None = None, **pace: Any) -> Runner:
        program = Path("restic") if script is None else tmp_path / "restic"
        if script is not None:
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        return Runner(str(program), tmp_path / "cache", lambda: datetime.now(UTC), env=env, timing=Timing(**pace))

    return made


class Told:
    """What a job reported."""

    def __init__(self) -> None:
        self.news: list[JobReport] = []
        self.any = asyncio.Event()

    def __call__(self, news: JobReport) -> None:
        self.news.append(news)
        self.any.set()

    @property
    def lines(self) -> list[str]:
        return [line for news in self.news if isinstance(news, JobLog) for line in news.lines]

    @property
    def progress(self) -> list[JobProgress]:
        return [news for news in self.news if isinstance(news, JobProgress)]


def backup(*paths: Path | str, job_id: str = "j1", init: list[str] | None = INIT, **settings: Any) -> CommandRun:
    args = ["backup", "--json", "--host", "node-1", "--", *map(str, paths)]
    return CommandRun(job_id, "backup", args, "r1", init=init, **settings)


def restic(repository: Repository, *args: str) -> str:
    env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": repository.url, "RESTIC_PASSWORD": PASSWORD}
    return subprocess.run([RESTIC, "--no-cache", *args], env=env, capture_output=True, check=True, text=True).stdout


def snapshots(repository: Repository) -> Any:
    return json.loads(restic(repository, "snapshots", "--json"))


MADE = json.dumps({"message_type": "summary", "snapshot_id": "0123abcd", "total_files_processed": 1})


async def until(holds: Callable[..., Any | bool] | Callable[..., bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def alive(pid: int | str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What it makes.


async def test_a_backup_makes_the_repository_and_a_snapshot_that_gives_the_bytes_back(
    make: Callable[..., Runner], repository: Repository, folder: Path, tmp_path: Path
) -> None:
    told = Told()
    end = await make().run(backup(folder), repository, told)
    assert (end.status, end.exit_code, end.error) == ("succeeded", 0, "")
    assert (end.files_processed, end.bytes_processed) == (2, 100_009)
    assert end.started_at is not None
    assert end.started_at <= end.finished_at
    [snapshot] = snapshots(repository)
    assert snapshot["id"].startswith(end.snapshot_id)
    assert len(end.snapshot_id) >= 8
    restic(repository, "restore", end.snapshot_id, "--target", str(tmp_path / "back"))
    for file in folder.iterdir():
        assert (tmp_path / "back" / file.relative_to("/")).read_bytes() == file.read_bytes()
    again = await make().run(backup(folder, job_id="j2"), repository, told)
    assert (again.status, len(snapshots(repository))) == ("succeeded", 2)


async def test_two_first_backups_at_once_make_one_repository(
    make: Callable[..., Runner], repository: Repository, folder: Path
) -> None:
    runner = make()
    ends = await asyncio.gather(*(runner.run(backup(folder, job_id=f"j{n}"), repository, Told()) for n in range(3)))
    assert [end.status for end in ends] == ["succeeded"] * 3
    assert len(json.loads(restic(repository, "key", "list", "--json"))) == 1


async def test_a_path_that_begins_with_a_dash_is_a_path(
    make: Callable[..., Runner], repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "--help").mkdir()
    (tmp_path / "--help" / "file").touch()
    monkeypatch.chdir(tmp_path)
    end = await make().run(backup("--help"), repository, Told())
    assert (end.status, end.files_processed) == ("succeeded", 1)
    assert snapshots(repository)[0]["paths"] == [str(tmp_path / "--help")]


# How it ends.


async def test_the_log_says_that_a_repository_is_created_and_shows_no_failure(
    make: Callable[..., Runner], repository: Repository, folder: Path
) -> None:
    told = Told()
    assert (await make().run(backup(folder), repository, told)).status == "succeeded"
    assert told.lines[0] == "there is no repository yet: creating it, and then trying again"
    assert [line for line in told.lines if "Fatal" in line or "unable to open" in line] == []


async def test_where_a_repository_must_exist_its_absence_is_an_error_with_the_remedy(
    make: Callable[..., Runner], repository: Repository, folder: Path, tmp_path: Path
) -> None:
    told = Told()
    end = await make().run(backup(folder, init=None), repository, told)
    assert [line for line in told.lines if line.startswith("Fatal: ")]
    assert (end.status, end.reason) == ("failed", "NoRepository")
    assert end.exit_code in (1, 10)  # before and since restic 0.17
    assert "there is no repository: set spec.init: true on the Repository" in end.error
    assert Path(repository.url) not in list(tmp_path.iterdir())


def folder_at(path: str) -> Path:
    Path(path).mkdir()
    return Path(path)


def files_in(folder: Path) -> list[Any]:
    return list(folder.iterdir())


async def test_a_repository_whose_disk_is_gone_is_not_made_anew(
    make: Callable[..., Runner], repository: Repository, folder: Path
) -> None:
    """It would take each backup, with no word of the snapshots that are not there any more."""
    place, away = repository.url, f"{repository.url}-away"
    runner = make()
    assert (await runner.run(backup(folder), repository, Told())).status == "succeeded"
    shutil.move(place, away)
    empty = folder_at(place)  # where it would be mounted
    for again in (runner, make()):
        end = await again.run(backup(folder), repository, Told())
        assert (end.status, end.reason, files_in(empty)) == ("failed", "NoRepository", [])
        assert "existed before and is missing now: check that its disk is mounted" in end.error
    anew = msgspec.structs.replace(backup(folder), repository="r2")  # deleted and declared again
    assert (await runner.run(anew, repository, Told())).status == "succeeded"
    shutil.rmtree(place)
    shutil.move(away, place)
    assert (await runner.run(backup(folder), repository, Told())).status == "succeeded"
    assert len(snapshots(repository)) == 2


@pytest.mark.parametrize("password", ["hunter2-hunter2", "wrong"])  # restic itself says "wrong password"
async def test_a_wrong_password_is_told_with_the_remedy_and_shown_nowhere(
    make: Callable[..., Runner], repository: Repository, folder: Path, new_repository: NewRepository, password: str
) -> None:
    new_repository(Path(repository.url), PASSWORD)
    wrong, told = Repository("r1", "ns/main", repository.url, password), Told()
    end = await make().run(backup(folder), wrong, told)
    assert (end.status, end.reason) == ("failed", "WrongPassword")
    assert end.exit_code in (1, 12)  # before and since restic 0.17
    assert "correct the Secret that spec.passwordSecretRef names" in end.error
    assert password not in f"{end.error}{told.news}"


async def test_a_locked_repository_is_waited_for_and_then_told_with_the_remedy(
    make: Callable[..., Runner], endless: tuple[Runner, Callable[[], Any | bool]], repository: Repository
) -> None:
    runner, reads = endless
    other = asyncio.create_task(runner.run(backup("/etc", job_id="j2"), repository, Told()))
    await until(reads)
    waits, told = [], Told()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    prune = CommandRun("j1", "prune", ["prune"], "r1", lock_wait_s=100)
    end = await make("exec restic prune", sleep=sleep).run(prune, repository, told)
    runner.stop("j2", "cancelled")
    await other
    assert (end.status, end.reason) == ("failed", "Locked")
    assert end.exit_code in (1, 11)  # before and since restic 0.17
    assert "the repository is locked: let the other job end" in end.error
    assert waits == [5, 10, 20, 40, 25]
    assert "the repository is locked: trying again in 40 s" in told.lines


async def test_a_job_goes_on_once_the_lock_is_gone(
    make: Callable[..., Runner], endless: tuple[Runner, Callable[[], Any | bool]], repository: Repository
) -> None:
    runner, reads = endless
    other = asyncio.create_task(runner.run(backup("/etc", job_id="j2"), repository, Told()))
    await until(reads)

    async def sleep(seconds: float) -> None:
        runner.stop("j2", "cancelled")
        await other

    end = await make("exec restic prune", sleep=sleep).run(
        CommandRun("j1", "prune", ["prune"], "r1"), repository, Told()
    )
    assert (end.status, end.reason) == ("succeeded", "")


def locks(repository: Repository) -> list[Any]:
    return [
        path for path in Path(repository.url, "locks").iterdir() if len(path.name) == 64
    ]  # others are being written


def leave_a_lock(repository: Repository) -> None:
    """Have restic lock a repository, and die."""
    env = {"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": repository.url, "RESTIC_PASSWORD": PASSWORD}
    argv = [RESTIC, "--no-cache", "backup", "--stdin"]
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as dies:
        while not locks(repository):
            assert dies.poll() is None
        dies.kill()


async def test_the_lock_of_a_process_that_is_dead_is_removed_by_the_next_job(
    make: Callable[..., Runner], repository: Repository, new_repository: NewRepository
) -> None:
    new_repository(Path(repository.url), PASSWORD)
    leave_a_lock(repository)
    told = Told()
    end = await make(sleep=None).run(CommandRun("j1", "prune", ["prune"], "r1"), repository, told)
    assert (end.status, end.reason) == ("succeeded", "")
    assert "the repository is locked: removing stale locks" in told.lines
    assert not locks(repository)


async def test_a_job_that_was_stopped_when_it_only_waited_for_a_lock_says_so(
    make: Callable[..., Runner], endless: tuple[Runner, Callable[[], Any | bool]], repository: Repository
) -> None:
    runner, reads = endless
    other = asyncio.create_task(runner.run(backup("/etc", job_id="j2"), repository, Told()))
    await until(reads)

    async def sleep(seconds: float) -> None:
        waits.stop("j1", "timed_out")
        await asyncio.Event().wait()

    waits = make("exec restic prune", sleep=sleep)
    end = await waits.run(CommandRun("j1", "prune", ["prune"], "r1"), repository, Told())
    runner.stop("j2", "cancelled")
    await other
    assert (end.status, end.reason) == ("timed_out", "Locked")
    assert "it only waited for a lock of the repository" in end.error


async def test_what_could_not_be_read_makes_a_warning_and_a_snapshot(
    make: Callable[..., Runner], repository: Repository, folder: Path
) -> None:
    end = await make().run(backup(folder, folder / "missing"), repository, Told())
    assert end.status == "warning"
    assert end.exit_code in (0, 3)  # before and since restic 0.19
    assert end.error.startswith("1 paths could not be read and are not in the snapshot: ")
    assert end.error.endswith(str(folder / "missing")[-60:])
    assert len(snapshots(repository)) == 1


async def test_a_file_that_may_not_be_read_makes_a_warning(
    make: Callable[..., Runner], repository: Repository, folder: Path
) -> None:
    (folder / "noise").chmod(0)
    as_others = f'exec setpriv --bounding-set=-dac_override,-dac_read_search {RESTIC} "$@"'  # root reads everything
    end = await make(as_others if os.geteuid() == 0 else None).run(backup(folder), repository, Told())
    assert (end.status, end.exit_code) == ("warning", 3)
    assert "noise" in end.error


async def test_a_backup_without_any_file_is_told_with_its_paths(
    make: Callable[..., Runner], repository: Repository, folder: Path, tmp_path: Path
) -> None:
    """As where a volume is not mounted."""
    runner, empty = make(), tmp_path / "empty"
    (empty / "sub").mkdir(parents=True)
    end = await runner.run(backup(empty), repository, Told())
    assert end.status == "warning"
    assert str(empty)[-60:] in end.error
    assert "its volume is mounted" in end.error
    assert end.snapshot_id
    assert (await runner.run(backup(empty, folder, job_id="j2"), repository, Told())).status == "succeeded"


async def test_a_schedule_at_the_limits_of_its_schema_runs(
    make: Callable[..., Runner], repository: Repository, folder: Path
) -> None:
    """256 paths and 256 patterns of 4096 characters each: more than a command line holds."""
    paths = [folder, *(f"/{at:03}" + "/é" * 1360 for at in range(255))]
    excludes = [f"--exclude=/{at:03}" + "é$ " * 1364 for at in range(256)]
    args = ["backup", "--json", "--host=node-1", *excludes, "--exclude=noise", "--", *map(str, paths)]
    end = await make().run(CommandRun("j1", "backup", args, "r1", init=INIT), repository, Told())
    assert end.status == "warning"
    assert end.error.startswith("255 paths could not be read and are not in the snapshot: …")
    assert end.error.endswith(" and 252 more")
    assert end.files_processed == 1
    assert len(snapshots(repository)) == 1


async def test_nothing_that_could_be_backed_up_is_a_failure(
    make: Callable[..., Runner], repository: Repository, folder: Path
) -> None:
    end = await make().run(backup(folder / "missing"), repository, Told())
    assert (end.status, end.exit_code) == ("failed", 1)
    assert "directories/files do not exist" in end.error


@pytest.mark.parametrize(
    ("code", "status", "reason", "says"),
    [
        (3, "warning", "", "restic exit code 3"),
        (10, "failed", "NoRepository", "there is no repository"),
        (11, "failed", "Locked", "the repository is locked"),
        (12, "failed", "WrongPassword", "the password does not open the repository"),
        (1, "failed", "", "restic exit code 1"),
        (130, "failed", "", "interrupted by a signal that the agent did not send"),
    ],
)
async def test_the_codes_of_later_versions_are_told_apart(
    make: Callable[..., Runner], repository: Repository, code: int, status: str, reason: str, says: str
) -> None:
    script = f"echo '{MADE}'; exit {code}"
    end = await make(script).run(backup("/etc", init=None, lock_wait_s=0), repository, Told())
    assert (end.status, end.exit_code, end.reason) == (status, code, reason)
    assert says in end.error


@pytest.mark.parametrize(
    "script", ["exit 0", "exit 3", """echo '{"message_type":"summary"}'""", "exec cat /etc/hostname"]
)
async def test_a_program_that_tells_of_no_snapshot_has_made_none(
    make: Callable[..., Runner], repository: Repository, script: str
) -> None:
    """A wrapper that forgets to call restic, or a file of another program in its place, ends well as well."""
    end = await make(script).run(backup("/etc", init=None), repository, Told())
    assert (end.status, end.snapshot_id) == ("failed", "")
    assert "reported no snapshot: check that the program is an unmodified restic" in end.error


FULL = """
echo 'Save(<lock/1>) returned error, retrying: write /backup/locks/1: no space left on device' >&2
echo 'write /backup/locks/1: no space left on device
main.main
unable to create lock in backend' >&2
exit 1
"""


async def test_a_full_disk_is_told_as_that_by_restic_and_by_the_agent(
    make: Callable[..., Runner], repository: Repository, tmp_path: Path
) -> None:
    end = await make(FULL).run(backup("/etc", init=None), repository, Told())
    assert end.error.startswith("the disk of the repository or of the agent's cache is full: free space there (")
    assert "write /backup/locks/1" in end.error
    runner = make("exit 0")
    (tmp_path / "scratch").write_text("in the way")  # as any other reason why the agent's own folder cannot be written
    end = await runner.run(backup("/etc", init=None), repository, Told())
    where = f"{tmp_path / 'scratch'}: File exists"
    assert (end.status, end.error) == ("failed", f"{where}: check that its disk is mounted, writable and not full")


async def test_a_restic_that_is_killed_by_the_system_is_a_failure(
    make: Callable[..., Runner], repository: Repository
) -> None:
    end = await make("kill -9 $$").run(backup("/etc"), repository, Told())
    assert (end.status, end.exit_code) == ("failed", -9)
    assert "SIGKILL: check whether the host" in end.error


async def test_a_missing_restic_and_missing_credentials_are_told_with_the_remedy(
    make: Callable[..., Runner], repository: Repository, tmp_path: Path
) -> None:
    missing = Runner(str(tmp_path / "nowhere"), tmp_path, lambda: datetime.now(UTC))
    end = await missing.run(backup("/etc"), repository, Told())
    assert end.status == "failed"
    assert "install restic, or start the agent with --restic and its path" in end.error
    end = await make().run(backup("/etc"), None, Told())
    assert end.status == "failed"
    assert "no credentials for repository 'r1'" in end.error


async def test_a_nul_byte_in_an_argument_is_a_failure(make: Callable[..., Runner], repository: Repository) -> None:
    end = await make().run(backup("/etc\0"), repository, Told())
    assert (end.status, end.error) == ("failed", "embedded null byte")


# How it is ended.


FOR_EVER = """
case "$*" in *init*) exec restic "$@";; esac
exec restic backup --stdin < {pipe}
"""


@pytest.fixture
def endless(
    make: Callable[..., Runner], repository: Repository, tmp_path: Path, new_repository: NewRepository
) -> Iterator[tuple[Runner, Callable[[], Any | bool]]]:
    """A runner whose backup reads a pipe that nobody closes, and how to know that it reads, and so holds its lock."""
    new_repository(Path(repository.url), PASSWORD)
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(pipe, b"read me")
    waiting = array("i", [0])
    yield (
        make(FOR_EVER.format(pipe=tmp_path / "pipe")),
        lambda: fcntl.ioctl(pipe, termios.FIONREAD, waiting) == 0 and waiting[0] == 0,
    )
    os.close(pipe)


@pytest.mark.parametrize(
    ("status", "reason"), [("cancelled", ""), ("interrupted", ""), ("interrupted", "WindowClosed")]
)
async def test_a_job_that_is_stopped_leaves_no_lock(
    endless: tuple[Runner, Callable[[], Any | bool]], repository: Repository, status: JobEnd, reason: JobReason
) -> None:
    runner, reads = endless
    running = asyncio.create_task(runner.run(backup("/etc"), repository, Told()))
    await until(reads)
    runner.stop("j1", status, reason)
    runner.stop("j1", "failed")  # the first counts
    end = await running
    assert (end.status, end.reason) == (status, reason)
    assert bool(reason) == (end.error == "stopped at the end of its window: it goes on in the next one")
    assert restic(repository, "list", "locks") == ""
    assert snapshots(repository) == []


async def test_a_job_that_takes_too_long_is_stopped_with_the_remedy(
    make: Callable[..., Runner], repository: Repository
) -> None:
    end = await make("exec sleep 600").run(backup("/etc", timeout_s=1), repository, Told())
    assert (end.status, end.exit_code) == ("timed_out", -signal.SIGINT)
    assert end.error == "stopped at its time limit: raise spec.timeoutSeconds if the job needs longer"


async def test_an_agent_that_is_cancelled_takes_restic_with_it(
    endless: tuple[Runner, Callable[[], Any | bool]], repository: Repository
) -> None:
    runner, reads = endless
    running = asyncio.create_task(runner.run(backup("/etc"), repository, Told()))
    await until(reads)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert restic(repository, "list", "locks") == ""


async def test_a_job_that_is_stopped_before_it_began_does_not_begin(
    make: Callable[..., Runner], repository: Repository, tmp_path: Path
) -> None:
    runner = make(f"touch {tmp_path}/began")
    runner.stop("j1", "cancelled")
    end = await runner.run(backup("/etc"), repository, Told())
    assert (end.status, end.started_at, end.error) == ("cancelled", None, "cancelled before it began")
    assert not (tmp_path / "began").exists()


async def test_a_restic_that_does_not_heed_is_killed_with_its_children(
    make: Callable[..., Runner], repository: Repository, tmp_path: Path
) -> None:
    told, runner = Told(), make("trap '' INT; sleep 600 & echo $!; wait; wait", grace_s=0.1, progress_s=0.01)
    running = asyncio.create_task(runner.run(backup("/etc"), repository, told))
    await until(lambda: told.lines)
    runner.stop("j1", "cancelled")
    end = await running
    assert (end.status, end.exit_code) == ("cancelled", -signal.SIGKILL)
    await until(lambda: not alive(told.lines[0]))


async def test_a_child_that_keeps_the_pipes_does_not_keep_the_job(
    make: Callable[..., Runner], repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LINGER_S", 0.1)
    told = Told()
    end = await make(f"sleep 600 & echo $!; echo '{MADE}'", progress_s=0.01).run(backup("/etc"), repository, told)
    assert end.status == "succeeded"
    await until(lambda: not alive(told.lines[0]))


AGENT = """
import asyncio, pathlib, sys
from datetime import UTC, datetime
from agent.restic.runner import Runner
from wire.messages import CommandRun, Repository
program, cache, url = sys.argv[1:]
runner = Runner(program, pathlib.Path(cache), lambda: datetime.now(UTC))
command = CommandRun("j1", "backup", ["backup"], "r1")
asyncio.run(runner.run(command, Repository("r1", "ns/main", url, "correct horse battery"), print))
"""


async def test_an_agent_that_is_killed_takes_restic_with_it_and_no_lock_is_left(
    endless: tuple[Runner, Callable[[], Any | bool]], repository: Repository, tmp_path: Path
) -> None:
    _, reads = endless
    argv: list[str | Path] = [sys.executable, "-c", AGENT, tmp_path / "restic", tmp_path / "cache", repository.url]
    agent = await asyncio.create_subprocess_exec(*argv)
    await until(reads)
    agent.kill()
    await agent.wait()
    await until(lambda: not list(Path(repository.url, "locks").iterdir()))


# What it is given, and what it says.


async def test_restic_is_given_no_more_of_the_agents_environment_than_it_needs(
    make: Callable[..., Runner], repository: Repository
) -> None:
    told = Told()
    env = {"PATH": os.environ["PATH"], "HOME": "/root", "LAMPLIGHTER_TOKEN": "x", "LD_PRELOAD": "", "AWS_PROFILE": "x"}
    await make("env", env=env).run(backup("/etc"), repository, told)
    names = {line.partition("=")[0] for line in told.lines}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"} == {
        *("PATH", "HOME", "TMPDIR"),
        *("RESTIC_REPOSITORY", "RESTIC_PASSWORD", "RESTIC_CACHE_DIR", "RESTIC_PROGRESS_FPS"),
    }
    assert "RESTIC_PASSWORD=***" in told.lines


async def test_nothing_of_a_repository_stands_in_the_arguments(
    make: Callable[..., Runner], repository: Repository
) -> None:
    told = Told()
    await make('cat /proc/$$/cmdline | tr "\\0" "\\n"').run(backup("/etc"), repository, told)
    assert "backup" in told.lines
    assert not {PASSWORD, "***", repository.url} & set(told.lines)


async def test_long_lines_are_cut_and_a_last_line_needs_no_end(
    make: Callable[..., Runner], repository: Repository
) -> None:
    told = Told()
    await make("head -c 1000000 /dev/zero | tr '\\0' x; echo; printf 'the last' >&2").run(
        backup("/etc"), repository, told
    )
    assert [line[:8] for line in told.lines] == ["xxxxxxxx", "the last"]
    assert max(map(len, told.lines)) == 4096


async def test_a_log_without_end_is_bounded_and_says_how_much_is_left_out(
    make: Callable[..., Runner], repository: Repository
) -> None:
    told = Told()
    await make("seq 20000").run(backup("/etc"), repository, told)
    assert told.lines == [str(n + 1) for n in range(news_of_jobs.MAX_LOG_LINES)] + ["… 15000 more lines are left out"]
    assert max(len(news.lines) for news in told.news if isinstance(news, JobLog)) <= 1000


async def test_progress_is_told_at_a_bounded_rate_and_the_latest_counts(
    make: Callable[..., Runner], repository: Repository
) -> None:
    told = Told()
    line = '{"message_type":"status","percent_done":0.%s}'
    script = "".join(f"echo '{line % at}'\n" for at in range(10, 100))
    end = await make(f"{script}echo '{MADE}'", progress_s=60).run(backup("/etc"), repository, told)
    assert end.status == "succeeded"
    assert len(told.progress) <= 2
    assert told.progress[-1].fraction == 0.99
