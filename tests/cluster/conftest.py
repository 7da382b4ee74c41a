"""A Kubernetes API server to test against, for the whole session.

A real etcd and kube-apiserver are started where they are found as controller-runtime's envtest finds them, in
KUBEBUILDER_ASSETS or /usr/local/kubebuilder/bin; or the cluster of LAMPLIGHTER_TEST_KUBECONFIG is used. Where there is
neither, the tests are skipped, and say so.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.apiserver import BINARIES, Cluster, OwnCluster, missing

KUBECONFIG = os.environ.get("LAMPLIGHTER_TEST_KUBECONFIG", "")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The API server, as an administrator uses it."""
    if KUBECONFIG:
        with Cluster(Path(KUBECONFIG)) as given:
            yield given
        return
    if missing():
        pytest.skip(f"{BINARIES} has no {' and no '.join(missing())}, and LAMPLIGHTER_TEST_KUBECONFIG is not set")
    with OwnCluster(tmp_path_factory.mktemp("cluster")) as own:
        yield own


@pytest.fixture
def own_cluster(cluster: Cluster) -> Iterator[OwnCluster]:
    """The API server, where it is ours to stop and start again, and to sign tokens for."""
    if not isinstance(cluster, OwnCluster):
        pytest.skip("the API server of LAMPLIGHTER_TEST_KUBECONFIG is not ours to stop")
    cluster.start()  # a test may have left it stopped
    yield cluster
    cluster.start()


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    """A namespace of the test's own."""
    return cluster.namespace()


@pytest.fixture(scope="session")
def definitions(cluster: Cluster) -> None:
    """Our kinds, as the cluster serves them."""
    cluster.define()
