"""A request on its way to its answer: tried again, redirected, with cookies and credentials, through a proxy, decoded.

Rules of redirection (RFC 9110 section 15.4, and what browsers do):

- 303 is followed by GET (HEAD stays HEAD), and so are 301 and 302 if the method was POST; then neither the body nor the
  fields that describe it are sent again. Otherwise, and for 307 and 308, method and body stay. An answer whose
  redirection would need a body that cannot be sent twice is returned as it is.
- Authorization and Cookie that the program gave are for the origin that it asked, and go to no other one: but from http
  to https of the same name, at the usual ports. Nor does a Host of its own. Cookies from the jar go by their own rules.
- Only http and https are followed, and a Unix socket only to itself: no server can send a client into one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any
from urllib.parse import urljoin

import gevent

from greensock.http.client.authorization import Auth, authorization_of, may_be_shown
from greensock.http.client.client_response import ClientResponse, DecodedResponse
from greensock.http.client.content_coding import accepted_codings, decoder_for
from greensock.http.client.cookie_store import CookieStore, written_cookies
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.exchange import Call, Interim, Trailers
from greensock.http.client.origin import Destination, Origin, origin_at, parse_url
from greensock.http.client.payload import NOTHING, Payload, Segment
from greensock.http.client.proxy_choice import ProxyChoice
from greensock.http.client.retries import Retries
from greensock.http.errors import BadResponse, Reason
from greensock.http.wire.headers import Headers

__all__ = ["REDIRECTIONS", "Asked", "Journey", "Manners"]

#: The statuses that lead elsewhere.
REDIRECTIONS = frozenset({301, 302, 303, 307, 308})
#: Of an answer that is not given out so many bytes are read, to keep its connection; else it is closed.
MAX_DRAINED = 1 << 16
#: Fields that describe a body that is no longer there.
OF_THE_BODY = (
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"content-language",
    b"content-location",
    b"transfer-encoding",
    b"expect",
    b"trailer",
)
#: Fields that are meant for one origin.
OF_THE_ORIGIN = (b"authorization", b"cookie", b"proxy-authorization", b"host")


@dataclasses.dataclass(slots=True)
class Manners:
    """How a client goes about its requests; what all of them share."""

    base_url: str | None
    #: What each request says, unless it says otherwise itself.
    fields: list[tuple[bytes, bytes]]
    auth: Auth | None
    cookies: CookieStore | None
    decode: bool
    max_decoded: int | None
    max_redirects: int
    retries: Retries | None
    proxies: ProxyChoice | None
    #: Whether there is nothing of all that.
    is_bare: bool = dataclasses.field(init=False)
    #: What ``auth`` is for; None: whatever the program asks.
    _auth_origin: Origin | None = dataclasses.field(init=False, default=None)

    _named: list[tuple[bytes, tuple[bytes, bytes]]] = dataclasses.field(init=False)
    _host: bytes | None = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._named = [(pair[0].lower(), pair) for pair in self.fields]
        self._host = next((value for lower, (_, value) in self._named if lower == b"host"), None)
        self._named = [each for each in self._named if each[0] != b"host"]
        extras = (self.base_url, self.auth, self.cookies, self.decode, self.max_redirects, self.retries, self.proxies)
        self.is_bare = not any(each is not None and each is not False and each != 0 for each in extras)
        if self.base_url is not None:
            self._auth_origin = parse_url(self.base_url).origin

    def full_url(self, url: str) -> str:
        """Return the URL that is meant: what has no scheme stands below the base."""
        base = self.base_url
        if base is None or "://" in url.partition("?")[0]:
            return url
        if not url or url.startswith("?"):
            return base + url
        return f"{base.rstrip('/')}/{url.removeprefix('/')}"

    def written(
        self, headers: Headers, authority: bytes, auth: Auth | None, origin: Origin, is_theirs: bool = True
    ) -> list[tuple[bytes, bytes]]:
        """Return the fields given, and those that have to be there.

        ``is_theirs``: what the program says of itself may be said, for it asked this origin, and no answer led there.
        """
        pairs = headers.raw
        if headers.get_raw(b"host") is None:
            pairs = [(b"Host", authority if self._host is None or not is_theirs else self._host), *pairs]
        more = []
        for lower, pair in self._named:
            if headers.get_raw(lower) is None and (is_theirs or lower not in OF_THE_ORIGIN):
                more.append(pair)
        if self.decode and headers.get_raw(b"accept-encoding") is None and headers.get_raw(b"range") is None:
            more.append((b"Accept-Encoding", accepted_codings()))
        if auth is not None:
            pairs = [pair for pair in pairs if pair[0].lower() != b"authorization"]
            more = [pair for pair in more if pair[0].lower() != b"authorization"]
            more.append((b"Authorization", authorization_of(auth)))
        elif self.auth is not None and is_theirs and headers.get_raw(b"authorization") is None:
            if self._auth_origin is None or may_be_shown(self._auth_origin, origin):
                more.append((b"Authorization", authorization_of(self.auth)))
        return pairs + more if more else pairs

    def route(self, destination: Destination, target: bytes) -> tuple[Origin, bytes, list[tuple[bytes, bytes]]]:
        """Return where to connect, what to ask for there, and what else to say: a proxy's are its own."""
        origin = destination.origin
        place = self.proxies.place_for(origin) if self.proxies is not None and origin.scheme == "http" else None
        if place is None or place.is_socks:
            return origin, target, []
        whole = b"http://%b%b" % (destination.authority, b"" if target == b"*" else target)
        said = [(b"Proxy-Authorization", place.authorization)] if place.authorization is not None else []
        return place.origin, whole, said

    def is_plain(self, answer: ClientResponse) -> bool:
        """Whether there is nothing to be done with an answer."""
        headers = answer.headers
        return not (
            (self.max_redirects and answer.status in REDIRECTIONS)
            or (self.cookies is not None and headers.get_raw(b"set-cookie") is not None)
            or (self.decode and headers.get_raw(b"content-encoding") is not None)
        )


@dataclasses.dataclass(slots=True)
class Asked:
    """What a program asked for."""

    method: str
    url: str
    headers: Headers
    payload: Payload = NOTHING
    trailers: Trailers = None
    target: bytes | None = None
    address: Any = None
    expect_continue: bool = False
    interim: Interim | None = None
    auth: Auth | None = None
    cookies: Mapping[str, str] | None = None
    max_redirects: int = 0
    retries: Retries | None = None


class Journey:
    """Makes the requests that one that was asked for takes."""

    def __init__(
        self,
        asked: Asked,
        manners: Manners,
        perform: Callable[[Call, Origin, Deadlines], ClientResponse],
        deadlines: Deadlines,
    ) -> None:
        self._asked = asked
        self._manners = manners
        self._perform = perform
        self._deadlines = deadlines
        self._held: _Held | None = None
        if asked.payload is not NOTHING and asked.payload.is_replayable and (asked.max_redirects or asked.retries):
            self._held = asked.payload = _Held(asked.payload)
        #: Whose credentials the program's are.
        self._theirs = parse_url(asked.url).origin
        self._is_theirs = True  # no answer has led elsewhere yet; once one has, it stays so
        self._history: list[ClientResponse] = []

    def go(self, answer: ClientResponse | None = None) -> ClientResponse:
        """Return the answer. The first one may be there already."""
        asked, manners = self._asked, self._manners
        try:
            while True:
                if answer is None:
                    answer = self._ask()
                answer.url = asked.url
                if manners.cookies is not None:
                    manners.cookies.take(answer.headers, asked.url)
                if not asked.max_redirects or answer.status not in REDIRECTIONS or not self._turn(answer):
                    break
                self._history.append(answer)
                _drain(answer)
                answer = None
        except BaseException:
            if answer is not None:
                answer.close()
            asked.payload.close()
            if self._held is not None:
                self._held.release(True)
            raise
        if self._history:
            answer.history = tuple(self._history)
        if self._held is not None:
            self._held.release()
        return self._decoded(answer) if manners.decode else answer

    def _decoded(self, answer: ClientResponse) -> ClientResponse:
        codings = answer.headers.tokens(b"content-encoding")
        if not codings or not answer.head.has_body or answer.status == 206:
            return answer
        decoder = decoder_for(codings, self._manners.max_decoded)
        return answer if decoder is None else DecodedResponse.of(answer, decoder)

    def _ask(self) -> ClientResponse:
        """Ask once, or as often as the policy has it."""
        asked, retries, tried = self._asked, self._asked.retries, 0
        while True:
            if self._held is not None:
                self._held.begin()
            answer = None
            try:
                answer = self._ask_once()
            except Exception as error:
                if retries is None:
                    raise
                pause = retries.pause_after_error(error, asked.method, asked.payload.is_replayable, tried)
                if pause is None or monotonic() + pause >= self._deadlines.total_due:
                    raise
            else:
                if retries is None:
                    return answer
                said = answer.headers.get("retry-after")
                replayable = asked.payload.is_replayable
                pause = retries.pause_after_answer(answer.status, said, asked.method, replayable, tried)
                if pause is None or monotonic() + pause >= self._deadlines.total_due:
                    return answer
                _drain(answer)
            tried += 1
            gevent.sleep(pause)

    def _ask_once(self) -> ClientResponse:
        asked, manners = self._asked, self._manners
        destination = parse_url(asked.url)
        origin = destination.origin
        pairs = manners.written(asked.headers, destination.authority, asked.auth, origin, self._is_theirs)
        has_cookie = any(name.lower() == b"cookie" for name, _ in pairs)  # the client's fields may have one, too
        cookie = None if has_cookie else self._cookie()
        if cookie is not None:
            pairs = [*pairs, (b"Cookie", cookie)]
        if asked.expect_continue and asked.headers.get_raw(b"expect") is None:
            pairs = [*pairs, (b"Expect", b"100-continue")]
        target = destination.target if asked.target is None else asked.target
        if asked.address is None:
            origin, target, said = manners.route(destination, target)
            pairs = pairs + said if said else pairs
        else:
            origin = origin_at(asked.address, origin)
        headers = Headers.of_raw(pairs)
        call = Call(asked.method, target, headers, asked.payload, asked.trailers, asked.interim)
        return self._perform(call, origin, self._deadlines)

    def _cookie(self) -> bytes | None:
        """Return what Cookie says where the program's own fields say nothing."""
        asked, store = self._asked, self._manners.cookies
        kept = store.field_for(asked.url) if store is not None and not store.is_empty else None
        given = written_cookies(asked.cookies) if asked.cookies else None
        both = [each for each in (kept, given) if each]
        if not both:
            return None
        (_, raw), *_ = Headers([("Cookie", "; ".join(both).encode())]).raw
        return raw

    def _turn(self, answer: ClientResponse) -> bool:
        """Set out for where the answer leads; False: it is the answer."""
        asked = self._asked
        location = answer.headers.get_raw(b"location")
        if location is None:
            return False
        method = asked.method
        if (answer.status == 303 and method != "HEAD") or (answer.status in (301, 302) and method == "POST"):
            method = "GET"
        is_bodiless = method != asked.method
        if not is_bodiless and not asked.payload.is_replayable:
            return False
        if len(self._history) >= asked.max_redirects:
            text = f"{asked.url}: more than max_redirects={asked.max_redirects} redirections"
            raise BadResponse(text, Reason.TOO_MANY_REDIRECTS)
        try:
            url = _joined(asked.url, location)
            to = parse_url(url).origin
        except ValueError as error:
            raise BadResponse(f"{asked.url}: Location: {location!r}: {error}", Reason.LOCATION) from None
        before = parse_url(asked.url).origin
        asked.method = method
        asked.url = url
        asked.target = None
        dropped: tuple[bytes, ...] = ()
        if is_bodiless:
            asked.payload.close()
            if self._held is not None:
                self._held.release(True)
                self._held = None
            asked.payload, asked.trailers, asked.expect_continue = NOTHING, None, False
            dropped = OF_THE_BODY
        if to != before:
            asked.address = None
        if not may_be_shown(self._theirs, to):
            self._is_theirs = False
            asked.auth = asked.cookies = None
            dropped += OF_THE_ORIGIN
        elif to != before:
            dropped += (b"host",)
        if dropped:
            kept = [pair for pair in asked.headers.raw if pair[0].lower() not in dropped]
            asked.headers = Headers.of_raw(kept)
        return True


def _joined(url: str, location: bytes) -> str:
    """Return the URL that a Location means, where the other one was asked.

    Raises:
        ValueError: it leads to what is not followed.
    """
    try:
        said = location.decode()
    except UnicodeDecodeError:
        said = location.decode("latin-1")
    said = said.replace(" ", "%20")
    scheme, _, rest = url.partition("://")
    if scheme.lower().endswith("+unix"):
        place = rest.partition("/")[0].partition("?")[0]
        joined = urljoin(f"http://socket.invalid{rest[len(place) :]}", said)
        if joined.startswith("http://socket.invalid/"):
            return f"{scheme}://{place}{joined.removeprefix('http://socket.invalid')}"
    else:
        joined = urljoin(url, said)
    if joined.partition(":")[0].lower() not in ("http", "https"):
        raise ValueError("http or https expected")
    return joined


def _drain(answer: ClientResponse) -> None:
    """Read what is left of an answer that nobody gets, if it is short; else close it."""
    if answer.is_ended:
        return
    try:
        length = answer.head.content_length
        if length is not None and length <= MAX_DRAINED:
            answer.read_all(MAX_DRAINED)
    except Exception:
        pass  # it was of no use
    finally:
        answer.close()


class _Held(Payload):
    """A payload that may have to be sent again, so it is not let go before the last answer is there."""

    __slots__ = ("_is_last", "_payload", "_was_closed", "data", "is_replayable")

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._is_last = False
        self._was_closed = False
        self.data = payload.data
        self.is_replayable = payload.is_replayable

    @property
    def length(self) -> int | None:
        return self._payload.length

    def pieces(self) -> Iterator[bytes | memoryview | Segment]:
        return self._payload.pieces()

    def begin(self) -> None:
        """Be sent anew."""
        self._was_closed = False

    def close(self) -> None:
        self._was_closed = True
        if self._is_last:
            self._payload.close()

    def release(self, at_once: bool = False) -> None:
        """Let go of it, now or when whoever sends it still is done."""
        self._is_last = True
        if self._was_closed or at_once:
            self._payload.close()
