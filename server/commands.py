"""restic's arguments for a schedule: lists made from its spec, in which no value can become an option.

Options that carry a value are one word (`--tag=…`), and `--` ends the options before the paths (restic(1); POSIX
Utility Syntax Guideline 10).
"""

from server.specs import RepositorySpec, ScheduleSpec

KINDS = frozenset({"backup"})
"""The kinds that this version runs."""


def run_args(spec: ScheduleSpec, name: str, host: str) -> list[str]:
    """The arguments that do what a schedule says on a host; `name` is the schedule's namespace/name.

    Raises ValueError for a kind that is not in KINDS.
    """
    if spec.kind == "backup" and spec.backup is not None:
        backup = spec.backup
        flags = ["--one-file-system"] * backup.one_file_system + ["--exclude-caches"] * backup.exclude_caches
        tags = [f"--tag={tag}" for tag in (f"lamplighter={name}", *backup.tags)]
        excludes = [f"--exclude={pattern}" for pattern in backup.excludes]
        return ["backup", "--json", f"--host={host}", *flags, *tags, *excludes, "--", *backup.paths]
    raise ValueError(f"kind {spec.kind!r} is not run by this version: use one of {', '.join(sorted(KINDS))}")


def init_args(spec: RepositorySpec) -> list[str] | None:
    """The arguments that create a repository, where its spec allows that."""
    return ["init"] if spec.init else None


def repository_url(spec: RepositorySpec, namespace: str, host: str) -> str:
    """The repository's URL with {host} and {namespace} filled in; both are RFC 1123 names, free of slashes."""
    return spec.url.replace("{host}", host).replace("{namespace}", namespace)
