"""Bindings: the URL prefixes to which a Secret is bound, by an annotation of its own.

Whoever may write a Repository chooses its URL and its Secrets, and may have no right to read these Secrets. So a Secret
that lists prefixes is used for URLs below them only, and where a namespace has a limited grant, every Secret must list
some. The prefixes are stored with the values and checked again before hosts get them: a grant may be limited later.

Where the environment decides which server a URL leads to (`server.resources.urls.elsewhere`), the URL alone proves
nothing: there a bound password must come from the same Secret as the environment.
"""

from collections.abc import Iterator

from server.errors import FieldError
from server.resources.grants import Grant
from server.resources.manifests import Credentials
from server.resources.specs import RepositorySpec
from server.resources.urls import UrlError, elsewhere, parse

ANNOTATION = "lamplighter.dev/repository-urls"
"""The annotation of a Secret: URL prefixes, separated by spaces or line breaks. The controller reads it."""


def binding_errors(namespace: str, spec: RepositorySpec, given: Credentials, grant: Grant) -> Iterator[FieldError]:
    """Errors where credentials must not be used with a repository's URL. `grant`: that of its namespace."""
    parts = (
        ("password", "spec.passwordSecretRef", spec.password_secret_ref, given.password),
        ("env", "spec.envSecretRef", spec.env_secret_ref, given.env),
    )
    for part, field, named, values in parts:
        prefixes = given.urls.get(part)
        if prefixes is not None:
            yield from _outside(namespace, spec.url, prefixes, field)
        elif values and named is not None and grant.limited:
            detail = (
                f"Secret {named.name} must say which repositories it is for, since namespace {namespace} has"
                f" a limited grant: annotate it with {ANNOTATION}, for example {spec.url[:200]}"
            )
            yield {"field": field, "detail": detail}
    if "password" in given.urls:
        yield from _led_elsewhere(spec, given)


def _led_elsewhere(spec: RepositorySpec, given: Credentials) -> Iterator[FieldError]:
    """The error that the environment decides where the URL leads, and is not from the password's Secret."""
    env, password = spec.env_secret_ref, spec.password_secret_ref
    if env is not None and password is not None and env.name == password.name:
        return
    if names := elsewhere(spec.url, given.env):
        detail = (
            f"must name the same Secret as spec.passwordSecretRef, which is bound to URLs: {', '.join(names)} can lead"
            " this URL to another server; put the password and these variables into one Secret"
        )
        yield {"field": "spec.envSecretRef", "detail": detail}


def _outside(namespace: str, url: str, prefixes: list[str], field: str) -> Iterator[FieldError]:
    """Errors of a URL that is below none of these prefixes, and of prefixes that are not URLs."""
    try:
        location = parse(_filled(url, namespace))
    except UrlError:  # reported by scheme_errors
        return
    found = False
    for prefix in prefixes:
        try:
            found = parse(_filled(prefix, namespace), prefix=True).covers(location) or found
        except UrlError as error:
            yield {"field": field, "detail": f"a URL in the Secret's annotation {ANNOTATION} {error}"}
    if not found:
        detail = f"is not below any URL to which the Secret of {field} is bound: see its annotation {ANNOTATION}"
        yield {"field": "spec.url", "detail": detail}


def _filled(url: str, namespace: str) -> str:
    """The URL with {namespace} filled in. {host} stays, and equals only itself."""
    return url.replace("{namespace}", namespace)
