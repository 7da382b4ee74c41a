"""A real API server accepts every object of the chart, and the chart's rights are enough to make the keys."""

import base64
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Config

from tests.chart import CHART, ROOT, SETS, Object, rendered, values
from tests.cluster.apiserver import Cluster

FOREIGN = ("cert-manager.io/", "monitoring.coreos.com/")
"""Groups that other operators define."""


def path_of(found: Object) -> str:
    """Where the API has an object."""
    version, kind, metadata = found["apiVersion"], found["kind"].lower(), found["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    within = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{within}/{kind[:-1] + 'ies' if kind.endswith('y') else kind + 's'}/{metadata['name']}"


def apply(cluster: Cluster, found: dict[str, Any], **params: str) -> list[str]:
    """Apply an object on the server's side, refused where a field is unknown. The answer's warnings."""
    answer = cluster.http.patch(
        path_of(found),
        content=yaml.safe_dump(found),
        headers={"content-type": "application/apply-patch+yaml"},
        params={"fieldManager": "test", "force": "true", "fieldValidation": "Strict", **params},
    )
    assert answer.is_success, f"{path_of(found)}: {answer.text}"
    return answer.headers.get_list("warning")


@pytest.fixture
def restricted(cluster: Cluster) -> str:
    """A namespace in which the API server warns of every pod that breaks Pod Security "restricted"."""
    name = cluster.namespace()
    labels = {"pod-security.kubernetes.io/enforce": "privileged", "pod-security.kubernetes.io/warn": "restricted"}
    apply(cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    default = {"name": "default", "namespace": name}  # where no controller manager makes it
    apply(cluster, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": default})
    return name


@pytest.mark.parametrize("name", ["default", *SETS])
def test_every_object_is_accepted_and_all_but_the_agent_is_restricted(
    cluster: Cluster, restricted: str, name: str
) -> None:
    given = values(name)
    if "tenancy" in given:
        given["tenancy"]["namespaces"] = [cluster.namespace(), cluster.namespace()]
    objects = [it for it in rendered(given, namespace=restricted) if not it["apiVersion"].startswith(FOREIGN)]
    warnings = {it["kind"]: apply(cluster, it, dryRun="All") for it in objects}
    assert {kind for kind, told in warnings.items() if told} == {"DaemonSet"}
    assert "restricted" in warnings["DaemonSet"][0]


@pytest.mark.parametrize("path", sorted((ROOT / "crds").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_definition_is_accepted(cluster: Cluster, path: Path) -> None:
    assert apply(cluster, yaml.safe_load(path.read_text()), dryRun="All") == []


# Installed and upgraded by Helm.

SEVERAL: Object = {"server": {"replicas": 2, "database": {"existingSecret": "lamplighter-database"}}}
STATEFUL_SET, DEPLOYMENT, BUDGET = "apps/v1/statefulsets", "apps/v1/deployments", "policy/v1/poddisruptionbudgets"


class Release:
    """A release of the chart in a namespace of its own. `name`: its name, and the prefix of its objects' names."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace, self.name = cluster, namespace, f"lamplighter-{namespace}"
        self._helm = Config(kubeconfig_path=cluster.kubeconfig, namespace=namespace)

    def install(self, given: Object, chart: Path = CHART) -> None:
        self._helm.install(chart, self.name, given, namespace=self._namespace)

    def upgrade(self, given: Object, chart: Path = CHART) -> None:
        self._helm.upgrade(chart, self.name, given, namespace=self._namespace, reset_values=True)

    def rollback(self, revision: int) -> None:
        self._helm.rollback(self.name, version=revision)

    def uninstall(self) -> None:
        self._helm.uninstall(self.name)
        self._helm.close()

    def servers(self) -> dict[str, Any]:
        """What is about the servers' pods: the specs of objects, by the kinds' names in the API."""
        return {kind: spec for kind in (STATEFUL_SET, DEPLOYMENT, BUDGET) for spec in self._specs(kind)}

    def pod(self, pod: Object) -> str:
        """Create a pod from a template, as a controller manager would; its name."""
        metadata = {**pod["metadata"], "generateName": "server-"}
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        return str(self._cluster.create(path, {"metadata": metadata, "spec": pod["spec"]})["metadata"]["name"])

    def selected(self, labels: Object) -> list[str]:
        """The names of the pods with these labels."""
        path = f"/api/v1/namespaces/{self._namespace}/pods?labelSelector="
        found = self._cluster.get(path + ",".join(f"{key}={value}" for key, value in labels.items()))["items"]
        return [it["metadata"]["name"] for it in found]

    def _specs(self, kind: str) -> list[Any]:
        group, version, plural = kind.split("/")
        found = self._cluster.get(f"/apis/{group}/{version}/namespaces/{self._namespace}/{plural}")["items"]
        return [it["spec"] for it in found if it["metadata"]["name"] == f"{self.name}-server"]


@pytest.fixture
def release(cluster: Cluster, definitions: None, namespace: str) -> Iterator[Release]:
    made = Release(cluster, namespace)
    yield made
    made.uninstall()


def test_two_servers_are_installed_and_their_budget_is_about_their_pods(release: Release) -> None:
    release.install(SEVERAL)
    servers = release.servers()
    assert servers.keys() == {DEPLOYMENT, BUDGET}
    assert (servers[DEPLOYMENT]["replicas"], servers[BUDGET]["maxUnavailable"]) == (2, 1)
    pods = [release.pod(servers[DEPLOYMENT]["template"]) for _ in range(2)]
    assert sorted(release.selected(servers[BUDGET]["selector"]["matchLabels"])) == sorted(pods)


def test_a_release_goes_from_sqlite_to_several_servers_and_back(release: Release) -> None:
    release.install({})
    assert release.servers().keys() == {STATEFUL_SET}
    release.upgrade(SEVERAL)
    assert release.servers().keys() == {DEPLOYMENT, BUDGET}
    release.upgrade({})
    assert release.servers().keys() == {STATEFUL_SET}
    release.rollback(2)
    assert release.servers().keys() == {DEPLOYMENT, BUDGET}


def test_a_release_comes_from_a_chart_that_stopped_its_server_first_and_goes_back_to_it(
    release: Release, tmp_path: Path
) -> None:
    before = shutil.copytree(CHART, tmp_path / "lamplighter")
    template = before / "templates/server.yaml"
    pattern = r"strategy:.*\n    type: RollingUpdate\n    rollingUpdate: .*\n"
    text, changed = re.subn(pattern, "strategy: {type: Recreate}\n", template.read_text())
    assert changed == 1
    template.write_text(text)
    one = {"server": {"database": SEVERAL["server"]["database"]}}

    release.install(one, before)
    assert release.servers()[DEPLOYMENT]["strategy"] == {"type": "Recreate"}
    release.upgrade(SEVERAL)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert release.servers()[DEPLOYMENT]["strategy"] == rolling
    release.upgrade(one, before)
    assert release.servers()[DEPLOYMENT]["strategy"] == {"type": "Recreate"}


# The keys, made by the init container as it is told to, with the rights of its service account and no others.


@pytest.fixture
def keys(cluster: Cluster, namespace: str, tmp_path: Path) -> "Keys":
    return Keys(cluster, namespace, tmp_path)


class Keys:
    """What the chart has of the server's keys in a namespace, and the init container that makes them."""

    def __init__(self, cluster: Cluster, namespace: str, folder: Path) -> None:
        objects = rendered({}, namespace=namespace)
        wanted = [it for it in objects if it["metadata"]["name"] in ("lamplighter-keys", "lamplighter-ca")]
        for it in [*wanted, *(it for it in objects if path_of(it).endswith("serviceaccounts/lamplighter-server"))]:
            apply(cluster, it)
        (server,) = (it for it in objects if it["kind"] == "StatefulSet")
        (container,) = server["spec"]["template"]["spec"]["initContainers"]
        self._args = container["args"][:-1]
        self._api, self._namespace = cluster, namespace
        self._kubeconfig = folder / "kubeconfig"
        self._kubeconfig.write_text(
            yaml.safe_dump(self._config(cluster.token(namespace, "lamplighter-server", audience="")))
        )

    def start(self, folder: Path, *more: str) -> subprocess.Popen[str]:
        argv = [Path(sys.executable).with_name("lamplighter"), *self._args, *more, folder]
        return subprocess.Popen(argv, env={"KUBECONFIG": str(self._kubeconfig)}, stderr=subprocess.PIPE, text=True)

    def make(self, folder: Path, *more: str) -> tuple[int, str]:
        """Run it to its end; its exit code and what it said."""
        with self.start(folder, *more) as process:
            _, said = process.communicate()
        return process.returncode, said

    def stored(self, kind: str, name: str) -> Any:
        return self._api.get(f"/api/v1/namespaces/{self._namespace}/{kind}/{name}")

    def _config(self, token: Any) -> dict[str, Any]:
        server = {
            "server": self._api.url,
            "certificate-authority-data": base64.b64encode(self._api.ca.encode()).decode(),
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "server", "user": {"token": token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "server", "namespace": self._namespace}}
            ],
            "current-context": "test",
        }


def contents(folder: Path) -> dict[str, Any]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_keys_are_made_once_for_all_who_start_together(keys: Keys, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    started = [keys.start(folder) for folder in folders]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    first, *others = map(contents, folders)
    assert first.keys() == {"vault-key", "tls.crt", "tls.key"}
    assert others == [first, first]
    assert sum("keys made" in it for it in said) == 1


def test_agents_find_the_authority_that_vouches_for_the_server(keys: Keys, tmp_path: Path) -> None:
    code, said = keys.make(tmp_path / "made")
    assert code == 0, said
    published = keys.stored("configmaps", "lamplighter-ca")["data"]["ca.crt"]
    ssl.create_default_context(cadata=published)
    assert base64.b64decode(keys.stored("secrets", "lamplighter-keys")["data"]["ca.crt"]).decode() == published


def test_a_second_start_changes_nothing(keys: Keys, tmp_path: Path) -> None:
    keys.make(tmp_path / "first")
    before = keys.stored("secrets", "lamplighter-keys"), keys.stored("configmaps", "lamplighter-ca")
    assert keys.make(tmp_path / "first") == (0, "")
    assert (keys.stored("secrets", "lamplighter-keys"), keys.stored("configmaps", "lamplighter-ca")) == before


def test_a_secret_that_is_not_ours_cannot_be_had(keys: Keys, tmp_path: Path) -> None:
    code, said = keys.make(tmp_path / "made", "--secret=another")
    assert code == 1
    assert 'cannot get resource "secrets"' in said
    assert not (tmp_path / "made").exists()
