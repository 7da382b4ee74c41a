"""`kubectl lamplighter` finds the server of a cluster, as its user, by kubectl on a real API server."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.access import keys
from server.access.kubernetes import Config as Api
from server.app import Config, Running, serving, utc_now
from server.store.tables import Actor
from tests.cluster.apiserver import Cluster
from tests.cluster.kubelet import Kubelet
from wire.version import __version__

pytestmark = pytest.mark.anyio

BIN = Path(sys.executable).parent
READ = {"apiGroups": ["lamplighter.dev"], "resources": ["*"], "verbs": ["get", "list"]}
FORWARD: list[dict[str, Any]] = [
    {"apiGroups": [""], "resources": ["services", "pods"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
]


class Release:
    """A server of a cluster, in `namespace`, as the chart would install it; and kubeconfigs of its users."""

    def __init__(self, cluster: Cluster, namespace: str, folder: Path) -> None:
        self.cluster, self.namespace, self.folder = cluster, namespace, folder

    def user(self, user: dict[str, Any], namespace: str = "") -> Path:
        """A kubeconfig with this user."""
        config = yaml.safe_load(self.cluster.kubeconfig.read_text())
        config["users"][0]["user"] = user
        config["contexts"][0]["context"] |= {
            "user": config["users"][0]["name"],
            "namespace": namespace or self.namespace,
        }
        path = self.folder / "user.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    async def run(
        self, kubeconfig: Path, *words: str, plugin: tuple[str, ...] = ("lamplighter",)
    ) -> tuple[int | None, str, str]:
        """Run kubectl to its end: its exit code, stdout and stderr."""
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"KUBECONFIG": str(kubeconfig), "PATH": path, "HOME": str(self.folder)}
        argv = (str(BIN / "kubectl"), *plugin, *words)
        process = await asyncio.create_subprocess_exec(*argv, env=env, stdout=-1, stderr=-1, stdin=-3)
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def server(cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with TLS, whose certificate names its Service alone, and its CA in the ConfigMap."""
    cluster.service_account(namespace, "server")
    cluster.bind_cluster_role("system:auth-delegator", namespace, "server")
    (tmp_path / "token").write_text(cluster.token(namespace, "server", audience=""))
    (tmp_path / "api.crt").write_text(cluster.ca)
    made = keys.complete({}, [f"lamplighter.{namespace}.svc"], utc_now(), vault=False)
    (tmp_path / "tls.pem").write_bytes(made[keys.CERT] + made[keys.KEY])
    published = {"metadata": {"name": "lamplighter-ca"}, "data": {"ca.crt": made[keys.CA_CERT].decode()}}
    cluster.create(f"/api/v1/namespaces/{namespace}/configmaps", published)
    config = Config(
        tmp_path / "data",
        port=0,
        auth="kubernetes",
        cluster=Api(cluster.url, tmp_path / "token", tmp_path / "api.crt"),
        agent_service_account=f"{namespace}/agent",
        tls_cert=tmp_path / "tls.pem",
    )
    async with serving(config) as running:
        yield running


@pytest.fixture
def release(cluster: Cluster, namespace: str, server: Running, tmp_path: Path) -> Iterator[Release]:
    """The server's Service, and its pod on a node; and a user `team` of the namespace."""
    labels = {"app.kubernetes.io/name": "lamplighter", "app.kubernetes.io/component": "server"}
    port = {"name": "https", "port": 8700, "targetPort": 8700}
    service = {"metadata": {"name": "lamplighter", "labels": labels}, "spec": {"selector": labels, "ports": [port]}}
    cluster.create(f"/api/v1/namespaces/{namespace}/services", service)
    with Kubelet(server.port, tmp_path) as kubelet:
        kubelet.join(cluster, f"node-of-{namespace}")
        cluster.service_account(namespace, "lamplighter-server")
        kubelet.runs(cluster, namespace, "server-0", f"node-of-{namespace}", labels)
        cluster.service_account(namespace, "team")
        cluster.allow(namespace, "team", READ, *FORWARD)
        yield Release(cluster, namespace, tmp_path)


def service(release: Release) -> str:
    return f"--service={release.namespace}/lamplighter"


def exec_user(release: Release, script: str) -> Path:
    """A kubeconfig whose user is who a plugin says."""
    plugin = release.folder / "who-am-i"
    plugin.write_text(f"#!/bin/sh\n{script}\n")
    plugin.chmod(0o700)
    api = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never", "provideClusterInfo": True}
    return release.user({"exec": {"command": str(plugin), "env": [{"name": "ROLE", "value": "team"}], **api}})


async def test_the_server_is_found_and_asked_as_the_user_of_the_kubeconfig(release: Release) -> None:
    token = release.cluster.token(release.namespace, "team", audience="")
    kubeconfig = release.user({"token": token})
    code, out, err = await release.run(kubeconfig, "get", "schedules", service(release))
    assert (code, out, err) == (0, "", "no schedules match\n")
    code, out, err = await release.run(kubeconfig, "get", "schedules", "-A", service(release))
    assert (code, out) == (1, "")
    user = f"system:serviceaccount:{release.namespace}:team"
    assert f"user '{user}' lacks the permission to list schedules.lamplighter.dev in all namespaces" in err
    code, out, err = await release.run(kubeconfig, "version", service(release))
    assert (code, out, err) == (0, f"Client version: {__version__}\nServer version: {__version__}\n", "")


async def test_who_an_exec_plugin_says_that_one_is(release: Release) -> None:
    """It is told of the cluster, as kubectl tells it, and answers kubectl, too, which forwards the port as it."""
    token = release.cluster.token(release.namespace, "team", audience="")
    answer = json.dumps(
        {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token}}
    )
    script = f"""test "$ROLE" = team || exit 3
case $KUBERNETES_EXEC_INFO in *{release.cluster.url}*) echo '{answer}';; esac"""
    assert (await release.run(exec_user(release, script), "get", "jobs", service(release)))[0] == 0


async def test_who_has_a_client_certificate_alone_is_a_service_account(release: Release) -> None:
    admin = release.cluster.kubeconfig
    code, out, err = await release.run(admin, "get", "hosts", service(release))
    assert (code, out) == (1, "")
    assert "has no token" in err
    assert "--service-account" in err
    account = f"--service-account={release.namespace}/team"
    asked = ("get", "repo", "-n", release.namespace, service(release), account)
    assert (await release.run(admin, *asked))[2] == "no repositories match\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--service=nowhere/lamplighter",), "kubectl get: Error from server (Forbidden): services"),
        (("--service=lamplighter",), "--service lamplighter: give NAMESPACE/NAME"),
        (("--context=nothing",), "kubectl config: error:"),
        (("--tls-name=example.org",), "its certificate is not for example.org"),
    ],
)
async def test_what_is_in_the_way_is_said_in_a_line(release: Release, words: tuple[str, ...], said: str) -> None:
    token = release.cluster.token(release.namespace, "team", audience="")
    kubeconfig = release.user({"token": token})
    code, out, err = await release.run(kubeconfig, "get", "schedules", service(release), *words)
    assert (code, out, err.count("\n"), "Traceback" in err) == (1, "", 1, False)
    assert said in err


async def test_a_plugin_that_fails_and_a_pod_that_is_gone_are_told(release: Release) -> None:
    code, _, err = await release.run(exec_user(release, "exit 3"), "get", "hosts", service(release))
    assert (code, "Traceback" in err) == (1, False)
    release.cluster.delete(f"/api/v1/namespaces/{release.namespace}/pods/server-0", gracePeriodSeconds=0)
    kubeconfig = release.user({"token": release.cluster.token(release.namespace, "team", audience="")})
    code, _, err = await release.run(kubeconfig, "get", "hosts", service(release))
    assert (code, f"{release.namespace}/lamplighter cannot be reached" in err) == (1, True)


async def test_kubectl_completes_the_words_of_the_plugin(release: Release, server: Running) -> None:
    kubeconfig = release.user({"token": release.cluster.token(release.namespace, "team", audience="")})
    metadata = {"namespace": release.namespace, "name": "main"}
    repository = {"kind": "Repository", "metadata": metadata, "spec": {"url": "/backup/{host}"}}
    await server.parts.services.repositories.put(Actor("user", "tests"), repository, lambda _: None)
    _, out, _ = await release.run(kubeconfig, "__complete", "lamplighter", "des", plugin=())
    assert "describe" in out
    words = ("lamplighter", "get", service(release), "repo", "")
    _, out, err = await release.run(kubeconfig, "__complete", *words, plugin=())
    assert out.split() == ["main", ":4"], err
