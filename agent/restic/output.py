"""restic as data: the environment it is given, the lines it prints, and what its end means. Nothing here does I/O.

Sources: restic's manual, chapter "Scripting" (environment variables, exit codes, JSON output), and its source
(internal/ui/backup/json.go, internal/ui/restore/json.go, cmd/restic/main.go), read for 0.14, 0.17, 0.18 and 0.19.
"""

import ipaddress
import os
import re
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct

from agent.sandbox.confine import NOT_CONFINED, NOT_EMPTY, NOT_GRANTED, NOT_PLACED, NOT_WRITABLE
from wire import variables
from wire.messages import JobReason, Repository

MAX_LINE = 1 << 20
"""Bytes of one line of restic that are read; the rest of a longer line is left out."""
MAX_TEXT = 4096
"""Characters of one text on the wire (`wire.messages.Text`)."""

# The environment.

_FROM_HOST = (
    *("PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
_IDENTITY = (
    *("SSH_AUTH_SOCK", "GOOGLE_APPLICATION_CREDENTIALS"),
    *(f"AWS_{name}" for name in ("PROFILE", "SHARED_CREDENTIALS_FILE", "CONFIG_FILE", "ROLE_ARN")),
    *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    *(f"AZURE_{name}" for name in ("CLIENT_ID", "TENANT_ID", "FEDERATED_TOKEN_FILE")),
)
"""What says who the host is: restic has it only where the namespace may speak as the host."""
FILES_LENT = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE"),
    *("AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_FEDERATED_TOKEN_FILE"),
)
"""Variables that name a file which restic must be able to read."""
_KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "s3": (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),),
    "gs": (("GOOGLE_ACCESS_TOKEN",),),
    "azure": (
        *(("AZURE_ACCOUNT_KEY",), ("AZURE_ACCOUNT_SAS",)),
        ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"),
    ),
}
"""Of a backend that asks the cloud's metadata service who the host is when it has no keys: the sets of keys that do."""
_BY_HOST = {"sftp": "the host's SSH keys", "rclone": "the host's rclone configuration"}
"""Schemes that have no keys but the host's. ssh finds root's home in /etc/passwd, whatever HOME says."""
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|SAS")
_AUTHORITY = re.compile(r"(?:://|^s3:(?!https?:))(?:[^/@]*@)?(\[[^\]/]*\]|[^/:?#]+)")
_METADATA_NAMES = (
    *("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"),
    "metadata.tencentyun.com",
)
_METADATA_ADDRESSES = (
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
)
"""Beside link-local addresses: of AWS, Google, Alibaba, Azure and Oracle."""
_URL_PASSWORD = re.compile(r"://[^/@:]*:([^/@]+)@")
SHORTEST_SECRET = 4
"""Characters: hiding anything shorter would blot out most of a text and hide nothing that could not be guessed."""


class RepositoryError(ValueError):
    """A repository that cannot be used as it is set up; says what to change."""


def restic_environment(
    repository: Repository,
    host_env: Mapping[str, str],
    cache_dir: Path,
    fps: float = 1.0,
    *,
    identity: bool = False,
) -> dict[str, str]:
    """The whole environment of a restic process: a few names of the host's, the repository's, and no others.

    `identity`: whether it may speak as the host; without that, a repository that would is refused.
    `fps`: progress lines per second, above 0; restic caps it at 60. Raises RepositoryError, naming the variable, for
    one that `wire.variables` does not allow.
    """
    lent = (*_FROM_HOST, *_IDENTITY) if identity else _FROM_HOST
    env = {name: host_env[name] for name in lent if name in host_env}
    for name, value in repository.env.items():
        if name not in variables.ALLOWED:
            raise RepositoryError(
                f"repository {repository.name}: variable {name!r} {variables.REFUSED}; "
                "remove it from the Secret that spec.envSecretRef names"
            )
        if "\0" in value:
            raise RepositoryError(f"repository {repository.name}: the value of {name} holds a NUL byte: correct it")
        env[name] = value
    if "\0" in repository.url or "\0" in repository.password:
        raise RepositoryError(f"repository {repository.name}: its URL or password holds a NUL byte: correct it")
    if not identity:
        _check_identity(repository)
    every = host_env.get("all_proxy", host_env.get("ALL_PROXY"))  # which restic knows nothing of
    for name in ("HTTPS_PROXY", "HTTP_PROXY"):
        if every and name not in env and name.lower() not in env:
            env[name] = every
    env["RESTIC_REPOSITORY"] = repository.url
    env["RESTIC_PASSWORD"] = repository.password
    env["RESTIC_CACHE_DIR"] = str(cache_dir)
    env["RESTIC_PROGRESS_FPS"] = format(fps, "g")
    return env


def _check_identity(repository: Repository) -> None:
    """Raises RepositoryError for a repository that only what the host is could open, or that is where that is told."""
    allow = "or have the operator set hostIdentity in the namespace's grant, to have restic speak as the host"
    scheme = repository.url.partition(":")[0].lower()
    if scheme in _BY_HOST:
        raise RepositoryError(f"repository {repository.name}: {scheme}: is opened by {_BY_HOST[scheme]} alone; {allow}")
    sets = _KEYS.get(scheme, ())
    if sets and not any(all(repository.env.get(name) for name in names) for names in sets):
        wanted = ", or ".join(" and ".join(names) for names in sets)
        raise RepositoryError(
            f"repository {repository.name}: {scheme}: needs {wanted} in the Secret of spec.envSecretRef; {allow}"
        )
    for url in (repository.url, *repository.env.values()):
        if (found := _AUTHORITY.search(url)) and _tells_identity(found[1]):
            raise RepositoryError(
                f"repository {repository.name}: {found[1]} is a metadata service: name where snapshots go, {allow}"
            )


def _tells_identity(name: str) -> bool:
    """Whether the host of a URL is, by its name or address, a cloud's service that tells a machine who it is."""
    name = name.strip("[]").rstrip(".").lower()
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(socket.inet_aton(name))
    except OSError:
        try:
            address = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return name in _METADATA_NAMES
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_link_local or str(address) in _METADATA_ADDRESSES


def redactor(repository: Repository) -> Callable[[str], str]:
    """What puts *** in place of the repository's secrets in a text; secrets below SHORTEST_SECRET are left."""
    secrets = {repository.password}
    secrets.update(value for name, value in repository.env.items() if _SECRET_NAME.search(name))
    for password in _URL_PASSWORD.findall(repository.url):
        secrets.update((password, unquote(password)))
    hidden = sorted((secret for secret in secrets if len(secret) >= SHORTEST_SECRET), key=len, reverse=True)
    if not hidden:
        return str
    pattern = re.compile("|".join(map(re.escape, hidden)))
    return lambda text: pattern.sub("***", text)


# What it prints.


class Status(Struct, frozen=True):
    """How far restic is. `fraction`: 0 to 1; the counts are 0 where restic does not tell them."""

    fraction: float
    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0


class Summary(Struct, frozen=True):
    """What a backup or a restore (since 0.16) has done. `snapshot_id`: of a backup, 8 digits before restic 0.15, else
    64; `bytes_added`: before compression."""

    snapshot_id: str
    files_processed: int
    bytes_processed: int
    bytes_added: int


class Unreadable(Struct, frozen=True):
    """A path that the snapshot lacks, and why. `path`: that path alone."""

    text: str
    path: str


class LogLine(Struct, frozen=True):
    """What restic says to people; may hold line breaks."""

    text: str


Output = Status | Summary | Unreadable | LogLine


class _Message(Struct):
    """The fields of restic's JSON messages that are read here."""

    message_type: str = ""
    percent_done: float = 0.0
    files_done: int = 0
    total_files: int = 0
    bytes_done: int = 0
    total_bytes: int = 0
    snapshot_id: str = ""
    total_files_processed: int = 0
    total_bytes_processed: int = 0
    data_added: int = 0
    files_restored: int = 0
    bytes_restored: int = 0
    error: Raw = Raw(b"{}")
    during: str = ""
    item: str = ""
    message: str = ""


class _Error(Struct):
    """A Go error as JSON: its text since 0.16, the fields of an os.PathError before."""

    message: str = ""
    op: str = msgspec.field(default="", name="Op")
    path: str = msgspec.field(default="", name="Path")
    errno: int = msgspec.field(default=0, name="Err")


_messages = msgspec.json.Decoder(_Message)
_errors = msgspec.json.Decoder(_Error)
_ERRORS = re.compile(r"(?:Fatal: )?There were (\d+) errors")
_BAR = re.compile(r"\[[0-9:]+\] +([0-9.]+)%  [0-9]+ / [0-9]+ .*")
_SKIPPED = re.compile(r"(.*) (does not exist|cannot be accessed), skipping")
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def read_line(line: bytes) -> Output | None:
    """What a line of restic's stdout or stderr says; None for what nobody needs. Never raises.

    JSON that is no message of restic's is a log line, and so is everything else that is not JSON.
    """
    if line.startswith(b"{"):
        try:
            return _read_message(_messages.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    text = plain(line)
    if bar := _BAR.fullmatch(text):
        return Status(_fraction(float(bar[1]) / 100)) if bar[1].count(".") == 1 else None
    if skipped := _SKIPPED.fullmatch(text):  # before 0.19 restic exits with 0 though it is not in the snapshot
        return Unreadable(text, skipped[1])
    return LogLine(text) if text else None


def is_left_out(line: bytes, paths: Collection[str]) -> bool:
    """Whether a line says that one of these paths, or file capabilities of any, could not be restored."""
    if line.startswith(b"{"):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            message = _messages.decode(line)
            is_error = message.message_type == "error" and message.during == "restore"
            return is_error and (message.item in paths or b"security.capability" in line)
    text = plain(line)
    _, begins, said = text.partition("ignoring error for ")
    parts = said.split(": ")  # a path may hold that, too
    found = any(": ".join(parts[:at]) in paths for at in range(1, len(parts)))
    return bool(begins) and (found or "security.capability" in text)


def count_of_errors(line: bytes) -> int | None:
    """How many errors a restore had in all, where this is the line that ends it so."""
    text = plain(line)
    if line.startswith(b"{"):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            text = _messages.decode(line).message
    found = _ERRORS.fullmatch(text.strip())
    return int(found[1]) if found else None


def local_folder(url: str) -> str:
    """The folder that a URL means, which may be relative to where restic runs; "" for one that is elsewhere.

    As restic reads it (internal/backend/location): what the server takes for a folder is for the server to say, and
    where the two differ the kernel keeps restic from the folder.
    """
    if url.startswith("local:"):
        return url.removeprefix("local:")
    return url if ":" not in url or url.startswith(("/", "./", "../")) else ""


def plain(line: bytes) -> str:
    """The line as text that can be shown: nothing in it moves a cursor or breaks an encoding."""
    return _UNPRINTABLE.sub("", line.decode(errors="replace")).strip()


def _read_message(message: _Message) -> Output | None:
    match message.message_type:
        case "status":
            files, size = message.files_done or message.files_restored, message.bytes_done or message.bytes_restored
            counts = (files, message.total_files, size, message.total_bytes)
            return Status(_fraction(message.percent_done), *map(_count, counts))
        case "summary":
            files = message.total_files_processed or message.files_restored
            sums = (files, message.total_bytes_processed or message.bytes_restored, message.data_added)
            return Summary(_UNPRINTABLE.sub("", message.snapshot_id)[:64], *map(_count, sums))
        case "error":
            path = _UNPRINTABLE.sub("", message.item)
            text = _UNPRINTABLE.sub("", f"{message.item}: {_error_text(message)}")
            return LogLine(text) if message.during == "scan" else Unreadable(text, path)  # a scan only counts files
        case "exit_error":
            return LogLine(_UNPRINTABLE.sub("", message.message).strip())
    return None


def _error_text(message: _Message) -> str:
    try:
        error = _errors.decode(message.error)
    except msgspec.DecodeError:
        return bytes(message.error).decode(errors="replace")
    return error.message or f"{error.op} {error.path}: {os.strerror(error.errno)}"


def _fraction(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _count(value: int) -> int:
    return min(max(value, 0), 2**53)


def clipped(text: str) -> str:
    """The text, cut to what the wire carries."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


class Lines:
    """Makes lines of bytes as they come. Of a line longer than `limit` bytes the rest is left out."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._part = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that this data ends."""
        *ended, rest = data.split(b"\n")
        lines = []
        for piece in ended:
            self._keep(piece)
            lines += self.rest()
        self._keep(rest)
        return lines

    def rest(self) -> list[bytes]:
        """The line begun and not ended, if there is one; call it at the end of the stream."""
        line, self._part = bytes(self._part), bytearray()
        return [line] if line else []

    def _keep(self, piece: bytes) -> None:
        self._part += piece[: max(0, self._limit - len(self._part))]


# What its end means.

End = Literal[
    "succeeded",
    "warning",
    "failed",
    "no_repository",
    "repository_exists",
    "damaged",
    "locked",
    "wrong_password",
    "no_snapshot",
]
_REASONS: Mapping[End, JobReason] = {
    "no_repository": "NoRepository",
    "locked": "Locked",
    "wrong_password": "WrongPassword",
    "no_snapshot": "NoSnapshot",
}
_LAUNCH_REASONS: Mapping[int, JobReason] = {
    NOT_GRANTED: "NotGranted",
    NOT_EMPTY: "TargetNotEmpty",
    NOT_CONFINED: "NotConfined",
    NOT_PLACED: "",
    NOT_WRITABLE: "TargetNotWritable",
}


class Outcome(Struct, frozen=True):
    """How a job, or one program of it, ended. `error`: for people, with the remedy; empty when it succeeded."""

    end: End
    error: str = ""
    reason: JobReason = ""


class _Problem(Struct, frozen=True):
    """Something known to go wrong: restic's exit code for it, if it has one, and the text by which others tell it."""

    end: End
    code: int | None
    pattern: re.Pattern[str]
    remedy: str


_PROBLEMS = (
    _Problem(
        "no_repository",
        10,  # before 0.17 every exit code but 0 and 3 is 1, and the text tells
        re.compile(r"unable to open config file: .*(does not exist|doesn't exist|no such file|not found|\b404\b)"),
        "there is no repository: set spec.init: true on the Repository, or create it with `restic init`",
    ),
    _Problem(
        "locked",
        11,
        re.compile(r"repository is already locked"),
        "the repository is locked: let the other job end; if none is running, run a Schedule of kind unlock",
    ),
    _Problem(
        "wrong_password",
        12,  # since 0.17.1
        re.compile(r"wrong password or no key found|an empty password is not"),
        "the password does not open the repository: correct the Secret that spec.passwordSecretRef names",
    ),
    _Problem(
        "no_snapshot",
        None,  # before 0.15 such a snapshot is ignored, which makes an empty list
        re.compile(r"no snapshot found|no matching ID found"),
        "there is no such snapshot: list the snapshots, and choose among those",
    ),
    _Problem(
        "repository_exists",
        None,
        re.compile(r"config file already exists|config already initialized|already contains keys"),
        "the repository exists already",
    ),
    _Problem(
        "damaged",
        None,
        re.compile(r"config.* ciphertext verification failed"),
        "the repository's key or config is damaged: if it is new, two hosts created it at once: delete it, run again",
    ),
    _Problem(
        "failed",
        None,
        re.compile(r"no space left on device|disk quota exceeded"),
        "a disk is full, of the repository or of the agent's cache: free space there",
    ),
    _Problem(
        "failed",
        None,
        re.compile(r"unable to open config file"),
        "the repository cannot be reached: check spec.url, the Secret that spec.envSecretRef names, and the network",
    ),
)
_USEFUL = re.compile(r"(Fatal|panic|fatal error|Warning|error): ?.*")
_CAUSE = re.compile(
    r"no space left on device|quota exceeded|read-only file system|permission denied|input/output error"
)


NAMED_PATHS = 3
"""Paths that are told by name where some could not be read."""
MAX_PATH = 80
"""Characters of such a path that are told: of a longer one its end."""


def read_outcome(
    exit_code: int | None, stderr: Sequence[str], unreadable: int = 0, paths: Sequence[str] = ()
) -> Outcome:
    """What an exit code means, together with the last lines of stderr and the number of paths that were not read.

    `paths`: some of those that were not read. `exit_code`: negative for the signal that ended the process, as in
    subprocess; None when nothing ended it. A backup that left out paths is a warning also where restic (before 0.19)
    exits with 0. Codes: restic's manual, "Exit codes"; one that is not known there "MUST be treated as a command
    failure".
    """
    said = _useful(stderr)
    if exit_code == 0 and not unreadable:
        return Outcome("succeeded")
    if exit_code in (0, 3):
        which = f": {named_paths(paths, unreadable)}" if paths else ""
        missing = f"{unreadable} paths could not be read and are not in the snapshot{which}" if unreadable else ""
        return Outcome("warning", clipped(missing or said or "restic exit code 3: not everything could be done"))
    if exit_code is None or exit_code < 0 or exit_code in (2, 130):
        return Outcome("failed", clipped(_with(_died(exit_code), said)))
    if (reason := _LAUNCH_REASONS.get(exit_code)) is not None:
        return Outcome("failed", clipped(stderr[-1] if stderr else reason), reason)
    text = "\n".join(stderr)
    for problem in _PROBLEMS:
        if exit_code == problem.code or (exit_code == 1 and problem.pattern.search(text)):
            return Outcome(problem.end, clipped(_with(problem.remedy, said)), _REASONS.get(problem.end, ""))
    return Outcome("failed", clipped(_with(f"restic exit code {exit_code}", said)))


def named_paths(paths: Sequence[str], count: int) -> str:
    """The first of `count` paths, each short enough for a line, and how many more there are."""
    told = [" ".join(path.split()) for path in paths[:NAMED_PATHS]]
    more = count - len(told)
    short = ", ".join(path if len(path) <= MAX_PATH else f"…{path[1 - MAX_PATH :]}" for path in told)
    return f"{short} and {more} more" if more > 0 else short


def _died(exit_code: int | None) -> str:
    if exit_code is None:
        return "restic did not end even on SIGKILL: it hangs in the kernel; check the host's disks and network mounts"
    if exit_code == 130:
        return "restic was interrupted by a signal that was not the agent's"
    if exit_code == 2:
        return "restic crashed: check the host's memory, and restic's version"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = ": check whether the host, or the agent's memory limit, ran out of memory" if name == "SIGKILL" else ""
    return f"restic was ended by {name}{hint}"


def _useful(stderr: Sequence[str]) -> str:
    """The line of stderr that says most: the first that names its severity, else the kernel's reason, else the last."""
    lines = [line for line in stderr if line.strip()]
    said = (line for matches in (_USEFUL.fullmatch, _CAUSE.search) for line in lines if matches(line))
    return next(said, lines[-1] if lines else "")


def _with(advice: str, said: str) -> str:
    return f"{advice} ({said})" if said else advice


# When it is tried again.

CREATION_WAITS = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each try on a repository that another host may be about to create: a key comes before the config."""
_FIRST_LOCK_WAIT_S, _LAST_LOCK_WAIT_S = 5.0, 60.0


def lock_waits(limit_s: float) -> Iterator[float]:
    """Seconds to wait before each try on a locked repository: they double, and are `limit_s` together."""
    wait, left = _FIRST_LOCK_WAIT_S, limit_s
    while left > 0:
        yield min(wait, left)
        left -= wait
        wait = min(2 * wait, _LAST_LOCK_WAIT_S)
