"""``RequestsAdapter``: programs that have a session of requests make its requests over greensock's connections.

    session = requests.Session()
    session.mount("https://", greensock.http.RequestsAdapter())
    session.mount("http://", greensock.http.RequestsAdapter())

Redirections, cookies, credentials and which proxy is asked are requests' to decide, as ever; connections, TLS, timeouts
and bodies are ours. What goes wrong is raised as requests' own exceptions. A session may be used by several threads:
each has connections of its own.
"""

from __future__ import annotations

import contextlib
import io
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping
from email.message import Message
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import urlsplit

import requests
import urllib3
from certifi import where
from gevent.monkey import get_original
from requests.adapters import BaseAdapter
from requests.cookies import extract_cookies_to_jar
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectionError,
    ConnectTimeout,
    InvalidHeader,
    InvalidProxyURL,
    InvalidSchema,
    InvalidURL,
    ProxyError,
    ReadTimeout,
    SSLError,
)
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers, select_proxy
from urllib3.exceptions import DecodeError, ProtocolError, ReadTimeoutError

from greensock import ConnectFailed, ConnectionClosed, GreensockError, HandshakeFailed, OperationTimeout
from greensock.http.client.client_response import ClientResponse
from greensock.http.client.content_coding import ContentDecoder, Undecodable, decoder_for
from greensock.http.client.deadlines import Timeouts
from greensock.http.client.http_client import HTTPClient
from greensock.http.client.retries import Retries
from greensock.http.errors import BadResponse, PhaseTimeout, Reason
from greensock.http.errors import ConnectTimeout as NotConnected
from greensock.http.wire.headers import Headers
from greensock.http.wire.limits import Limits

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AdapterKeywords", "RequestsAdapter"]

#: How many clients are kept for each thread, of those that differ in how TLS is spoken or which proxy is asked.
MAX_CLIENTS = 32
#: Fields that say how a message is framed, which the client does itself.
OF_THE_FRAMING = ("connection", "transfer-encoding", "keep-alive", "proxy-connection")


class AdapterKeywords(TypedDict, total=False):
    """The options of an :class:`HTTPClient` that requests itself does not decide, as a type checker is to know them."""

    max_connections: int
    max_idle: int
    max_idle_total: int
    max_waiting: int
    idle_timeout: float | None
    max_age: float | None
    max_requests: int | None
    limits: Limits
    user_agent: str | None
    headers: Headers | Mapping[str, str] | Iterable[tuple[str, str]]
    max_decoded: int | None


#: Options of a client that requests itself decides.
REFUSED = ("tls", "proxies", "cookies", "auth", "base_url", "max_redirects", "decode", "retries", "timeouts")


class RequestsAdapter(BaseAdapter):
    """A transport adapter for ``requests.Session.mount``, on :class:`HTTPClient`.

    ``pool_maxsize`` are the connections to one origin, beyond which requests wait; ``max_retries`` is a number of tries
    of connecting, as in requests' own, or a policy, :class:`Retries`. Other ``options`` are those of an ``HTTPClient``;
    which of those requests itself decides is refused.

    Raises:
        TypeError, ValueError: an option that there is not, or its value.
    """

    def __init__(
        self, pool_maxsize: int = 64, max_retries: Retries | int = 0, **options: Unpack[AdapterKeywords]
    ) -> None:
        super().__init__()
        for name in REFUSED:
            if name in options:
                raise TypeError(f"{name}: that is for requests to say")
        self.max_retries = max_retries
        own = {"user_agent": None, "max_connections": pool_maxsize, "max_waiting": 1 << 20}
        self._options: dict[str, Any] = {**own, **options}
        HTTPClient(**self._options).close()  # raises what is wrong with them
        self._begin()

    def _begin(self) -> None:
        self._of_this_thread: Any = get_original("_thread", "_local")()
        self._clients: list[dict[Any, HTTPClient]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"max_retries": self.max_retries, "_options": self._options}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str | None = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request that was prepared, and return its answer, as requests asks its adapters to.

        ``timeout`` is in seconds: one for connecting and for each wait for bytes, or a pair of both.

        Raises:
            requests.RequestException: of the kind that requests' own adapter raises.
        """
        url = str(request.url)
        proxy = select_proxy(url, dict(proxies) if proxies else None)
        client = self._client(url, verify, cert, proxy)
        at, target = _place(url, request)
        try:
            answer = client.request(
                str(request.method),
                at,
                target=target,
                headers=_fields_of(request),
                body=_body_of(request.body),
                timeouts=_timeouts_of(timeout),
                retries=self._policy(),
            )
        except Exception as error:
            raise _translated(error, request, proxy) from error
        return self.build_response(request, RawBody(answer))

    def close(self) -> None:
        """Close the connections that are not in use."""
        for kept in self._clients:
            for client in kept.values():
                client.close_idle()

    def _policy(self) -> Retries | None:
        # As in requests: a number is one of tries to connect, which is all that may be repeated unasked.
        most = self.max_retries
        if isinstance(most, Retries):
            return most
        total = most if isinstance(most, int) else getattr(most, "total", 0)
        return _OfConnecting(int(total), statuses=(), pause=0.0) if total else None

    def _client(self, url: str, verify: bool | str | None, cert: Any, proxy: str | None) -> HTTPClient:
        """Return this thread's client for such requests."""
        local = self._of_this_thread
        kept: dict[Any, HTTPClient] | None = getattr(local, "clients", None)
        if kept is None:
            kept = local.clients = {}
            self._clients.append(kept)
        is_tls = url.lower().startswith("https")
        key = (verify, tuple(cert) if isinstance(cert, list | tuple) else cert, proxy) if is_tls else proxy
        found = kept.get(key)
        if found is None:
            options: dict[str, Any] = {**self._options}
            if is_tls:
                options["tls"] = _context(verify, cert)
            if proxy:
                options["proxies"] = {"all": _checked_proxy(proxy)}
            try:
                found = HTTPClient(**options)
            except ValueError as error:
                raise InvalidProxyURL(str(error)) from error
            if len(kept) >= MAX_CLIENTS:
                kept.pop(next(iter(kept))).close()
            kept[key] = found
        return found

    def build_response(self, request: requests.PreparedRequest, raw: Any) -> requests.Response:
        """Return the response for what came; it may be overridden, as that of requests' own adapter."""
        response: Any = requests.Response()
        response.status_code = raw.status
        response.headers = CaseInsensitiveDict(raw.headers)
        response.encoding = get_encoding_from_headers(response.headers)
        response.raw = raw
        response.reason = raw.reason
        response.url = request.url.decode() if isinstance(request.url, bytes) else request.url
        extract_cookies_to_jar(response.cookies, request, raw)  # type: ignore[no-untyped-call, unused-ignore]
        response.request = request
        response.connection = self
        return response  # type: ignore[no-any-return]


class _OfConnecting(Retries):
    """Tries again only what reached no server."""

    __slots__ = ()

    def pause_after_error(self, error: Exception, method: str, replayable: bool, tried: int) -> float | None:
        if not isinstance(error, ConnectFailed | NotConnected):
            return None
        return Retries.pause_after_error(self, error, method, replayable, tried)


class _Original:
    """What cookies are taken from."""

    def __init__(self, answer: ClientResponse) -> None:
        self.msg = Message()
        for value in answer.headers.get_all("set-cookie"):
            self.msg.add_header("Set-Cookie", value)

    def isclosed(self) -> bool:
        return True


class RawBody(io.IOBase):
    """What ``response.raw`` is: the body as a file, as urllib3 has it."""

    def __init__(self, answer: ClientResponse) -> None:
        self._answer = answer
        self._decoder: ContentDecoder | None = None
        self._is_decoded: bool | None = None
        self._held = b""
        self._told = 0
        self._original_response = _Original(answer)
        #: The fields, as urllib3 has them.
        self.headers = urllib3.HTTPHeaderDict(list(answer.headers))
        #: 200 and the like.
        self.status = answer.status
        #: What stands behind it.
        self.reason = answer.head.phrase.decode("latin-1")
        #: As http.client has it: 10 or 11.
        self.version = 10 if answer.head.version == "1.0" else 11
        if answer.is_ended:
            self.release_conn()

    def readable(self) -> bool:
        return True

    def read(self, amt: int | None = None, decode_content: bool | None = None, cache_content: bool = False) -> bytes:
        """Return so many bytes, or fewer at the end; all of them if ``amt`` is None."""
        pieces, size = [], 0
        while amt is None or size < amt:
            piece = self._next(decode_content, None if amt is None else amt - size)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def stream(self, amt: int | None = 65536, decode_content: bool | None = None) -> Iterator[bytes]:
        """Go through what comes, as it comes, at most ``amt`` bytes at once."""
        while piece := self._next(decode_content, amt):
            yield piece

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        for piece in self.stream():
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line + b"\n" for line in lines)
        if rest:
            yield rest

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as there is something."""
        piece = self._next(None, len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def tell(self) -> int:
        """Return how many bytes came, as they came."""
        return self._answer.received - len(self._answer.rest)

    def release_conn(self) -> None:
        """Give the connection back; one of which not all was read is closed."""
        if not self._answer.is_ended:
            self._answer.close()

    def close(self) -> None:
        """Give up what was not read."""
        if not self.closed:
            self._answer.close()
            super().close()

    def _next(self, decode: bool | None, most: int | None) -> bytes:
        if not self._held:
            self._held = self._piece(bool(decode))
        piece, self._held = self._held[:most], self._held[len(self._held) if most is None else most :]
        return piece

    def _piece(self, decode: bool) -> bytes:
        if self.closed:
            return b""
        if self._is_decoded is None:
            self._is_decoded = decode
            if decode:
                self._decoder = decoder_for(self._answer.headers.tokens(b"content-encoding"), None)
        decoder = self._decoder
        try:
            if decoder is None:
                return bytes(self._answer.next_piece())
            while not decoder.is_over:
                if made := decoder.read():
                    return made
                came = self._answer.next_piece()
                if came:
                    decoder.feed(bytes(came))
                else:
                    decoder.finish()
        except (Undecodable, OverflowError) as error:
            raise DecodeError(f"Content-Encoding: {error}") from error
        except OperationTimeout as error:
            raise ReadTimeoutError(None, "", str(error)) from error  # type: ignore[arg-type]
        except (GreensockError, OSError) as error:
            raise ProtocolError(f"Connection broken: {error}", error) from error
        return b""


def _place(url: str, request: requests.PreparedRequest) -> tuple[str, bytes]:
    """Return the server that a URL names, as a URL, and what to ask it."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{netloc}/", request.path_url.encode()
    except ValueError as error:
        raise InvalidURL(str(error), request=request) from error


def _fields_of(request: requests.PreparedRequest) -> Headers:
    headers = Headers()
    body = request.body
    has_length = isinstance(body, bytes | str) or body is None
    try:
        for name, value in request.headers.items():
            plain = name.decode("latin-1") if isinstance(name, bytes) else name
            lower = plain.lower()
            if lower == "connection" and "close" in str(value).lower():
                headers.add("Connection", "close")
            elif lower not in OF_THE_FRAMING and not (has_length and lower == "content-length"):
                headers.add(name, value.encode("utf-8") if isinstance(value, str) and not _is_latin(value) else value)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidHeader(str(error), request=request) from error
    return headers


def _is_latin(value: str) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        value.encode("latin-1")
        return True
    return False


def _body_of(body: Any) -> Any:
    """Return a body as the client takes it."""
    if body is None or isinstance(body, bytes | str) or hasattr(body, "read"):
        return body
    return _TextPieces(body)


class _TextPieces:
    """An iterable, of which text is sent as UTF-8."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return (piece.encode() if isinstance(piece, str) else bytes(piece) for piece in self._pieces)


def _timeouts_of(timeout: Any) -> Timeouts:
    if isinstance(timeout, tuple):
        try:
            connect, read = timeout
        except ValueError:
            raise ValueError(
                f"Invalid timeout {timeout}. Pass a (connect, read) timeout tuple, or a single float to set both."
            ) from None
        timeout = urllib3.Timeout(connect=connect, read=read)  # which says what is wrong with them
    elif not isinstance(timeout, urllib3.Timeout):
        timeout = urllib3.Timeout(connect=timeout, read=timeout)
    begun = timeout.clone()
    begun.start_connect()
    # What was left open is a mark of urllib3's, and no number.
    connect, read = (
        each if isinstance(each, int | float) else None for each in (begun.connect_timeout, begun.read_timeout)
    )
    return Timeouts(queue=None, connect=connect, send=read, head=read, body=read)


def _context(verify: bool | str | None, cert: Any) -> ssl.SSLContext:
    """Return how TLS is spoken; who is trusted is what requests trusts, certifi's list."""
    context = ssl.create_default_context(cafile=None if verify is not True and verify is not None else where())
    if verify is False or verify == "":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif isinstance(verify, str):
        if not os.path.exists(verify):
            raise OSError(f"Could not find a suitable TLS CA certificate bundle, invalid path: {verify}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        is_folder = os.path.isdir(verify)
        context.load_verify_locations(None if is_folder else verify, verify if is_folder else None)
    if cert:
        files = (cert, None) if isinstance(cert, str) else tuple(cert)
        for what, path in zip(("certificate", "key"), files, strict=True):
            if path is not None and not os.path.exists(path):
                raise OSError(f"Could not find the TLS {what} file, invalid path: {path}")
        context.load_cert_chain(*files)
    return context


def _checked_proxy(proxy: str) -> str:
    scheme, colon, _ = proxy.partition("://")
    if colon and scheme.lower() not in ("http", "https", "socks5", "socks5h"):
        raise InvalidSchema(f"a proxy of {scheme} is not spoken to here: http://host:port or socks5:// expected")
    try:
        parts = urlsplit(proxy if colon else f"http://{proxy}")
        host = parts.hostname
    except ValueError:
        host = None
    if not host:
        raise InvalidProxyURL("Please check proxy URL. It is malformed and could be missing the host.")
    return proxy


def _translated(error: Exception, request: requests.PreparedRequest, proxy: str | None) -> Exception:
    """Return what requests raises where we raised this."""
    if isinstance(error, HandshakeFailed):
        return SSLError(error, request=request)
    if isinstance(error, NotConnected):
        return ConnectTimeout(error, request=request)
    if isinstance(error, ConnectFailed):
        return (ProxyError if proxy else ConnectionError)(error, request=request)
    if isinstance(error, PhaseTimeout | OperationTimeout):
        text = f"Read timed out: {error}"
        return ReadTimeout(ReadTimeoutError(None, "", text), request=request)  # type: ignore[arg-type]
    if isinstance(error, BadResponse) and error.reason in (Reason.CONTENT_LENGTH, Reason.CONTENT_LENGTH_REPEATED):
        return InvalidHeader(error, request=request)
    if isinstance(error, BadResponse) and error.reason is Reason.INCOMPLETE:
        return ChunkedEncodingError(error, request=request)  # an answer that breaks off in its body is one, too
    if isinstance(error, BadResponse | ConnectionClosed | GreensockError | OSError):
        return ConnectionError(error, request=request)
    if isinstance(error, ValueError) and "field" in str(error):
        return InvalidHeader(str(error), request=request)
    if isinstance(error, ValueError) and "url=" in str(error):
        return InvalidURL(str(error), request=request)
    return error
