"""Where the API server is, and with which credentials: known here, for our own requests and for kopf's watches.

The credentials are kopf's own finding (a service account's, or a kubeconfig's).
"""

import dataclasses
import os
from collections.abc import Mapping

import kopf

from controller.client import ControllerError

TIMEOUT_S = 30.0
"""Seconds that the API server has for one answer."""


def login() -> kopf.ConnectionInfo:
    """The credentials of this process, read anew: its service account's, or a kubeconfig's. Raises ControllerError."""
    settings = kopf.OperatorSettings()
    if found := kopf.login_with_service_account(settings=settings):
        return dataclasses.replace(found, server=api_server(os.environ))
    if found := kopf.login_with_kubeconfig(settings=settings):
        return found
    raise ControllerError("no cluster: run in a pod with a service account, or set KUBECONFIG")


def api_server(environ: Mapping[str, str]) -> str:
    """The API server's URL as every pod is told it, which needs no DNS (client-go does the same)."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"
