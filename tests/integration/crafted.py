"""A snapshot that no restic would write, put into a repository by hand.

Source: restic's "Design" (doc/design.rst): keys, packs, index, trees and snapshots. What is not compressed is read by
every version of the format.
"""

import base64
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

TIME = "2026-01-02T03:04:05Z"


class Crafted:
    """Writes into a repository that restic made, and that this password opens."""

    def __init__(self, repository: Path, password: str) -> None:
        self._repository = repository
        [path] = (repository / "keys").iterdir()
        self._key = json.loads(path.read_bytes())
        sealed = base64.b64decode(self._key["data"])
        self._keys = _derived(self._key, password)
        self._opened = self._crypt(sealed[:16], sealed[16:-16])
        master = json.loads(self._opened)
        mac = b"".join(base64.b64decode(master["mac"][part]) for part in ("k", "r"))
        self._keys = [base64.b64decode(master["encrypt"]), mac]
        self._blobs: list[tuple[int, str, bytes]] = []

    def cheapen(self, password: str) -> None:
        """Have the password open it at once, which otherwise takes half a second of work each time."""
        cheap, keys = {**self._key, "N": 2, "r": 1, "p": 1}, self._keys
        self._keys = _derived(cheap, password)
        sealed = base64.b64encode(self._seal(self._opened)).decode()
        self._keys = keys
        [path] = (self._repository / "keys").iterdir()
        path.unlink()
        self._store("keys", json.dumps({**cheap, "data": sealed}).encode())

    def tree(self, *nodes: Any) -> str:
        """A folder that holds these nodes."""
        return self._blob(1, json.dumps({"nodes": nodes}, separators=(",", ":")).encode() + b"\n")

    def file(self, name: str, content: bytes = b"of the attacker", **more: Any) -> Any:
        return node(name, "file", size=len(content), content=[self._blob(0, content)], **more)

    def folder(self, name: str, *nodes: Any, **more: Any) -> Any:
        return node(name, "dir", subtree=self.tree(*nodes), **more)

    def snapshot(self, *nodes: Any) -> None:
        """Store all of it, with a snapshot that has these nodes at its root."""
        root, pack, listed, header = self.tree(*nodes), b"", [], b""
        for kind, id_, sealed in self._blobs:
            told = {"id": id_, "type": ("data", "tree")[kind], "offset": len(pack), "length": len(sealed)}
            listed.append(told)
            pack, header = pack + sealed, header + struct.pack("<BI", kind, len(sealed)) + bytes.fromhex(id_)
        header = self._seal(header)
        pack_id = self._store("data", pack + header + struct.pack("<I", len(header)))
        self._store("index", self._seal(json.dumps({"packs": [{"id": pack_id, "blobs": listed}]}).encode()))
        facts = {"time": TIME, "tree": root, "paths": ["/"], "hostname": "node-1"}
        self._store("snapshots", self._seal(json.dumps(facts).encode()))

    def _blob(self, kind: int, content: bytes) -> str:
        id_ = hashlib.sha256(content).hexdigest()
        if id_ not in [known for _, known, _ in self._blobs]:
            self._blobs.append((kind, id_, self._seal(content)))
        return id_

    def _store(self, folder: str, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        place = self._repository / folder / (name[:2] if folder == "data" else "")
        place.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
        return name

    def _seal(self, content: bytes) -> bytes:
        """AES-256 in counter mode, and Poly1305-AES of that."""
        nonce = os.urandom(16)
        sealed, (_, mac) = self._crypt(nonce, content), self._keys
        block = Cipher(algorithms.AES(mac[:16]), modes.ECB()).encryptor().update(nonce)  # noqa: S305 - one block
        return nonce + sealed + Poly1305.generate_tag(mac[16:] + block, sealed)

    def _crypt(self, nonce: bytes, content: bytes) -> bytes:
        return Cipher(algorithms.AES(self._keys[0]), modes.CTR(nonce)).encryptor().update(content)


def _derived(key: Any, password: str) -> list[Any]:
    """The two keys that a password gives, by scrypt."""
    costs = {"n": key["N"], "r": key["r"], "p": key["p"], "maxmem": 1 << 30}
    derived = hashlib.scrypt(password.encode(), salt=base64.b64decode(key["salt"]), dklen=64, **costs)
    return [derived[:32], derived[32:]]


def node(name: str, type_: str, mode: int = 0o777, **more: Any) -> dict[str, Any]:
    times = dict.fromkeys(("mtime", "atime", "ctime"), TIME)
    bits = {"dir": 1 << 31, "symlink": 1 << 27}.get(type_, 0) | (mode & 0o777) | (mode & 0o4000) << 12
    return {"name": name, "type": type_, "mode": bits, **times, "uid": 65534, "gid": 65534, **more}


def link(name: str, target: str, **more: int) -> Any:
    return node(name, "symlink", linktarget=str(target), **more)
