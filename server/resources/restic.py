"""The options of restic that specs ask for, each with the field that asks for it and the version that first has it.

Source: restic's CHANGELOG.md and its source (cmd/restic, internal/global), read for 0.14 to 0.19.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from server.resources.specs import RepositorySpec

Version = tuple[int, int]

OLDEST: Version = (0, 14)
"""The oldest version that is supported."""
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


class Option(Struct, frozen=True):
    """An option of restic.

    `field`: of a Schedule's spec, or of a Repository's, which then begins with "Repository ". `since`: the first
    version that has the option. `values`: values that a later version added, each with that version. `command`: a
    command of restic that has the option.
    """

    field: str
    name: str
    since: Version = OLDEST
    values: Mapping[str, Version] = {}
    command: str = "backup"


_LEVELS: Mapping[str, Version] = {"fastest": (0, 19), "better": (0, 19)}
OPTIONS = (
    Option("backup.oneFileSystem", "--one-file-system"),
    Option("backup.excludeCaches", "--exclude-caches"),
    Option("backup.excludes", "--exclude"),
    Option("backup.iexcludes", "--iexclude"),
    Option("backup.excludeLargerThan", "--exclude-larger-than"),
    Option("backup.excludeIfPresent", "--exclude-if-present"),
    Option("backup.tags", "--tag"),
    Option("backup.withAtime", "--with-atime"),
    Option("backup.noScan", "--no-scan", (0, 15)),
    Option("backup.readConcurrency", "--read-concurrency", (0, 15)),
    Option("backup.skipIfUnchanged", "--skip-if-unchanged", (0, 17)),
    Option("backup.command", "--stdin-from-command", (0, 17)),
    Option("backup.compression", "--compression", values=_LEVELS),
    Option("backup.packSize", "--pack-size"),
    Option("check.readDataSubset", "--read-data-subset", command="check"),
    Option("retention.tags", "--tag", command="forget"),
    Option("retention.groupBy", "--group-by", command="forget"),
    Option("pruneOptions.maxUnused", "--max-unused", command="prune"),
    Option("pruneOptions.maxRepackSize", "--max-repack-size", command="prune"),
    Option("Repository compression", "--compression", values=_LEVELS),
    Option("Repository packSize", "--pack-size"),
    Option("Repository limitUploadKiB", "--limit-upload"),
    Option("Repository limitDownloadKiB", "--limit-download"),
    Option("Repository cleanupCache", "--cleanup-cache"),
)
"""All options of restic by which a field of a spec becomes an argument."""


def words(options: Mapping[str, object]) -> list[str]:
    """Options as arguments: a flag for True, one word for a value, one for each of several. None and False are left
    out."""
    found: list[str] = []
    for name, value in options.items():
        match value:
            case None | False:
                pass
            case True:
                found.append(name)
            case tuple():
                found += [f"{name}={it}" for it in value]
            case _:
                found.append(f"{name}={value}")
    return found


def repository_options(spec: RepositorySpec) -> list[str]:
    """The options of all jobs that use a repository."""
    return words(
        {
            "--compression": spec.compression,
            "--pack-size": mebibytes(spec.pack_size),
            "--limit-upload": spec.limit_upload_kib,
            "--limit-download": spec.limit_download_kib,
            "--cleanup-cache": spec.cleanup_cache,
        }
    )


def copy_options(spec: RepositorySpec, source: RepositorySpec) -> list[str]:
    """The options of a copy into a repository. restic has one limit of speed for both: the lower one holds."""
    return repository_options(
        msgspec.structs.replace(
            spec,
            limit_upload_kib=_lower(spec.limit_upload_kib, source.limit_upload_kib),
            limit_download_kib=_lower(spec.limit_download_kib, source.limit_download_kib),
        )
    )


def _lower(one: int | None, other: int | None) -> int | None:
    return min((it for it in (one, other) if it is not None), default=None)


def rounded(count: int) -> str:
    """Bytes as a Kubernetes quantity for people, such as 5.6Gi."""
    value, unit = float(count), ""
    for larger in _UNITS:
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}{unit}" if unit and value < 10 else f"{value:.0f}{unit}"


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity: a whole number with or without a unit (Ki, Mi, Gi, Ti)."""
    return int(text[:-2]) * _UNITS[text[-2:]] if text[-2:] in _UNITS else int(text)


def bytes_of(text: str | None) -> int | None:
    """Bytes of a quantity, if there is one."""
    return None if text is None else quantity(text)


def mebibytes(text: str | None) -> int | None:
    """Whole MiB of a quantity, if there is one: restic's unit for the size of a pack."""
    return None if text is None else quantity(text) >> 20


def unknown(version: str, arguments: Iterable[str]) -> str:
    """What a version of restic does not know of these arguments, for people; empty when it knows all, or when the
    version is not known.

    Arguments after `--` are paths. Example: "restic 0.14.0 does not know spec.backup.noScan, which needs 0.15".
    """
    has = parsed(version)
    if has is None:
        return ""
    lacking = {field: needs for field, needs in _needs(arguments) if has < needs}
    if not lacking:
        return ""
    fields = " and ".join(f"{field}, which needs {'.'.join(map(str, needs))}" for field, needs in lacking.items())
    return f"restic {version} does not know {fields}: remove the field, or update the restic program"


def parsed(version: str) -> Version | None:
    """The first two numbers of a version; None for text that is none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return None if found is None else (int(found[1]), int(found[2]))


def _needs(arguments: Iterable[str]) -> Iterator[tuple[str, Version]]:
    """The fields whose arguments need a newer version than OLDEST, each with that version."""
    for argument in arguments:
        if argument == "--":
            return
        name, _, value = argument.partition("=")
        if (since := _NEWER.get((name, "")) or _NEWER.get((name, value))) is not None:
            yield since


def _newer() -> Iterator[tuple[tuple[str, str], tuple[str, Version]]]:
    for option in OPTIONS:
        if option.since > OLDEST:
            yield (option.name, ""), (f"spec.{option.field}", option.since)
        for value, since in option.values.items():
            yield (option.name, value), (f"compression: {value}", since)


_NEWER = dict(_newer())
