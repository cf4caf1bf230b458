"""``HTTPUser``: what Locust's FastHttpUser is to a locustfile, on :class:`greensock.http.HTTPClient`.

A locustfile changes one import. What differs: an answer's ``headers`` are :class:`greensock.http.Headers`; a status
that is no success is ``BadStatusCode``; whatever is wrong with a connection is one of greensock's errors.
"""

from __future__ import annotations

import ssl
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict
from urllib.parse import unquote, urlsplit

import gevent
from locust.env import Environment
from locust.exception import StopTest

from greensock import TLS, GreensockError
from greensock.http.client.deadlines import Timeouts
from greensock.http.client.http_client import HTTPClient
from greensock.locust.http_answer import BadStatusCode, HTTPAnswer
from greensock.locust.paced_user import PacedUser

if TYPE_CHECKING:
    from locust.user.users import RestMixin
    from typing_extensions import Unpack
else:
    try:
        from locust.user.users import RestMixin
    except ImportError:  # Locust 2.46, the last for Python 3.10: there FastHttpUser has this itself
        from locust.contrib.fasthttp import FastHttpUser

        class RestMixin:
            __module__ = FastHttpUser.__module__
            rest, rest_, _callstack_regex = FastHttpUser.rest, FastHttpUser.rest_, FastHttpUser._callstack_regex
            __class_getitem__ = classmethod(lambda cls, _: cls)


__all__ = ["HTTPUser", "HTTPUserClient"]

#: What is a failure to connect, to send, to receive or to decode, and no fault of the locustfile's.
FAILURES = (GreensockError, OSError, gevent.Timeout)
BINARY = "application/octet-stream"
#: How long a body may be, in bytes.
MAX_CONTENT = 1 << 30
#: What requests and HttpUser take, and what to say instead.
ELSEWHERE = {
    "verify": "it is set for all requests of a user: insecure = False, or tls = TLS(authorities=...)",
    "cert": "it is set for all requests of a user: tls = TLS(certificate, key)",
    "proxies": "it is set for all requests of a user: proxy_host and proxy_port",
    "hooks": "Locust's request event has every answer",
    "cookies": "they are kept in self.client.cookiejar; a Cookie field of headers is sent as it is",
}
#: Options of Locust's users for HTTP that cannot be had, and why.
REFUSED = {
    "client_pool": "a pool of geventhttpclient's is of no use here: each user has connections of its own, at most "
    "concurrency of them",
    "pool_manager": "a pool of urllib3's is of no use here: each user has connections of its own, at most concurrency "
    "of them",
}


class RequestOptions(TypedDict, total=False):
    """What may be said of a request, as FastHttpUser's client takes it."""

    name: str | None
    catch_response: bool
    stream: bool
    headers: Mapping[str, str] | None
    auth: tuple[str, str] | None
    allow_redirects: bool
    context: dict[str, Any]
    params: Any
    files: Any
    data: Any
    json: Any
    timeout: float | None


class HTTPUserClient:
    """The client of a user: ``get``, ``post`` and their like report each request to Locust."""

    #: The statuses that are a success.
    valid_response_codes: ClassVar[frozenset[int]] = frozenset(
        [200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 301, 302, 303, 304, 307, 308]
    )

    def __init__(self, user: HTTPUser, base_url: str, client: HTTPClient, auth: tuple[str, str] | None) -> None:
        #: What stands before a path: scheme, host and port, and maybe a path.
        self.base_url = base_url
        #: The name of requests that have none of their own; None: their path.
        self.request_name: str | None = None
        #: What makes the requests.
        self.http = client
        self._user = user
        self._event = user.environment.events.request
        self._auth = auth
        # Most users have no context of their own: it is not asked for with each request then.
        self._has_context = type(user).context is not PacedUser.context

    @property
    def cookiejar(self) -> CookieJar:
        """The cookies of the user."""
        assert isinstance(self.http.cookies, CookieJar)
        return self.http.cookies

    @contextmanager
    def rename_request(self, name: str) -> Iterator[None]:
        """Have all requests in a block go by this name."""
        self.request_name = name
        try:
            yield
        finally:
            self.request_name = None

    def request(
        self,
        method: str,
        url: str,
        name: str | None = None,
        data: Any = None,
        catch_response: bool = False,
        stream: bool = False,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        json: Any = None,
        allow_redirects: bool = True,
        context: dict[str, Any] | None = None,
        params: Any = None,
        files: Any = None,
        timeout: float | None = None,
        **more: Any,
    ) -> HTTPAnswer:
        """Make a request and report it; whatever goes wrong is a failure that is counted, and never raised.

        ``url`` is a path below the host, or a whole URL. ``name`` is what Locust counts it by, else ``url``. With
        ``catch_response`` the answer is used in a ``with`` block that decides whether it was a success. ``data`` is
        text, bytes, a form by names and values, or an iterable of bytes; ``json`` is sent as such, ``files`` as a form
        with files. ``auth`` is name and password. ``timeout`` (seconds) bounds all of it. With ``stream`` the body is
        not read: ``iter_content`` and ``iter_lines`` do, and the time that is reported ends with the head.

        Raises:
            TypeError: an argument that is not taken here; the text says what takes its place.
        """
        if more:
            unknown = next(iter(more))
            raise TypeError(f"{unknown}: {ELSEWHERE.get(unknown, 'no such argument')}")
        full = url if url.startswith(("http://", "https://")) else self.base_url + url
        user = self._user
        if self._has_context:
            context = {**user.context(), **(context or {})}
        meta: dict[str, Any] = {
            "request_type": method,
            "name": name or self.request_name or url,
            "context": {} if context is None else context,
            "exception": None,
            "start_time": time.time(),
            "url": full,
        }
        found = HTTPAnswer(self._event, meta, catch_response)
        found.asked = method, headers, data if json is None else json
        meta["response"] = found
        length = 0
        began = perf_counter()
        if user.rate is not None:
            due = user.begin_request()
            meta["start_time"] -= max(0.0, began - due)
            began = min(began, due)
        try:
            if (
                method == "GET"
                and headers is None
                and data is None
                and json is None
                and params is None
                and files is None
                and auth is None
                and timeout is None
                and allow_redirects
                and self._auth is None
            ):
                answer = self.http.get(full)
            else:
                if not data and json is not None:
                    headers = {"Accept": "application/json", **(headers or {})}
                    data = None
                elif data and isinstance(data, str | bytes) and files is None:
                    # What is no form goes out as FastHttpUser has it, and before ``json``.
                    json = None
                    headers = _typed(headers, "text/plain; charset=utf-8" if isinstance(data, str) else BINARY)
                elif json is not None:
                    json = None
                answer = self.http.request(
                    method,
                    full,
                    headers=headers or (),
                    data=data,
                    json=json,
                    params=params,
                    files=files,
                    auth=auth or self._auth,
                    timeout=timeout,
                    max_redirects=None if allow_redirects else 0,
                )
            if stream:
                content = None
                length = answer.head.content_length or 0
            else:
                content = answer.read_all(MAX_CONTENT)
                length = len(content)
            meta["response_time"] = (perf_counter() - began) * 1000
            found.came(answer, content)
            if answer.status not in self.valid_response_codes:
                found.error = meta["exception"] = BadStatusCode(answer.status, found)
        except FAILURES as error:
            meta["response_time"] = (perf_counter() - began) * 1000
            if isinstance(error, gevent.Timeout):
                error = TimeoutError(str(error))
            found.error = meta["exception"] = error
        meta["response_length"] = length
        if not catch_response:
            self._event.fire(**meta)
        return found

    def get(self, url: str, **options: Unpack[RequestOptions]) -> HTTPAnswer:
        """Make a GET request; see :meth:`request`."""
        return self.request("GET", url, **options)

    def head(self, url: str, **options: Unpack[RequestOptions]) -> HTTPAnswer:
        """Make a HEAD request; see :meth:`request`."""
        return self.request("HEAD", url, **options)

    def options(self, url: str, **options: Unpack[RequestOptions]) -> HTTPAnswer:
        """Make an OPTIONS request; see :meth:`request`."""
        return self.request("OPTIONS", url, **options)

    def delete(self, url: str, **options: Unpack[RequestOptions]) -> HTTPAnswer:
        """Make a DELETE request; see :meth:`request`."""
        return self.request("DELETE", url, **options)

    def post(self, url: str, data: Any = None, json: Any = None, **options: Any) -> HTTPAnswer:
        """Make a POST request; see :meth:`request`."""
        return self.request("POST", url, data=data, json=json, **options)

    def put(self, url: str, data: Any = None, **options: Any) -> HTTPAnswer:
        """Make a PUT request; see :meth:`request`."""
        return self.request("PUT", url, data=data, **options)

    def patch(self, url: str, data: Any = None, **options: Any) -> HTTPAnswer:
        """Make a PATCH request; see :meth:`request`."""
        return self.request("PATCH", url, data=data, **options)

    def iter_lines(self, url: str, method: str = "GET", **options: Any) -> Iterator[str]:
        """Make a request with ``stream``, and go through the lines of its answer as they come."""
        answer = self.request(method, url, stream=True, **options)
        answer.raise_for_status()
        return answer.iter_lines()


class HTTPUser(PacedUser, RestMixin[HTTPAnswer]):
    """A user who asks a server of HTTP: FastHttpUser's interface, at less than half of its CPU time.

    ``self.client`` makes and reports requests; ``self.rest`` is as FastHttpUser's. Options are class attributes, set
    before a user is made. With ``rate`` response times count from when a task was due (:class:`PacedUser`).
    """

    abstract = True

    #: Seconds that the server may take to take or to give the next bytes.
    network_timeout: float = 60.0
    #: Seconds that connecting may take.
    connection_timeout: float = 60.0
    #: Redirections that are followed for one request; one more is a failure.
    max_redirects: int = 30
    #: How often a request is made again that could not be made, or was not answered. Each is counted once, in the end.
    max_retries: int = 0
    #: Whether certificates are not verified.
    insecure: bool = True
    #: Fields that each request has.
    default_headers: Mapping[str, str] | None = None
    #: Connections that a user has to one server, at most.
    concurrency: int = 10
    #: A proxy, for http and https.
    proxy_host: str | None = None
    proxy_port: int | None = None
    #: What returns the ``ssl.SSLContext`` of a user, in the place of ``insecure``.
    ssl_context_factory: Callable[[], ssl.SSLContext] | None = None
    #: How TLS is spoken, in the place of ``insecure``; greensock's own.
    tls: TLS | ssl.SSLContext | None = None
    #: Cannot be had; says so.
    client_pool: None = None
    pool_manager: None = None

    _unverified: ClassVar[ssl.SSLContext | None] = None

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        for name, why in REFUSED.items():
            if getattr(self, name) is not None:
                raise StopTest(f"{name} of {type(self).__name__}: {why}")
        if self.host is None:
            raise StopTest("no host: the attribute host of the user, or --host on the command line, expected")
        base_url, auth = _without_credentials(self.host)
        http = self._http_client()
        #: Makes the requests, keeps the cookies.
        self.client = HTTPUserClient(self, base_url, http, auth)
        # Its connections end with it, whatever its ``on_stop`` is: users come and go in a run.
        weakref.finalize(self, http.close).atexit = False

    def _http_client(self) -> HTTPClient:
        proxy = None if self.proxy_host is None else {"all": f"http://{self.proxy_host}:{self.proxy_port or 80}"}
        waiting = self.network_timeout
        return HTTPClient(
            timeouts=Timeouts(
                queue=None, connect=self.connection_timeout, send=waiting, head=waiting, body=waiting, expect=1.0
            ),
            max_connections=self.concurrency,
            max_idle=self.concurrency,
            idle_timeout=None,
            max_age=None,
            max_requests=None,
            max_redirects=self.max_redirects,
            retries=self.max_retries,
            cookies=True,
            decode=True,
            max_decoded=MAX_CONTENT,
            headers=self.default_headers or {},
            tls=self._how_tls_is_spoken(),
            proxies=proxy,
        )

    def _how_tls_is_spoken(self) -> TLS | ssl.SSLContext | bool:
        if self.tls is not None:
            return self.tls
        factory = type(self).ssl_context_factory  # as a function in the class it is none of its methods
        if factory is not None:
            return factory()
        if not self.insecure:
            return True
        if HTTPUser._unverified is None:  # one for all users: each would hold 100 kB
            HTTPUser._unverified = context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return HTTPUser._unverified


def _typed(headers: Mapping[str, str] | None, content_type: str) -> Mapping[str, str]:
    """Return the fields, with a Content-Type if they have none."""
    if headers is None:
        return {"Content-Type": content_type}
    if any(name.lower() == "content-type" for name in headers):
        return headers
    return {**headers, "Content-Type": content_type}


def _without_credentials(host: str) -> tuple[str, tuple[str, str] | None]:
    """Return a host without the name and password in it, and these."""
    parts = urlsplit(host)
    if not parts.username or not parts.password:
        return host, None
    base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return base, (unquote(parts.username), unquote(parts.password))
