"""A rollout of two servers, as the chart declares them on a real API server, interrupts no backup.

No kubelet is there: the servers, the controller and the agent of a node are processes that have the arguments of the
release's containers, and a forwarder of bytes stands for the Service.
"""

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from helm_python import Config

from tests import postgresql
from tests.chart import CHART, Object
from tests.cluster.apiserver import OwnCluster
from tests.docs import free_port
from tests.postgresql import Databases

PATIENCE_S = 120
LAMPLIGHTER, KUBECTL = (Path(sys.executable).with_name(name) for name in ("lamplighter", "kubectl"))
DATABASE = {"existingSecret": "lamplighter-database"}
DECLARED = """
apiVersion: v1
kind: Secret
metadata: {{name: main}}
stringData: {{password: only-for-the-test}}
---
apiVersion: lamplighter.dev/v1alpha1
kind: Repository
metadata: {{name: main}}
spec: {{url: "{folder}/repository", passwordSecretRef: {{name: main}}, init: true}}
---
apiVersion: lamplighter.dev/v1alpha1
kind: Schedule
metadata: {{name: etc}}
spec:
  kind: backup
  cron: "@yearly"
  hostSelector: {{matchLabels: {{kubernetes.io/hostname: {node}}}}}
  repositoryRef: {{name: main}}
  backup: {{paths: ["{folder}/data"]}}
  hooks: {{before: ["{folder}/hook"]}}
---
apiVersion: lamplighter.dev/v1alpha1
kind: Run
metadata: {{name: now}}
spec: {{scheduleRef: {{name: etc}}}}
"""
HOOK = """#!/bin/sh
touch {folder}/begun
until [ -e {folder}/go ]; do sleep 0.1; done
"""


class Forwarder:
    """Passes connections on to `ports`, by turns, as a Service does."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _accept(self) -> None:
        for turn in itertools.count():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.ports[turn % len(self.ports)]))
            except OSError:
                client.close()
            else:
                threading.Thread(target=_join, args=(client, server), daemon=True).start()


def _join(client: socket.socket, server: socket.socket) -> None:
    """Pass on what each end says to the other, until one of them ends."""
    with client, server, contextlib.suppress(OSError):
        while True:
            for source in select.select([client, server], [], [])[0]:
                if not (data := source.recv(65536)):
                    return
                (server if source is client else client).sendall(data)


class Installed:
    """A release of the chart with two servers, and the processes that stand for its pods."""

    def __init__(self, cluster: OwnCluster, namespace: str, folder: Path, database: str) -> None:
        self.cluster, self.namespace, self.folder, self.database = cluster, namespace, folder, database
        self.name = f"lamplighter-{namespace}"
        self.service = Forwarder()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._helm = Config(kubeconfig_path=cluster.kubeconfig, namespace=namespace)
        given = {
            "server": {"replicas": 2, "drainSeconds": 1, "database": DATABASE},
            "tenancy": {"namespaces": [namespace]},
            "agent": {"allowedHooks": [f"{folder}/hook"]},
        }
        self._helm.install(CHART, self.name, given, namespace=namespace)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.service.close()
        self._helm.uninstall(self.name)
        self._helm.close()

    def kubectl(self, *argv: str, given: str = "") -> str:
        told: list[str | Path] = [KUBECTL, "--kubeconfig", self.cluster.kubeconfig, "-n", self.namespace, *argv]
        done: subprocess.CompletedProcess[str] = subprocess.run(
            told, input=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def container(self, kind: str, part: str, containers: str = "containers") -> list[str]:
        """The arguments of a part's container, for folders and addresses that a process may have."""
        path = f"/apis/apps/v1/namespaces/{self.namespace}/{kind}/{self.name}-{part}"
        (found,) = self.cluster.get(path)["spec"]["template"]["spec"][containers]
        gone = r"--(data-dir|listen|metrics-listen|server|token-file|ca-file|root|host|restic)="
        args = [it for it in found["args"] if not re.match(gone, it)]
        return [it.replace("/run/lamplighter/keys", str(self.folder / "keys")) for it in args]

    def start(self, name: str, argv: Sequence[str], ready: str, **environment: str) -> None:
        """Start a process, and wait until it has said `ready`."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            env = {**os.environ, **environment}
            self.processes[name] = subprocess.Popen([LAMPLIGHTER, *argv], stdout=out, stderr=out, env=env)
        self.until(lambda: ready in log.read_text(), name)

    def until(self, holds: Callable[[], bool], name: str) -> None:
        """Wait for a condition while a process runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            said = (self.folder / f"{name}.log").read_text()[-3000:]
            assert self.processes[name].poll() is None, f"{name} ended: {said}"
            assert time.monotonic() < deadline, f"{name}: {said}"
            time.sleep(0.05)

    def make_keys(self) -> None:
        """What the init container makes."""
        argv = self.container("deployments", "server", "initContainers")
        config = shutil.copy(self.cluster.kubeconfig, self.folder)
        context = ["config", "set-context", "--current", "--namespace", self.namespace]
        subprocess.run([KUBECTL, "--kubeconfig", config, *context], check=True, capture_output=True)
        subprocess.run([LAMPLIGHTER, *argv], env={**os.environ, "KUBECONFIG": config}, check=True)
        ca = self.cluster.get(f"/api/v1/namespaces/{self.namespace}/configmaps/{self.name}-ca")["data"]["ca.crt"]
        (self.folder / "ca.crt").write_text(ca)

    def start_server(self, name: str) -> None:
        """Start a server, and let the Service lead to it."""
        port = free_port()
        (self.folder / "api.crt").write_text(self.cluster.ca)
        token = self.folder / "api.token"
        token.write_text(self.cluster.token(self.namespace, f"{self.name}-server", audience=""))
        api = ["--kubernetes-api", self.cluster.url, "--kubernetes-token-file", str(token)]
        own = ["--listen", f"127.0.0.1:{port}", "--data-dir", str(self.folder / name), *api]
        argv = [*self.container("deployments", "server"), *own, "--kubernetes-ca-file", str(self.folder / "api.crt")]
        self.start(name, argv, "ready", LAMPLIGHTER_DATABASE=self.database, LAMPLIGHTER_REPLICA_NAME=name)
        self.service.ports = [*self.service.ports, port]

    def end_server(self, name: str, port: int) -> int:
        """End a server as the kubelet does: no new connections, then SIGTERM. Its exit code."""
        self.service.ports = [it for it in self.service.ports if it != port]
        self.processes[name].send_signal(signal.SIGTERM)
        return self.processes.pop(name).wait(PATIENCE_S)

    def start_client(self, kind: str, part: str, token: Object, ready: str, *more: str) -> None:
        """Start the controller or the agent."""
        path = self.folder / f"{part}.token"
        path.write_text(self.cluster.token(self.namespace, f"{self.name}-{part}", **token))
        there = ["--server", f"https://localhost:{self.service.port}", "--ca-file", str(self.folder / "ca.crt")]
        argv = [*self.container(kind, part), *there, "--token-file", str(path), *more]
        self.start(part, argv, ready, KUBECONFIG=str(self.cluster.kubeconfig))


@pytest.fixture
def databases() -> Iterator[Databases]:
    with postgresql.running() as databases:
        yield databases


@pytest.fixture
def installed(
    own_cluster: OwnCluster, definitions: None, namespace: str, tmp_path: Path, databases: Databases
) -> Iterator[Installed]:
    made = Installed(own_cluster, namespace, tmp_path, databases.new().render_as_string(hide_password=False))
    try:
        yield made
    finally:
        made.close()


def test_a_rollout_of_both_servers_during_a_backup_interrupts_nothing(installed: Installed, tmp_path: Path) -> None:
    node = f"node-{installed.namespace}"
    labels = {"kubernetes.io/hostname": node}
    installed.cluster.create("/api/v1/nodes", {"metadata": {"name": node, "labels": labels}})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("kept")
    (tmp_path / "hook").write_text(HOOK.format(folder=tmp_path))
    (tmp_path / "hook").chmod(0o700)
    installed.make_keys()
    for name in ("first", "second"):
        installed.start_server(name)
    old = dict(zip(("first", "second"), installed.service.ports, strict=True))
    installed.start_client("deployments", "controller", {}, "controller")
    pod = installed.cluster.pod(installed.namespace, f"{installed.name}-agent", node)
    own = ["--host", node, "--data-dir", str(tmp_path / "agent")]
    installed.start_client("daemonsets", "agent", {"pod": pod}, "connected", *own)

    installed.kubectl("apply", "-f", "-", given=DECLARED.format(folder=tmp_path, node=node))
    installed.until((tmp_path / "begun").exists, "agent")
    for number, (name, port) in enumerate(old.items()):
        installed.start_server(f"new-{number}")
        assert installed.end_server(name, port) == 0
    (tmp_path / "go").touch()
    installed.kubectl("wait", "--for=condition=Complete", f"--timeout={PATIENCE_S}s", "run/now")
    assert json.loads(installed.kubectl("get", "run/now", "-o", "json"))["status"]["succeeded"] == 1
    assert (tmp_path / "agent.log").read_text().count('"connected"') >= 2
