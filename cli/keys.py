"""Makes the server's keys in the cluster, once for all starts, and lays them where the server reads them."""

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
"""What the server reads. The CA's own key stays in the Secret."""


async def make(secret: str, config_map: str, names: Sequence[str], folder: Path, *, vault: bool) -> None:
    """Have a Secret hold all keys and a ConfigMap the CA's certificate; both must exist. Then write a folder.

    They are in the namespace of this pod, or of the kubeconfig's context. Raises KubeError, KeysError, OSError.
    """
    namespace = login().default_namespace or "default"
    async with Kube(login) as kube:
        held = await _completed(kube, namespace, secret, names, vault=vault)
        if names:
            await _publish(kube, namespace, config_map, held[keys.CA_CERT].decode())
    _lay(folder, {name: held[name] for name in PRIVATE if name in held})


async def _completed(kube: Kube, namespace: str, name: str, names: Sequence[str], *, vault: bool) -> keys.Held:
    """What the Secret holds once it is complete. Of two who complete it at once, one wins and both return the same."""
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
            continue  # another was faster: look at what it made
        made = sorted(key for key in wanted if wanted[key] != held.get(key))
        log.info("keys made", extra={"secret": f"{namespace}/{name}", "keys": made})
        return wanted


async def _publish(kube: Kube, namespace: str, name: str, certificate: str) -> None:
    """Tell agents and the controller, who mount this ConfigMap, which CA to trust."""
    found = _found(await kube.get("ConfigMap", namespace, name), "ConfigMap", namespace, name)
    if (found.get("data") or {}).get(keys.CA_CERT) != certificate:
        await kube.patch("ConfigMap", namespace, name, {"data": {keys.CA_CERT: certificate}})


def _found(found: Object | None, kind: str, namespace: str, name: str) -> Object:
    if found is None:
        raise keys.KeysError(f"there is no {kind} {namespace}/{name}: apply the chart's, which is empty at first")
    return found


def _lay(folder: Path, files: keys.Held) -> None:
    """Write files that only we can read, in place of those that a start before this left."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in files.items():
        path = folder / name
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
