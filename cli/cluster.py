"""Reaches the server of a cluster with `kubectl`, as the user of a kubeconfig: `kubectl port-forward`, and their token.

TLS is between this program and the server, and the API server only carries it: the certificate is checked with the CA
that the cluster publishes. The token is the one that kubectl itself would send (of the kubeconfig, or of its exec
plugin), or a token of a service account, for those whose kubeconfig has a client certificate in place of a token.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import click

from cli.client import UnavailableError
from cli.options import Access, Cluster, read_token

HOME = "lamplighter-system"
"""The namespace that is looked in first."""
LABELS = "app.kubernetes.io/name=lamplighter,app.kubernetes.io/component=server"
"""The labels of the server's Service, as the chart and the manifests set them."""
AUDIENCE = "lamplighter"
"""The audience of a service account's token, which opens nothing else."""
PATIENCE_S = 30
"""Seconds for one call of kubectl, and until its port-forward listens."""
_LISTENS = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


class Chosen(NamedTuple):
    """What the options chose. `service`: NAMESPACE/NAME, "" to look for it. `account`: [NAMESPACE/]NAME, or ""."""

    kubeconfig: Path | None = None
    context: str = ""
    service: str = ""
    account: str = ""
    tls_name: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None


class Service(NamedTuple):
    """The server's Service."""

    namespace: str
    name: str
    port: int


@contextmanager
def connected(chosen: Chosen) -> Iterator[Access]:
    """Reach the server while entered. Raises click.ClickException, with the remedy."""
    kubectl = Kubectl(chosen.kubeconfig, chosen.context)
    config = kubectl.json("config", "view", "--minify", "--raw")
    service = _service(kubectl, chosen.service)
    token = _token(kubectl, config, service, chosen)
    trusted = "" if chosen.ca_file else _ca(kubectl, service)
    name = chosen.tls_name or f"{service.name}.{service.namespace}.svc"
    with _forwarded(kubectl, service) as (port, said):
        cluster = Cluster(f"{service.namespace}/{service.name}", token, trusted, name)
        namespace = config["contexts"][0]["context"].get("namespace") or "default"
        try:
            yield Access(f"https://127.0.0.1:{port}", Path(), None, chosen.ca_file, namespace, cluster)
        except UnavailableError as error:
            if why := _last_line(said):
                raise UnavailableError(f"{error.message}; kubectl: {why}") from None
            raise


class Kubectl:
    """Runs kubectl with the options that choose a cluster. Raises click.ClickException with what kubectl said."""

    def __init__(self, kubeconfig: Path | None, context: str) -> None:
        program = shutil.which("kubectl")
        if program is None:
            raise click.ClickException("kubectl is not in PATH: install it, or use `lamplighter` with --server")
        options = {"--kubeconfig": kubeconfig, "--context": context}
        self._argv = [program, *(f"{name}={value}" for name, value in options.items() if value)]

    def argv(self, *words: str) -> list[str]:
        """A command line."""
        return [*self._argv, *words]

    def run(self, *words: str) -> str:
        """What a command says."""
        try:
            done = subprocess.run(
                self.argv(*words),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise click.ClickException(f"kubectl {words[0]} gave no answer within {PATIENCE_S} s") from None
        if done.returncode != 0:
            raise click.ClickException(f"kubectl {words[0]}: {' '.join(done.stderr.split())}")
        return done.stdout

    def json(self, *words: str) -> Any:
        """What a command says as JSON."""
        return json.loads(self.run(*words, "--output=json"))


def _service(kubectl: Kubectl, named: str) -> Service:
    """The server's Service: the one that is named, or the only one with its labels, in HOME or in any namespace."""
    if named:
        namespace, slash, name = named.partition("/")
        if not slash or not namespace or not name:
            raise click.ClickException(f"--service {named}: give NAMESPACE/NAME")
        return _as_service(kubectl.json("get", "service", name, f"--namespace={namespace}"))
    for where in (f"--namespace={HOME}", "--all-namespaces"):
        try:
            found = kubectl.json("get", "services", where, f"--selector={LABELS}")["items"]
        except click.ClickException as error:
            remedy = "give --service NAMESPACE/NAME"
            raise click.ClickException(f"the server's Service was not found ({error.message}): {remedy}") from None
        if len(found) > 1:
            names = ", ".join(f"{it['metadata']['namespace']}/{it['metadata']['name']}" for it in found)
            raise click.ClickException(f"the cluster has several servers: give --service, one of {names}")
        if found:
            return _as_service(found[0])
    raise click.ClickException(f"no Service of this cluster has the labels {LABELS}: give --service NAMESPACE/NAME")


def _as_service(item: Mapping[str, Any]) -> Service:
    ports = item["spec"]["ports"]
    port = next((it for it in ports if it.get("name") == "https"), ports[0])
    return Service(item["metadata"]["namespace"], item["metadata"]["name"], port["port"])


def _ca(kubectl: Kubectl, service: Service) -> str:
    """The CA of the server's certificate, where the server made its own and publishes it; "" for the system's."""
    asked = ("get", "configmap", f"{service.name}-ca", f"--namespace={service.namespace}", "--ignore-not-found")
    try:
        found = kubectl.run(*asked, "--output=json")
    except click.ClickException as error:
        raise click.ClickException(f"{error.message}: give --ca-file, the CA of the server's certificate") from None
    certificate: str = json.loads(found)["data"].get("ca.crt", "") if found else ""
    return certificate


def _token(kubectl: Kubectl, config: Mapping[str, Any], service: Service, chosen: Chosen) -> str:
    """The token that tells the server who asks. Raises click.ClickException where the user has none."""
    if chosen.token_file:
        return read_token(chosen.token_file, "give a file with a token of the cluster")
    if chosen.account:
        namespace, _, name = chosen.account.rpartition("/")
        where = f"--namespace={namespace or service.namespace}"
        return kubectl.run("create", "token", name, where, f"--audience={AUDIENCE}").strip()
    user = config["users"][0]["user"] if config.get("users") else {}
    if "tokenFile" in user:
        return read_token(Path(user["tokenFile"]), "it is the tokenFile of the kubeconfig's user")
    token = user.get("token") or ("exec" in user and _exec_token(user["exec"], config["clusters"][0]["cluster"]))
    if not token:
        remedy = "give --service-account [NAMESPACE/]NAME, a service account that you may create tokens for"
        why = "your kubeconfig's user has no token, and Lamplighter knows callers by their tokens"
        raise click.ClickException(f"{why}: {remedy}")
    return str(token)


def _exec_token(plugin: Mapping[str, Any], cluster: Mapping[str, Any]) -> str:
    """The token of a kubeconfig's exec plugin, by client.authentication.k8s.io; "" where it gives a certificate alone.

    Raises click.ClickException where the plugin fails.
    """
    is_interactive = plugin.get("interactiveMode") != "Never" and sys.stdin.isatty()
    spec: dict[str, Any] = {"interactive": is_interactive}
    if plugin.get("provideClusterInfo"):
        known = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
        spec["cluster"] = {name: cluster[name] for name in known if name in cluster}
    info = {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": spec}
    environment = {it["name"]: it["value"] for it in plugin.get("env") or ()}
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(info)
    argv = [plugin["command"], *(plugin.get("args") or ())]
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **environment},
            stdin=None if is_interactive else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
        )
        return str(json.loads(done.stdout)["status"].get("token", ""))
    except (OSError, subprocess.CalledProcessError, ValueError, LookupError, AttributeError) as error:
        hint = plugin.get("installHint", "").strip()
        why = f"the kubeconfig's plugin {plugin['command']} gave no token ({type(error).__name__}: {error})"
        raise click.ClickException(f"{why}: {hint}" if hint else why) from None


@contextmanager
def _forwarded(kubectl: Kubectl, service: Service) -> Iterator[tuple[int, IO[str]]]:
    """Forward a port of this machine's loopback to the server: the port, and a file with kubectl's errors."""
    where = (f"--namespace={service.namespace}", "--address=127.0.0.1", f"service/{service.name}", f":{service.port}")
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            kubectl.argv("port-forward", *where),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # Ctrl-C is for this program, which ends it
        )
        too_late = threading.Timer(PATIENCE_S, process.terminate)
        too_late.start()
        try:
            port = _port(process)
            too_late.cancel()
            if port is None:
                why = _last_line(said) or f"kubectl did not listen within {PATIENCE_S} s"
                raise click.ClickException(f"{service.namespace}/{service.name} cannot be reached: {why}")
            threading.Thread(target=_drain, args=(process,), daemon=True).start()
            yield port, said
        finally:
            too_late.cancel()
            process.terminate()
            process.wait()


def _port(process: "subprocess.Popen[str]") -> int | None:
    """The port that kubectl listens at; None where it ended."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for line in process.stdout:
        if found := _LISTENS.match(line):
            return int(found[1])
    return None


def _drain(process: "subprocess.Popen[str]") -> None:
    """Read what kubectl says of each connection, so that it does not wait for a reader."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for _ in process.stdout:
        pass


def _last_line(said: IO[str]) -> str:
    said.seek(0)
    lines: Sequence[str] = said.read().split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
