"""Labels, names and label selectors, by the rules of Kubernetes."""

import re
from collections.abc import Iterator, Mapping

from server.errors import FieldError
from server.resources.schema import below
from server.resources.specs import LabelSelector, Requirement

OWN_ID = re.compile(r"[a-z0-9][-a-z0-9]{0,39}")
"""The form of a run's or restore's id, which the caller chooses."""
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
DNS = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def selector_matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether these labels satisfy all of a selector. NotIn and DoesNotExist hold for a label that is absent."""
    return selector.match_labels.items() <= labels.items() and all(
        _holds(requirement, labels) for requirement in selector.match_expressions
    )


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    match requirement.operator:
        case "In":
            return labels.get(requirement.key) in requirement.values
        case "NotIn":
            return labels.get(requirement.key) not in requirement.values
        case "Exists":
            return requirement.key in labels
        case "DoesNotExist":
            return requirement.key not in labels


_PART = re.compile(
    r"\s*(?P<absent>!)?\s*(?P<key>[^\s=!,()]+)\s*"
    r"(?:(?P<compare>==?|!=)\s*(?P<value>[^\s=!,()]*)|\s(?P<among>in|notin)\s*\((?P<values>[^()]*)\))?\s*(?:,|\Z)"
)


_DOMAIN = "[a-z0-9](?:[-a-z0-9]{0,60}[a-z0-9])?"
_KEY = rf"(?:{_DOMAIN}(?:\.{_DOMAIN}){{0,3}}/)?{LABEL.pattern}"
_REQUIREMENT = (
    rf"(?:!?{_KEY}|{_KEY}(?:==?|!=)(?:{LABEL.pattern})?"
    rf"|{_KEY} (?:not)?in \({LABEL.pattern}(?:, ?{LABEL.pattern})*\))"
)
SELECTOR = f"^(?:{_REQUIREMENT}(?:, ?{_REQUIREMENT})*)?$"
"""The usual way to write what `parse_selector` reads, for descriptions. That also takes more spaces."""


def parse_selector(text: str) -> Iterator[Requirement]:
    """The requirements of a selector as `kubectl -l` takes it: `tier=db,env!=test,zone in (a,b),spare,!old`.

    Empty text has none. Raises ValueError, which says what is wrong.
    """
    at, text = 0, text.strip()
    while at < len(text):
        found = _PART.match(text, at)
        if found is None or (found["absent"] and (found["compare"] or found["among"])):
            raise ValueError(f"cannot be read from {text[at : at + 32]!r} on: give {_SELECTOR_FORM}")
        values = tuple(it.strip() for it in (found["values"] or found["value"] or "").split(","))
        if not is_label_key(found["key"]):
            raise ValueError(f"{found['key'][:64]!r}: {_KEY_FORM}")
        if not all(map(is_label_value, values)):
            raise ValueError(f"{','.join(values)[:64]!r}: {_VALUE_FORM}")
        if found["compare"] or found["among"]:
            is_not = found["compare"] == "!=" or found["among"] == "notin"
            yield Requirement(found["key"], "NotIn" if is_not else "In", values)
        else:
            yield Requirement(found["key"], "DoesNotExist" if found["absent"] else "Exists")
        at = found.end()


def is_dns_name(name: str) -> bool:
    """Whether this is an RFC 1123 subdomain, as Kubernetes names objects: at most 253 characters."""
    return len(name) <= 253 and DNS.fullmatch(name) is not None


def is_dns_label(name: str) -> bool:
    """Whether this is an RFC 1123 label, as Kubernetes names namespaces: at most 63 characters, no dots."""
    return len(name) <= 63 and "." not in name and is_dns_name(name)


def is_label_key(key: str) -> bool:
    """Whether this is `name` or `prefix/name`: a name of at most 63 characters, a prefix that is a DNS name."""
    prefix, slash, name = key.rpartition("/")
    return LABEL.fullmatch(name) is not None and (not slash or is_dns_name(prefix))


def is_label_value(value: str) -> bool:
    """Whether this is empty or like a label's name: at most 63 characters."""
    return not value or LABEL.fullmatch(value) is not None


def label_errors(labels: object, field: str) -> Iterator[FieldError]:
    """Errors in labels, each with its field below `field`."""
    if not isinstance(labels, dict):
        yield {"field": field, "detail": "must be an object of labels and their values"}
        return
    for key, value in labels.items():
        at = below(field, key)
        if not is_label_key(key):
            yield {"field": at, "detail": _KEY_FORM}
        if not isinstance(value, str):
            yield {"field": at, "detail": 'must be a string: put it in quotes, for example "true"'}
        elif not is_label_value(value):
            yield {"field": at, "detail": _VALUE_FORM}


def selector_errors(selector: object, field: str) -> Iterator[FieldError]:
    """Errors in the keys and values of a selector: those that no label can have, and values that are missing or extra.

    Its structure is not checked.
    """
    if not isinstance(selector, dict):
        return
    labels = selector.get("matchLabels")
    if isinstance(labels, dict):
        yield from label_errors({key: it for key, it in labels.items() if isinstance(it, str)}, f"{field}.matchLabels")
    expressions = selector.get("matchExpressions")
    for at, requirement in enumerate(expressions if isinstance(expressions, list | tuple) else ()):
        if isinstance(requirement, dict):
            yield from _requirement_errors(requirement, f"{field}.matchExpressions[{at}]")


def _requirement_errors(requirement: Mapping[str, object], field: str) -> Iterator[FieldError]:
    key, values = requirement.get("key"), requirement.get("values")
    if isinstance(key, str) and key and not is_label_key(key):
        yield {"field": f"{field}.key", "detail": _KEY_FORM}
    for at, value in enumerate(values if isinstance(values, list | tuple) else ()):
        if isinstance(value, str) and not is_label_value(value):
            yield {"field": f"{field}.values[{at}]", "detail": _VALUE_FORM}
    if requirement.get("operator") in ("In", "NotIn") and not values:
        yield {"field": f"{field}.values", "detail": "In and NotIn need at least one value: list them in values"}
    if requirement.get("operator") in ("Exists", "DoesNotExist") and values:
        detail = "Exists and DoesNotExist take no values: remove them, or use In or NotIn"
        yield {"field": f"{field}.values", "detail": detail}


_SELECTOR_FORM = (
    "conditions such as tier=db, env!=test, zone in (a,b), zone notin (a,b), spare, !old, with commas between"
)
_KEY_FORM = (
    "a label's key is a name of at most 63 letters, digits, '-', '_' and '.', which begins and ends with a letter "
    "or digit, if need be after a DNS name and a slash: for example tier, or example.org/tier"
)
_VALUE_FORM = (
    "a label's value is empty, or at most 63 letters, digits, '-', '_' and '.', which begin and end with a letter "
    "or digit"
)
