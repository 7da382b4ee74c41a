"""The server's certificate, taken anew from its files when they have changed, as cert-manager renews it."""

import logging
import ssl
from pathlib import Path

log = logging.getLogger(__name__)

Version = tuple[tuple[int, int, int], ...]
"""What differs when files are replaced or written: inode, size and time of each."""


def server_context(cert: Path, key: Path | None) -> ssl.SSLContext:
    """The context that handshakes are made with. Connections that are open keep the certificate they began with.

    `cert`: the chain in PEM; `key`: its private key, in the same file when None. A pair that cannot be used leaves the
    last one in force. Raises OSError (ssl.SSLError is one) when the first pair cannot be used.
    """
    files = (cert,) if key is None else (cert, key)
    seen, current = _version(files), _context(cert, key)

    def renew(connection: ssl.SSLObject, _name: str | None, _context_: ssl.SSLContext) -> None:
        nonlocal seen, current
        try:
            if (version := _version(files)) != seen:
                seen = version  # a pair that cannot be used is told once
                current = _context(cert, key)
                log.info("certificate renewed", extra={"file": cert})
        except OSError as error:
            log.error("the renewed certificate cannot be used", extra={"file": cert, "reason": str(error)})
        connection.context = current

    outer = _context(cert, key)
    outer.sni_callback = renew
    return outer


def _context(cert: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return context


def _version(files: tuple[Path, ...]) -> Version:
    found = [file.stat() for file in files]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)
