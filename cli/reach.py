"""Says why a server cannot be reached, with the remedy; OpenSSL's own words are for experts."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

_NAME = (62, 64)
"""OpenSSL's codes for a certificate of another host name or address (x509_vfy.h, X509_V_ERR_*_MISMATCH)."""
_TIME = (9, 10)
"""OpenSSL's codes for a certificate that is not valid yet, or no longer."""


def unreachable(url: str, error: BaseException, ca_file: Path | None) -> str:
    """Why no server answers at a URL, with the remedy. `ca_file`: the CA certificates in use, None for the system's."""
    if why := tls_trouble(url, error, ca_file):
        return why
    remedy = "start one with `lamplighter up DIR`, or give its URL with --server"
    return f"no server answers at {url} ({_words(error)}): {remedy}"


def reason(url: str, ca_file: Path | None) -> Callable[[BaseException], str]:
    """A function that says in a few words why a server at this URL was not reached, for callers that try again."""
    return lambda error: tls_trouble(url, error, ca_file) or _words(error)


def tls_trouble(url: str, error: BaseException, ca_file: Path | None) -> str:
    """What is wrong with TLS, or with http or https in the URL; empty where the error is of another kind."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"no trust in {url}: {_untrusted(cause, url, ca_file)}"
        if isinstance(cause, ssl.SSLError) and ca_file is not None and not _is_authority(ca_file):
            return (
                f"--ca-file {ca_file} holds no certificate in PEM: give that of the authority that issued the server's"
            )
        if isinstance(cause, ssl.SSLError):
            plain = url.replace("https:", "http:", 1)
            said = (cause.reason or str(cause)).replace("_", " ").lower()
            return f"no TLS at {url} ({said}): if it serves plain HTTP, give --server {plain}"
    if url.startswith("http:") and _is_cut_off(error):
        secure = url.replace("http:", "https:", 1)
        return f"{url} closed the connection without an answer: if it serves TLS, give --server {secure}"
    return ""


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _untrusted(error: ssl.SSLCertVerificationError, url: str, ca_file: Path | None) -> str:
    host = urlsplit(url).hostname
    if error.verify_code in _NAME:
        remedy = f"give --server a name that the certificate contains, or get a certificate for {host}"
        return f"its certificate is not for {host}: {remedy}"
    if error.verify_code in _TIME:
        return f"{error.verify_message}: renew it, or set this machine's clock"
    if ca_file is None:
        return (
            f"{error.verify_message}: give --ca-file, the certificate of the authority that issued the server's (PEM)"
        )
    return f"{error.verify_message}: --ca-file {ca_file} is not the authority that issued the server's certificate"


def _is_authority(ca_file: Path) -> bool:
    """Whether a file holds CA certificates. TLS reports a bad file like a bad connection."""
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError:
        return False
    return True


def _is_cut_off(error: BaseException) -> bool:
    """Whether the other end closed the connection, or sent something that is not HTTP, instead of an answer."""
    names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    return bool(names & {"RemoteProtocolError", "ReadError", "ConnectionResetError", "InvalidMessage", "EOFError"})


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
