"""What of a kubelet `kubectl port-forward` needs: the API server carries SPDY streams to it, which it relays to a port.

The frames are those of SPDY/3.1 (https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/), in which the
client opens two streams for each connection: one for errors, which it half-closes at once, and one for the data.
"""

import json
import socket
import ssl
import struct
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.certificates import Authority
from tests.cluster.apiserver import Cluster

_SYN_STREAM, _SYN_REPLY, _PING = 1, 2, 6
_FIN = 1
_SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
)


class Kubelet:
    """Listens on loopback at `port`, and relays what is forwarded to any pod to `target`, a port of this machine."""

    def __init__(self, target: int, folder: Path) -> None:
        self.target = target
        certificate, key = Authority().issue("kubelet", "127.0.0.1")
        (folder / "kubelet.pem").write_bytes(certificate + key)
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(folder / "kubelet.pem")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def join(self, cluster: Cluster, node: str) -> None:
        """Have the API server know it as the kubelet of a node, which is created."""
        cluster.create("/api/v1/nodes", {"metadata": {"name": node}})
        address = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}
        endpoint = {"daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}}}
        _merge(cluster, f"/api/v1/nodes/{node}/status", {"status": address | endpoint})

    def runs(self, cluster: Cluster, namespace: str, pod: str, node: str, labels: dict[str, str]) -> None:
        """Create a pod with these labels on its node, which runs as far as the API server knows."""
        container = {"name": "server", "image": "server", "ports": [{"name": "https", "containerPort": 8700}]}
        spec = {"nodeName": node, "containers": [container], "serviceAccountName": "lamplighter-server"}
        pods = f"/api/v1/namespaces/{namespace}/pods"
        cluster.create(pods, {"metadata": {"name": pod, "labels": labels}, "spec": spec})
        running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        _merge(cluster, f"{pods}/{pod}/status", {"status": running})

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), self._tls.wrap_socket(connection, server_side=True) as secure:
            file = secure.makefile("rb")
            while file.readline() not in (b"\r\n", b""):
                pass
            secure.sendall(_SWITCHED)
            _Streams(secure, self.target).serve(file)


def _merge(cluster: Cluster, path: str, body: dict[str, object]) -> None:
    headers = {"content-type": "application/merge-patch+json"}
    cluster.http.patch(path, content=json.dumps(body), headers=headers).raise_for_status()


class _Streams:
    """The streams of one connection from the API server."""

    def __init__(self, connection: socket.socket, target: int) -> None:
        self._connection = connection
        self._target = target
        self._sending = threading.Lock()
        self._headers = zlib.compressobj()
        self._sockets: dict[int, socket.socket] = {}

    def serve(self, file: Any) -> None:
        """Read frames until the connection ends."""
        try:
            while len(head := file.read(8)) == 8:
                first, second = struct.unpack(">II", head)
                flags, body = second >> 24, file.read(second & 0xFFFFFF)
                if first >> 31:
                    self._control(first & 0xFFFF, body)
                else:
                    self._data(first, flags, body)
        finally:
            for it in self._sockets.values():
                it.close()

    def _control(self, kind: int, body: bytes) -> None:
        if kind == _SYN_STREAM:
            none = self._headers.compress(struct.pack(">I", 0)) + self._headers.flush(zlib.Z_SYNC_FLUSH)
            self._send(_control(_SYN_REPLY, body[:4] + none))
        elif kind == _PING:
            self._send(_control(_PING, body))

    def _data(self, stream: int, flags: int, body: bytes) -> None:
        there = self._sockets.get(stream)
        if body and there is None:
            there = self._sockets[stream] = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._relay, args=(stream, there), daemon=True).start()
        if there is None:  # the stream of errors, of which there are none
            self._send(struct.pack(">II", stream, _FIN << 24))
            return
        with suppress(OSError):
            there.sendall(body)
            if flags & _FIN:
                there.shutdown(socket.SHUT_WR)

    def _relay(self, stream: int, there: socket.socket) -> None:
        with suppress(OSError):
            while some := there.recv(65536):
                self._send(struct.pack(">II", stream, len(some)) + some)
            self._send(struct.pack(">II", stream, _FIN << 24))

    def _send(self, frame: bytes) -> None:
        with self._sending:
            self._connection.sendall(frame)


def _control(kind: int, body: bytes) -> bytes:
    return struct.pack(">HHI", 0x8003, kind, len(body)) + body
