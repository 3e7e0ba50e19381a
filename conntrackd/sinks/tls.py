"""TLS as every sink uses it: whom to trust, who we are, and the reason of a failure for people."""

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conntrackd.config.options import TlsOptions
from conntrackd.config.read import Config
from conntrackd.delivery.sink import SinkUnavailable, describe
from conntrackd.files import KindError, open_file
from conntrackd.sinks.secrets import Origins, Stamp, list_origins, read_stamp, say_origin

if TYPE_CHECKING:  # it costs memory that only those pay who use TLS
    import ssl

MAX_CERTIFICATES: Final = 16 << 20  # the bundle of all public authorities has 0.2 MB
MAX_REASON: Final = 300  # characters of somebody else's text that are repeated to people


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust, and who we are."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    verify: bool = True
    origins: Origins = field(default_factory=dict)


def read_tls(config: Config, own: TlsOptions) -> Tls:
    """As a sink's settings say."""
    origins = list_origins(config, own.ca, own.cert, own.key)
    return Tls(config[own.ca], config[own.cert], config[own.key], config[own.verify], origins)


def make_context(tls: Tls) -> "ssl.SSLContext":
    """A client's context, files read now. SinkUnavailable when one cannot be used."""
    import ssl  # noqa: PLC0415  # see above

    for path in (tls.ca, tls.cert, tls.key):
        if path is not None:
            _check_file(path, tls.origins)
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # As curl and openssl, and the same in all versions of Python: 3.13 would verify strictly, and refuse
        # a CA as `openssl req -x509` makes it ("CA cert does not include key usage extension").
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if tls.cert is not None:
            # An empty password fails; without one OpenSSL would ask for it at the terminal.
            context.load_cert_chain(tls.cert, tls.key, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        paths = [path for path in (tls.ca, tls.cert, tls.key) if path]
        reason = f"cannot use {', '.join(map(str, paths))}: {name_cause(error)}"
        raise SinkUnavailable(say_origin(paths[0], tls.origins, reason) if paths else reason) from error
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _check_file(path: Path, origins: Origins) -> None:
    """Before OpenSSL opens it, which would wait for a named pipe."""
    try:
        open_file(path, MAX_CERTIFICATES).close()
    except KindError as error:
        raise SinkUnavailable(say_origin(path, origins, f"{path} {error}")) from error
    except OSError as error:
        raise SinkUnavailable(say_origin(path, origins, f"cannot use {path}: {error.strerror}")) from error


class Credentials:
    """The context for connections, made anew when its files are others than they were. For one thread."""

    def __init__(self, tls: Tls) -> None:
        """SinkUnavailable when a file cannot be used."""
        self._tls = tls
        self._stamp = self._read_stamp()
        self._context = make_context(tls)

    def have_changed(self) -> bool:
        """Whether other files are there, and can be used. Half a file changes nothing for what works."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return False
        try:
            self._context = make_context(self._tls)
        except SinkUnavailable:
            return False
        self._stamp = stamp
        return True

    def wrap(self, plain: socket.socket, name: str) -> "ssl.SSLSocket":
        """Before its handshake, with the files of now. SinkUnavailable when they cannot be used."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._context = make_context(self._tls)
            self._stamp = stamp
        return self._context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)

    def _read_stamp(self) -> Stamp:
        return read_stamp((self._tls.ca, self._tls.cert, self._tls.key))


def is_waiting(error: OSError) -> bool:
    """Whether a socket that does not wait says that it would have to. Of TLS by name: see above."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in (
        "SSLWantReadError",
        "SSLWantWriteError",
    )


def name_cause(error: BaseException) -> str:
    """The innermost reason, as the system or OpenSSL names it."""
    seen = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = error.__cause__ or error.__context__
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), inner)
        if inner is None:
            break
        error = inner
    if type(error).__module__ == "ssl":
        return _name_tls_cause(error)
    if isinstance(error, OSError) and error.strerror:
        return describe(error)
    if isinstance(error, KindError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON]


def _name_tls_cause(error: BaseException) -> str:
    import ssl  # noqa: PLC0415  # loaded already, or there would be no such error

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and not error.reason and "PEM" in str(error):
        return "no certificate with its private key, in PEM form"
    reason = getattr(error, "reason", None) or str(error)
    return f"TLS: {reason.replace('_', ' ').lower()}"
