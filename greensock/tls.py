"""TLS: what a server or a client is told of it, and what a connection tells of its own.

A :class:`TLS` is made once and used by any number of servers and clients: it reads the certificates when it is made, so
that what is wrong with them is told then, and looks at their files again while it serves (``RELOAD_SECONDS``). What
runs on a connection is in ``core/encrypted.py``. OpenSSL is loaded when the first one is made, not before.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, time
from typing import TYPE_CHECKING, Any, cast

from greensock.errors import CertificateRefused, HandshakeFailed

if TYPE_CHECKING:
    import ssl

__all__ = [
    "TLS",
    "Certificate",
    "Sessions",
    "TLSInfo",
    "client_context",
    "handshake_error",
    "is_tls",
    "server_contexts",
    "sessions_of",
]

log = logging.getLogger("greensock.server")

#: Seconds between two looks at the files of certificates; a look is made when a handshake begins.
RELOAD_SECONDS = 1.0
#: What is offered in TLS 1.2, all with forward secrecy; TLS 1.3 has no others (RFC 9325 section 4.2).
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

#: Sessions that a client keeps of one context: of 6 kB each.
MOST_SESSIONS = 256
#: Whether to read ``SSLObject.session`` loses 6.5 kB each time (CPython's issue 116810, measured).
IS_LEAKING = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
#: Seconds between two sessions that are read for the same place, if it is.
READ_PAUSE = 60.0

VERSIONS = ("1.2", "1.3")
CLIENT_CERTIFICATES = ("none", "optional", "required")

#: The path of a PEM file, or its text.
Source = str | bytes | os.PathLike[str]


@dataclass(frozen=True)
class Certificate:
    """A certificate with its chain, and the key: paths of PEM files, or their text.

    ``key`` may be left out where the certificate's file has it. ``names`` are those that the certificate is for, with
    ``*.`` in front for all names one label below; left out, they are read from it.

    Raises (when a ``TLS`` is made of it):
        ValueError: a file is not there, is none of these, or the key does not fit; the text says which.
    """

    certificate: Source
    key: Source | None = None
    password: str | None = field(default=None, repr=False)
    names: tuple[str, ...] | None = None


class TLS:
    """How TLS is spoken: by servers that are given a certificate, and by clients.

    Raises:
        ValueError: an option is not allowed, or a file of it is not what it should be; the text says which.
    """

    def __init__(
        self,
        certificate: Source | None = None,
        key: Source | None = None,
        *,
        password: str | None = None,
        names: tuple[str, ...] | None = None,
        certificates: Iterable[Certificate] = (),
        alpn: Iterable[str] = (),
        minimum_version: str = "1.2",
        maximum_version: str | None = None,
        ciphers: str | None = None,
        authorities: Source | None = None,
        client_certificates: str = "none",
        verify: bool = True,
        session_tickets: bool = True,
        keylog: str | None = None,
    ) -> None:
        """``certificate`` and ``key`` are paths of PEM files, or their text: the certificate first, then its chain.

        - ``certificates``: more of them (a server's), chosen by the name that the client asks for; the first of all is
          for whoever asks for none of their names, or for none.
        - ``alpn``: protocols, the preferred one first.
        - ``minimum_version``, ``maximum_version``: ``"1.2"`` or ``"1.3"``.
        - ``ciphers``: those of TLS 1.2, in OpenSSL's words.
        - ``authorities``: whose certificates are trusted, in place of the system's: a PEM file or its text.
        - ``client_certificates``: ``"none"``, ``"optional"`` or ``"required"`` (a server's; with ``authorities``).
        - ``verify``: False: a client takes any certificate, for any name.
        - ``session_tickets``: whether clients may resume (RFC 8446 section 2.2); of a client's, whether it does.
        - ``keylog``: the path of a file to which the secrets are added, for debugging: who has it reads all traffic.
        """
        given = [] if certificate is None else [Certificate(certificate, key, password, names)]
        if certificate is None and (key, password, names) != (None, None, None):
            raise ValueError("certificate=None: expected beside key, password and names")
        self.certificates = (*given, *certificates)
        for each in self.certificates:
            if not isinstance(each, Certificate):
                raise ValueError(f"certificates: a Certificate expected, not {each!r}")
        self.alpn = _protocols(alpn)
        self.minimum_version = _one_of("minimum_version", minimum_version, VERSIONS)
        self.maximum_version = maximum_version and _one_of("maximum_version", maximum_version, VERSIONS)
        if self.maximum_version is not None and self.maximum_version < self.minimum_version:
            text = f"minimum_version={minimum_version!r} or more expected"
            raise ValueError(f"maximum_version={maximum_version!r}: {text}")
        self.ciphers = ciphers
        self.authorities = authorities
        self.client_certificates = _one_of("client_certificates", client_certificates, CLIENT_CERTIFICATES)
        for name, value in (("verify", verify), ("session_tickets", session_tickets)):
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: True or False expected")
        if client_certificates != "none" and authorities is None:
            raise ValueError(f"client_certificates={client_certificates!r}: authorities expected, who issued them")
        self.verify = verify
        self.session_tickets = session_tickets
        self.keylog = keylog
        self._client: ssl.SSLContext | None = None
        self._marks = self._look()
        self._chosen = self._load() if self.certificates else None
        self._looked = monotonic()
        if authorities is not None or not self.verify:
            self.client_context()

    def __repr__(self) -> str:
        names = sorted(name for names in self._names_of_all() for name in names)
        return f"<TLS {', '.join(names) or 'of a client'}>"

    def client_context(self) -> ssl.SSLContext:
        """Return what the next connection of a client is to use: made anew when its files changed, as a server's is."""
        if self._client is None:
            self._client = self._load_client()
        elif self._has_changed():
            self.reload()
        return self._client

    def server_context(self) -> ssl.SSLContext:
        """Return what the next connection of a server is to use: made anew when the files of certificates changed.

        Connections that stand keep what they have. What cannot be read is logged, once, and the old is kept.

        Raises:
            ValueError: there is no certificate.
        """
        if self._chosen is None:
            raise ValueError("tls: a certificate and its key expected, for a server")
        if self._has_changed():
            self.reload()
        return self._chosen.first

    def reload(self) -> bool:
        """Read the files of the certificates anew; False: that failed and is logged, and the old ones are kept."""
        try:
            chosen = self._load() if self.certificates else None
            self._chosen, self._client = chosen, self._load_client() if self._client is not None else None
        except ValueError as error:
            log.error("the certificates cannot be taken up anew, and the old ones are kept: %s", error)
            return False
        log.info("the certificates were taken up anew")
        return True

    def has_name(self, name: str, connected_for: str | None) -> bool:
        """Whether a connection that was made for one name may be used for another: one certificate is for both.

        RFC 9110 section 7.4: a server answers 421 where it is not.
        """
        chosen = self._chosen
        if chosen is None or name == connected_for:
            return True
        return chosen.index_for(connected_for) == chosen.index_for(name)

    def _names_of_all(self) -> list[tuple[str, ...]]:
        return [] if self._chosen is None else self._chosen.names

    def _has_changed(self) -> bool:
        """Look at the files, if it is time to."""
        now = monotonic()
        if now - self._looked < RELOAD_SECONDS:
            return False
        self._looked = now
        before, self._marks = self._marks, self._look()
        return self._marks != before

    def _look(self) -> dict[str, object]:
        """Return what the files look like now."""
        sources = [source for each in self.certificates for source in (each.certificate, each.key)]
        return {path: _mark(path) for source in (*sources, self.authorities) if (path := _path(source)) is not None}

    def _load(self) -> _Chosen:
        import ssl

        contexts, names = [], []
        for each in self.certificates:
            context = self._context(ssl.PROTOCOL_TLS_SERVER)
            _load_chain(context, each)
            if self.client_certificates == "none":
                context.verify_mode = ssl.CERT_NONE
            elif self.client_certificates == "optional":
                context.verify_mode = ssl.CERT_OPTIONAL
            else:
                context.verify_mode = ssl.CERT_REQUIRED
            if not self.session_tickets:
                context.options |= ssl.OP_NO_TICKET
                context.num_tickets = 0
            contexts.append(context)
            names.append(tuple(name.lower() for name in (_names(each) if each.names is None else each.names)))
        chosen = _Chosen(contexts, names)
        _note_names(chosen.first, chosen.context_for if len(contexts) > 1 else None)
        return chosen

    def _load_client(self) -> ssl.SSLContext:
        import ssl

        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.authorities is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if self.certificates:
            _load_chain(context, self.certificates[0])
        if not self.session_tickets:
            context.options |= ssl.OP_NO_TICKET
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        import ssl

        context = ssl.SSLContext(protocol)
        context.minimum_version = _version(self.minimum_version)
        if self.maximum_version is not None:
            context.maximum_version = _version(self.maximum_version)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        try:
            context.set_ciphers(self.ciphers or CIPHERS)
        except ssl.SSLError:
            raise ValueError(f"ciphers={self.ciphers!r}: ciphers of TLS 1.2, in OpenSSL's words, expected") from None
        if self.alpn:
            context.set_alpn_protocols(list(self.alpn))
        if self.authorities is not None:
            with _in_file("authorities", self.authorities) as path:
                try:
                    context.load_verify_locations(path)
                except ssl.SSLError as error:
                    raise ValueError(f"authorities={_shown(self.authorities)}: certificates in PEM expected") from error
        if self.keylog is not None:
            try:
                context.keylog_filename = self.keylog
            except OSError as error:
                raise ValueError(f"keylog={self.keylog!r}: {error.strerror}") from error
        return context


class _Chosen:
    """A context for each certificate, and which of them is for which name."""

    def __init__(self, contexts: list[ssl.SSLContext], names: list[tuple[str, ...]]) -> None:
        self.names = names
        self.first = contexts[0]
        self._contexts = contexts
        self._by_name: dict[str, int] = {}
        for index, each in enumerate(names):
            for name in each:
                self._by_name.setdefault(name, index)  # the first of several

    def context_for(self, name: str | None) -> ssl.SSLContext:
        return self._contexts[self.index_for(name)]

    def index_for(self, name: str | None) -> int:
        """Return which certificate is for the name; exact ones before wildcards (RFC 6125 section 6.4.3)."""
        if name is None:
            return 0
        name = name.lower().rstrip(".")
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name.get("*." + name.partition(".")[2], 0)
        return found


def server_contexts(tls: TLS | ssl.SSLContext) -> Callable[[], ssl.SSLContext]:
    """Return what gives the context of a server's next connection."""
    if isinstance(tls, TLS):
        tls.server_context()  # raises if there is none
        return tls.server_context
    _note_names(tls, None)
    return lambda: tls


def _note_names(context: ssl.SSLContext, context_for: Callable[[str | None], ssl.SSLContext] | None) -> None:
    """Have what a client asks for noted on the ``SSLObject``, and its certificate chosen by that.

    A callback that the context has already is called, too.
    """
    import _ssl
    import ssl

    given = context.sni_callback
    if getattr(given, "notes_names", False):
        return

    def on_name(found: Any, name: str | None, asked: ssl.SSLContext) -> int | None:
        if isinstance(found, ssl.SSLObject):
            found.greensock_name = name.lower() if name else None  # type: ignore[attr-defined]
            if context_for is not None and (chosen := context_for(name)) is not asked:
                found.context = chosen
        elif hasattr(found, "_sslsock"):  # gevent's: it gives the callback that it wraps the other socket
            found = found._sslsock()
        return given(found, cast(str, name), asked) if given is not None else None

    on_name.notes_names = True  # type: ignore[attr-defined]
    # Not by the attribute: gevent wraps what is set there, and then no SSLObject gets through a handshake.
    cast(Any, _ssl._SSLContext).sni_callback.__set__(context, on_name)


def is_tls(value: object) -> bool:
    """Whether it is a ``TLS``, or an ``ssl.SSLContext``."""
    # Asked without loading OpenSSL: who has one has loaded it.
    module = sys.modules.get("_ssl")
    return isinstance(value, TLS) or (module is not None and isinstance(value, module._SSLContext))


_default: TLS | None = None


def client_context(tls: TLS | ssl.SSLContext | bool) -> ssl.SSLContext:
    """Return what a client uses: ``True`` stands for the defaults, with the system's trust."""
    global _default
    if tls is True:
        if _default is None:
            _default = TLS()
        tls = _default
    return tls.client_context() if isinstance(tls, TLS) else tls  # type: ignore[return-value]


# -- sessions that clients go on with


class Sessions:
    """The sessions of one way to connect: one context as it is now, one address, one name.

    A session is used once, as RFC 8446 appendix C.4 asks. But where Python loses the memory of each one that is read
    (``IS_LEAKING``), one stands for all connections as long as the server takes it, and the next is read ``READ_PAUSE``
    seconds later at the soonest. At most ``MOST_SESSIONS`` of a context are kept, those that were read last.
    """

    __slots__ = ("_kept", "_key")

    def __init__(self, kept: OrderedDict[Any, tuple[ssl.SSLSession | None, float]], key: Any) -> None:
        self._kept = kept
        self._key = key

    def take(self) -> ssl.SSLSession | None:
        """Return a session to go on with; None: there is none."""
        session, _ = self._kept.get(self._key, (None, 0.0))
        if session is not None and time() > session.time + session.timeout:
            session = None
        elif not IS_LEAKING:
            self._kept.pop(self._key, None)
        return session

    def are_to_have(self, is_resumed: bool) -> bool:
        """Whether the session of a connection is to be read and kept; ``is_resumed``: it went on with one of these."""
        if not IS_LEAKING:
            return True
        session, read = self._kept.get(self._key, (None, -READ_PAUSE))
        return not (is_resumed and session is not None) and monotonic() - read >= READ_PAUSE

    def keep(self, session: ssl.SSLSession | None) -> None:
        """Keep a session for the next connection, if it can be gone on with."""
        if session is not None and not (session.has_ticket or session.id):
            session = None
        self._kept[self._key] = session, monotonic()
        self._kept.move_to_end(self._key)
        if len(self._kept) > MOST_SESSIONS:
            self._kept.popitem(last=False)


def sessions_of(context: ssl.SSLContext, place: tuple[Any, ...]) -> Sessions | None:
    """Return the sessions of a client's connections to a place; None: it is not to go on with any.

    A session stands for a certificate that was looked at, and is not looked at again. So what the context looks at is
    part of what it is kept for: whoever changes its settings, or whom it trusts, begins anew. A :class:`TLS` whose
    files changed has another context.
    """
    import ssl

    if context.options & ssl.OP_NO_TICKET:
        return None
    # With the context and not in a table of all: a session refers to its context, and would keep it there for ever.
    kept = getattr(context, "greensock_sessions", None)
    if kept is None:
        kept = context.greensock_sessions = OrderedDict()  # type: ignore[attr-defined]
    trusted = tuple(context.cert_store_stats().values())
    settings = (context.verify_mode, context.check_hostname, context.verify_flags, context.minimum_version, trusted)
    return Sessions(kept, (place, settings))


# -- reading what is given


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: {', '.join(map(repr, allowed))} expected")
    return value


def _protocols(alpn: Iterable[str]) -> tuple[str, ...]:
    found = (alpn,) if isinstance(alpn, str) else tuple(alpn)
    for each in found:
        if not isinstance(each, str) or not each.isascii() or not 0 < len(each) < 256:
            raise ValueError(f"alpn={found!r}: names such as 'http/1.1' expected")
    return found


def _version(text: str) -> ssl.TLSVersion:
    import ssl

    return {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[text]


def _is_text(source: Source) -> bool:
    return isinstance(source, bytes) or (isinstance(source, str) and "-----BEGIN " in source)


def _path(source: Source | None) -> str | None:
    return None if source is None or _is_text(source) else os.fspath(source)  # type: ignore[return-value]


def _shown(source: Source) -> str:
    return "(text)" if _is_text(source) else repr(os.fspath(source))


def _mark(path: str) -> object:
    """Return what changes with the content of a file; None if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextmanager
def _in_file(name: str, source: Source) -> Iterator[str]:
    """Give a path at which the source can be read; OpenSSL takes nothing else."""
    if not _is_text(source):
        path = os.fspath(source)
        try:
            with open(path, "rb"):
                pass
        except (OSError, TypeError) as error:
            raise ValueError(f"{name}={path!r}: {getattr(error, 'strerror', None) or error}") from error
        yield path  # type: ignore[misc]
        return
    data = source.encode() if isinstance(source, str) else bytes(source)  # type: ignore[arg-type]
    # In memory: a key that was given as text stays off the disk.
    with open(os.memfd_create("greensock"), "wb", buffering=0) as file:
        file.write(data)
        yield f"/proc/self/fd/{file.fileno()}"


def _load_chain(context: ssl.SSLContext, each: Certificate) -> None:
    import ssl

    def password() -> str:
        # Without it OpenSSL would ask whoever sits at the terminal, and block.
        if each.password is None:
            raise _NoPassword
        return each.password

    key = each.certificate if each.key is None else each.key
    name = "key" if each.key is not None else "certificate"
    with _in_file("certificate", each.certificate) as path, _in_file(name, key) as key_path:
        try:
            context.load_cert_chain(path, key_path, password)
        except _NoPassword:
            raise ValueError(f"{name}={_shown(key)}: is encrypted, and no password is given") from None
        except ssl.SSLError as error:
            raise ValueError(_why_not(each, error, path, key_path)) from error


class _NoPassword(Exception):
    """A key is encrypted, and no password was given."""


def _why_not(each: Certificate, error: ssl.SSLError, path: str, key_path: str) -> str:
    """Return what is wrong with a certificate and its key."""
    name, key = ("key", each.key) if each.key is not None else ("certificate", each.certificate)
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{name}={_shown(key)}: the key is not that of certificate={_shown(each.certificate)}"
    with open(path, "rb") as file:
        if b"-----BEGIN CERTIFICATE-----" not in file.read():
            return f"certificate={_shown(each.certificate)}: a certificate in PEM expected"
    with open(key_path, "rb") as file:
        text = file.read()
    if not re.search(rb"-----BEGIN (\w+ )*PRIVATE KEY-----", text):
        return f"{name}={_shown(key)}: a private key in PEM expected"
    if each.password is not None and b"ENCRYPTED" in text:
        return f"{name}={_shown(key)}: the password is not the right one"
    return f"certificate={_shown(each.certificate)}, key={_shown(key)}: {error.reason or error}"


def _names(each: Certificate) -> tuple[str, ...]:
    """Return the names that a certificate is for."""
    import _ssl

    with _in_file("certificate", each.certificate) as path:
        try:
            found = _ssl._test_decode_cert(path)  # type: ignore[attr-defined]
        except (AttributeError, OSError):
            return ()
    return tuple(value for kind, value in found.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))


# -- what is told of a connection


class TLSInfo:
    """What a connection agreed on: ``conn.tls``."""

    __slots__ = ("_kept", "_object", "server_name")

    def __init__(self, found: ssl.SSLObject, server_name: str | None) -> None:
        self._object: ssl.SSLObject | None = found
        self._kept: tuple[Any, ...] = ()
        #: The name that the client asked for (SNI, RFC 6066 section 3), in lower case; None: for none.
        self.server_name = server_name

    def settle(self) -> None:
        """Keep what is told and let go of OpenSSL's object, which holds 15 kB: the connection is over."""
        self._kept, self._object = self._told(), None

    def _told(self) -> tuple[Any, ...]:
        found = self._object
        if found is None:
            return self._kept
        cipher, der, verified = found.cipher(), None, None
        try:
            der = found.getpeercert(True)
            verified = (found.getpeercert() or None) if der else None
        except ValueError:  # an error has taken OpenSSL out of its state
            pass
        version, alpn = found.version() or "", found.selected_alpn_protocol()
        return version, cipher[0] if cipher else "", alpn, bool(found.session_reused), verified, der

    @property
    def version(self) -> str:
        """``"TLSv1.2"`` or ``"TLSv1.3"``."""
        return str(self._told()[0])

    @property
    def cipher(self) -> str:
        """The name of the cipher suite."""
        return str(self._told()[1])

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed on (RFC 7301); None: none was."""
        return cast("str | None", self._told()[2])

    @property
    def is_resumed(self) -> bool:
        """Whether it goes on with an earlier session, without a handshake in full."""
        return bool(self._told()[3])

    @property
    def peer_certificate(self) -> Mapping[str, Any] | None:
        """The peer's certificate as ``ssl.SSLSocket.getpeercert`` gives it, if it was verified; None: there is none."""
        return cast("Mapping[str, Any] | None", self._told()[4])

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The peer's certificate in DER; None: it gave none."""
        return cast("bytes | None", self._told()[5])

    def __repr__(self) -> str:
        return f"<TLSInfo {self.version} {self.cipher} {self.server_name or ''}>"


# -- what goes wrong

#: X509_V_ERR_* of OpenSSL.
_REFUSED = {
    9: "not_yet_valid",
    10: "expired",
    18: "self_signed",
    19: "unknown_issuer",  # self-signed too, but at the end of a chain: an authority that is not trusted
    20: "unknown_issuer",
    21: "unknown_issuer",
    23: "revoked",
    62: "wrong_name",
    63: "wrong_name",
    64: "wrong_name",
}
#: What OpenSSL's reasons stand for.
_REASONS = {
    "HTTP_REQUEST": "plain_http",
    "HTTPS_PROXY_REQUEST": "plain_http",
    "WRONG_VERSION_NUMBER": "plain_text",
    "UNSUPPORTED_PROTOCOL": "version",
    "VERSION_TOO_LOW": "version",
    "NO_PROTOCOLS_AVAILABLE": "version",
    "TLSV1_ALERT_PROTOCOL_VERSION": "version",
    "NO_SHARED_CIPHER": "cipher",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "cipher",
    "TLSV1_ALERT_INSUFFICIENT_SECURITY": "cipher",
    "NO_APPLICATION_PROTOCOL": "alpn",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "alpn",
    "TLSV1_UNRECOGNIZED_NAME": "name",
    "TLSV1_ALERT_UNRECOGNIZED_NAME": "name",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "refused",
    "TLSV1_ALERT_UNKNOWN_CA": "refused",
    "TLSV1_ALERT_ACCESS_DENIED": "refused",
    "SSLV3_ALERT_BAD_CERTIFICATE": "refused",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "refused",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "refused",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "refused",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "refused",
    "TLSV1_ALERT_DECRYPT_ERROR": "refused",
    "UNEXPECTED_EOF_WHILE_READING": "cut",
}


def handshake_error(error: Exception, connection: Any, address: Any = None) -> HandshakeFailed:
    """Return what a failed handshake is told as."""
    where = f" with {address!r}" if address is not None else ""
    code = getattr(error, "verify_code", None)
    if code:
        text = getattr(error, "verify_message", "") or str(error)
        reason = _REFUSED.get(code, "bad_certificate")
        failed: HandshakeFailed = CertificateRefused(
            f"the TLS handshake{where} failed: the peer's certificate is refused: {text.rstrip('.')}",
            connection,
            address,
            reason,
        )
    else:
        said = getattr(error, "reason", None) or ""
        reason = _REASONS.get(said, "protocol")
        text = said.replace("_", " ").lower() or getattr(error, "strerror", None) or str(error)
        failed = HandshakeFailed(f"the TLS handshake{where} failed: {text}", connection, address, reason)
    failed.__cause__ = error.with_traceback(None)
    return failed
