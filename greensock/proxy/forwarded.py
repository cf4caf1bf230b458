"""Who the client is, and which fields go on to the upstream and back (RFC 7239, RFC 9110 section 7.6). Pure.

The client's own claims come first and ours last, in this order, which is what makes them safe: the fields that
``Connection`` names go, then those that only a trusted peer may send, and then ours are added, which ``Connection`` can
no longer reach.

``peer`` is the address that connected, or the one that its PROXY header told: the empty string for a Unix socket.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from random import getrandbits
from typing import NamedTuple

from greensock import Rule
from greensock.http.wire.events import RequestHead, ResponseHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.hop_by_hop import HOP_BY_HOP, end_to_end_trailers, fields_of_the_hop
from greensock.http.wire.ordinary_heads import for_answers, for_requests
from greensock.http.wire.syntax import TOKEN, is_authority, is_token
from greensock.limits.networks import Networks, are_networks, canonical_address, node_address

__all__ = ["Forwarder", "Forwarding", "new_id", "protocols_offered"]

Pair = tuple[bytes, bytes]

#: So many entries of our name in Via mean that the request goes round in circles.
MAX_PASSES = 10
#: So many entries of X-Forwarded-For or Forwarded are looked at, from the right.
MAX_ENTRIES = 64
#: How many peers are remembered; and how many names of fields, of at most so many bytes.
MAX_PEERS, MAX_NAMES, MAX_NAME = 4096, 1024, 64

#: Credentials for a proxy: ours has none to check, so they are the next one's (RFC 9110 section 11.7.2).
CREDENTIALS = b"proxy-authorization"
#: Fields of a request that are made anew, or not passed on. ``Proxy`` is no field, but CGI makes HTTP_PROXY of it.
REMADE = HOP_BY_HOP - {CREDENTIALS} | {b"host", b"content-length", b"expect", b"proxy"}
#: What only a trusted peer may say, besides X-Forwarded-*.
CLAIMS = frozenset({b"forwarded", b"x-real-ip"})
#: What is appended to, or made anew, even if a trusted peer said it.
X_FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto")
#: Fields of an answer that are not passed on. (X-Accel-Buffering is said to us: see ``response_relay``.)
OF_THE_UPSTREAM = HOP_BY_HOP | {b"content-length", b"x-accel-buffering"}
#: Protocols that are never offered to the upstream: behind them, further requests would pass unseen.
NO_TUNNELS = frozenset({b"h2c", b"h2", b"http", b"tls"})

_PAIR = rb"""[ \t]*(%b)=(?:(%b)|"([^"\\;,]*)")[ \t]*""" % (TOKEN, TOKEN)
_pairs_of = re.compile(_PAIR).findall
_is_id = re.compile(rb"[0-9A-Za-z_.:+/=@\-]{1,128}").fullmatch
_prefix_said = re.compile(rb"(?im)^X-Forwarded-Prefix: (.*?)/?\r\n").search
_is_element = re.compile(rb"%b(?:;%b)*" % (_PAIR, _PAIR)).fullmatch


def new_id() -> str:
    """Return an id for a request: 32 hexadecimal digits.

    Of 128 random bits, as no two may be the same, and cheap (0.3 us): it is no secret. A fork draws others.
    """
    return f"{getrandbits(128):032x}"


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and is_token(value.encode()) is not None


def _is_host_or_flag(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and is_authority(value.encode()) is not None
    return isinstance(value, bool)


RULES: Mapping[str, Rule] = {
    "trusted": Rule(are_networks, "a tuple of addresses, address/bits or unix"),
    "preserve_host": Rule(_is_host_or_flag, "True, False, or a name with an optional port"),
    "x_forwarded": Rule.flag(),
    "forwarded": Rule.flag(),
    "via": Rule(lambda value: value == "" or _is_name(value), "a name without spaces, or an empty text"),
    "via_response": Rule.flag(),
    "proxy_status": Rule.flag(),
    "proxy_authorization": Rule.flag(),
    "allow_underscores": Rule.flag(),
}


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What is believed of other proxies, and what is said to the upstream.

    Raises:
        ValueError: a field is not what it may be; the text names it.
    """

    #: Networks whose X-Forwarded-*, Forwarded, X-Real-IP and PROXY header are believed; they must replace or append to
    #: what their own clients send. ``unix``: every peer of a Unix socket.
    trusted: tuple[str, ...] = ()
    #: The Host that the upstream gets. True: the client's. False: the server's. A text: that one.
    preserve_host: bool | str = True
    #: Whether X-Forwarded-For, -Proto and -Host are sent.
    x_forwarded: bool = True
    #: Whether Forwarded (RFC 7239) is sent, which says the same once more.
    forwarded: bool = False
    #: The name in Via of requests, by which a loop is recognised. Empty: no Via, and no loop is recognised.
    #: (An nginx behind compresses nothing for requests with Via, unless its gzip_proxied says so.)
    via: str = "greensock"
    #: Whether answers get a Via, too.
    via_response: bool = False
    #: Whether Proxy-Status (RFC 9209) says why the proxy answers with an error. It tells every client what is behind
    #: the proxy.
    proxy_status: bool = False
    #: Whether Proxy-Authorization is passed on, for a server that is a proxy itself. (nginx and HAProxy do so.)
    proxy_authorization: bool = True
    #: Whether fields with ``_`` in their names are passed on. CGI and WSGI can't tell ``X_User`` from ``X-User``.
    allow_underscores: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            RULES[field.name].check(field.name, getattr(self, field.name))


class _Names(dict[bytes, bool]):
    """Which fields pass, by their names as they were written. It starts anew before hostile names make it large."""

    __slots__ = ("_judge",)

    def __init__(self, judge: Callable[[bytes], bool]) -> None:
        super().__init__()
        self._judge = judge

    def __missing__(self, name: bytes) -> bool:
        passes = self._judge(name)
        if len(name) <= MAX_NAME:
            if len(self) >= MAX_NAMES:
                self.clear()
            self[name] = passes
        return passes


class _Peer(NamedTuple):
    """What is known of a peer."""

    #: Its address, spelled right; empty if it has none.
    address: str
    is_trusted: bool
    #: Which of its fields pass.
    passes: _Names
    #: Those of our own fields that are the same in each of its requests.
    own: tuple[Pair, ...]
    #: The same as lines.
    own_lines: bytes


class Forwarder:
    """Says who the client is, and makes the fields of what is passed on.

    ``instance`` is a token that tells this proxy from others of the same name; the processes of one proxy share it.

    Raises:
        ValueError: ``instance`` is no token.
    """

    def __init__(self, options: Forwarding, *, instance: str) -> None:
        if not _is_name(instance):
            raise ValueError(f"instance={instance!r}: a token expected (letters, digits, hyphens)")
        self.options = options
        #: Whose claims are believed.
        self.trusted = Networks(options.trusted)
        self._x_forwarded = options.x_forwarded
        self._appended = frozenset(
            (X_FORWARDED if options.x_forwarded else ()) + ((b"forwarded",) if options.forwarded else ())
        )
        self._preserve_host = options.preserve_host is True
        self._host = options.preserve_host.encode() if isinstance(options.preserve_host, str) else b""
        #: What Host says, if it is always the same; empty: it is not.
        self.named_host = self._host
        self._name = options.via.encode()
        self._mark = b"(%b)" % instance.encode()
        self._proxy_name = self._name or b"greensock"
        if not self._proxy_name[:1].isalpha():  # tokens of RFC 8941 section 3.3.4 begin with a letter
            self._proxy_name = b'"%b"' % self._proxy_name
        self._peer = functools.lru_cache(MAX_PEERS)(self._know)
        self._passes_from_trusted = _Names(functools.partial(self._may_pass, True))
        self._passes_from_others = _Names(functools.partial(self._may_pass, False))
        self._passes_back = _Names(lambda name: name.lower() not in OF_THE_UPSTREAM)
        #: What the lines of ordinary heads mean: of requests of strangers, and of answers.
        self.judged_of_requests = for_requests(self._passes_from_others.__getitem__)
        self.judged_of_answers = for_answers(self._passes_back.__getitem__)
        #: Whether nothing is added to answers, nor to requests but what is the same in all of a peer's, and its Host;
        #: and no peer's claims are believed.
        self.is_simple = not (options.trusted or options.forwarded or options.via_response)

    # -- who the client is

    def client_of(self, peer: str, headers: Headers) -> str:
        """Return the client's address: the peer's own if it is not trusted, else the last one that is not.

        X-Forwarded-For is read from right to left, or Forwarded if that alone is there. What is no address ends the
        walk at the entry before it; so does an entry that is not trusted.
        """
        known = self._peer(peer)
        address = known.address
        if known.is_trusted:
            for claim in self._claims(headers):
                found = node_address(claim)
                if found is None:
                    break
                address = found
                if address not in self.trusted:
                    break
        return address

    def scheme_of(self, peer: str, headers: Headers, scheme: str) -> str:
        """Return the scheme that the client used: ``scheme``, or what a trusted peer's X-Forwarded-Proto says.

        Without that its Forwarded is asked. Of several values the last counts; if it is neither ``http`` nor ``https``,
        ``scheme`` stands.
        """
        if not self._peer(peer).is_trusted:
            return scheme
        said = headers.get_raw(b"x-forwarded-proto")
        if said is None:
            said = _parameter((headers.get_raw(b"forwarded") or b"").rpartition(b",")[2], b"proto")
        last = said.rpartition(b",")[2].strip(b" \t").lower()
        return last.decode() if last in (b"http", b"https") else scheme

    def request_id_of(self, peer: str, headers: Headers) -> str:
        """Return what a trusted peer says in X-Request-Id; empty if it says none, or what no log should have."""
        if not self._peer(peer).is_trusted:
            return ""
        said = headers.get_raw(b"x-request-id")
        return said.decode() if said is not None and _is_id(said) else ""

    def is_loop(self, headers: Headers) -> bool:
        """Whether the request was here before: Via names this instance, or ``MAX_PASSES`` proxies of our name."""
        value = headers.get_raw(b"via")
        if value is None or not self._name:
            return False
        return self._mark in value or _times_named(value.lower(), self._name.lower()) >= MAX_PASSES

    def _claims(self, headers: Headers) -> Iterator[bytes]:
        """Go through what is claimed of the client, from the right."""
        value = headers.get_raw(b"x-forwarded-for")
        if value is not None:
            return _entries_from_the_right(value)
        elements = _entries_from_the_right(headers.get_raw(b"forwarded") or b"")
        return (_parameter(element, b"for") for element in elements)

    def _know(self, peer: str, scheme: str = "", version: str = "") -> _Peer:
        address = canonical_address(peer)
        is_trusted = peer in self.trusted
        own: list[Pair] = []
        if self.options.x_forwarded:
            if address and not is_trusted:
                own.append((b"X-Forwarded-For", address.encode()))
            own.append((b"X-Forwarded-Proto", scheme.encode()))
        if self._name:
            own.append((b"Via", b"%b %b %b" % (version.encode(), self._name, self._mark)))
        passes = self._passes_from_trusted if is_trusted else self._passes_from_others
        return _Peer(address, is_trusted, passes, tuple(own), _lines(own))

    # -- requests

    def request_lines(
        self,
        head: RequestHead,
        peer: str,
        client: str,
        scheme: str,
        host: bytes,
        upgrade: bool = False,
        trailers: bool = False,
    ) -> bytes:
        """Return the lines of the fields to send, Host first; framing and the empty line are the caller's to add.

        ``client`` and ``scheme`` are what :meth:`client_of` and :meth:`scheme_of` said, ``host`` the server's
        authority. With ``upgrade`` the client's Upgrade is passed on, as far as it offers what may be tunnelled; with
        ``trailers`` the upstream is told that trailers are taken. Trailer is passed on with a body in chunks.
        """
        headers, authority = head.headers, head.authority
        known = self._peer(peer, scheme, head.version)
        is_usual = not (known.is_trusted or upgrade or trailers or self.options.forwarded)
        if not is_usual or (not head.is_ordinary and (fields_of_the_hop(headers) or _may_announce(head))):
            return _lines(self._request_pairs(head, peer, client, scheme, host, upgrade, trailers))
        passes = known.passes
        lines = b"".join([b"%b: %b\r\n" % pair for pair in headers.raw if passes[pair[0]]])
        return self._with_own_lines(lines, known, authority, host)

    def ordinary_request_lines(self, lines: bytes, peer: str, scheme: str, authority: bytes, host: bytes) -> bytes:
        """Return what :meth:`request_lines` does for a head of HTTP/1.1 that is ordinary, if this is simple.

        ``lines`` are its fields that pass, as lines.
        """
        return self._with_own_lines(lines, self._peer(peer, scheme, "1.1"), authority, host)

    def _with_own_lines(self, lines: bytes, known: _Peer, authority: bytes, host: bytes) -> bytes:
        if not self._preserve_host:
            host = self._host or host
        elif authority:
            host = authority
        if self._x_forwarded and authority:
            return b"Host: %b\r\n%b%bX-Forwarded-Host: %b\r\n" % (host, lines, known.own_lines, authority)
        return b"Host: %b\r\n%b%b" % (host, lines, known.own_lines)

    def with_prefix(self, lines: bytes, prefix: bytes) -> bytes:
        """Return the lines of a request of whose target a prefix was taken off, with a field that says so.

        What a trusted peer took off before goes in front of it.
        """
        if not self._x_forwarded:
            return lines
        said = _prefix_said(lines)
        if said is None:
            return lines + b"X-Forwarded-Prefix: %b\r\n" % prefix
        whole = b"X-Forwarded-Prefix: %b%b\r\n" % (said[1], prefix)
        return lines[: said.start()] + whole + lines[said.end() :]

    def request_headers(
        self,
        head: RequestHead,
        peer: str,
        client: str,
        scheme: str,
        host: bytes,
        *,
        upgrade: bool = False,
        trailers: bool = False,
    ) -> Headers:
        """Return the same as :meth:`request_lines`, to be edited."""
        return Headers.of_raw(self._request_pairs(head, peer, client, scheme, host, upgrade, trailers))

    def _request_pairs(
        self, head: RequestHead, peer: str, client: str, scheme: str, host: bytes, upgrade: bool, trailers: bool
    ) -> list[Pair]:
        headers, authority = head.headers, head.authority
        known = self._peer(peer, scheme, head.version)
        passes = known.passes
        pairs = [(b"Host", (authority or host) if self._preserve_host else (self._host or host))]
        pairs += [pair for pair in headers.raw if passes[pair[0]]]
        if named := fields_of_the_hop(headers):
            pairs = [pair for pair in pairs if pair[0].lower() not in named]
        pairs += known.own  # from here on ours, which Connection can't name
        if self._x_forwarded and authority and not (known.is_trusted and b"x-forwarded-host" in headers):
            pairs.append((b"X-Forwarded-Host", authority))
        if known.is_trusted and self._x_forwarded:
            self._add_addresses(pairs, headers, known.address, client)
        if self.options.forwarded:
            self._add_forwarded(pairs, head, known, client, scheme)
        if _may_announce(head) and (announced := _announced(headers, self._passes_from_others)):
            pairs.append((b"Trailer", announced))
        if upgrade or trailers:
            _add_fields_of_the_hop(pairs, headers, upgrade, trailers)
        return pairs

    def _add_addresses(self, pairs: list[Pair], headers: Headers, address: str, client: str) -> None:
        """Add X-Forwarded-For to what a trusted peer said; a peer without an address adds none."""
        said = headers.get_raw(b"x-forwarded-for")
        if said is None and client != address:
            said = client.encode()  # which Forwarded told
        if chain := b", ".join(filter(None, (said, address.encode()))):
            pairs.append((b"X-Forwarded-For", chain))

    def _add_forwarded(self, pairs: list[Pair], head: RequestHead, known: _Peer, client: str, scheme: str) -> None:
        said = head.headers.get_raw(b"forwarded") if known.is_trusted else None
        if said is None and client != known.address:
            said = b"for=%b" % _node(client)  # which X-Forwarded-For told
        element = b"for=%b" % _node(known.address)
        if head.authority:
            element += b";host=%b" % _quoted(head.authority)
        element += b";proto=%b" % scheme.encode()
        pairs.append((b"Forwarded", b"%b, %b" % (said, element) if said else element))

    def _may_pass(self, from_trusted: bool, name: bytes) -> bool:
        """Whether a field of a request is passed on as it is."""
        lower = name.lower()
        if b"_" in lower:
            # The upstream may take it for the name with hyphens: so that must be one that anybody may send.
            return self.options.allow_underscores and self._may_pass(False, lower.replace(b"_", b"-"))
        if lower in REMADE or (lower == CREDENTIALS and not self.options.proxy_authorization):
            return False
        if not (lower in CLAIMS or lower.startswith(b"x-forwarded-")):
            return True
        return from_trusted and lower not in self._appended

    def request_trailers(self, head: RequestHead, trailers: Headers) -> Headers:
        """Return the trailers of a request to pass on: none that say who the client is, as they may be merged."""
        passes = self._passes_from_others
        kept = end_to_end_trailers(trailers, head.headers).raw
        return Headers.of_raw([pair for pair in kept if passes[pair[0]]])

    # -- answers

    def response_lines(self, head: ResponseHead, trailers: bool = False) -> bytes:
        """Return the lines of the fields of an answer to pass on, as :meth:`response_pairs` does."""
        headers, passes = head.headers, self._passes_back
        is_usual = not (trailers or head.status == 426 or self.options.via_response)
        if not is_usual or (not head.is_ordinary and fields_of_the_hop(headers)):
            return _lines(self.response_pairs(head, trailers=trailers))
        return b"".join([b"%b: %b\r\n" % pair for pair in headers.raw if passes[pair[0]]])

    def response_pairs(self, head: ResponseHead, *, trailers: bool) -> list[Pair]:
        """Return the fields of an answer to pass on; framing is the caller's to add, and Date if there is none.

        ``trailers`` says whether trailers are passed on: else Trailer is dropped.
        """
        headers, passes = head.headers, self._passes_back
        pairs = [pair for pair in headers.raw if passes[pair[0]]]
        if named := fields_of_the_hop(headers):
            pairs = [pair for pair in pairs if pair[0].lower() not in named]
        if trailers and (announced := _announced(headers, passes)):
            pairs.append((b"Trailer", announced))
        if head.status == 426 and (wanted := _tunnels(headers.get_raw(b"upgrade") or b"")):
            pairs.append((b"Upgrade", wanted))  # what the client is to ask for (RFC 9110 section 15.5.22)
        if self.options.via_response and self._name:
            pairs.append((b"Via", b"%b %b" % (head.version.encode(), self._name)))
        return pairs

    def proxy_status(self, error: str) -> bytes | None:
        """Return the value of Proxy-Status for an error of RFC 9209 section 2.3; None: it is not to be sent."""
        return b"%b; error=%b" % (self._proxy_name, error.encode()) if self.options.proxy_status else None


def _lines(pairs: Iterable[Pair]) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in pairs])


def _add_fields_of_the_hop(pairs: list[Pair], headers: Headers, upgrade: bool, trailers: bool) -> None:
    options = []
    if upgrade and (offered := _tunnels(headers.get_raw(b"upgrade") or b"")):
        pairs.append((b"Upgrade", offered))
        options.append(b"Upgrade")
    if trailers:
        pairs.append((b"TE", b"trailers"))
        options.append(b"TE")
    if options:
        pairs.append((b"Connection", b", ".join(options)))


def _may_announce(head: RequestHead) -> bool:
    """Whether trailers can follow, and the request says which."""
    return head.is_chunked and head.headers.get_raw(b"trailer") is not None


def _announced(headers: Headers, passes: _Names) -> bytes:
    """Return the names in Trailer (RFC 9110 section 6.6.2), but for those of fields that will not pass."""
    drop = HOP_BY_HOP | fields_of_the_hop(headers)
    said = (headers.get_raw(b"trailer") or b"").split(b",")
    names = [name for name in (part.strip(b" \t") for part in said) if is_token(name)]
    return b", ".join([name for name in names if passes[name] and name.lower() not in drop])


def protocols_offered(head: RequestHead) -> list[bytes]:
    """Return what a request's Upgrade offers and may be tunnelled, in lower case: to this alone a server may switch."""
    return [name for name in head.upgrade if name.partition(b"/")[0] not in NO_TUNNELS]


def _tunnels(offered: bytes) -> bytes:
    protocols = [protocol.strip(b" \t") for protocol in offered.split(b",")]
    return b", ".join(name for name in protocols if name and name.lower().partition(b"/")[0] not in NO_TUNNELS)


def _entries_from_the_right(value: bytes) -> Iterator[bytes]:
    return reversed(value.rsplit(b",", MAX_ENTRIES)[-MAX_ENTRIES:])


def _parameter(element: bytes, name: bytes) -> bytes:
    """Return a parameter of an element of Forwarded; empty if it is not there, or if the element is malformed.

    An element is what stands between two commas: a quoted text with one in it is not believed.
    """
    if not _is_element(element):
        return b""
    values = [token or text for key, token, text in _pairs_of(element) if key.lower() == name]
    return values[0] if len(values) == 1 else b""


def _node(address: str) -> bytes:
    """Return an address as ``for=`` of Forwarded has it (RFC 7239 section 6)."""
    return b'"[%b]"' % address.encode() if ":" in address else address.encode() or b"unknown"


def _quoted(value: bytes) -> bytes:
    return value if is_token(value) else b'"%b"' % value


def _times_named(via: bytes, name: bytes) -> int:
    return sum(passed.split()[1:2] == [name] for passed in via.split(b","))
