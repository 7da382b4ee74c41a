"""Carries out `keys`: creates a server's missing keys in its cluster, and writes them where the server reads them."""

import base64
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from controller.cluster.access import login
from controller.cluster.kube import Kube, KubeError, Object
from server.access import keys
from server.app import utc_now

log = logging.getLogger(__name__)

PRIVATE = (keys.VAULT_KEY, keys.CERT, keys.KEY)
"""The files that the server reads. The CA's own key stays in the Secret."""


async def make(secret: str, config_map: str, names: Sequence[str], folder: Path, *, vault: bool) -> None:
    """Complete the keys in a Secret and the CA's certificate in a ConfigMap, and write the server's keys to a folder.

    Secret and ConfigMap must exist, in the namespace of this pod or of the kubeconfig's context. The ConfigMap tells
    agents and the controller, which mount it, which CA to trust. Raises KubeError, KeysError, OSError.
    """
    namespace = login().default_namespace or "default"
    async with Kube(login) as kube:
        held = await _completed(kube, namespace, secret, names, vault=vault)
        if names:
            certificate = held[keys.CA_CERT].decode()
            published = _found(await kube.get("ConfigMap", namespace, config_map), "ConfigMap", namespace, config_map)
            if (published.get("data") or {}).get(keys.CA_CERT) != certificate:
                await kube.patch("ConfigMap", namespace, config_map, {"data": {keys.CA_CERT: certificate}})
    _write_private(folder, {name: held[name] for name in PRIVATE if name in held})


async def _completed(kube: Kube, namespace: str, name: str, names: Sequence[str], *, vault: bool) -> keys.SecretData:
    """Complete the Secret and return what it holds. If two do so at once, one wins, and both return the same."""
    while True:
        found = _found(await kube.get("Secret", namespace, name), "Secret", namespace, name)
        held = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
        wanted = keys.complete(held, names, utc_now(), vault=vault)
        if wanted == held:
            return held
        data = {key: base64.b64encode(value).decode() for key, value in wanted.items()}
        try:
            await kube.replace("Secret", {**found, "data": data})
        except KubeError as error:
            if error.status != 409:
                raise
            continue  # another was faster: read what it made
        made = sorted(key for key in wanted if wanted[key] != held.get(key))
        log.info("keys made", extra={"secret": f"{namespace}/{name}", "keys": made})
        return wanted


def _found(found: Object | None, kind: str, namespace: str, name: str) -> Object:
    if found is None:
        raise keys.KeysError(f"{kind} {namespace}/{name} does not exist: apply the chart's, which is empty at first")
    return found


def _write_private(folder: Path, files: keys.SecretData) -> None:
    """Write files that only their owner can read, instead of those that an earlier start left."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in files.items():
        path = folder / name
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
