"""An API server to test against: one that a kubeconfig leads to, or an etcd and a kube-apiserver of our own."""

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tests.certificates import Authority, key_pem, new_key

BINARIES = Path(os.environ.get("KUBEBUILDER_ASSETS", "/usr/local/kubebuilder/bin"))
CRDS = Path(__file__).parents[2] / "crds"
RBAC = "rbac.authorization.k8s.io"
START_S = 120
"""What has not started by then will not."""


def missing() -> list[Any]:
    """The programs that are not there."""
    return [name for name in ("etcd", "kube-apiserver") if not (BINARIES / name).is_file()]


class Cluster:
    """A cluster by its kubeconfig. Paths are those of the API: `cluster.create("/api/v1/namespaces", {…})`."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        settings = yaml.safe_load(kubeconfig.read_text())
        current = _named(settings["contexts"], settings["current-context"])["context"]
        server = _named(settings["clusters"], current["cluster"])["cluster"]
        user = _named(settings["users"], current["user"])["user"]
        self.url = server["server"]
        self.ca = base64.b64decode(server["certificate-authority-data"]).decode()
        trusted = ssl.create_default_context(cadata=self.ca)
        if "client-certificate-data" in user:
            pair = kubeconfig.with_name(f".{kubeconfig.name}.client.pem")
            parts = (base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key"))
            pair.touch(0o600)
            pair.write_bytes(b"\n".join(parts))
            trusted.load_cert_chain(pair)
            pair.unlink()
        headers = {"authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self.http = httpx.Client(base_url=self.url, verify=trusted, headers=headers, timeout=30, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def create(self, path: str, body: dict[str, Any]) -> Any:
        return self._answer(self.http.post(path, json=body))

    def apply(self, path: str, body: dict[str, Any]) -> Any:
        """Server-side apply."""
        query = {"fieldManager": "tests", "force": "true"}
        headers = {"content-type": "application/apply-patch+yaml"}
        name = body["metadata"]["name"]
        return self._answer(self.http.patch(f"{path}/{name}", params=query, headers=headers, content=json.dumps(body)))

    def define(self) -> None:
        """Have our kinds be served."""
        for path in sorted(CRDS.glob("*.yaml")):
            self.apply("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(path.read_text()))
        deadline = time.monotonic() + START_S
        for path in CRDS.glob("*.yaml"):
            while not self.http.get(f"/apis/lamplighter.dev/v1alpha1/{path.stem}").is_success:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{path.stem} are not served")
                time.sleep(0.1)

    def get(self, path: str) -> Any:
        return self._answer(self.http.get(path))

    def delete(self, path: str, **options: int) -> Any:
        return self._answer(self.http.request("DELETE", path, json=options or None))

    def _answer(self, answer: httpx.Response) -> Any:
        assert answer.is_success, f"{answer.request.method} {answer.request.url}: {answer.text}"
        return answer.json()

    def namespace(self) -> str:
        name = f"test-{uuid4().hex[:8]}"
        self.create("/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def service_account(self, namespace: str, name: str) -> None:
        self.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})

    def node(self) -> str:
        """A node's name; there is no kubelet behind it."""
        name = f"node-{uuid4().hex[:8]}"
        self.create("/api/v1/nodes", {"metadata": {"name": name}})
        return name

    def pod(self, namespace: str, service_account: str, node: str) -> Any:
        """A pod that stands on a node, though nothing runs it."""
        container = {"name": "agent", "image": "agent"}
        spec = {"serviceAccountName": service_account, "nodeName": node, "containers": [container]}
        body = {"metadata": {"generateName": "agent-"}, "spec": spec}
        return self.create(f"/api/v1/namespaces/{namespace}/pods", body)

    def token(self, namespace: str, service_account: str, *, audience: str = "lamplighter", pod: Any = None) -> Any:
        """A token by the TokenRequest API; without an audience, for the API server."""
        spec: dict[str, object] = {"expirationSeconds": 3600}
        if audience:
            spec["audiences"] = [audience]
        if pod:
            metadata = pod["metadata"]
            bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
            spec["boundObjectRef"] = bound
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        return self.create(path, {"spec": spec})["status"]["token"]

    def bind_cluster_role(self, role: Any, namespace: str, service_account: str) -> None:
        ref = {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}
        subject = {"kind": "ServiceAccount", "namespace": namespace, "name": service_account}
        body = {"metadata": {"generateName": "test-"}, "roleRef": ref, "subjects": [subject]}
        self.create(f"/apis/{RBAC}/v1/clusterrolebindings", body)

    def allow(self, namespace: str, service_account: str, *rules: dict[str, list[str]]) -> None:
        """Let a service account do things in its namespace."""
        roles = f"/apis/{RBAC}/v1/namespaces/{namespace}"
        role = self.create(f"{roles}/roles", {"metadata": {"generateName": "test-"}, "rules": rules})
        ref = {"apiGroup": RBAC, "kind": "Role", "name": role["metadata"]["name"]}
        subject = {"kind": "ServiceAccount", "namespace": namespace, "name": service_account}
        binding = {"metadata": {"generateName": "test-"}, "roleRef": ref, "subjects": [subject]}
        self.create(f"{roles}/rolebindings", binding)


class OwnCluster(Cluster):
    """An etcd and an API server of our own. `stop` and `start` are about the API server: what it holds stays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        etcd, self._port = _free_port(), _free_port()
        self._etcd_url = f"http://127.0.0.1:{etcd}"
        self._keys()
        super().__init__(self._write_kubeconfig())
        peers = f"http://127.0.0.1:{_free_port()}"
        urls = (f"--listen-client-urls={self._etcd_url}", f"--advertise-client-urls={self._etcd_url}")
        more = (f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}")
        first = f"--initial-cluster=default={peers}"
        self._run("etcd", f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync", *urls, *more, first)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.stop()
        self._end("etcd", signal.SIGTERM)

    def start(self) -> None:
        """Have the API server answer. One that does is left alone."""
        if "kube-apiserver" in self._processes:
            return
        pki = self._folder / "pki"
        self._run(
            "kube-apiserver",
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--tls-cert-file={pki / 'server.crt'}",
            f"--tls-private-key-file={pki / 'server.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={pki / 'tokens.key'}",
            f"--service-account-key-file={pki / 'tokens.key'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
        )
        self._until_ready()

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Have the API server be gone, at once or as `how` says."""
        self._end("kube-apiserver", how)

    def compact(self) -> None:
        """Have etcd forget all history up to now."""
        with httpx.Client(base_url=self._etcd_url, timeout=30, trust_env=False) as etcd:
            first = base64.b64encode(b"/").decode()  # with its padding, which etcd 3.5 asks for
            now = etcd.post("/v3/kv/range", json={"key": first}).raise_for_status().json()["header"]["revision"]
            etcd.post("/v3/kv/compaction", json={"revision": now, "physical": True}).raise_for_status()

    def resign(self, token: Any, **claims: int) -> str:
        """A token with other claims, signed as the API server signs."""
        header, payload, _ = token.split(".")
        changed = {**json.loads(_unbase64(payload)), **claims}
        signed = f"{header}.{_base64(json.dumps(changed).encode())}"
        signature = self._signing.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64(signature)}"

    def _run(self, name: str, *flags: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            argv: list[str | Path] = [BINARIES / name, *flags]
            self._processes[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _end(self, name: str, how: signal.Signals) -> None:
        if process := self._processes.pop(name, None):
            process.send_signal(how)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended: {(self._folder / f'{name}.log').read_text()[-3000:]}")
            try:
                answer = self.http.get("/readyz")
            except httpx.TransportError as error:
                said = str(error)
            else:
                said = answer.text
                if answer.is_success and self.http.get("/api/v1/namespaces/default").is_success:
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the API server is not ready after {START_S} s: {said}")
            time.sleep(0.1)

    def _keys(self) -> None:
        pki = self._folder / "pki"
        pki.mkdir(mode=0o700)
        authority = Authority()
        self._signing = new_key()
        self.admin = authority.issue("admin", organization="system:masters")
        cert, key = authority.issue("kube-apiserver", "127.0.0.1")
        (pki / "ca.crt").write_bytes(authority.pem)
        (pki / "server.crt").write_bytes(cert)
        (pki / "server.key").write_bytes(key)
        (pki / "tokens.key").write_bytes(key_pem(self._signing))
        self._ca = authority.pem

    def _write_kubeconfig(self) -> Path:
        path = self._folder / "kubeconfig"
        cert, key = (base64.b64encode(part).decode() for part in self.admin)
        server = {
            "server": f"https://127.0.0.1:{self._port}",
            "certificate-authority-data": base64.b64encode(self._ca).decode(),
        }
        user = {"client-certificate-data": cert, "client-key-data": key}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "admin", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        path.touch(0o600)
        path.write_text(yaml.safe_dump(content))
        return path


def _named(items: list[Any], name: str) -> Any:
    return next(item for item in items if item["name"] == name)


def _free_port() -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
