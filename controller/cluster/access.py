"""The API server's address and credentials, for the controller's requests and for kopf's watches.

kopf finds the credentials: of a service account, or in a kubeconfig.
"""

import dataclasses
import os
from collections.abc import Mapping

import kopf

from controller.client import ControllerError

TIMEOUT_S = 30.0
"""Seconds to wait for an answer of the API server."""


def login() -> kopf.ConnectionInfo:
    """Read the credentials of the service account or the kubeconfig. Raises ControllerError if there are none."""
    settings = kopf.OperatorSettings()
    if found := kopf.login_with_service_account(settings=settings):
        return dataclasses.replace(found, server=api_server(os.environ))
    if found := kopf.login_with_kubeconfig(settings=settings):
        return found
    raise ControllerError("no credentials for a cluster: run in a pod with a service account, or set KUBECONFIG")


def api_server(environ: Mapping[str, str]) -> str:
    """The API server's URL from the environment of every pod, which needs no DNS. client-go uses the same."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"
