"""A pod finds its API server from its environment, without DNS."""

import pytest

from controller.cluster.access import api_server


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://10.96.0.1:6443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1"}, "https://[fd00::1]:443"),
    ],
)
def test_the_api_server_is_found_without_dns(environ: dict[str, str], url: str) -> None:
    assert api_server(environ) == url
