"""Reads manifests: checks them against their definitions, fills in defaults, and returns typed values."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

import cron
from server.errors import FieldError, Invalid
from server.resources.patterns import pattern_errors
from server.resources.schema import MAX_ERRORS, Schema, below, hint, is_plain
from server.resources.selectors import is_dns_label, is_dns_name, label_errors, selector_errors
from server.resources.specs import AlertSpec, HostSpec, RepositorySpec, RestoreSpec, ScheduleSpec
from server.resources.targets import MAX_TARGET, MAX_TARGETS, is_webhook, signing_key, target_errors
from wire import variables

API_VERSION = "lamplighter.dev/v1alpha1"
MAX_LABELS = 256
MAX_ENV = 64
"""Maximum variables of restic's environment."""
MAX_SECRET = 4096
"""Maximum characters of a password, or of one value of restic's environment."""
MAX_URLS, MAX_URL = 64, 2048
"""Maximum URL prefixes that a Secret may list, and characters of each."""
MAX_PATHS_BYTES = 256 << 10
"""Maximum bytes of all paths of a Restore, in UTF-8. They are on restic's command line, and twice as long there where
each character is escaped. Command line and environment (up to 1 MiB) together have 2 MiB (execve(2))."""


class Credentials(msgspec.Struct, frozen=True):
    """What opens a repository: restic's password, and its environment (for example AWS keys). Its repr hides them.

    `urls`: the URL prefixes to which "password" and "env" are bound, if their Secrets list some (see `bindings`).
    """

    password: str = ""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    urls: dict[str, list[str]] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return "Credentials(...)"


class Schedule(Struct, frozen=True):
    """A valid Schedule. `raw_spec`: its spec as plain JSON, with defaults filled in. `ping_url`: a secret."""

    namespace: str
    name: str
    labels: dict[str, str]
    spec: ScheduleSpec
    raw_spec: dict[str, Any]
    ping_url: str | None = None

    def __repr__(self) -> str:
        return f"Schedule({self.namespace!r}, {self.name!r})"


class Repository(Struct, frozen=True):
    """A valid Repository. `credentials`: None if the manifest has none.

    `trimmed`: the fields of the credentials whose final line break was removed.
    """

    namespace: str
    name: str
    labels: dict[str, str]
    spec: RepositorySpec
    raw_spec: dict[str, Any]
    credentials: Credentials | None
    trimmed: tuple[str, ...] = ()


class AlertCredentials(Struct, frozen=True):
    """Where an Alert's messages go, and the secret that signs webhooks; empty for none. Its repr hides them."""

    urls: tuple[str, ...] = ()
    signing_key: str = ""

    def __repr__(self) -> str:
        return "AlertCredentials(...)"


class Alert(Struct, frozen=True):
    """A valid Alert. `credentials`: None if the manifest has none."""

    namespace: str
    name: str
    labels: dict[str, str]
    spec: AlertSpec
    raw_spec: dict[str, Any]
    credentials: AlertCredentials | None


def parse_schedule(manifest: object) -> Schedule:
    """Read a Schedule's manifest. Raises Invalid, which names every wrong field and the remedy.

    `credentials` beside `spec` is {"pingUrl"}, which in Kubernetes is in a Secret; no error repeats it.
    """
    checked = _check("Schedule", SCHEDULE, manifest, ("credentials",))
    given = manifest.get("credentials") if isinstance(manifest, dict) else None
    selector = islice(selector_errors(checked.spec.get("hostSelector"), "spec.hostSelector"), MAX_ERRORS)
    exact = [*_timing_errors(checked.spec), *selector, *_pattern_errors(checked.spec)]
    errors = [*(it for it in checked.errors if not _is_covered(it, exact)), *exact, *_ping_errors(given)]
    if errors:
        raise Invalid("the Schedule is not valid", errors)
    spec = schedule_spec(checked.spec)
    url = given["pingUrl"] if given is not None and spec.ping is not None else None
    return Schedule(checked.namespace, checked.name, checked.labels, spec, checked.spec, url)


def _ping_errors(credentials: object) -> Iterator[FieldError]:
    if credentials is None:
        return
    if not isinstance(credentials, dict) or credentials.keys() != {"pingUrl"}:
        yield _error("credentials", "must be an object with pingUrl, and no other field")
        return
    url = credentials["pingUrl"]
    if not isinstance(url, str) or len(url) > MAX_TARGET or not is_webhook(url.replace("{host}", "host")):
        detail = f"must be a URL that begins with https:// or http://, of at most {MAX_TARGET} characters"
        yield _error("credentials.pingUrl", detail)
        return
    for error in target_errors([url.replace("{host}", "host")]):
        yield _error("credentials.pingUrl", error["detail"])


def parse_repository(manifest: object) -> Repository:
    """Read a Repository's manifest. Raises Invalid, which names every wrong field and the remedy.

    `credentials` beside `spec` is {"password", "env", "urls"}, which in Kubernetes are in Secrets; no error repeats
    them. One final line break of the password and of each value is removed: editors and `echo` add it unasked.
    """
    checked = _check("Repository", REPOSITORY, manifest, ("credentials",))
    given = manifest.get("credentials") if isinstance(manifest, dict) else None
    errors = [*checked.errors, *_credentials_errors(given)]
    if errors:
        raise Invalid("the Repository is not valid", errors)
    spec = repository_spec(checked.spec)
    if given is None:
        return Repository(checked.namespace, checked.name, checked.labels, spec, checked.spec, None)
    password, env = given.get("password") or "", given.get("env") or {}
    urls = given.get("urls") or {}
    credentials = Credentials(_trimmed(password), {name: _trimmed(value) for name, value in env.items()}, urls)
    values = {"password": password, **{f"env.{name}": value for name, value in env.items()}}
    trimmed = tuple(field for field, value in values.items() if value != _trimmed(value))
    return Repository(checked.namespace, checked.name, checked.labels, spec, checked.spec, credentials, trimmed)


def parse_host(manifest: object) -> tuple[str, dict[str, str], HostSpec]:
    """Read a Host's manifest. Returns its name, labels and spec. Raises Invalid, which names every wrong field."""
    if not isinstance(manifest, dict):
        raise Invalid("a manifest must be an object with metadata")
    metadata = manifest.get("metadata")
    spec, wrong = _host_spec(manifest.get("spec"))
    errors = [*_top_errors("Host", manifest, ()), *_metadata_errors(metadata), *wrong][:MAX_ERRORS]
    if errors or not isinstance(metadata, dict):
        raise Invalid("the Host is not valid", errors)
    return metadata["name"], metadata.get("labels") or {}, host_spec(spec)


def parse_host_spec(given: object) -> HostSpec:
    """Read a Host's spec. Raises Invalid, which names every wrong field."""
    spec, errors = _host_spec(given)
    if errors:
        raise Invalid("the Host is not valid", errors)
    return host_spec(spec)


def _host_spec(given: object) -> tuple[Any, Sequence[FieldError]]:
    """A Host's spec with its defaults, and what is wrong with it."""
    spec = HOST.complete({} if given is None else given)
    errors = HOST.errors(spec)
    if isinstance(spec, dict) and "nodeName" in spec:
        errors.append(_error("spec.nodeName", "is for nodes of a cluster, whose Hosts its controller makes: remove it"))
    return spec, errors


def host_spec(raw_spec: Mapping[str, Any]) -> HostSpec:
    """The typed spec of a valid Host."""
    return msgspec.convert(raw_spec, HostSpec)


def schedule_spec(raw_spec: Mapping[str, Any]) -> ScheduleSpec:
    """The typed spec of a valid Schedule."""
    return msgspec.convert(raw_spec, ScheduleSpec)


def is_enabled(raw_spec: Mapping[str, Any]) -> bool:
    """Whether a Schedule with this completed spec runs, as `ScheduleSpec.enabled` says."""
    return bool(raw_spec.get("enabled", True)) and not raw_spec.get("suspend", False)


def may_pause(raw_spec: Mapping[str, Any]) -> bool:
    """Whether a Schedule with this completed spec is paused once it failed on too many hosts."""
    return (raw_spec.get("rollout") or {}).get("failurePolicy") == "Pause"


def repository_spec(raw_spec: Mapping[str, Any]) -> RepositorySpec:
    """The typed spec of a valid Repository."""
    return msgspec.convert(raw_spec, RepositorySpec)


def parse_restore(manifest: object) -> RestoreSpec:
    """Read a Restore's manifest. Raises Invalid, which names every wrong field and the remedy."""
    checked = _check("Restore", RESTORE, manifest, ())
    errors = list(checked.errors)
    if not errors and (size := sum(len(path.encode()) for path in checked.spec["paths"])) > MAX_PATHS_BYTES:
        detail = f"must be at most {MAX_PATHS_BYTES} bytes long together, not {size}: name the folders that hold them"
        errors.append(_error("spec.paths", f"{detail}, or ask for several Restores"))
    if not errors:
        try:
            return msgspec.convert(checked.spec, RestoreSpec)
        except msgspec.ValidationError:  # the one error that the schema cannot find
            errors.append(_error("spec.before", "is not a time that exists: correct its date or its time of day"))
    raise Invalid("the Restore is not valid", errors)


def parse_alert(manifest: object) -> Alert:
    """Read an Alert's manifest. Raises Invalid, which names every wrong field and the remedy.

    `credentials` beside `spec` is {"urls", "signingKey"}, which in Kubernetes are in a Secret; no error repeats them.
    """
    checked = _check("Alert", ALERT, manifest, ("credentials",))
    given = manifest.get("credentials") if isinstance(manifest, dict) else None
    selectors = [
        it
        for field in ("selector", "hostSelector")
        for it in islice(selector_errors(checked.spec.get(field), f"spec.{field}"), MAX_ERRORS)
    ]
    errors = [it for it in checked.errors if not _is_covered(it, selectors)] + selectors
    errors += _alert_credentials_errors(given)
    if errors:
        raise Invalid("the Alert is not valid", errors)
    spec = alert_spec(checked.spec)
    credentials = None
    if given is not None:
        credentials = AlertCredentials(tuple(given["urls"]), given.get("signingKey") or "")
    return Alert(checked.namespace, checked.name, checked.labels, spec, checked.spec, credentials)


def alert_spec(raw_spec: Mapping[str, Any]) -> AlertSpec:
    """The typed spec of a valid Alert."""
    return msgspec.convert(raw_spec, AlertSpec)


def _alert_credentials_errors(credentials: object) -> Iterator[FieldError]:
    if credentials is None:
        return
    if not isinstance(credentials, dict) or not credentials.keys() <= {"urls", "signingKey"}:
        yield _error("credentials", "must be an object with urls and signingKey, and no other fields")
        return
    urls, key = credentials.get("urls"), credentials.get("signingKey")
    if not isinstance(urls, list) or not 0 < len(urls) <= MAX_TARGETS:
        yield _error("credentials.urls", f"must be a list of 1 to {MAX_TARGETS} URLs")
    elif not all(isinstance(url, str) and len(url) <= MAX_TARGET and is_plain(url) for url in urls):
        yield _error("credentials.urls", f"each must be a string of at most {MAX_TARGET} characters, without NUL")
    else:
        yield from target_errors(urls)
    if key is not None and not _is_secret(key):
        yield _error("credentials.signingKey", f"must be a string of at most {MAX_SECRET} characters, without NUL")
    elif key:
        try:
            signing_key(key)
        except ValueError as error:
            yield _error("credentials.signingKey", str(error))


ALERT = Schema.load("alerts")
HOST = Schema.load("hosts")
SCHEDULE = Schema.load("schedules")
REPOSITORY = Schema.load("repositories")
RESTORE = Schema.load("restores")


class _Checked(NamedTuple):
    """The parts of a manifest, of the right types only if there are no errors."""

    namespace: str
    name: str
    labels: dict[str, str]
    spec: dict[str, Any]
    errors: Sequence[FieldError]


def _check(kind: str, schema: Schema, manifest: object, more: Sequence[str]) -> _Checked:
    """Check what all kinds have in common. `more`: top-level fields besides those of every Kubernetes object."""
    if not isinstance(manifest, dict):
        raise Invalid("a manifest must be an object with metadata and spec")
    spec = schema.complete(manifest.get("spec"))
    wrong = chain(_top_errors(kind, manifest, more), _metadata_errors(manifest.get("metadata")))
    errors = list(islice(wrong, MAX_ERRORS))
    errors += (
        schema.errors(spec) if "spec" in manifest else [_error("spec", "missing: add it, with the fields of this kind")]
    )
    metadata = manifest["metadata"] if isinstance(manifest.get("metadata"), dict) else {}
    namespace, labels = metadata.get("namespace") or "default", metadata.get("labels") or {}
    return _Checked(namespace, metadata.get("name", ""), labels, spec if isinstance(spec, dict) else {}, errors)


def _top_errors(kind: str, manifest: Mapping[str, Any], more: Sequence[str]) -> Iterator[FieldError]:
    for field, wanted in (("apiVersion", API_VERSION), ("kind", kind)):
        if manifest.get(field, wanted) != wanted:
            yield _error(field, f"must be {wanted}")
    if not isinstance(manifest.get("status"), dict | None):
        yield _error("status", "must be an object, which is ignored, or be left out")
    known = ("apiVersion", "kind", "metadata", "spec", "status", *more)
    yield from (_error(below("", name), f"unknown field{hint(name, known)}") for name in manifest if name not in known)


def _metadata_errors(metadata: object) -> Iterator[FieldError]:
    if not isinstance(metadata, dict):
        yield _error("metadata", "missing: give it at least a name")
        return
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not isinstance(name, str) or not is_dns_name(name):
        yield _error("metadata.name", "must be a DNS name: at most 253 lower case letters, digits, '-' and '.'")
    if namespace is not None and not (isinstance(namespace, str) and is_dns_label(namespace)):
        yield _error("metadata.namespace", "must be a DNS label: at most 63 lower case letters, digits and '-'")
    labels = metadata.get("labels") or {}
    yield from label_errors(labels, "metadata.labels")
    if len(labels) > MAX_LABELS:
        yield _error("metadata.labels", f"must hold at most {MAX_LABELS}, not {len(labels)}")
    for field in metadata:
        if field not in METADATA:
            yield _error(below("metadata", field), f"unknown field{hint(field, METADATA)}")


def _is_covered(error: FieldError, exact: Sequence[FieldError]) -> bool:
    """Whether a more exact error covers one of the schema: on the same field, or on a label below it."""
    field, detail = error["field"], error["detail"]
    return any(it["field"] == field or (it["detail"] == detail and it["field"].startswith(field)) for it in exact)


def _timing_errors(spec: Mapping[str, Any]) -> Iterator[FieldError]:
    """Errors in the cron expressions and the time zone, some of which the schema finds less exactly."""
    crons = spec.get("crons")
    several = [(f"crons[{at}]", cron.parse, it) for at, it in enumerate(crons)] if isinstance(crons, list) else []
    one = [("cron", cron.parse, spec.get("cron")), ("timeZone", cron.zone, spec.get("timeZone"))]
    for field, parse, value in [*one, *several[:MAX_ERRORS]]:
        if isinstance(value, str) and 0 < len(value) <= 256 and is_plain(value):
            try:
                parse(value)
            except cron.CronError as error:
                yield _error(f"spec.{field}", str(error))


def _pattern_errors(spec: Mapping[str, Any]) -> Iterator[FieldError]:
    """Errors in exclude patterns, which the schema does not check."""
    backup = spec.get("backup")
    for name in ("excludes", "iexcludes"):
        patterns = backup.get(name) if isinstance(backup, dict) else None
        found = pattern_errors(patterns if isinstance(patterns, list) else (), f"spec.backup.{name}")
        yield from islice(found, MAX_ERRORS)


def _credentials_errors(credentials: object) -> Iterator[FieldError]:
    if credentials is None:
        return
    if not isinstance(credentials, dict):
        yield _error("credentials", "must be an object with password and env")
        return
    if not credentials.keys() <= _SECRETS:
        yield _error("credentials", "must have no other fields than password, env and urls")
    password = credentials.get("password")
    if password is not None and not _is_secret(password):
        yield _error("credentials.password", f"must be a string of at most {MAX_SECRET} characters, without NUL")
    elif password is not None and not _trimmed(password):
        yield _error("credentials.password", "is empty, which restic does not accept: put a password into the Secret")
    if not _is_urls(credentials.get("urls") or {}):
        detail = f"must be an object of password and env, each a list of at most {MAX_URLS} URL prefixes"
        yield _error("credentials.urls", detail)
    env = credentials.get("env") or {}
    if not isinstance(env, dict) or len(env) > MAX_ENV:
        yield _error("credentials.env", f"must be an object of at most {MAX_ENV} variables")
        return
    for name, value in env.items():
        if name not in variables.ALLOWED:
            yield _error("credentials.env", f"{name[:64]!r} {variables.REFUSED}")
        elif not _is_secret(value):
            detail = f"must be a string of at most {MAX_SECRET} characters, without NUL"
            yield _error(f"credentials.env.{name}", detail)


def _trimmed(value: str) -> str:
    """A secret without its final line break."""
    return value.removesuffix("\n").removesuffix("\r") if value.endswith("\n") else value


def _is_urls(value: object) -> bool:
    """Whether a value is a valid `credentials.urls`."""
    return isinstance(value, dict) and all(
        part in ("password", "env")
        and isinstance(urls, list)
        and len(urls) <= MAX_URLS
        and all(isinstance(url, str) and len(url) <= MAX_URL for url in urls)
        for part, urls in value.items()
    )


def _is_secret(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_SECRET and is_plain(value)


def _error(field: str, detail: str) -> FieldError:
    return {"field": field, "detail": detail}


_SECRETS = {"password", "env", "urls"}
METADATA = (
    "name",
    "namespace",
    "labels",
    "annotations",
    # Added by Kubernetes and by our REST API in answers: what was read can be sent back.
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
