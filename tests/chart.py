"""The chart as its tests see it: rendered by Helm itself, as objects."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm/lamplighter"
NAMESPACE = "lamplighter-system"
SETS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
"""The documented sets of values, by name."""

Object = dict[str, Any]


def values(name: str) -> Object:
    """A documented set of values; the default ones by the name "default"."""
    return yaml.safe_load(SETS[name].read_text()) if name in SETS else {}


def rendered(given: Object, *, name: str = "lamplighter", namespace: str = NAMESPACE) -> list[Object]:
    """The objects that `helm install NAME -n NAMESPACE` would create, those of hooks too. Raises HelmError."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(given, name=name, namespace=namespace)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [found for text in texts for found in loaded(text)]


def loaded(text: str) -> list[Object]:
    """The objects of a text in YAML, without empty documents."""
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def is_hook(found: Object) -> bool:
    """Whether helm creates it only at certain moments."""
    return "helm.sh/hook" in found["metadata"].get("annotations", {})


def pods(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Each object that makes pods, and the spec of its pods."""
    for found in objects:
        with contextlib.suppress(KeyError):
            yield found, found["spec"] if found["kind"] == "Pod" else found["spec"]["template"]["spec"]
