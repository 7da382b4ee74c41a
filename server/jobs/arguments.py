"""restic's argument lists, built from a Schedule's spec so that no value can become an option.

Options that carry a value are one word (`--tag=…`), and `--` ends the options before the paths (restic(1); POSIX
Utility Syntax Guideline 10).
"""

import re
from collections.abc import Sequence

from server.resources import restic
from server.resources.restic import quantity
from server.resources.specs import Backup, Hooks, PruneOptions, RepositorySpec, Retention, ScheduleSpec, Verify
from wire import messages

KINDS = frozenset({"backup", "forget", "prune", "check", "unlock", "verify", "copy"})
"""Kinds that a Schedule can have."""


MAX_BACKUPS = 256
"""Maximum Schedules of kind backup whose snapshots a forget finds by itself: each is an argument."""


def run_args(spec: ScheduleSpec, name: str, host: str, backups: Sequence[str] = ()) -> list[str]:
    """restic's arguments for a Schedule's job on a host, valid for restic 0.14 to 0.19, but for the options that
    `restic.OPTIONS` gives a later version.

    `name`: the Schedule's name, NAMESPACE/NAME. `backups`: the names of the Schedules of kind backup that use the same
    Repository, whose snapshots a forget looks at; of more than MAX_BACKUPS the first. Raises ValueError for a kind that
    is not in KINDS.
    """
    match spec:
        case ScheduleSpec(kind="backup", backup=Backup() as backup):
            what = ["--", *backup.paths]
            if backup.command:  # the agent adds the command that restic runs
                what = ["--stdin-from-command", f"--stdin-filename={backup.stdin_filename}"]
            return ["backup", "--json", f"--host={host}", *_backup_options(backup, name), *what]
        case ScheduleSpec(kind="forget", retention=Retention() as retention):
            hosts = [] if retention.all_hosts else [f"--host={host}"]
            which = [*hosts, *_filter(retention, name, backups)]
            prune = ["--prune", *_prune_options(spec.prune_options)] if retention.prune else []
            return ["forget", *which, *_policy(retention), *prune]
        case ScheduleSpec(kind="check"):
            subset = spec.check.read_data_subset if spec.check else None
            return ["check", *([f"--read-data-subset={subset}"] if subset else [])]
        case ScheduleSpec(kind="prune"):
            return ["prune", *_prune_options(spec.prune_options)]
        case ScheduleSpec(kind="unlock" | "copy" as kind):
            return [kind]
        case ScheduleSpec(kind="verify"):
            return ["ls", "--json", f"--host={host}", "--", "latest"]
    raise ValueError(f"kind {spec.kind!r} is not run by this version: use one of {', '.join(sorted(KINDS))}")


def verify_part(spec: ScheduleSpec) -> messages.Verify | None:
    """What kind verify restores, in files and bytes; None for other kinds."""
    if spec.kind != "verify":
        return None
    verify = spec.verify or Verify()
    return messages.Verify(verify.files, quantity(verify.max_bytes))


def hooks_part(spec: ScheduleSpec, name: str) -> messages.Hooks | None:
    """The programs to run before and after restic; None for a job that runs no program of the host.

    `name`: the Schedule's name, NAMESPACE/NAME.
    """
    hooks = spec.hooks or Hooks()
    if not (hooks.before or hooks.after or stdin_command(spec)):
        return None
    return messages.Hooks(list(hooks.before), list(hooks.after), name)


def stdin_command(spec: ScheduleSpec) -> list[str]:
    """The program, with its arguments, whose output a backup stores; empty for a backup of files, or another kind."""
    return list(spec.backup.command) if spec.backup is not None else []


def own_tag(name: str) -> str:
    """The tag of all snapshots that a Schedule makes. `name`: NAMESPACE/NAME."""
    return f"lamplighter={name}"


def _backup_options(backup: Backup, name: str) -> list[str]:
    return restic.words(
        {
            "--one-file-system": backup.one_file_system,
            "--exclude-caches": backup.exclude_caches,
            "--with-atime": backup.with_atime,
            "--no-scan": backup.no_scan,
            "--skip-if-unchanged": backup.skip_if_unchanged,
            "--read-concurrency": backup.read_concurrency,
            "--compression": backup.compression,
            "--pack-size": restic.mebibytes(backup.pack_size),
            "--exclude-larger-than": restic.bytes_of(backup.exclude_larger_than),
            "--tag": (own_tag(name), *backup.tags),
            "--exclude-if-present": backup.exclude_if_present,
            "--exclude": backup.excludes,
            "--iexclude": backup.iexcludes,
        }
    )


def _filter(retention: Retention, name: str, backups: Sequence[str]) -> list[str]:
    """Which snapshots a forget looks at, by tags, and what groups it counts.

    Without any backup it gets its own tag, which no snapshot has: without a tag it would look at all snapshots.
    """
    own = tuple(map(own_tag, backups[:MAX_BACKUPS] or (name,)))
    groups = None if retention.group_by is None else ",".join(dict.fromkeys(retention.group_by))
    return restic.words({"--tag": () if retention.all_tags else retention.tags or own, "--group-by": groups})


def _prune_options(options: PruneOptions | None) -> list[str]:
    options = options or PruneOptions()
    unused = options.max_unused
    if unused is not None and unused != "unlimited" and not unused.endswith("%"):
        unused = str(quantity(unused))
    return restic.words({"--max-unused": unused, "--max-repack-size": restic.bytes_of(options.max_repack_size)})


def _policy(retention: Retention) -> list[str]:
    counts = {
        "last": retention.keep_last,
        "hourly": retention.keep_hourly,
        "daily": retention.keep_daily,
        "weekly": retention.keep_weekly,
        "monthly": retention.keep_monthly,
        "yearly": retention.keep_yearly,
        "within": retention.keep_within,
    }
    tags = [f"--keep-tag={tag}" for tag in retention.keep_tags]
    return [*(f"--keep-{name}={value}" for name, value in counts.items() if value is not None), *tags]


def init_args(init: bool, kind: str = "backup") -> list[str] | None:
    """The arguments that create a missing repository for a job of this kind; None if they are not to.

    Only kinds that fill a repository have a use for an empty one. A copy shares the parameters that cut files into
    pieces, since it would else store again what both have (restic's manual, "Copying snapshots between repositories").
    """
    if not init or kind not in ("backup", "copy"):
        return None
    return ["init", "--copy-chunker-params"] if kind == "copy" else ["init"]


def snapshots_args(host: str) -> list[str]:
    """The arguments that list a host's snapshots, or those of all hosts for "". restic takes no lock."""
    return ["snapshots", "--json", "--no-lock", *([f"--host={host}"] if host else [])]


def ls_args(host: str, snapshot: str, path: str) -> list[str]:
    """The arguments that list a folder of a snapshot. restic takes no lock.

    `snapshot`: an id, or "latest" for the last one of `host`, or of any host for "".
    """
    return ["ls", "--json", "--no-lock", *([f"--host={host}"] if host else []), "--", snapshot, path]


def ls_below_args(snapshot: str, paths: Sequence[str]) -> list[str]:
    """The arguments that list these paths of a snapshot with all below them, or all of it if there are none."""
    return ["ls", "--json", "--no-lock", *["--recursive"] * bool(paths), "--", snapshot, *paths]


def find_args(host: str, snapshot: str, name: str) -> list[str]:
    """The arguments that find files and folders of a snapshot by name, in any case, and all below those folders.

    `name`: as `name_pattern` returns it. Other characters of restic's patterns stand for themselves. restic takes no
    lock.
    """
    pattern = re.sub(r"([\\\[])", r"\\\1", name)
    of_host = [f"--host={host}"] if host else []
    return ["find", "--json", "--no-lock", "--ignore-case", *of_host, f"--snapshot={snapshot}", "--", pattern]


def name_pattern(name: str) -> str:
    """A pattern of file names, in which `*` stands for any characters and `?` for one: a name without them is a part of
    one. With slashes it is about the last parts of a path, or about all of them if it begins with one."""
    return name if name.startswith("/") or set(name) & set("*?") else f"*{name}*"


def is_named(pattern: str, path: str) -> bool:
    """Whether a path matches a pattern of `name_pattern`, in any case."""
    wanted, parts = pattern.strip("/").split("/"), path.strip("/").split("/")
    if len(parts) < len(wanted) or (pattern.startswith("/") and len(parts) != len(wanted)):
        return False
    return all(
        re.fullmatch(re.escape(it).replace(r"\*", ".*").replace(r"\?", "."), part, re.IGNORECASE | re.DOTALL)
        for it, part in zip(wanted, parts[-len(wanted) :], strict=True)
    )


def repository_id(row_id: str, spec: RepositorySpec, source: str, host: str) -> str:
    """The repository id in the command of a job on `host`: the id of its row.

    If the URL holds `{host}` and is to name another host, `/SOURCE` follows.
    """
    return f"{row_id}/{source}" if "{host}" in spec.url and source != host else row_id


def repository_url(spec: RepositorySpec, namespace: str, host: str) -> str:
    """The repository's URL with {host} and {namespace} filled in; both are RFC 1123 names, free of slashes."""
    return spec.url.replace("{host}", host).replace("{namespace}", namespace)
