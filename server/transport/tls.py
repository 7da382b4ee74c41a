"""The server's TLS certificate, read again when its files have changed, as cert-manager renews them."""

import logging
import ssl
from pathlib import Path

log = logging.getLogger(__name__)

Version = tuple[tuple[int, int, int], ...]
"""Inode, size and mtime of each file. They change when a file is replaced or written."""


def server_context(cert: Path, key: Path | None) -> ssl.SSLContext:
    """A TLS context whose handshakes use the newest certificate. Open connections keep the one that they began with.

    `cert`: file with the chain in PEM. `key`: file with its private key; None when `cert` has it. If a renewed pair
    cannot be used, that is logged and the previous pair stays in use. Raises OSError (of which ssl.SSLError is a
    subclass) when the first pair cannot be used.
    """
    files = (cert,) if key is None else (cert, key)
    seen, current = _version(files), _context(cert, key)

    def renew(connection: ssl.SSLObject, _name: str | None, _context_: ssl.SSLContext) -> None:
        nonlocal seen, current
        try:
            if (version := _version(files)) != seen:
                seen = version  # so that a pair that cannot be used is logged once
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
