"""Whatever a manifest says, restic takes no value for an option: each is part of one argument, or follows `--`."""

import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from hypothesis import assume, given
from hypothesis import strategies as st

from server.errors import Invalid
from server.jobs import arguments as commands
from server.resources.manifests import parse_repository, parse_schedule

NASTY = st.sampled_from(
    ["--", "-", "-o", "--option=sftp.command=id", "--repo=/x", "--password-command=id", "-r", "\n--dry-run", "=", "@/x"]
)
TEXT = st.builds("".join, st.lists(NASTY | st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=4))


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Collection[str]]:
    """The spec of a Schedule of any kind that runs, as nasty as its schema allows."""
    kind = draw(st.sampled_from(sorted(commands.KINDS)))
    tags = st.lists(TEXT.map(lambda text: text.replace(",", "")).filter(bool), min_size=1, max_size=3)
    said = {"kind": kind, "cron": "@daily", "repositoryRef": {"name": "main"}}
    match kind:
        case "backup":
            paths, excludes = st.lists(TEXT.map("/{}".format), min_size=1, max_size=3), st.lists(TEXT, max_size=3)
            said["backup"] = {"paths": draw(paths), "excludes": draw(excludes), "tags": draw(tags)} | {
                "iexcludes": draw(excludes)
            }
        case "forget":
            within: st.SearchStrategy[dict[str, str]] = st.just({}) | st.just({"keepWithin": "1y6m"})
            said["retention"] = {
                "keepLast": draw(st.integers(1, 9)),
                "keepTags": draw(tags),
                "tags": draw(tags),
            } | draw(within)
        case "check":
            said["check"] = draw(st.sampled_from([{}, {"readDataSubset": "1/7"}, {"readDataSubset": "2.5%"}]))
    return said


Parsed = TypeVar("Parsed")


def parsed(parse: Callable[[object], Parsed], spec: dict[str, Any]) -> Parsed:
    """What it is read as; one that is refused for what is wrong in it is no example."""
    try:
        return parse({"metadata": {"name": "etc"}, "spec": spec})
    except Invalid as refused:
        assume(not all(error["field"].startswith("spec.") for error in refused.errors))
        raise


def taken_apart(args: list[str]) -> tuple[str, list[str], list[str]]:
    """An argv as getopt reads it when no option takes the next word: the command, its options, and the rest."""
    command, *words = args
    end = words.index("--") if "--" in words else len(words)
    assert re.fullmatch("[a-z]+", command)
    assert {option.partition("=")[0] for option in words[:end]} <= KNOWN
    return command, words[:end], words[end + 1 :]


@given(specs())
def test_no_value_of_a_schedule_becomes_an_option(said: dict[str, Any]) -> None:
    spec = parsed(parse_schedule, said).spec
    command, options, rest = taken_apart(commands.run_args(spec, "ns/etc", "node-1"))
    match spec.kind:
        case "backup":
            assert rest == said["backup"]["paths"]
            assert {f"--tag={tag}" for tag in said["backup"]["tags"]} <= set(options)
            assert {f"--exclude={pattern}" for pattern in said["backup"]["excludes"]} <= set(options)
            assert {f"--iexclude={pattern}" for pattern in said["backup"]["iexcludes"]} <= set(options)
        case "forget":
            assert {f"--tag={tag}" for tag in said["retention"]["tags"]} <= set(options)
            assert {f"--keep-tag={tag}" for tag in said["retention"]["keepTags"]} <= set(options)
        case "verify":
            assert rest == ["latest"]
        case kind:
            assert (command, rest) == (kind, [])


@given(TEXT, TEXT, TEXT)
def test_no_word_of_who_looks_into_a_repository_becomes_an_option(host: str, snapshot: str, path: str) -> None:
    assert taken_apart(commands.snapshots_args(host))[2] == []
    assert taken_apart(commands.ls_args(host, snapshot, path))[2] == [snapshot, path]


KNOWN = {
    *("--json", "--host", "--tag", "--exclude", "--iexclude", "--one-file-system", "--exclude-caches", "--no-lock"),
    *("--prune", "--keep-within", "--keep-tag", "--read-data-subset"),
    *(f"--keep-{of}" for of in ("last", "hourly", "daily", "weekly", "monthly", "yearly")),
}
"""All options that a manifest can bring about; none takes its value from the next word."""


@given(TEXT | TEXT.map("sftp:{}".format) | TEXT.map("sftp:a@{}:/b".format) | TEXT.map("local:{}".format))
def test_no_url_is_one_that_a_program_takes_for_an_option_or_for_two(url: str) -> None:
    filled = commands.repository_url(parsed(parse_repository, {"url": url}).spec, "ns", "node-1")
    assert not filled.startswith("-")
    assert not re.search("[\0-\x1f\x7f-\x9f\u2028\u2029]", filled)
    host = filled.removeprefix("sftp:").removeprefix("//").rpartition("@")[2]  # as restic's sftp backend reads it
    assert not (filled.startswith("sftp:") and host.startswith("-"))
