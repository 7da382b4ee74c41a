"""Which repositories a Secret is for: the URL prefixes that the Secret itself names, in an annotation.

Whoever may write a Repository chooses its URL and the Secrets that open it, and need not be allowed to read those. So
the values of a Secret that names prefixes go to URLs below these and nowhere else, and in a namespace whose grant has
limits every Secret must name some. The prefixes are stored with the values, so that this is checked again whenever
hosts are to have them: a grant may be limited later.

Where the environment says which server a URL leads to (`server.urls.elsewhere`), a URL alone binds nothing: there a
password that is bound must come from the Secret that the environment is of.
"""

from collections.abc import Iterator

from server.errors import FieldError
from server.resources.grants import Grant
from server.resources.manifests import Credentials
from server.resources.specs import RepositorySpec
from server.resources.urls import UrlError, elsewhere, parse

ANNOTATION = "lamplighter.dev/repository-urls"
"""The annotation of a Secret: URL prefixes, apart by spaces or line breaks. The controller reads it."""


def binding_errors(namespace: str, spec: RepositorySpec, given: Credentials, grant: Grant) -> Iterator[FieldError]:
    """Why what opens a repository must not be used with its URL. `grant`: that of its namespace."""
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
    """That the environment says where the URL leads, and is of another Secret than the password."""
    env, password = spec.env_secret_ref, spec.password_secret_ref
    if env is not None and password is not None and env.name == password.name:
        return
    if names := elsewhere(spec.url, given.env):
        detail = (
            f"must name the Secret of spec.passwordSecretRef, which is for some URLs alone: {', '.join(names)} would"
            " lead this URL to another server; put the password and these into one Secret"
        )
        yield {"field": "spec.envSecretRef", "detail": detail}


def _outside(namespace: str, url: str, prefixes: list[str], field: str) -> Iterator[FieldError]:
    """That the URL is below none of these prefixes, or a prefix is none."""
    try:
        location = parse(_filled(url, namespace))
    except UrlError:  # told by scheme_errors
        return
    found = False
    for prefix in prefixes:
        try:
            found = parse(_filled(prefix, namespace), prefix=True).covers(location) or found
        except UrlError as error:
            yield {"field": field, "detail": f"a URL in the Secret's annotation {ANNOTATION} {error}"}
    if not found:
        detail = f"is not below a URL that the Secret of {field} is for: see its annotation {ANNOTATION}"
        yield {"field": "spec.url", "detail": detail}


def _filled(url: str, namespace: str) -> str:
    """A URL as it is in this namespace; {host} stays, and only equals itself."""
    return url.replace("{namespace}", namespace)
