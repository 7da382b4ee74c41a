"""Which repositories a Secret is for: the URL prefixes that the Secret itself names, in an annotation.

Whoever may write a Repository chooses its URL and the Secrets that open it, and need not be allowed to read those. So
the values of a Secret that names prefixes go to URLs below these and nowhere else, and in a namespace whose grant has
limits every Secret must name some. A URL and what opens it are always stored together, after this check.
"""

from collections.abc import Iterator

from server.grants import Grant
from server.problems import FieldError
from server.resources import Repository
from server.urls import UrlError, parse

ANNOTATION = "lamplighter.dev/repository-urls"
"""The annotation of a Secret: URL prefixes, apart by spaces or line breaks. The controller reads it."""


def binding_errors(repository: Repository, grant: Grant) -> Iterator[FieldError]:
    """Why what opens this repository must not be used with its URL. `grant`: that of its namespace."""
    spec, given = repository.spec, repository.credentials
    parts = (
        ("password", "spec.passwordSecretRef", spec.password_secret_ref, given and given.password),
        ("env", "spec.envSecretRef", spec.env_secret_ref, given and given.env),
    )
    for part, field, named, values in parts:
        prefixes = repository.secret_urls.get(part)
        if prefixes is not None:
            yield from _outside(repository, prefixes, field)
        elif values and named is not None and grant.limited:
            detail = (
                f"Secret {named.name} must say which repositories it is for, since namespace {repository.namespace} has"
                f" a limited grant: annotate it with {ANNOTATION}, for example {repository.spec.url[:200]}"
            )
            yield {"field": field, "detail": detail}


def _outside(repository: Repository, prefixes: list[str], field: str) -> Iterator[FieldError]:
    """That the URL is below none of these prefixes, or a prefix is none."""
    try:
        url = parse(_filled(repository.spec.url, repository.namespace))
    except UrlError:  # told by scheme_errors
        return
    found = False
    for prefix in prefixes:
        try:
            found = parse(_filled(prefix, repository.namespace), prefix=True).covers(url) or found
        except UrlError as error:
            yield {"field": field, "detail": f"a URL in the Secret's annotation {ANNOTATION} {error}"}
    if not found:
        detail = f"is not below a URL that the Secret of {field} is for: see its annotation {ANNOTATION}"
        yield {"field": "spec.url", "detail": detail}


def _filled(url: str, namespace: str) -> str:
    """A URL as it is in this namespace; {host} stays, and only equals itself."""
    return url.replace("{namespace}", namespace)
