"""restic gets the environment it needs and no more, and its output and exit code are understood in every version."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.restic.environment import RepositoryError, copy_environment, redactor, restic_environment
from agent.restic.outcome import Outcome, lock_waits, read_outcome
from agent.restic.output import (
    MAX_TEXT,
    Lines,
    LogLine,
    Status,
    Summary,
    Unreadable,
    count_of_errors,
    is_left_out,
    read_line,
)
from wire.messages import Repository

CACHE = Path("/var/cache/lamplighter")
PASSWORD = "correct horse"


def repository(url: str = "/backup", password: str = PASSWORD, env: dict[str, str] | None = None) -> Repository:
    return Repository("r1", "ns/main", url, password, env or {})


def said(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


# The environment.


def test_restic_gets_its_repository_and_little_of_the_host() -> None:
    host = {"PATH": "/usr/bin", "HOME": "/root", "https_proxy": "http://p", "LAMPLIGHTER_TOKEN": "x", "LD_PRELOAD": "x"}
    given_env = restic_environment(repository(env={"AWS_ACCESS_KEY_ID": "AKIA"}), host, CACHE, 0.5)
    assert given_env == {
        "PATH": "/usr/bin",
        "HOME": "/root",
        "https_proxy": "http://p",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "RESTIC_REPOSITORY": "/backup",
        "RESTIC_PASSWORD": "correct horse",
        "RESTIC_CACHE_DIR": str(CACHE),
        "RESTIC_PROGRESS_FPS": "0.5",
    }


AWS = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s3cret"}
LOGIN = {"RESTIC_REST_USERNAME": "me:", "RESTIC_REST_PASSWORD": "a/b c"}


def copies(url: str, env: dict[str, str], source_url: str, source_env: dict[str, str]) -> dict[str, str]:
    """The environment of a copy, without what every one has."""
    to, source = Repository("r2", "ns/far", url, "x", env), Repository("r1", "ns/main", source_url, "y", source_env)
    alone = [restic_environment(it, {}, CACHE, identity=True) for it in (to, source)]
    found = copy_environment(to, source, alone[0], alone[1], ["to", "from"])
    common = {"RESTIC_PROGRESS_FPS": "1", "RESTIC_CACHE_DIR": str(CACHE)}
    common |= {"RESTIC_PASSWORD_FILE": "to", "RESTIC_FROM_PASSWORD_FILE": "from"}
    assert common.items() <= found.items()
    return {name: value for name, value in found.items() if name not in common}


@pytest.mark.parametrize(
    ("to", "source", "env"),
    [
        (("/far", {}), ("s3:s3.com/b", AWS), AWS),
        (("s3:s3.com/b", AWS), ("s3:s3.com/a", AWS), AWS),
        (("s3:s3.com/b", AWS), ("b2:c", {"B2_ACCOUNT_KEY": "b"}), {**AWS, "B2_ACCOUNT_KEY": "b"}),
        (("rest:https://theirs/", {}), ("/main", LOGIN | AWS), {}),
        (("s3:theirs/b", AWS), ("b2:c", {"AWS_SESSION_TOKEN": "t", "RESTIC_PACK_SIZE": "8"}), AWS),
        (("/far", {"RESTIC_PACK_SIZE": "8"}), ("/main", {"RESTIC_PACK_SIZE": "9"}), {"RESTIC_PACK_SIZE": "8"}),
        (("/far", {}), ("/main", {"RESTIC_KEY_HINT": "1a"}), {"RESTIC_FROM_KEY_HINT": "1a"}),
    ],
)
def test_what_opens_one_repository_of_a_copy_reaches_no_storage_of_the_other(
    to: tuple[str, dict[str, str]], source: tuple[str, dict[str, str]], env: dict[str, str]
) -> None:
    assert copies(*to, *source) == env | {"RESTIC_REPOSITORY": to[0], "RESTIC_FROM_REPOSITORY": source[0]}


@pytest.mark.parametrize(
    ("url", "env", "opened"),
    [
        ("rest:https://u:8000/a", LOGIN, "rest:https://me%3A:a%2Fb%20c@u:8000/a"),
        ("rest:https://u", {"RESTIC_REST_PASSWORD": "p"}, "rest:https://:p@u"),
        ("rest:https://you:p@u/", LOGIN, "rest:https://you:p@u/"),
        ("rest:https://u/a@b", {}, "rest:https://u/a@b"),
    ],
)
def test_each_rest_server_of_a_copy_gets_its_own_login_alone(url: str, env: dict[str, str], opened: str) -> None:
    theirs = "rest:https://theirs/"
    assert copies(theirs, {}, url, env) == {"RESTIC_REPOSITORY": theirs, "RESTIC_FROM_REPOSITORY": opened}
    assert copies(url, env, theirs, {}) == {"RESTIC_REPOSITORY": opened, "RESTIC_FROM_REPOSITORY": theirs}
    assert "a%2Fb%20c" not in redactor(repository(url, env=env))(opened)


@pytest.mark.parametrize("other", [{}, {**AWS, "AWS_SECRET_ACCESS_KEY": "another"}, {**AWS, "AWS_REGION": "eu"}])
def test_a_copy_between_two_of_one_backend_needs_the_same_keys_for_both(other: dict[str, str]) -> None:
    for one, two in ((AWS, other), (other, AWS)):
        with pytest.raises(RepositoryError, match="ns/far and ns/main need different values of AWS_"):
            copies("s3:theirs/b", one, "s3:ours/b", two)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "LD_PRELOAD", "BASH_ENV", "HTTPS_PROXY", "aws_access_key_id", "AWS_X\n", "", "AWS_"),
        *(
            "RESTIC_REPOSITORY",
            "RESTIC_PASSWORD",
            "RESTIC_PASSWORD_COMMAND",
            "RESTIC_PASSWORD_FILE",
            "RESTIC_CACHE_DIR",
        ),
        *("AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CA_BUNDLE_FILE"),
        *("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "AZURE_FORCE_CLI_CREDENTIAL", "RCLONE_CONFIG"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_CONFIG_DIR", "RESTIC_CACERT"),
        *("GODEBUG", "SSH_ASKPASS", "SSH_AUTH_SOCK", "RCLONE_SFTP_SSH", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    ],
)
def test_a_variable_that_reaches_the_host_is_refused_by_name_with_the_remedy(name: str) -> None:
    with pytest.raises(RepositoryError, match="remove it from the Secret") as refused:
        restic_environment(repository(env={name: "s3cret"}), {}, CACHE)
    assert repr(name) in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "held", [repository(url="a\0b"), repository(password="a\0b"), repository(env={"AWS_REGION": "a\0b"})]
)
def test_a_nul_byte_is_refused_before_it_reaches_the_system(held: Repository) -> None:
    with pytest.raises(RepositoryError, match="NUL byte: correct it"):
        restic_environment(held, {}, CACHE)


# Who the host is.

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s3cret"}


@pytest.mark.parametrize(
    ("url", "env"),
    [
        ("s3:https://s3.example.org/b", {}),
        ("s3:https://s3.example.org/b", {"AWS_ACCESS_KEY_ID": "AKIA"}),
        ("s3:https://s3.example.org/b", {**KEYS, "AWS_SECRET_ACCESS_KEY": ""}),
        ("s3:169.254.169.254/b", KEYS),
        ("gs:b:/", {"GOOGLE_PROJECT_ID": "p"}),
        ("azure:b:/", {"AZURE_ACCOUNT_NAME": "a"}),
        ("azure:b:/", {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"}),
        ("rest:http://169.254.169.254/latest", {}),
        ("rest:http://me:pw@169.254.170.2:80/", {}),
        ("rest:http://0xA9FEA9FE/", {}),
        ("rest:http://2852039166/", {}),
        ("rest:http://[fd00:ec2::254]/", {}),
        ("rest:http://[::ffff:169.254.169.254]/", {}),
        ("rest:http://[fe80::1%25eth0]/", {}),
        ("rest:http://Metadata.Google.Internal./x", {}),
        ("rest:http://metadata.goog/x", {}),
        ("rest:http://[fd00:ec2::23]/", {}),
        ("sftp:me@nas:/srv", {}),
        ("sftp://me@nas/srv", KEYS),
        ("rclone:remote:b", {}),
        ("s3:http://169.254.169.254/b", KEYS),
        ("swift:c:/", {"OS_AUTH_URL": "http://169.254.169.254/v3"}),
        ("s3:https://s3.example.org/b", {**KEYS, "RESTIC_AWS_ASSUME_ROLE_STS_ENDPOINT": "http://169.254.169.254"}),
    ],
)
def test_a_repository_that_only_the_hosts_identity_opens_is_refused_unless_that_is_lent(
    url: str, env: dict[str, str]
) -> None:
    held = repository(url=url, env=env)
    with pytest.raises(RepositoryError, match="hostIdentity in the namespace's grant") as refused:
        restic_environment(held, {}, CACHE)
    assert "s3cret" not in str(refused.value)
    restic_environment(held, {}, CACHE, identity=True)


@pytest.mark.parametrize(
    ("url", "env"),
    [
        ("s3:https://s3.example.org/b", KEYS),
        ("gs:b:/", {"GOOGLE_ACCESS_TOKEN": "t"}),
        ("azure:b:/", {"AZURE_ACCOUNT_NAME": "a", "AZURE_ACCOUNT_SAS": "s"}),
        ("azure:b:/", {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s"}),
        ("b2:b:/", {}),
        ("rest:https://backup.example.org/169.254.169.254", {}),
        ("rest:http://10.0.0.1:8000/", {}),
        ("/srv/backup", {}),
    ],
)
def test_a_repository_with_keys_of_its_own_needs_no_identity(url: str, env: dict[str, str]) -> None:
    restic_environment(repository(url=url, env=env), {}, CACHE)


def test_what_says_who_the_host_is_reaches_restic_only_where_it_is_lent() -> None:
    host = {"SSH_AUTH_SOCK": "/s", "AWS_PROFILE": "p", "GOOGLE_APPLICATION_CREDENTIALS": "/g", "LAMPLIGHTER_TOKEN": "x"}
    assert not host.keys() & restic_environment(repository(), host, CACHE).keys()
    lent = restic_environment(repository(), host, CACHE, identity=True)
    assert host.keys() & lent.keys() == host.keys() - {"LAMPLIGHTER_TOKEN"}


def test_file_capabilities_and_known_devices_that_are_not_restored_are_told_from_other_errors() -> None:
    paths = {"/dev/a: b", "/dev/null"}
    assert is_left_out(b"ignoring error for /dev/a: b: permission denied", paths)
    assert is_left_out(b"ignoring error for /x: xattr.set /x security.capability: not permitted", paths)
    assert is_left_out(said(message_type="error", during="restore", item="/dev/null", error={}), paths)
    assert not is_left_out(b"ignoring error for /dev/a: permission denied", paths)
    assert not is_left_out(b"/dev/null: permission denied", paths)
    assert not is_left_out(said(message_type="error", during="archival", item="/dev/null", error={}), paths)


# Secrets.


def test_secrets_are_hidden_wherever_they_stand_and_nothing_else_is() -> None:
    env = {"AWS_SECRET_ACCESS_KEY": "hunter22", "AWS_DEFAULT_REGION": "eu-west-1", "AWS_SESSION_TOKEN": "horse"}
    hide = redactor(repository("rest:https://user:p%40ss%3Aword@host/", "correct horse", env))
    assert hide("opening rest:https://user:p%40ss%3Aword@host/ at eu-west-1") == (
        "opening rest:https://user:***@host/ at eu-west-1"
    )
    assert hide("p@ss:word, correct horse, horse and hunter22!") == "***, ***, *** and ***!"


def test_a_secret_too_short_to_hide_leaves_the_text_readable() -> None:
    assert redactor(repository(password="e"))("the repository") == "the repository"
    assert redactor(repository(password=""))("the repository") == "the repository"


def test_a_secret_is_no_pattern() -> None:
    assert redactor(repository(password=".*(["))("a .*([ b") == "a *** b"


# What it prints.


@pytest.mark.parametrize(
    ("line", "means"),
    [
        (
            said(message_type="status", percent_done=0.25, total_files=8, files_done=2, total_bytes=4, bytes_done=1),
            Status(0.25, 2, 8, 1, 4),
        ),
        (said(message_type="status", percent_done=0, seconds_elapsed=1), Status(0.0)),
        (said(message_type="status", percent_done=1.7, files_done=-1, total_bytes=2**60), Status(1.0, 0, 0, 0, 2**53)),
        (  # 0.14: a short id
            said(message_type="summary", total_files_processed=3, total_bytes_processed=9, snapshot_id="5ea1ed00"),
            Summary("5ea1ed00", 3, 9, 0),
        ),
        (  # 0.17: the whole id, and more fields
            said(message_type="summary", data_added_packed=4, data_added=5, snapshot_id="5e" * 32, dry_run=False),
            Summary("5e" * 32, 0, 0, 5, 4),
        ),
        (  # before 0.16: an os.PathError
            said(message_type="error", error={"Op": "open", "Path": "/x", "Err": 13}, during="archival", item="/x"),
            Unreadable("/x: open /x: Permission denied", "/x"),
        ),
        (  # since 0.16
            said(message_type="error", error={"message": "open /x: permission denied"}, during="archival", item="/x"),
            Unreadable("/x: open /x: permission denied", "/x"),
        ),
        (said(message_type="error", error="odd", during="archival", item="/x"), Unreadable('/x: "odd"', "/x")),
        (said(message_type="error", error={"message": "gone"}, during="scan", item="/x"), LogLine("/x: gone")),
        (said(message_type="exit_error", code=12, message="Fatal: wrong password"), LogLine("Fatal: wrong password")),
        (  # a restore, since 0.16
            said(message_type="status", percent_done=0.5, total_files=4, files_restored=2, bytes_restored=3),
            Status(0.5, 2, 4, 3, 0),
        ),
        (
            said(message_type="summary", total_files=4, files_restored=4, total_bytes=9, bytes_restored=9),
            Summary("", 4, 9, 0),
        ),
        (  # since 0.17
            said(message_type="error", error={"message": "no space"}, during="restore", item="/x"),
            Unreadable("/x: no space", "/x"),
        ),
        (said(message_type="verbose_status", action="new", item="/x"), None),
        (said(message_type="invented"), None),
        (said(other=1), None),
        (said(message_type="status", item=[]), LogLine('{"message_type": "status", "item": []}')),
        (b'{"message_type": "status"', LogLine('{"message_type": "status"')),
        (b"{" * 5000, LogLine("{" * 5000)),
        (b"[0:05] 40.00%  2 / 5 packs", Status(0.4)),
        (b"[0:05] 4.0.0%  2 / 5 packs", None),
        (b"/x does not exist, skipping", Unreadable("/x does not exist, skipping", "/x")),
        (b"  \x1b[2K\x1b[31mFatal\x1b[0m: no\x07 \xff ", LogLine("Fatal: no \ufffd")),
        (b"   ", None),
        (b"", None),
    ],
)  # fmt: skip
def test_a_line_is_read_as_what_it_says_in_any_version(
    line: bytes, means: Status | Summary | Unreadable | LogLine | None
) -> None:
    assert read_line(line) == means


@given(st.binary() | st.text().map(str.encode) | st.dictionaries(
    st.sampled_from(["message_type", "percent_done", "files_done", "snapshot_id", "error", "item", "message"]),
    st.sampled_from(["status", "summary", "error", "exit_error"]) | st.integers() | st.text(st.characters()),
).map(lambda fields: said(**fields)))  # fmt: skip
def test_no_line_is_too_odd_to_be_read(line: Any) -> None:
    match read_line(line):
        case Status(fraction=fraction, files_done=files):
            assert 0 <= fraction <= 1
            assert 0 <= files <= 2**53
        case LogLine(text) | Unreadable(text) | Summary(snapshot_id=text):
            text.encode()
            assert "\x1b" not in text


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"\n", b"a\nb"])), st.integers(1, 30))
def test_lines_are_the_same_however_their_bytes_come(pieces: list[Any], limit: int) -> None:
    lines = Lines(limit)
    found = [line for piece in pieces for line in lines.feed(piece)] + lines.rest()
    assert found == [line[:limit] for line in b"".join(pieces).split(b"\n") if line]


def test_of_a_line_without_end_no_more_is_kept_than_the_limit() -> None:
    lines = Lines(10)
    assert [lines.feed(b"x" * 1000) for _ in range(100)] == [[]] * 100
    assert lines.feed(b"\nnext\n") == [b"x" * 10, b"next"]


# What its end means.


@pytest.mark.parametrize(
    ("code", "stderr", "end", "says"),
    [
        (0, [], "succeeded", ""),
        (3, ["Warning: at least one source file could not be read"], "warning", "Warning: at least one source file"),
        (3, [], "warning", "restic exit code 3: not everything could be done"),
        (10, ["Fatal: repository does not exist"], "no_repository", "set spec.init: true on the Repository"),
        (11, ["unable to create lock in backend"], "locked", "run a Schedule of kind unlock"),
        (12, ["Fatal: wrong password"], "wrong_password", "correct the Secret that spec.passwordSecretRef names"),
        (1, ["Fatal: unable to open config file: stat /b: no such file or directory"], "no_repository", "spec.init"),
        (1, ["Fatal: unable to open config file: <config/> does not exist"], "no_repository", "spec.init"),
        (1, ["Fatal: unable to open config file: Head 403 Forbidden"], "failed", "cannot be reached: check spec.url"),
        (1, ["unable to create lock: repository is already locked by PID 1 on host"], "locked", "kind unlock"),
        (1, ["Fatal: wrong password or no key found"], "wrong_password", "(Fatal: wrong password or no key found)"),
        (1, ["Fatal: create repository failed: config file already exists"], "repository_exists", "exists already"),
        (1, ["Fatal: config or key ab is damaged: ciphertext verification failed"], "damaged", "two hosts created it"),
        (1, ["tree ab: ciphertext verification failed"], "failed", "restic exit code 1"),
        (77, ["/a leads to /b, which is not granted"], "failed", "/a leads to /b, which is not granted"),
        (1, ["reading", "Fatal: all targets do not exist", "bye"], "failed", "restic exit code 1 (Fatal: all"),
        (1, [], "failed", "restic exit code 1"),
        (99, ["odd"], "failed", "restic exit code 99 (odd)"),
        (2, ["panic: runtime error"], "failed", "restic crashed: check the host's memory"),
        (130, [], "failed", "interrupted by a signal that the agent did not send"),
        (-9, [], "failed", "restic was ended by SIGKILL: check whether the host ran out of memory"),
        (-77, [], "failed", "restic was ended by signal 77"),
        (None, [], "failed", "hangs in the kernel: check the host's disks"),
    ],
)  # fmt: skip
def test_an_end_is_told_apart_with_its_remedy(code: int | None, stderr: list[str], end: str, says: str) -> None:
    outcome = read_outcome(code, stderr)
    assert outcome.end == end
    assert says in outcome.error


@pytest.mark.parametrize("code", [0, 3])
def test_paths_that_were_not_read_make_a_warning_whatever_the_code(code: int) -> None:
    assert read_outcome(code, [], unreadable=2) == Outcome(
        "warning", "2 paths could not be read and are not in the snapshot"
    )


def test_paths_that_were_not_read_are_named_as_far_as_a_line_holds_them() -> None:
    paths = ["/a\nb", "/" + "x" * 200 + "/end", "/c"]
    told = read_outcome(3, [], 5, paths).error
    assert told.startswith("5 paths could not be read and are not in the snapshot: /a b, …xxx")
    assert told.endswith("x/end, /c and 2 more")
    assert len(told) < 256  # what conditions tell of a job


def test_an_error_is_cut_to_what_the_wire_carries() -> None:
    assert len(read_outcome(1, ["Fatal: " + "x" * 9999]).error) == MAX_TEXT


def test_a_locked_repository_is_waited_for_ever_longer_up_to_a_minute_and_no_longer_than_the_limit() -> None:
    assert list(lock_waits(300)) == [5, 10, 20, 40, 60, 60, 60, 45]
    assert list(lock_waits(7)) == [5, 2]
    assert list(lock_waits(0)) == []


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (b"Fatal: There were 2 errors", 2),
        (said(message_type="exit_error", code=1, message="Fatal: There were 12 errors\n"), 12),
        (b"There were 1 errors", 1),
        (b"Fatal: There were 2 errors in /a", None),
        (b'{"message_type":"status"}', None),
        (b"Fatal: wrong password", None),
    ],
)
def test_the_line_that_counts_a_restores_errors_is_known(line: bytes, count: int | None) -> None:
    assert count_of_errors(line) == count
