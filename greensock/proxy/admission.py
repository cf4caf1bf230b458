"""Whether a request may pass at all: by a password, and by what another server says of it.

Both are asked before any server of an upstream is, and before the body is read. What is not understood, can't be asked
or takes too long does not pass. What a request gets to show for it (the name, fields of that server's answer) no client
can bring itself: fields of these names are taken off what came, and so is one that differs by ``_`` for ``-`` only.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable
from time import monotonic

from greensock import LimitExceeded
from greensock.http.client.client_response import ClientResponse
from greensock.http.server.response import Response
from greensock.http.wire.headers import Headers
from greensock.http.wire.target import path_to_ask_for
from greensock.proxy.failure import DENIED, Failure, failure_of
from greensock.proxy.gateway import AuthClient
from greensock.proxy.options import BasicAuth, ForwardAuth
from greensock.proxy.passwords import TooManyChecks
from greensock.proxy.relay import Relay
from greensock.proxy.routes import Route

__all__ = ["Admitted", "admit"]

log = logging.getLogger("greensock.upstream")

#: Seconds between two lines on a server that can't be asked.
LOG_EVERY = 10.0
#: What the server that is asked gets as the client sent it, whatever becomes of it.
PROOFS = frozenset({b"authorization", b"cookie"})
#: What is about the body, or asks for an answer that is no yes or no.
_NOT_ASKED = (
    *(b"host", b"content-type", b"content-encoding", b"content-language", b"content-location", b"content-range"),
    *(b"te", b"trailer", b"upgrade", b"connection", b"range", b"if-match", b"if-none-match", b"if-modified-since"),
    *(b"if-unmodified-since", b"if-range"),
)


class Admitted:
    """What a request that may pass gets, and what is taken off it."""

    __slots__ = ("_added", "_removed")

    def __init__(self) -> None:
        self._removed: set[bytes] = set()
        self._added: list[tuple[bytes, bytes]] = []

    def claim(self, names: Iterable[str]) -> None:
        """Have fields of these names be ours alone."""
        self._removed.update(name.lower().encode().replace(b"_", b"-") for name in names)

    def add(self, name: str, value: bytes) -> None:
        """Have the request get a field."""
        self._added.append((name.encode(), value))

    def apply(self, headers: Headers) -> None:
        """Change the fields of a request."""
        self.strip(headers)
        self._add_to(headers)

    def tell(self, headers: Headers) -> None:
        """Change the fields that another server is asked with: it may believe the same names, and needs what proves
        who asks."""
        self.strip(headers, but=PROOFS)
        self._add_to(headers)

    def _add_to(self, headers: Headers) -> None:
        for name, value in self._added:
            headers.add(name, value)

    def strip(self, headers: Headers, but: frozenset[bytes] = frozenset()) -> None:
        """Take off what is ours alone: of a head, or of trailers, which a server may merge."""
        removed = self._removed - but
        for name in {pair[0] for pair in headers.raw if pair[0].lower().replace(b"_", b"-") in removed}:
            headers.remove(name)


def admit(relay: Relay, route: Route) -> Response | None:
    """Return None if a request may pass, else what is answered. Blocks while that is found out.

    Raises:
        Failure: it can't be found out.
    """
    admitted = Admitted()
    denied: Response | None = None
    if route.basic_auth is not None:
        denied = _by_password(relay, route.basic_auth, admitted)
    if denied is None and route.auth is not None:
        denied = _by_server(relay, route.auth, admitted)
    relay.admitted = admitted
    return denied


# -- by a password (RFC 7617)


def _by_password(relay: Relay, options: BasicAuth, admitted: Admitted) -> Response | None:
    if options.user_field is not None:
        admitted.claim([options.user_field])
    if not options.pass_on:
        admitted.claim(["authorization"])
    given = _credentials(relay.request.headers.get_raw(b"authorization"))
    if given is not None:
        name, password = given
        if relay.record is not None:
            relay.record.user = name.decode("utf-8", "replace")
        try:
            if relay.proxy.gateway.passwords_in(options.file).is_right(name, password):
                if options.user_field is not None:
                    admitted.add(options.user_field, name)
                return None
        except TooManyChecks:
            raise Failure("too-many-checks", 503, blames_server=False) from None
    if relay.record is not None:
        relay.record.reason = "unauthorized"
    answer = relay.error_answer(401, "unauthorized", error=DENIED)
    answer.headers.add(b"WWW-Authenticate", b'Basic realm="%b", charset="UTF-8"' % options.realm.encode())
    return answer


def _credentials(value: bytes | None) -> tuple[bytes, bytes] | None:
    """Return name and password of an Authorization field; None if it has none that could be right."""
    scheme, _, token = (value or b"").partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    # No control characters in a name: it goes into a field, and into the log.
    if not colon or not name or min(name) < 0x20 or 0x7F in name:
        return None
    return name, password


# -- by another server


def _by_server(relay: Relay, options: ForwardAuth, admitted: Admitted) -> Response | None:
    admitted.claim(options.copy)
    client, headers = relay.proxy.gateway.auth_client_of(options), _asked(relay, options, admitted)
    try:
        with client.request("GET", options.url, headers=headers, timeout=options.timeout) as answer:
            if answer.is_success:
                for name in options.copy:
                    for value in answer.headers.all_raw(name.lower().encode()):
                        admitted.add(name, value)
                if answer.length is None or answer.length <= options.max_body:
                    _drain(answer, options.max_body)
                return None
            body = answer.read_all(options.max_body)
            pairs = relay.proxy.gateway.forwarder.response_pairs(answer.head, trailers=False)
            if relay.record is not None:
                relay.record.reason = "auth-denied"
            return Response(body, answer.status, Headers.of_raw(pairs))
    except Exception as error:
        failure = failure_of(error)
        if failure is None and not isinstance(error, LimitExceeded):
            raise
        status = 502 if failure is None else failure.status
        _log(client, options, error)
        reason = "auth-timeout" if status == 504 else "auth-failed"
        raise Failure(reason, status, text=str(error), blames_server=False) from None


def _asked(relay: Relay, options: ForwardAuth, admitted: Admitted) -> Headers:
    """Return the fields that the server is asked with."""
    head = relay.request.head
    headers = relay.proxy.gateway.forwarder.request_headers(head, relay.peer, relay.client, relay.scheme, b"localhost")
    for name in _NOT_ASKED:
        headers.remove(name)
    admitted.tell(headers)
    if options.fields is not None:
        wanted = {name.lower().encode() for name in options.fields}
        for name in {pair[0] for pair in headers.raw}:
            lower = name.lower()
            if lower not in wanted and not lower.startswith(b"x-forwarded-") and lower not in (b"via", b"forwarded"):
                headers.remove(name)
    headers.set(b"X-Forwarded-Method", head.method.encode())
    headers.set(b"X-Forwarded-Uri", path_to_ask_for(head.target))
    headers.set(b"X-Forwarded-Proto", relay.scheme.encode())
    if head.authority:
        headers.set(b"X-Forwarded-Host", head.authority)
    if headers.get_raw(b"x-forwarded-for") is None and relay.client:
        headers.set(b"X-Forwarded-For", relay.client.encode())
    return headers


def _drain(answer: ClientResponse, most: int) -> None:
    """Read what nobody wants, so that the connection can be used again."""
    try:
        answer.read_all(most)
    except LimitExceeded:
        pass  # it is closed


def _log(client: AuthClient, options: ForwardAuth, error: Exception) -> None:
    now = monotonic()
    if now >= client.warning_due:
        client.warning_due = now + LOG_EVERY
        log.error("%s could not be asked whether requests may pass, and none does: %s", options.url, error)
