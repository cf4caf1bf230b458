"""The HTTP/1.1 client: blocking calls over kept connections, each way a stream.

A call takes a connection from the pool of its origin or makes one, sends the request, and returns the answer as soon as
its head is there. The body is read by the caller, piece by piece as it comes; with its last byte the connection goes
back. Invariants:

- A connection is used again only if request and answer both ended exactly and neither side said ``close``
  (RFC 9112 section 9.3). Bytes behind an answer belong to no request: the connection is closed.
- Without ``retries`` a call is repeated at the most once: if a connection that had been used before dies without a byte
  of an answer, or gives what does not begin like one, the method is idempotent, and the body can be sent again; then on
  a fresh one.
- Whatever is raised in a call or in reading its answer, the connection is reset and its slot is free again.

An :class:`HTTPClient` sends what it is told and returns what it is answered: no redirects are followed, no cookies
kept, nothing is decoded, the environment is not looked at, unless an option says so. An :class:`HTTPSession` does all
of that by default, as users of requests and httpx expect. A client belongs to the thread it is first used in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http.cookiejar import CookieJar
from math import inf
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from greensock import TLS, PoolStatistics, Rule, Server, __version__
from greensock.http.client.authorization import Auth, is_auth
from greensock.http.client.client_response import ClientResponse
from greensock.http.client.connection_pool import ClientLease, ClientPool
from greensock.http.client.cookie_store import CookieStore, new_jar
from greensock.http.client.deadlines import Deadlines, Timeouts
from greensock.http.client.exchange import Call, Exchange, Interim, Trailers
from greensock.http.client.journey import Asked, Journey, Manners
from greensock.http.client.origin import Origin, origin_at, parse_url
from greensock.http.client.payload import NOTHING, Body, let_go, payload_of
from greensock.http.client.proxy_choice import Proxies, ProxyChoice
from greensock.http.client.retries import Retries
from greensock.http.client.sent_forms import Files, Pairs, body_of, with_params
from greensock.http.client.tunnels import TunnelPool
from greensock.http.wire.headers import Headers
from greensock.http.wire.limits import Limits
from greensock.http.wire.response_parser import plain_answer

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Unpack

__all__ = ["HTTPClient", "HTTPSession"]

_NOTHING: tuple[()] = ()

#: How many calls are kept written, of those that are nothing but a method and a URL.
MAX_WRITTEN = 256

_Fields = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]


class ClientKeywords(TypedDict, total=False):
    """The options of a client, as a type checker is to know them; what each means stands at :class:`HTTPClient`."""

    max_connections: int
    max_idle: int
    max_idle_total: int
    max_waiting: int
    idle_timeout: float | None
    max_age: float | None
    max_requests: int | None
    timeouts: Timeouts
    limits: Limits
    tls: TLS | ssl.SSLContext | bool
    user_agent: str | None
    base_url: str | None
    headers: Headers | _Fields
    auth: Auth | None
    cookies: CookieJar | bool
    decode: bool
    max_decoded: int | None
    max_redirects: int
    retries: Retries | int | None
    proxies: Proxies | None


class RequestKeywords(TypedDict, total=False):
    """What may be said of a request but its body; what each means stands at :meth:`HTTPClient.request`."""

    headers: Headers | _Fields
    trailers: Trailers
    target: bytes | None
    address: Any
    expect_continue: bool
    on_interim: Interim | None
    timeouts: Timeouts | None
    timeout: float | None
    params: Pairs | str | None
    data: Any
    json: Any
    files: Files | None
    auth: Auth | None
    cookies: Mapping[str, str] | None
    max_redirects: int | None
    retries: Retries | int | None


class BodyKeywords(RequestKeywords, total=False):
    """That, and a body."""

    body: Body


def _is_tls(value: object) -> bool:
    return value is not None and Server.option_rules["tls"].fits(value)


def _policy(retries: Retries | int | None) -> Retries | None:
    """Return what a number of retries, or a policy, means."""
    if isinstance(retries, Retries):
        return retries if retries.total else None
    _retries.check("retries", retries)
    return Retries(retries) if retries else None


def _as_headers(headers: Headers | _Fields) -> Headers:
    if isinstance(headers, Headers):
        return headers
    return Headers(headers.items() if isinstance(headers, Mapping) else headers)


_retries = Rule(
    lambda value: isinstance(value, Retries) or Rule.whole(0).or_none().fits(value), "Retries(), a number, or None"
)


class HTTPClient:
    """Makes requests over kept connections, for one user.

    Some servers authenticate the connection and not each request (NTLM, Negotiate: RFC 4559 section 6): all who share a
    client share that identity. Use one client for each user where that is not wanted.

    Every option is a class attribute and a keyword. ``close()`` it, or use it with ``with``.

    Raises:
        ValueError: an option is not allowed; the text says which, its value, and what is allowed.
        TypeError: no such option.
    """

    #: Connections to one origin, used and idle. Further requests wait, first come first served.
    max_connections: int = 64
    #: Idle connections to one origin.
    max_idle: int = 64
    #: Idle connections to all origins.
    max_idle_total: int = 256
    #: Requests that may wait for a connection to one origin.
    max_waiting: int = 1024
    #: Seconds after which an idle connection is closed. None: never.
    idle_timeout: float | None = 30.0
    #: Seconds after which a connection is used for no further request: the name may lead elsewhere by then. None: any.
    max_age: float | None = 3600.0
    #: Requests that are made on one connection. None: any number.
    max_requests: int | None = 1000
    #: Seconds that the phases of a request may take.
    timeouts: Timeouts = Timeouts()
    #: How large the parts of an answer may be.
    limits: Limits = Limits()
    #: How TLS is spoken for ``https://``: ``TLS(authorities=...)``, or any ``ssl.SSLContext`` of a client. True: what
    #: the system trusts is trusted, and the certificate must be for the name in the URL.
    tls: TLS | ssl.SSLContext | bool = True
    #: What User-Agent says, if the request has none. None: no such field.
    user_agent: str | None = f"greensock/{__version__}"
    #: What URLs without a scheme stand below: ``/users`` is asked at ``http://host/api/users`` if this is
    #: ``http://host/api``. None: each has to be whole.
    base_url: str | None = None
    #: Fields that each request has, unless it has one of that name itself.
    headers: Headers | _Fields = ()
    #: Who asks: ``(name, password)``, or ``Bearer(token)``. With a ``base_url`` only its origin is told; without one,
    #: whoever is asked, but not where an answer leads to.
    auth: Auth | None = None
    #: Whether cookies are kept, and in which jar: True for one of its own, which then stands here.
    cookies: CookieJar | bool = False
    #: Whether answers are asked for in, and read without, the content codings that are known here: gzip and deflate, br
    #: with the package ``brotli``, zstd with Python 3.14 or ``backports.zstd``.
    decode: bool = False
    #: Bytes that a body may have when it is decoded. None: any number; it comes in pieces of 64 KiB all the same.
    max_decoded: int | None = 1 << 30
    #: Redirections that are followed for one request; one more is an error. 0: none, and the answer is returned.
    max_redirects: int = 0
    #: How often, and when, a request is made again: :class:`Retries`, or only a number of tries. None: never.
    retries: Retries | int | None = None
    #: Through which proxies is asked: ``{"http": "http://[name:password@]host:port", "https": ..., "all": ..., "no":
    #: "localhost,.example.org,10.0.0.0/8"}``, or ``"environment"`` for what HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
    #: NO_PROXY say when the client is made. Servers of https are asked through a tunnel (CONNECT). ``socks5://`` is
    #: SOCKS 5, and ``socks5h://`` has the proxy resolve the names.
    proxies: Proxies | None = None

    option_rules: ClassVar[Mapping[str, Rule]] = {
        "max_connections": Rule.whole(1),
        "max_idle": Rule.whole(0),
        "max_idle_total": Rule.whole(0),
        "max_waiting": Rule.whole(0),
        "idle_timeout": Rule.seconds(zero=False).or_none(),
        "max_age": Rule.seconds(zero=False).or_none(),
        "max_requests": Rule.whole(1).or_none(),
        "timeouts": Rule.instance(Timeouts, "Timeouts"),
        "limits": Rule.instance(Limits, "Limits"),
        "tls": Rule(lambda value: value is True or _is_tls(value), "True, TLS(), or an ssl.SSLContext"),
        "user_agent": Rule.instance(str, "a string").or_none(),
        "base_url": Rule.instance(str, "http://host[:port]/path").or_none(),
        "headers": Rule(lambda value: isinstance(value, Headers | Iterable), "fields"),
        "auth": Rule(is_auth, "(name, password), or Bearer(token)").or_none(),
        "cookies": Rule.instance(CookieJar | bool, "True, False, or a CookieJar"),  # type: ignore[arg-type]
        "decode": Rule.flag(),
        "max_decoded": Rule.whole(0).or_none(),
        "max_redirects": Rule.whole(0),
        "retries": _retries,
        "proxies": Rule.instance(Mapping | str, "a mapping, or 'environment'").or_none(),  # type: ignore[arg-type]
    }

    def __init__(self, **options: Unpack[ClientKeywords]) -> None:
        self._take_options(options)
        self._manners = manners = self._look_at_manners()
        sizes: dict[str, Any] = {
            "max_connections": self.max_connections,
            "max_idle": self.max_idle,
            "max_idle_total": self.max_idle_total,
            "max_waiting": self.max_waiting,
            "idle_timeout": self.idle_timeout,
            "max_age": self.max_age,
            "max_requests": self.max_requests,
        }
        if manners.proxies is None:
            self._pool = ClientPool(self.limits, tls=self.tls, **sizes)
        else:
            self._pool = TunnelPool(self.limits, manners.proxies, self.tls, **sizes)
        self._unbounded = Deadlines(self.timeouts, None)
        self._written: dict[tuple[str, str], tuple[Origin, Call]] = {}

    def begin_with(self, preface: bytes) -> None:
        """Have each new connection of https begin with that, in front of TLS: a header of the PROXY protocol, say."""
        self._pool.preface = preface

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Headers | _Fields = (),
        body: Body = None,
        trailers: Trailers = None,
        target: bytes | None = None,
        address: Any = None,
        expect_continue: bool = False,
        on_interim: Interim | None = None,
        timeouts: Timeouts | None = None,
        timeout: float | None = None,
        params: Pairs | str | None = None,
        data: Any = None,
        json: Any = None,
        files: Files | None = None,
        auth: Auth | None = None,
        cookies: Mapping[str, str] | None = None,
        max_redirects: int | None = None,
        retries: Retries | int | None = None,
    ) -> ClientResponse:
        """Make a request and return the answer, of which the head is there.

        ``url`` is ``http://host[:port]/path?query``, ``https://`` likewise, or ``http+unix://`` with the
        percent-encoded path of a socket for a host. ``target``, if given, is asked for instead of its path and query,
        byte for byte; ``address``, as ``greensock.connect`` takes it, is where to connect instead.

        ``headers`` may have a Host to be sent instead of the URL's. Content-Length, Transfer-Encoding and Connection
        are the client's to write; of these only a Content-Length for an iterable, and ``close``, are looked at.
        ``Upgrade`` asks for another protocol.

        ``body`` is bytes; ``str``, sent as UTF-8; a binary file, sent by sendfile from its position to its end (which
        neither moves nor closes it); a :class:`FileBody`, which is closed; or an iterable of bytes, sent as it comes:
        with a Content-Length if the fields have one, else in chunks, with the ``trailers`` behind it (fields, or what
        returns them). An iterable with a ``close`` method is closed whatever happens. Whatever is not bytes, and more
        than 16 KiB, is sent by a greenlet of its own. If the answer comes before the body is out, sending stops if the
        status is 300 or above, else with the end of the answer. With ``expect_continue`` the body waits for 100, for
        ``timeouts.expect`` seconds at the most.

        In the place of a ``body``: ``json``, sent as such; ``data``, a form of names and values (a value may be a
        list), or what may be a body; ``files``, with ``data`` or without, a form with files: ``{"name": file}``, or
        ``(filename, content)``, or ``(filename, content, type)`` in the place of a file, which is sent from its
        position to its end. ``params`` are names and values that go into the query, behind what is in it.

        ``auth`` and ``cookies`` are sent, too, but to no other origin. ``max_redirects`` and ``retries`` take the place
        of the client's, and so does ``timeouts``; ``timeout`` (seconds) takes that of its ``total``, redirections and
        retries included. ``on_interim`` is called with each head 1xx.

        Raises:
            PhaseTimeout: one of its kinds; the phase and the seconds are in it.
            QueueFull: too many wait for a connection.
            ConnectFailed: no server listens there, or it could not be reached. HandshakeFailed and CertificateRefused,
                which say why no TLS was agreed on, are of this kind.
            ConnectionLost: the server reset the connection.
            BadResponse: the server broke the protocol, closed without an answer, or redirects without end, or to what
                cannot be followed.
            ConnectionClosed: the client is closed.
            ValueError, TypeError: what was asked for cannot be sent.
        """
        if body is None and headers == _NOTHING and trailers is None and target is None and address is None:
            if not expect_continue and on_interim is None and type(url) is str and timeouts is None and timeout is None:
                if params is None and data is None and json is None and files is None and auth is None:
                    if cookies is None and max_redirects is None and retries is None:
                        return self._ask(method, url)
        deadlines = self._unbounded
        if (
            timeouts is not None
            or timeout is not None
            or deadlines.timeouts is not self.timeouts
            or deadlines.total is not None
        ):
            deadlines = self._deadlines(timeouts, timeout, body)
        manners = self._manners
        if manners.is_bare and params is None and data is None and json is None and files is None and auth is None:
            if cookies is None and not max_redirects and retries is None:
                return self._ask_plainly(
                    method, url, headers, body, trailers, target, address, expect_continue, on_interim, deadlines
                )
        payload = NOTHING
        try:
            url = manners.full_url(url)
            if params is not None:
                url = with_params(url, params)
            parse_url(url)
            fields, payload = body_of(_as_headers(headers), body, json, data, files)
            if max_redirects is not None:
                self.option_rules["max_redirects"].check("max_redirects", max_redirects)
            policy = manners.retries if retries is None else _policy(retries)
            most = manners.max_redirects if max_redirects is None else max_redirects
            asked = Asked(
                method, url, fields, payload, trailers, target, address, expect_continue, on_interim, auth, cookies
            )
            asked.max_redirects, asked.retries = most, policy
            journey = Journey(asked, manners, self._perform, deadlines)
        except BaseException:
            if payload is NOTHING:
                let_go(body if body is not None else data)
            payload.close()
            raise
        return journey.go()

    def _ask_plainly(
        self,
        method: str,
        url: str,
        headers: Headers | _Fields,
        body: Body,
        trailers: Trailers,
        target: bytes | None,
        address: Any,
        expect_continue: bool,
        on_interim: Interim | None,
        deadlines: Deadlines,
    ) -> ClientResponse:
        """Make one request, of a client that does nothing more about it."""
        try:
            destination = parse_url(url)
            if type(headers) is not Headers:
                headers = _as_headers(headers)
            payload = payload_of(body, headers)
        except BaseException:
            let_go(body)
            raise
        try:
            pairs = self._manners.written(headers, destination.authority, None, destination.origin)
            if expect_continue and headers.get_raw(b"expect") is None:
                pairs = [*pairs, (b"Expect", b"100-continue")]
            target = destination.target if target is None else target
            call = Call(method, target, Headers.of_raw(pairs), payload, trailers, on_interim)
            origin = destination.origin if address is None else origin_at(address, destination.origin)
            answer = self.perform(call, self._pool.lease_for(origin, deadlines), deadlines)
        except BaseException:
            payload.close()
            raise
        answer.url = url
        return answer

    def _ask(self, method: str, url: str) -> ClientResponse:
        """Make a request that is nothing but a method and a URL."""
        deadlines = self._unbounded
        if deadlines.timeouts is not self.timeouts or deadlines.total is not None:
            deadlines = self._deadlines(None, None, None)
        manners = self._manners
        if manners.is_bare:
            origin, call = self._written.get((method, url)) or self._write(method, url)
            answer = self.perform(call, self._pool.lease_for(origin, deadlines), deadlines)
            answer.url = url
            return answer
        first = None
        if manners.retries is None and (manners.cookies is None or manners.cookies.is_empty):
            origin, call = self._written.get((method, url)) or self._write(method, url)
            first = self.perform(call, self._pool.lease_for(origin, deadlines), deadlines)
            if manners.is_plain(first):
                first.url = manners.full_url(url)
                return first
        try:
            asked = Asked(method, manners.full_url(url), Headers())
            asked.max_redirects, asked.retries = manners.max_redirects, manners.retries
            journey = Journey(asked, manners, self._perform, deadlines)
        except BaseException:
            if first is not None:
                first.close()
            raise
        return journey.go(first)

    def _perform(self, call: Call, origin: Origin, deadlines: Deadlines) -> ClientResponse:
        return self.perform(call, self._pool.lease_for(origin, deadlines), deadlines)

    def _deadlines(self, timeouts: Timeouts | None, timeout: float | None, body: Body) -> Deadlines:
        try:
            return Deadlines(self.timeouts if timeouts is None else timeouts, timeout)
        except BaseException:
            let_go(body)
            raise

    def _write(self, method: str, url: str) -> tuple[Origin, Call]:
        """Write the call of a method and a URL alone, and keep it for the next time."""
        manners = self._manners
        destination = parse_url(manners.full_url(url))
        fields = manners.written(Headers(), destination.authority, None, destination.origin)
        origin, target, said = manners.route(destination, destination.target)
        written = origin, Call(method, target, Headers.of_raw(fields + said), NOTHING, None, None)
        if len(self._written) >= MAX_WRITTEN:
            self._written.clear()
        self._written[method, url] = written
        return written

    def get(self, url: str, **options: Unpack[BodyKeywords]) -> ClientResponse:
        """Make a GET request; see :meth:`request`."""
        if not options and type(url) is str:
            return self._ask("GET", url)
        return self.request("GET", url, **options)

    def head(self, url: str, **options: Unpack[BodyKeywords]) -> ClientResponse:
        """Make a HEAD request; see :meth:`request`."""
        return self.request("HEAD", url, **options)

    def post(self, url: str, body: Body = None, **options: Unpack[RequestKeywords]) -> ClientResponse:
        """Make a POST request; see :meth:`request`."""
        return self.request("POST", url, body=body, **options)

    def put(self, url: str, body: Body = None, **options: Unpack[RequestKeywords]) -> ClientResponse:
        """Make a PUT request; see :meth:`request`."""
        return self.request("PUT", url, body=body, **options)

    def patch(self, url: str, body: Body = None, **options: Unpack[RequestKeywords]) -> ClientResponse:
        """Make a PATCH request; see :meth:`request`."""
        return self.request("PATCH", url, body=body, **options)

    def delete(self, url: str, **options: Unpack[BodyKeywords]) -> ClientResponse:
        """Make a DELETE request; see :meth:`request`."""
        return self.request("DELETE", url, **options)

    def statistics(self, url: str | None = None, *, address: Any = None) -> PoolStatistics:
        """Return how many connections are used and idle, and how many requests wait: to one origin, or to all."""
        origin = origin_at(address) if address is not None else parse_url(url).origin if url is not None else None
        return self._pool.state.statistics(origin)

    def close_idle(self) -> None:
        """Close the connections that are not in use."""
        for conn in self._pool.state.drop_idle():
            conn.close()

    def close(self) -> None:
        """Close: idle connections now, others with the end of their answers; who waits gets ``ConnectionClosed``."""
        self._pool.close()

    def __enter__(self) -> HTTPClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_options(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self.option_rules:
                raise TypeError(f"unknown option {name!r}: {', '.join(self.option_rules)} exist")
        for name, rule in self.option_rules.items():
            rule.check(name, given[name] if name in given else getattr(self, name))
        vars(self).update(given)

    def _look_at_manners(self) -> Manners:
        """Return what the options say of how requests are made."""
        if self.cookies is True:
            self.cookies = new_jar()
        agent = [("User-Agent", self.user_agent)] if self.user_agent else []
        fields = _as_headers(self.headers).copy()
        if "User-Agent" not in fields:
            for name, value in agent:
                fields.add(name, value)
        proxies = ProxyChoice(self.proxies) if self.proxies is not None else None
        return Manners(
            self.base_url,
            fields.raw,
            self.auth,
            CookieStore(self.cookies) if isinstance(self.cookies, CookieJar) else None,
            self.decode,
            self.max_decoded,
            self.max_redirects,
            _policy(self.retries),
            proxies or None,
        )

    def perform(self, call: Call, lease: ClientLease, deadlines: Deadlines) -> ClientResponse:
        """Make the call, again if that is allowed, and return the answer, which holds the lease."""
        try:
            conn = lease.connection
            assert conn is not None
            sent_at: float | None = None
            heard: bytes | Exception | None = None
            if call.short and deadlines.total_due == inf:
                # The ordinary call in one go: what came is looked at as a whole first, and parsed only if it is more
                # than that. What was raised is the exchange's to judge.
                conn.requests += 1
                try:
                    conn.send_soon(call.short, deadlines.timeouts.send)
                    sent_at = monotonic()
                    heard = conn.recv(None, deadlines.timeouts.head)
                    if (found := plain_answer(heard, call.method, self.limits)) is not None:
                        answer = ClientResponse._whole(conn, *found, lease.is_reused)
                        lease.end(not call.closes)
                        call.payload.close()
                        return answer
                except Exception as error:
                    heard = error
            exchange = Exchange(call, conn, deadlines)
            try:
                head = exchange.run() if heard is None else exchange.go_on(sent_at, heard)
            except Exception as error:
                if not lease.is_reused or not exchange.may_repeat(error):
                    raise
                exchange = Exchange(call, lease.renew(deadlines), deadlines)
                head = exchange.run()
            answer = ClientResponse(lease, head, exchange, deadlines, call.closes)
            if not exchange.hand_over():
                call.payload.close()
        except BaseException:
            lease.give_up()
            raise
        return answer


class HTTPSession(HTTPClient):
    """An :class:`HTTPClient` with the defaults that one expects who knows requests or httpx.

    It keeps cookies, follows redirections, decodes answers, and asks through the proxies that the environment names.
    """

    cookies: CookieJar | bool = True
    decode: bool = True
    max_redirects: int = 20
    proxies: Proxies | None = "environment"
