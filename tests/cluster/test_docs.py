"""What docs say of clusters is true: kubectl and Helm run each page's commands in order on a real API server.

No kubelet runs pods: a server, a controller and the agent of a node run beside it, as the pods of the release would.
One that forwards ports stands in for that of the server's node.
"""

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.apiserver import BINARIES, OwnCluster, missing
from tests.cluster.kubelet import Kubelet
from tests.docs import PAGES, Command, Shell, blocks, check_sample, checkout, commands, free_port, needs_cluster

SYSTEM = "lamplighter-system"
ORDER = [
    "docs/kubernetes/install.md",
    "docs/kubernetes/first-schedule.md",
    "docs/cli.md",
    "docs/pages.md",
    "docs/kubernetes/conditions.md",
    "docs/restore.md",
    "docs/kubernetes/outside-hosts.md",
    "docs/kubernetes/tenancy.md",
    "docs/high-availability.md",
    "docs/kubernetes/upgrade.md",
    "docs/kubernetes/uninstall.md",
]
"""As a person goes through them; the README's block says again what install.md says."""

LASTING = {
    r"kubectl .* get runs -w": "etc-now",
    r"kubectl .* get restores -w": "etc-back",
    r"\S+/lamplighter agent ": "agent connected  url=",
}
"""What does not end by itself, and the line from which on it is at work."""

IMPOSSIBLE = {
    r"docker (build|push) ": "needs a registry and what it pulls",
    r"helm test ": "needs a kubelet that runs the pod of the test",
    r"kubectl .* port-forward ": "needs a kubelet; the server is at that port as it is",
    r"kubectl .* exec ": "needs a kubelet",
    r"ssh ": "needs that machine",
    r"restic -r s3:https://s3.example.org": "needs that server",
}
"""What cannot be done here, and why."""

FIRST = {
    "docs/kubernetes/tenancy.md": ["kubectl create secret generic backup-keys --from-literal password=secret"],
    "docs/kubernetes/outside-hosts.md": [
        "kubectl apply -f host.yaml",
        "until lamplighter get hosts | grep db-1; do sleep 0.1; done",
    ],
}
"""What a page takes as done."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[OwnCluster]:
    """An API server for this alone, since what docs install is of the whole cluster."""
    if missing():
        pytest.skip(f"{BINARIES} has no {' and no '.join(missing())}")
    (tmp_path / "cluster").mkdir()
    with OwnCluster(tmp_path / "cluster") as own:
        yield own


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    """That of the server's node."""
    with Kubelet(free_port(), tmp_path) as kubelet:
        yield kubelet


@pytest.fixture
def shell(api: OwnCluster, kubelet: Kubelet, tmp_path: Path) -> Iterator[Shell]:
    environment = {
        "KUBECONFIG": str(api.kubeconfig),
        "HOME": str(tmp_path / "home"),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip means yes by it
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PORT": str(kubelet.target),
    }
    with Shell(checkout(tmp_path / "checkout"), environment) as shell:
        run(shell, "export PATH=$PWD/.venv/bin:$PATH; alias helm='python -m tests.cluster.helm'")
        run(shell, f"sed -i 's|/var/backups|{shell.folder}/backups|; s|/srv/|{shell.folder}/|' examples/kubernetes/*")
        host = next(it for it in blocks("docs/kubernetes/outside-hosts.md") if it.language == "yaml")
        (shell.folder / "host.yaml").write_text(host.text)
        yield shell


def real(text: str, shell: Shell) -> str:
    """With what stands for the id of a job, and for an address and folders that tests leave alone."""
    jobs = re.findall(r"^([0-9a-f]{8})\s", shell.transcript, re.MULTILINE)
    text = re.sub(r"\bJOB\b", jobs[-1] if jobs else "JOB", text)
    text = re.sub(r"https://(localhost|backup\.example\.org):8700", "https://localhost:$PORT", text)
    text = re.sub(r"(?<![\w/{])/(opt|var/lib)/", rf"{shell.folder}/\1/", text)
    # On a machine of its own: without what was exported here, and with the wheel's dependencies.
    installed = rf"env -u LAMPLIGHTER_TOKEN_FILE PYTHONPATH={sysconfig.get_path('purelib')} \1"
    return re.sub(r"^(\S+/opt/\S+/lamplighter )", installed, text)


def run(shell: Shell, text: str) -> list[str]:
    code, seen = shell.run(text)
    assert code == 0, f"exit code {code}:\n" + "\n".join(seen)
    return seen


def type_in(shell: Shell, command: Command) -> None:
    """Type a command. Raises AssertionError with the place, the command and the output."""
    try:
        if ready := [line for pattern, line in LASTING.items() if re.match(pattern, command.text)]:
            seen = shell.start(real(command.text, shell), ready[0])
        else:
            seen = run(shell, real(command.text, shell))
        check_sample(command.sample, seen)
    except AssertionError as error:
        raise AssertionError(f"{command.where}: $ {command.text}\n{error}\n{shell.logs()}") from None


def stand_in_for_pods(api: OwnCluster, kubelet: Kubelet, shell: Shell) -> None:
    """Start what the release's pods would be: the server with its keys, the controller, the agent of node-1.

    And do what a controller manager would: what the release adds to the cluster's role "view" is lent to who has that.
    """
    labels = {"kubernetes.io/os": "linux"}
    api.create("/api/v1/nodes", {"metadata": {"name": "node-1", "labels": labels}})
    kubelet.join(api, "server-node")
    selector = api.get(f"/api/v1/namespaces/{SYSTEM}/services/lamplighter")["spec"]["selector"]
    kubelet.runs(api, SYSTEM, "lamplighter-server-0", "server-node", selector)
    folder = shell.folder / "pods"
    folder.mkdir()
    (folder / "api.crt").write_text(api.ca)
    (folder / "api.token").write_text(api.token(SYSTEM, "lamplighter-server", audience=""))
    (folder / "controller.token").write_text(api.token(SYSTEM, "lamplighter-controller"))
    pod = api.pod(SYSTEM, "lamplighter-agent", "node-1")
    (folder / "agent.token").write_text(api.token(SYSTEM, "lamplighter-agent", pod=pod))
    run(
        shell,
        f"kubectl create clusterrolebinding view --clusterrole lamplighter-view --serviceaccount {SYSTEM}:operator",
    )
    run(shell, f"kubectl config set-context --current --namespace {SYSTEM}")
    names = f"--tls-name localhost --tls-name lamplighter.{SYSTEM}.svc"
    run(shell, f"lamplighter keys --secret lamplighter-keys --config-map lamplighter-ca {names} pods/keys")
    run(shell, "kubectl get configmap lamplighter-ca -o jsonpath='{.data.ca\\.crt}' > pods/ca.crt")
    run(shell, "kubectl config set-context --current --namespace default")
    server = (
        "lamplighter server --listen 127.0.0.1:$PORT --data-dir pods/server --auth kubernetes"
        " --tls-cert pods/keys/tls.crt --tls-key pods/keys/tls.key --vault-key-file pods/keys/vault-key"
        f" --agent-service-account {SYSTEM}/lamplighter-agent --kubernetes-api {api.url}"
        " --kubernetes-token-file pods/api.token --kubernetes-ca-file pods/api.crt"
    )
    shell.start(server, "cli ready  listen= data=")
    there = "--server https://localhost:$PORT --ca-file pods/ca.crt"
    shell.start(
        f"lamplighter agent {there} --host node-1 --data-dir pods/agent --token-file pods/agent.token",
        "agent connected  url=",
    )
    shell.start(
        f"lamplighter controller {there} --token-file pods/controller.token --host-namespace {SYSTEM}", "controller "
    )


def test_each_command_about_clusters_does_what_the_pages_say(api: OwnCluster, kubelet: Kubelet, shell: Shell) -> None:
    for page in ORDER:
        for text in FIRST.get(page, ()):
            run(shell, text)
        for block in blocks(page):
            if block.language != "console" or not needs_cluster(block):
                continue
            for command in commands(block):
                if not any(re.match(pattern, command.text) for pattern in IMPOSSIBLE):
                    type_in(shell, command)
                if command.text.startswith("helm install "):
                    stand_in_for_pods(api, kubelet, shell)


def test_no_page_about_clusters_is_left_out() -> None:
    about = {page for page in PAGES if any(it.language == "console" and needs_cluster(it) for it in blocks(page))}
    assert about - {"README.md"} == set(ORDER)
