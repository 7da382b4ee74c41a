"""Grants: the hosts (by labels) and paths (by prefixes) that each namespace may reach.

The cluster's operator writes them in a YAML file:

    default:                     # for namespaces that are not named; without it, they may reach everything
      hostSelector: {}           # hosts, by their labels; empty means all
      pathPrefixes: [/]          # folders and files on those hosts; an empty list means none
    namespaces:
      team-a:
        hostSelector: {matchLabels: {pool: a}}
        pathPrefixes: [/srv/a]
        hostIdentity: true       # restic may speak as the host: its SSH keys, cloud profiles and metadata service
        notifyAnywhere: true     # Alerts and pings may call any address and service, not only public https addresses
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import yaml
from msgspec import Struct

from server.errors import FieldError
from server.resources.selectors import selector_errors, selector_matches
from server.resources.specs import LabelSelector, Requirement
from server.resources.urls import UrlError, parse

NOTHING = LabelSelector(match_expressions=(Requirement("lamplighter.dev/nothing", "In"),))
"""A selector that selects no host."""
NO_PATH = ("/dev/null",)
"""A path with nothing below it: what a namespace without any granted path may reach."""
MAX_PREFIXES, MAX_PREFIX = 256, 4096
"""Maximum paths of a grant, and characters of each: every command contains them (`wire.messages.CommandRun`)."""


class GrantsError(ValueError):
    """A file of grants cannot be used. The message says where it is wrong, and what to write."""


class Grant(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What a namespace may reach. `path_prefixes`: absolute paths; each includes everything below it.

    `host_identity`: whether restic may use the host's own credentials (such as SSH keys), beside those in Secrets.
    `notify_anywhere`: see `may_notify_anywhere`.
    """

    host_selector: LabelSelector = LabelSelector()
    path_prefixes: tuple[str, ...] = ("/",)
    host_identity: bool = False
    notify_anywhere: bool = False

    @property
    def everywhere(self) -> bool:
        """Whether every path of a host is granted."""
        return _is_everywhere(self.path_prefixes)

    @property
    def within(self) -> tuple[str, ...]:
        """The paths to which jobs are confined, as in `CommandRun.within`: empty for no limit."""
        return () if self.everywhere else self.path_prefixes or NO_PATH

    @property
    def limited(self) -> bool:
        """Whether any host or path is not granted."""
        return not (self.everywhere and self.has_all_hosts)

    @property
    def has_all_hosts(self) -> bool:
        """Whether every host is granted."""
        return self.host_selector == LabelSelector()

    @property
    def may_notify_anywhere(self) -> bool:
        """Whether notifications may go to addresses that are not public, and by other ways than https.

        A namespace without limits may reach as much by its backups.
        """
        return self.notify_anywhere or not self.limited

    def covers(self, path: str) -> bool:
        """Whether an absolute path is granted; `.`, `..` and repeated slashes in it are resolved first."""
        plain = _normal(path)
        return any(
            plain == prefix or plain.startswith(prefix.rstrip("/") + "/") for prefix in map(_normal, self.path_prefixes)
        )

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a host with these labels is granted."""
        return selector_matches(self.host_selector, labels)

    def still_grants(self, within: Sequence[str], host_identity: bool) -> bool:
        """Whether a job that was recorded with `within` and `host_identity` is still granted both."""
        known = self.everywhere or tuple(within) in (self.within, NO_PATH)
        inside = known or (bool(within) and all(map(self.covers, within)))
        return inside and (self.host_identity or not host_identity)


class Grants(Struct, frozen=True, forbid_unknown_fields=True):
    """The grants of all namespaces. `default`: of those that are not named."""

    default: Grant = Grant()
    namespaces: Mapping[str, Grant] = {}

    def of(self, namespace: str) -> Grant:
        """The grant of a namespace."""
        return self.namespaces.get(namespace, self.default)

    @classmethod
    def load(cls, path: Path) -> "Grants":
        """The grants in a file. Raises GrantsError, which names the field."""
        try:
            grants = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, cls)
        except (OSError, UnicodeDecodeError) as error:
            raise GrantsError(f"{path}: cannot be read: {error}") from error
        except (yaml.YAMLError, msgspec.ValidationError) as error:
            raise GrantsError(f"{path}: {error}") from error
        for name, grant in [("default", grants.default), *grants.namespaces.items()]:
            for wrong in _wrong(grant):
                raise GrantsError(f"{path}: {name}: {wrong}")
        return grants


def path_errors(grant: Grant, namespace: str, paths: Sequence[str], field: str) -> Iterator[FieldError]:
    """An error for each path that is not granted. `field`: the list in the manifest that holds the paths."""
    if grant.everywhere:
        return
    for at, path in enumerate(paths):
        if not grant.covers(path):
            yield {"field": f"{field}[{at}]", "detail": _refusal(grant, namespace)}


def url_errors(grant: Grant, namespace: str, url: str) -> Iterator[FieldError]:
    """Errors of a repository's URL: a folder on a host must be granted, like every path there."""
    if grant.everywhere:
        return
    try:
        folder = parse(url).folder
    except UrlError as error:
        yield {"field": "spec.url", "detail": str(error)}
        return
    if folder is not None and not folder.startswith("/"):
        yield {"field": "spec.url", "detail": f"{folder[:64]!r} must be absolute: begin it with /"}
    elif folder is not None and not grant.covers(folder.replace("{namespace}", namespace)):
        yield {"field": "spec.url", "detail": _refusal(grant, namespace)}


@lru_cache(maxsize=1 << 12)
def _is_everywhere(prefixes: tuple[str, ...]) -> bool:
    """It is asked for each schedule, of a few grants."""
    return any(posixpath.normpath(prefix) == "/" for prefix in prefixes)


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def _refusal(grant: Grant, namespace: str) -> str:
    granted = f"granted are {', '.join(grant.path_prefixes)}" if grant.path_prefixes else "none is"
    return f"is not granted to namespace {namespace}: {granted}; the cluster's operator can change that"


def _wrong(grant: Grant) -> Iterator[str]:
    yield from (
        f"{it['field']}: {it['detail']}"
        for it in selector_errors(msgspec.to_builtins(grant.host_selector), "hostSelector")
    )
    if len(grant.path_prefixes) > MAX_PREFIXES:
        yield f"pathPrefixes: must be at most {MAX_PREFIXES}, not {len(grant.path_prefixes)}: name folders above them"
    for prefix in grant.path_prefixes:
        if len(prefix) > MAX_PREFIX:
            yield f"pathPrefixes: {prefix[:64]!r}… must be at most {MAX_PREFIX} characters long"
        if not prefix.startswith("/") or ".." in prefix.split("/"):
            yield f"pathPrefixes: {prefix!r} must be absolute, without '..'"
