"""Why a server cannot be reached, in words with the remedy: what TLS says is for those who know it by heart."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

_NAME = (62, 64)
"""What OpenSSL calls a certificate of another host name or address (x509_vfy.h, X509_V_ERR_*_MISMATCH)."""
_TIME = (9, 10)
"""A certificate that is not valid yet, or not any more."""


def unreachable(url: str, error: BaseException, ca_file: Path | None) -> str:
    """Why nothing answers at a URL, with the remedy. `ca_file`: whom the caller trusts, None for the system."""
    if why := tls_trouble(url, error, ca_file):
        return why
    remedy = "start one with `lamplighter up DIR`, or say where it is with --server"
    return f"no server answers at {url} ({_words(error)}): {remedy}"


def reason(url: str, ca_file: Path | None) -> Callable[[BaseException], str]:
    """What tells in a few words why a server at this URL is not reached, for those who try again."""
    return lambda error: tls_trouble(url, error, ca_file) or _words(error)


def tls_trouble(url: str, error: BaseException, ca_file: Path | None) -> str:
    """What is wrong with TLS, or with a URL that names it or does not; empty where it is something else."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"no trust in {url}: {_untrusted(cause, url, ca_file)}"
        if isinstance(cause, ssl.SSLError) and ca_file is not None and not _is_authority(ca_file):
            return f"--ca-file {ca_file} holds no certificate in PEM: give that of the authority of the server's"
        if isinstance(cause, ssl.SSLError):
            plain = url.replace("https:", "http:", 1)
            return f"no TLS at {url} ({_said(cause)}): if it serves without, give --server {plain}"
    if url.startswith("http:") and _is_cut_off(error):
        secure = url.replace("http:", "https:", 1)
        return f"{url} closed the connection without an answer: if it serves TLS, give --server {secure}"
    return ""


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _untrusted(error: ssl.SSLCertVerificationError, url: str, ca_file: Path | None) -> str:
    host = urlsplit(url).hostname
    if error.verify_code in _NAME:
        return (
            f"its certificate is not for {host}: give --server with a name that it is for, or a certificate for {host}"
        )
    if error.verify_code in _TIME:
        return f"{error.verify_message}: renew it, or set this machine's clock"
    if ca_file is None:
        return f"{error.verify_message}: give --ca-file, the certificate of the authority that issued its own (PEM)"
    return f"{error.verify_message}: --ca-file {ca_file} is not of the authority that issued its certificate"


def _is_authority(ca_file: Path) -> bool:
    """Whether a file can be read as authorities: TLS tells an error in it like one of the connection."""
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError:
        return False
    return True


def _is_cut_off(error: BaseException) -> bool:
    """Whether the other end went away, or said what is no HTTP, in place of an answer."""
    names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    return bool(names & {"RemoteProtocolError", "ReadError", "ConnectionResetError", "InvalidMessage", "EOFError"})


def _said(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
