"""Builds restic's environment: what opens the repository, and a short list of the host's variables.

No I/O. Source: restic's manual, chapters "Preparing a new repository" and "Scripting" (environment variables).
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from wire import variables
from wire.messages import Repository

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
"""Variables with the host's identity: restic gets them only if the namespace's grant has `hostIdentity`."""
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
"""Backends that use the cloud's metadata service when they have no keys, each with the sets of keys that prevent it."""
_BY_HOST = {"sftp": "the host's SSH keys", "rclone": "the host's rclone configuration"}
"""Schemes that are opened only by keys of the host. ssh reads root's home from /etc/passwd, not from HOME."""
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|SAS")
_AUTHORITY = re.compile(r"(?:://|^s3:(?!https?:))(?:[^/@]*@)?(\[[^\]/]*\]|[^/:?#]+)")
_METADATA_NAMES = (
    *("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"),
    "metadata.tencentyun.com",
)
_METADATA_ADDRESSES = (
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
)
"""Metadata services that have no link-local address: of AWS, Google, Alibaba, Azure and Oracle."""
_URL_PASSWORD = re.compile(r"://[^/@:]*:([^/@]+)@")
SHORTEST_SECRET = 4
"""Characters: replacing shorter secrets would make texts unreadable, and a shorter secret can be guessed anyway."""


class RepositoryError(ValueError):
    """The repository cannot be used as it is set up; the message says what to change."""


def restic_environment(
    repository: Repository,
    host_env: Mapping[str, str],
    cache_dir: Path,
    fps: float = 1.0,
    *,
    identity: bool = False,
) -> dict[str, str]:
    """The whole environment of a restic process.

    `identity`: whether restic may use the host's identity. `fps`: progress lines per second, above 0; restic caps it at
    60. Raises RepositoryError for a variable that `wire.variables` does not allow, and for a repository that needs the
    host's identity without `identity`.
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
    every = host_env.get("all_proxy", host_env.get("ALL_PROXY"))  # restic does not read it
    for name in ("HTTPS_PROXY", "HTTP_PROXY"):
        if every and name not in env and name.lower() not in env:
            env[name] = every
    env["RESTIC_REPOSITORY"] = repository.url
    env["RESTIC_PASSWORD"] = repository.password
    env["RESTIC_CACHE_DIR"] = str(cache_dir)
    env["RESTIC_PROGRESS_FPS"] = format(fps, "g")
    return env


_OF_SCHEME: Mapping[str, tuple[str, ...]] = {
    "s3": ("AWS_", "RESTIC_AWS_"),
    "azure": ("AZURE_",),
    "b2": ("B2_",),
    "gs": ("GOOGLE_",),
    "swift": ("OS_", "ST_", "SWIFT_"),
    "rclone": ("RCLONE_",),
    "rest": ("RESTIC_REST_",),
}
"""For each scheme, how the names of the variables begin that its backend reads."""
_LOGIN = ("RESTIC_REST_USERNAME", "RESTIC_REST_PASSWORD")


def copy_environment(
    repository: Repository,
    source: Repository,
    env: Mapping[str, str],
    of_source: Mapping[str, str],
    files: Sequence[str],
) -> dict[str, str]:
    """The environment of a restic process that copies from `source` into `repository`.

    `env`, `of_source`: what opens each of them alone. `files`: with the password of `repository`, and with that of
    `source`. restic has one set of variables for the storage of both. So what one of them has for its storage must not
    reach that of the other, which may be somebody else's: each has the variables of its own backend alone, and two of
    the same backend must have the same. Only rest: takes its login in the URL.

    Raises RepositoryError for variables that the two need with different values, and for a password that restic would
    change as it reads it from a file.
    """
    own, its = _of_backend(repository), _of_backend(source)
    if _scheme(repository) == _scheme(source) and (both := sorted({name for name, _ in own.items() ^ its.items()})):
        raise RepositoryError(
            f"repositories {repository.name} and {source.name} need different values of {', '.join(both)}, and restic "
            "has one for both: use keys that open both, and set all of them in both Secrets; or another backend, such "
            "as rest:, for one of them"
        )
    for it in (repository, source):
        if it.password != it.password.strip().removeprefix("\ufeff"):
            raise RepositoryError(
                f"repository {it.name}: its password begins or ends with a space, or begins with a byte order mark, "
                "which restic leaves out of a password in a file: copy with another key, which `restic key add` makes"
            )
    password, from_password = files
    general = {name: value for name, value in repository.env.items() if not name.startswith(_OF_BACKENDS)}
    declared = {*repository.env, *source.env, "RESTIC_PASSWORD"}
    lent = {name: value for name, value in {**of_source, **env}.items() if name not in declared}
    if hint := source.env.get("RESTIC_KEY_HINT"):
        general["RESTIC_FROM_KEY_HINT"] = hint
    return {**lent, **general, **its, **own} | {
        "RESTIC_REPOSITORY": _with_login(repository),
        "RESTIC_PASSWORD_FILE": password,
        "RESTIC_FROM_REPOSITORY": _with_login(source),
        "RESTIC_FROM_PASSWORD_FILE": from_password,
        "RESTIC_CACHE_DIR": of_source["RESTIC_CACHE_DIR"],
    }


_OF_BACKENDS = tuple(prefix for prefixes in _OF_SCHEME.values() for prefix in prefixes)


def _scheme(repository: Repository) -> str:
    return repository.url.partition(":")[0].lower()


def _of_backend(repository: Repository) -> dict[str, str]:
    """The variables that the repository sets for its own backend, but for the login that its URL can have."""
    prefixes = _OF_SCHEME.get(_scheme(repository), ())
    return {name: it for name, it in repository.env.items() if name.startswith(prefixes) and name not in _LOGIN}


def _with_login(repository: Repository) -> str:
    """The repository's URL, with the login that its variables have for it. One in the URL comes first, as in restic."""
    scheme, _, rest = repository.url.partition("://")
    user, password = (quote(repository.env.get(name, ""), safe="") for name in _LOGIN)
    if _scheme(repository) != "rest" or not (user or password) or "@" in rest.partition("/")[0]:
        return repository.url
    return f"{scheme}://{user}:{password}@{rest}"


def _check_identity(repository: Repository) -> None:
    """Raises RepositoryError for a repository that is opened by the host's identity or is at a metadata service."""
    allow = "or have the operator set hostIdentity in the namespace's grant, so that restic may use the host's identity"
    scheme = repository.url.partition(":")[0].lower()
    if scheme in _BY_HOST:
        raise RepositoryError(
            f"repository {repository.name}: {scheme}: is opened only by {_BY_HOST[scheme]}: use another backend, "
            f"{allow}"
        )
    sets = _KEYS.get(scheme, ())
    if sets and not any(all(repository.env.get(name) for name in names) for names in sets):
        wanted = ", or ".join(" and ".join(names) for names in sets)
        raise RepositoryError(
            f"repository {repository.name}: {scheme}: needs {wanted} in the Secret of spec.envSecretRef; {allow}"
        )
    for url in (repository.url, *repository.env.values()):
        if (found := _AUTHORITY.search(url)) and _tells_identity(found[1]):
            raise RepositoryError(
                f"repository {repository.name}: {found[1]} is a metadata service: "
                f"set spec.url to where snapshots go, {allow}"
            )


def _tells_identity(name: str) -> bool:
    """Whether the host of a URL, a name or an address, is a cloud's metadata service."""
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
    """A function that replaces the repository's secrets in a text by ***, but for those below SHORTEST_SECRET."""
    secrets = {repository.password}
    secrets.update(value for name, value in repository.env.items() if _SECRET_NAME.search(name))
    secrets.update(quote(repository.env[name], safe="") for name in _LOGIN[1:] if name in repository.env)
    for password in _URL_PASSWORD.findall(repository.url):
        secrets.update((password, unquote(password)))
    hidden = sorted((secret for secret in secrets if len(secret) >= SHORTEST_SECRET), key=len, reverse=True)
    if not hidden:
        return str
    pattern = re.compile("|".join(map(re.escape, hidden)))
    return lambda text: pattern.sub("***", text)


def local_folder(url: str) -> str:
    """The folder that a repository's URL names, absolute or relative to restic's folder; "" for a remote repository.

    Source: restic's internal/backend/location. The server has its own rule for what is a folder. If the two ever
    differ, restic is confined, and cannot reach the folder.
    """
    if url.startswith("local:"):
        return url.removeprefix("local:")
    return url if ":" not in url or url.startswith(("/", "./", "../")) else ""
