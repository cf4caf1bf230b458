"""What a proxy can be told of its upstreams, its timeouts and its log. Pure; each option checks itself."""

from __future__ import annotations

import functools
import importlib.util
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from greensock import TLS, Certificate, Rule
from greensock.http.client.origin import Destination, Origin, parse_url
from greensock.http.wire.syntax import is_token
from greensock.proxy.log.line_format import line_function
from greensock.proxy.log.targets import FACILITIES, is_target
from greensock.proxy.passwords import BadPasswords, read_passwords

__all__ = [
    "BALANCE",
    "LOG_FORMATS",
    "LOG_LEVELS",
    "BasicAuth",
    "Buffering",
    "ForwardAuth",
    "ListenOptions",
    "ListenPlace",
    "ListenTLS",
    "LogOptions",
    "ProxyTimeouts",
    "ServerOptions",
    "UpstreamOptions",
    "UpstreamTLS",
    "has_dns",
    "name_server",
]

#: How the server of a request is chosen.
BALANCE = ("round_robin", "least_connections", "two_choices", "hash")
#: How a line of the access log is written.
LOG_FORMATS = ("combined", "json")
#: What is told in the error log, and nothing less.
LOG_LEVELS = ("debug", "info", "warning", "error")

_hash_key = re.compile(r"client|(?:header|cookie):[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_name = re.compile(r"[A-Za-z0-9_.\-]+").fullmatch
_service = re.compile(r"https?://_[A-Za-z0-9\-]+\._(?:tcp|udp)\.").match


@functools.cache
def has_dns() -> bool:
    """Whether dnspython is there. It is not loaded here: it is to be imported where the process is patched."""
    return importlib.util.find_spec("dns") is not None


def name_server(text: Any) -> tuple[str, int] | None:
    """Return address and port of a name server, written ``IP``, ``IP:PORT`` or ``[IPv6]:PORT``; None: it is neither."""
    if not isinstance(text, str):
        return None
    host, _, port = text.rpartition(":") if text.count(":") == 1 or "]:" in text else (text, "", "53")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    fits = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
    return (str(address), int(port)) if fits else None


def _one_of(*values: object) -> Rule:
    allowed = " or ".join(", ".join(map(repr, values)).rsplit(", ", 1))
    return Rule(
        lambda value: any(value is each or (type(value) is type(each) and value == each) for each in values), allowed
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(owner: object, rules: Mapping[str, Rule]) -> None:
    for name, rule in rules.items():
        rule.check(name, getattr(owner, name))


_seconds = Rule.seconds(zero=False).or_none()
_TIMEOUTS = {
    "request_header": _seconds,
    "request_body": _seconds,
    "min_body_rate": Rule.whole(0),
    "keep_alive": _seconds,
    "send": _seconds,
    "queue": _seconds,
    "connect": _seconds,
    "upstream_send": _seconds,
    "upstream_head": _seconds,
    "upstream_idle": _seconds,
    "total": _seconds,
    "tunnel": _seconds,
    "linger": Rule.seconds(),
    "drain": Rule.seconds(),
}


@dataclass(frozen=True, slots=True)
class ProxyTimeouts:
    """How long each phase may take, in seconds; None: as long as it wants.

    Raises:
        ValueError: a value that is not seconds.
    """

    #: From the first byte of a request to the end of its head.
    request_header: float | None = 10.0
    #: Without a byte of the request's body while it is awaited.
    request_body: float | None = 60.0
    #: Bytes a second that a request's body must come with, waiting alone counted; 0 for any.
    min_body_rate: int = 256
    #: Without a further request on a kept connection.
    keep_alive: float | None = 75.0
    #: Until the client has taken a piece of the answer.
    send: float | None = 60.0
    #: Waiting for a server that has as many requests as it may.
    queue: float | None = 10.0
    #: Until connected to a server; half of ``total`` at the most, so that another can be asked.
    connect: float | None = 5.0
    #: Until the server has taken a piece of the request.
    upstream_send: float | None = 60.0
    #: From the end of the request to the end of the head of the server's final answer.
    upstream_head: float | None = 60.0
    #: Without a byte of the answer's body, once the request is out.
    upstream_idle: float | None = 60.0
    #: From the head of the request to the last byte of the answer; tunnels are not counted.
    total: float | None = None
    #: Without a byte either way after 101; it may take a quarter longer until that is noticed.
    tunnel: float | None = 300.0
    #: For what the client still sends when its connection is closed.
    linger: float = 5.0
    #: For requests and tunnels that are under way when the proxy is told to stop.
    drain: float = 30.0

    def __post_init__(self) -> None:
        _check(self, _TIMEOUTS)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One server of an upstream.

    Raises:
        ValueError: a value that is not allowed; a URL with a query, or with a path that can be read in two ways.
    """

    #: ``http://host[:port]``, ``https://`` likewise, ``unix:/path/of.socket``, or ``http+unix://`` (``https+unix://``)
    #: and its path percent-encoded. A path behind that is put in front of what requests ask for.
    url: str
    #: Its share of the requests, against the others'.
    weight: int = 1
    #: Requests that it gets at once from all workers of the proxy, tunnels counted until they end; None for no limit.
    max_connections: int | None = None
    #: Requests that may wait for it when it has that many, in all workers.
    max_waiting: int = 1000
    #: Whether it is asked only when no other is up.
    backup: bool = False
    #: Whether the servers are those that SRV records (RFC 2782) of the host name: their hosts, ports, weights; those of
    #: the lowest priority, and the others as backups. A name like ``_http._tcp.example.org`` is always meant so. It
    #: needs ``greensock[dns]``.
    srv: bool = False

    def __post_init__(self) -> None:
        _check(self, _SERVER)
        try:
            target = self._destination.target
        except ValueError as error:
            text = str(error).removeprefix(f"url={self.url!r}: ").replace("http://host[:port]/path", _WHERE)
            raise ValueError(f"url={self.url!r}: {text if 'expected' in text else text + ': http expected'}") from None
        if "?" in self.url or "#" in self.url or not _is_base(target):
            raise ValueError(f"url={self.url!r}: a plain path, such as /base, expected, without a query")
        if self.is_srv and not has_dns():
            name = "srv" if self.srv else "url"
            shown = repr(getattr(self, name))
            raise ValueError(f"{name}={shown}: dnspython expected to be there: pip install greensock[dns]")

    @property
    def is_srv(self) -> bool:
        """Whether SRV records say which servers there are."""
        return self.srv or _service(self.url) is not None

    @property
    def _destination(self) -> Destination:
        if self.url.startswith("unix:"):
            return Destination(Origin("http", self.url.removeprefix("unix:")), b"/", b"localhost")
        return parse_url(self.url)

    @property
    def origin(self) -> Origin:
        """Where it is."""
        return self._destination.origin

    @property
    def authority(self) -> bytes:
        """What Host says if the client's is not kept."""
        return self._destination.authority

    @property
    def base(self) -> bytes:
        """The path below which it answers, without a slash at its end; empty: the root."""
        return self._destination.target.rstrip(b"/")


def _is_encodable(text: str) -> bool:
    """Whether it can be written in bytes: JSON may have half a character (a lone surrogate), which can't."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


_WHERE = "http://host[:port], https://host[:port] or unix:/path"
#: A path that every server reads the same: no escapes, no dots, no empty segments.
_is_base = re.compile(rb"/|(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,=:@\-]+)+/?").fullmatch
_SERVER = {
    "url": Rule(
        lambda value: (
            isinstance(value, str) and value not in ("", "unix:") and "\0" not in value and _is_encodable(value)
        ),
        _WHERE,
    ),
    "weight": Rule(lambda value: Rule.whole(1).fits(value) and value <= 65535, "a whole number from 1 to 65535"),
    "max_connections": Rule.whole(1).or_none(),
    "max_waiting": Rule.whole(0),
    "backup": Rule.flag(),
    "srv": Rule.flag(),
}


@dataclass(frozen=True, slots=True)
class UpstreamTLS:
    """How TLS is spoken to the servers of an upstream.

    Raises:
        ValueError: a value that is not allowed, or a file that is not what it should be.
    """

    #: Whose certificates are trusted in place of the system's: a PEM file.
    authorities: str | None = None
    #: The name that is asked for, and that the certificate must be for; None: the host of the server's URL.
    server_name: str | None = None
    #: The proxy's own certificate and key, for servers that want one: PEM files.
    certificate: str | None = None
    key: str | None = None
    #: Whether the server's certificate is looked at. Without, anybody in between can be that server.
    verify: bool = True
    #: ``"1.2"`` or ``"1.3"``.
    minimum_version: str = "1.2"
    #: Those of TLS 1.2, in OpenSSL's words.
    ciphers: str | None = None
    #: What is made of these.
    made: TLS = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check(self, _UPSTREAM_TLS)
        made = TLS(
            self.certificate,
            self.key,
            authorities=self.authorities,
            verify=self.verify,
            minimum_version=self.minimum_version,
            ciphers=self.ciphers,
            alpn=["http/1.1"],
        )
        object.__setattr__(self, "made", made)


_text = Rule(lambda value: isinstance(value, str) and value != "" and "\0" not in value, "text")
_UPSTREAM_TLS = {
    "authorities": _text.or_none(),
    "server_name": _text.or_none(),
    "certificate": _text.or_none(),
    "key": _text.or_none(),
    "verify": Rule.flag(),
    "ciphers": _text.or_none(),
}


@dataclass(frozen=True, slots=True)
class ListenTLS:
    """How a listener speaks TLS.

    Raises:
        ValueError: a value that is not allowed, or a file that is not what it should be.
    """

    #: The certificate and its chain, for clients that ask for no name of another: a PEM file.
    certificate: str
    #: Its key: a PEM file; None: it is in the certificate's.
    key: str | None = None
    #: More of them: tables with ``certificate``, ``key``, and perhaps ``names``.
    certificates: tuple[Mapping[str, Any], ...] = ()
    #: ``"1.2"`` or ``"1.3"``.
    minimum_version: str = "1.2"
    #: The same; None: the newest.
    maximum_version: str | None = None
    #: Those of TLS 1.2, in OpenSSL's words.
    ciphers: str | None = None
    #: Who issues the certificates of clients: a PEM file.
    authorities: str | None = None
    #: ``none``, ``optional`` or ``required``: whether clients show a certificate.
    client_certificates: str = "none"
    #: Whether clients may resume.
    session_tickets: bool = True
    #: A file to which the secrets are added, for debugging: who has it reads all traffic.
    keylog: str | None = None
    #: What Strict-Transport-Security says (RFC 6797): seconds, or all of it; None: it is not sent.
    hsts: int | str | None = None
    #: What is made of these.
    made: TLS = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check(self, _LISTEN_TLS)
        made = TLS(
            self.certificate,
            self.key,
            certificates=[_certificate(each) for each in self.certificates],
            alpn=["http/1.1"],
            minimum_version=self.minimum_version,
            maximum_version=self.maximum_version,
            ciphers=self.ciphers,
            authorities=self.authorities,
            client_certificates=self.client_certificates,
            session_tickets=self.session_tickets,
            keylog=self.keylog,
        )
        object.__setattr__(self, "made", made)

    @property
    def hsts_value(self) -> str | None:
        """The value of the field; None: it is not sent."""
        return f"max-age={self.hsts}" if isinstance(self.hsts, int) else self.hsts


def _certificate(given: Mapping[str, Any]) -> Certificate:
    unknown = set(given) - {"certificate", "key", "names"}
    if unknown or not isinstance(given.get("certificate"), str):
        raise ValueError(f"certificates={given!r}: certificate, key and names expected")
    names = given.get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"certificates={given!r}: names to be a list of names expected")
    return Certificate(given["certificate"], given.get("key"), names=None if names is None else tuple(names))


_LISTEN_TLS = {
    "certificate": _text,
    "key": _text.or_none(),
    "certificates": Rule(
        lambda value: isinstance(value, tuple) and all(isinstance(each, Mapping) for each in value),
        "a tuple of tables with certificate and key",
    ),
    "ciphers": _text.or_none(),
    "authorities": _text.or_none(),
    "session_tickets": Rule.flag(),
    "keylog": _text.or_none(),
    "hsts": Rule(
        lambda value: (
            value is None
            or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
            or (isinstance(value, str) and value.startswith("max-age=") and value.isascii() and value.isprintable())
        ),
        "seconds, or text that begins with max-age=",
    ),
}


@dataclass(frozen=True, slots=True)
class ListenPlace:
    """Where the proxy listens, and how.

    Raises:
        ValueError: a value that is not allowed.
    """

    #: ``(host, port)``, or the path of a Unix socket.
    address: tuple[str, int] | str
    #: How it speaks TLS; None: it does not.
    tls: ListenTLS | None = None
    #: The port of https to which all requests are redirected, but for those of ``/.well-known/acme-challenge/``; None:
    #: they are served.
    redirect_to: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """A group of servers that answer the same.

    Raises:
        ValueError: a value that is not allowed, two servers at one address, or no server that is not a backup.
    """

    #: What routes call it: letters, digits, ``_``, ``-`` and ``.``.
    name: str
    #: Its servers.
    servers: tuple[ServerOptions, ...]
    #: One of :data:`BALANCE`.
    balance: str = "round_robin"
    #: What of a request ``hash`` goes by: ``client``, ``header:NAME`` or ``cookie:NAME``.
    hash_key: str = "client"
    #: Whether a server that failed requests is asked before its time when no other is left; else the answer is 503.
    panic: bool = True
    #: How often a request is tried again after its first try.
    retries: int = 2
    #: Retries that all requests together may cause, as a part of their number; in all workers, as the next.
    retry_budget: float = 0.2
    #: Retries a second that are always allowed.
    min_retry_rate: float = 10.0
    #: Bytes of a request's body that are kept to send them again.
    max_replay: int = 65536
    #: Whether a client that awaits 100 Continue is told so by the server, which may refuse the body before it is sent.
    #: (One that says nothing for a second is taken to want it.) Else the proxy asks for the body.
    pass_expect: bool = False
    #: The PROXY protocol's version that is spoken to its servers, in front of TLS; 0 for none.
    send_proxy_protocol: int = 0
    #: How TLS is spoken to its servers of https.
    tls: UpstreamTLS | None = None
    #: Idle connections that are kept to each server.
    max_idle: int = 64
    #: Seconds that such a connection is kept. Less than the server keeps it, as far as that is known. (One that is a
    #: client's alone, as NTLM wants it, is kept as long as the client's.)
    idle_timeout: float = 30.0
    #: Seconds after which a connection gets no further request: the server's name may lead elsewhere by then.
    max_age: float | None = 3600.0
    #: Requests that one connection gets.
    max_requests: int | None = 1000
    #: Seconds after which the names of its servers are looked up anew, where nothing says how long they hold: a name is
    #: asked for again by its TTL if ``greensock[dns]`` is installed. Each address is a server then. None: a name is one
    #: server, and is looked up for each new connection.
    resolve_every: float | None = 30.0
    #: Who is asked for names, in place of those of the system: ``IP``, ``IP:PORT`` or ``[IPv6]:PORT``. It needs
    #: ``greensock[dns]``.
    name_servers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self, _UPSTREAM)
        if self.name_servers and not has_dns():
            shown = repr(self.name_servers)
            raise ValueError(f"name_servers={shown}: dnspython expected to be there: pip install greensock[dns]")
        origins = [server.origin for server in self.servers]
        for place, origin in enumerate(origins):
            if origin in origins[:place]:
                raise ValueError(f"servers={str(origin)!r}: each server once expected")
        if all(server.backup for server in self.servers):
            raise ValueError("servers=all backup: one that is no backup expected")
        by_tls = [origin for origin in origins if origin.scheme == "https"]
        if self.tls is not None and not by_tls:
            raise ValueError("tls: servers with https:// expected")


_UPSTREAM = {
    "name": Rule(lambda value: isinstance(value, str) and bool(_name(value)), "letters, digits, '_', '-' and '.'"),
    "servers": Rule(
        lambda value: (
            isinstance(value, tuple) and bool(value) and all(isinstance(each, ServerOptions) for each in value)
        ),
        "at least one server",
    ),
    "balance": _one_of(*BALANCE),
    "hash_key": Rule(
        lambda value: isinstance(value, str) and bool(_hash_key(value)), "'client', 'header:NAME' or 'cookie:NAME'"
    ),
    "panic": Rule.flag(),
    "retries": Rule.whole(0),
    "retry_budget": Rule(lambda value: _number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "min_retry_rate": Rule(lambda value: _number(value) and 0 <= value < float("inf"), "a number of at least 0"),
    "max_replay": Rule.whole(0),
    "pass_expect": Rule.flag(),
    "send_proxy_protocol": _one_of(0, 1, 2),
    "tls": Rule(lambda value: value is None or isinstance(value, UpstreamTLS), "a table of TLS"),
    "max_idle": Rule.whole(0),
    "idle_timeout": Rule.seconds(zero=False),
    "max_age": _seconds,
    "max_requests": Rule.whole(1).or_none(),
    "resolve_every": Rule.seconds(zero=False).or_none(),
    "name_servers": Rule(
        lambda value: isinstance(value, tuple) and all(name_server(each) is not None for each in value),
        "a tuple of addresses, as '10.0.0.2' or '10.0.0.2:53'",
    ),
}


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """How much the listeners take on.

    Raises:
        ValueError: a value that is not allowed.
    """

    #: Connections of clients, of all listeners in all workers; others wait in the backlog. Never more than a worker has
    #: descriptors for, as each may need one to a server; None: as many as that.
    max_connections: int | None = None
    #: Connections that the kernel holds for a listener until they are accepted.
    backlog: int = 4096
    #: Requests of a listener that may be under way at a time. Where these are fewer than there are descriptors for,
    #: there may be more clients.
    max_workers: int = 10_000
    #: Bytes of short bodies (``UpstreamOptions.max_replay``) that are held, of all clients, while the rest is waited
    #: for; beyond that they are passed on as they come, like long ones.
    max_buffered: int = 1 << 27
    #: Bytes of answers that are held in memory for clients that are behind, of all of them; beyond that, and what is
    #: next here, their servers wait for them.
    max_answer_memory: int = 1 << 27
    #: Bytes of answers that are held in files.
    max_answer_files: int = 1 << 32

    def __post_init__(self) -> None:
        _check(self, _LISTEN)


_LISTEN = {
    "max_connections": Rule.whole(1).or_none(),
    "backlog": Rule(
        lambda value: Rule.whole(1).fits(value) and value < 1 << 31, "a whole number of at least 1, of 31 bits"
    ),
    "max_workers": Rule.whole(1),
    "max_buffered": Rule.whole(0),
    "max_answer_memory": Rule.whole(0),
    "max_answer_files": Rule.whole(0),
}


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The access log, and the error log.

    Where lines go is a file, ``-`` for standard output, ``stderr``, ``syslog`` for the daemon of this machine
    (``syslog:/PATH`` for another socket than /dev/log), or ``udp://HOST:PORT`` for one elsewhere.

    Raises:
        ValueError: a value that is not allowed.
    """

    #: Where a line for each request goes; None for no log.
    path: str | None = "-"
    #: One of :data:`LOG_FORMATS`, or a line of your own: text with fields in braces, such as ``{client} "{request}"``.
    format: str = "combined"
    #: Lines that may wait to be written; what is more is dropped and counted.
    max_pending: int = 10_000
    #: Where what goes wrong is told.
    error: str = "stderr"
    #: The least of it that is told: one of :data:`LOG_LEVELS`.
    level: str = "info"
    #: Which part of the system syslog takes the lines for: ``daemon``, ``local0`` to ``local7``, and so on.
    facility: str = "daemon"

    def __post_init__(self) -> None:
        _check(self, _LOG)
        if self.format not in LOG_FORMATS:
            try:
                line_function(self.format)
            except ValueError as error:
                raise ValueError(f"format={self.format!r}: {error}") from None


_target = Rule(is_target, "a path, '-', 'stderr', 'syslog', 'syslog:/path' or 'udp://host:port'")
_LOG = {
    "path": _target.or_none(),
    "format": Rule(
        lambda value: isinstance(value, str) and (value in LOG_FORMATS or "{" in value),
        "'combined', 'json', or a line with fields such as '{client}'",
    ),
    "max_pending": Rule.whole(1),
    "error": _target,
    "level": _one_of(*LOG_LEVELS),
    "facility": _one_of(*FACILITIES),
}


@dataclass(frozen=True, slots=True)
class Buffering:
    """How much of an answer is held for a client that does not keep up with it, so that its server is free.

    A server waits for a client 20 ms at the most, for one that takes 50 MB a second as long as that needs, and while a
    long answer stays in the kernel 100 ms each time. Both 0:
    nothing is held. (Nor is a stream of events, nor what the server says ``X-Accel-Buffering: no`` of, nor an answer
    that is known to be longer than both together.)

    Raises:
        ValueError: a value that is not allowed.
    """

    #: Bytes in memory.
    memory: int = 65536
    #: Bytes behind these, in a file without a name in the directory for temporary files (TMPDIR); 0: there is no file.
    file: int = 1 << 28

    def __post_init__(self) -> None:
        _check(self, _BUFFERING)

    @property
    def total(self) -> int:
        """How much that is together."""
        return self.memory + self.file

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return self.total > 0


_BUFFERING = {"memory": Rule.whole(0), "file": Rule.whole(0)}


def _is_field(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and is_token(value.encode()) is not None


#: Fields that say how a message is framed, or where it goes: no other server has a say in them.
_NEVER_COPIED = frozenset(
    {
        *("connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    }
)


@dataclass(frozen=True, slots=True)
class ForwardAuth:
    """Another server that is asked about each request first: an answer 2xx lets it pass, any other goes to the client.

    It is asked by GET, with the fields of the request but those of its body, and X-Forwarded-Method, -Uri, -Host,
    -Proto and -For; the body is not sent. Where it can't be asked the answer is 502, and 504 if it took too long.

    Raises:
        ValueError: a value that is not allowed.
    """

    #: ``http://host[:port]/path``, ``https://`` likewise, or ``http+unix://`` and its path percent-encoded.
    url: str
    #: Fields of its answer that the request gets, such as X-User. What the client sent under these names goes nowhere.
    copy: tuple[str, ...] = ()
    #: The fields of the request that it is told; None: all of them.
    fields: tuple[str, ...] | None = None
    #: Seconds that it may take, all in all.
    timeout: float = 5.0
    #: Requests that it is asked about at a time, by each process; others wait.
    max_connections: int = 64
    #: Bytes of the body of a refusal that are passed on; a longer one is 502.
    max_body: int = 65536

    def __post_init__(self) -> None:
        _check(self, _FORWARD_AUTH)
        try:
            parse_url(self.url)
        except ValueError as error:
            text = str(error).removeprefix(f"url={self.url!r}: ")
            raise ValueError(f"url={self.url!r}: {text if 'expected' in text else text + ': http expected'}") from None


_FORWARD_AUTH = {
    "url": Rule(lambda value: isinstance(value, str) and value != "" and "\0" not in value, "http://host[:port]/path"),
    "copy": Rule(
        lambda value: (
            isinstance(value, tuple) and all(_is_field(each) and each.lower() not in _NEVER_COPIED for each in value)
        ),
        "a tuple of names of fields that the proxy does not write itself",
    ),
    "fields": Rule(
        lambda value: isinstance(value, tuple) and all(map(_is_field, value)), "a tuple of names of fields"
    ).or_none(),
    "timeout": Rule.seconds(zero=False),
    "max_connections": Rule.whole(1),
    "max_body": Rule.whole(0),
}


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """Who may ask: names and passwords in a file, asked for by the browser (RFC 7617). It needs the package ``bcrypt``.

    The file is read anew when it has changed. Use it over TLS only: the password goes along with every request.

    Raises:
        ValueError: a value that is not allowed, or a file that can't be read, or has a line that is not understood.
    """

    #: Lines ``name:hash`` as ``htpasswd -B`` writes them; what begins with # and empty lines are left out.
    file: str
    #: What the browser shows.
    realm: str = "restricted"
    #: The field in which the server is told the name, such as X-User; None: it is not told. What the client sent under
    #: that name goes no further.
    user_field: str | None = None
    #: Whether the server gets the name and the password, too (Authorization).
    pass_on: bool = False

    def __post_init__(self) -> None:
        _check(self, _BASIC_AUTH)
        try:
            read_passwords(self.file)
        except BadPasswords as error:
            raise ValueError(f"file={self.file!r}: {error}") from None


_is_realm = re.compile(r"[ !#-\[\]-~]*").fullmatch
_BASIC_AUTH = {
    "file": _text,
    "realm": Rule(
        lambda value: isinstance(value, str) and bool(_is_realm(value)),
        "ASCII text without quotes",
    ),
    "user_field": Rule(
        lambda value: _is_field(value) and value.lower() not in _NEVER_COPIED, "the name of a field"
    ).or_none(),
    "pass_on": Rule.flag(),
}
