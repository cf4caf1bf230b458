"""What can go wrong between the proxy and a server, what the client is told of it, and whether another may be asked.

================== ======  ==============  ========================= ======================================
reason             status  asked again     Proxy-Status: error=      what happened
================== ======  ==============  ========================= ======================================
connect-failed     502     any request     connection_refused [1]_   nobody answers there; nothing was sent
dns-failed         502     any request     dns_error                 its name was not resolved; nothing was sent
tls-failed         502     any request     tls_protocol_error [4]_   no TLS was agreed on; nothing was sent
connect-timeout    504     any request     connection_timeout        the same, slowly
queue-full         503     any request     connection_limit_reached  as many wait for this server as may
queue-timeout      503     no              connection_limit_reached  it had no connection free in time
no-server          503     no              destination_unavailable   no server is up
too-many-uploads   503     no              proxy_internal_error      most workers wait for bodies as it is
auth-failed        502     no              proxy_internal_error      who says whether it may pass can't be asked [5]_
auth-timeout       504     no              proxy_internal_error      the same, slowly
too-many-checks    503     no              proxy_internal_error      too many passwords wait to be checked
no-response        502     if repeatable   connection_terminated     closed before the head was whole
send-timeout       504     if repeatable   connection_write_timeout  it did not take the request
head-timeout       504     if repeatable   connection_read_timeout   it did not answer
bad-response       502     no              http_protocol_error [2]_  what it answered is not HTTP
answer-too-large   502     no              [2]_                      more than the limits of answers allow
out-of-ports       503     any request     proxy_internal_error      no local port is left [3]_
out-of-descriptors 503     any request     proxy_internal_error      we may not open one more
out-of-memory      503     any request     proxy_internal_error      the kernel has none for one more connection
body-incomplete    (cut)   no                                        the answer's body broke off
body-timeout       (cut)   no                                        nothing more of it came
tunnel-timeout     (cut)   no                                        nothing moved either way after 101
total-timeout      504     no              http_response_timeout     all of it took too long
closed             502     no              destination_unavailable   the upstream was closed meanwhile
loop               508     no              proxy_loop_detected       the request came from this proxy
no-route           404     no              destination_not_found     no route takes it
denied             (its)   no                                        an upcall raised HTTPError: the program's word
client-left        (none)  no                                        the client closed; 499 in the log
stopped            (none)  no                                        the proxy's drain was over; 503 in the log
================== ======  ==============  ========================= ======================================

A request is *repeatable* if its method is idempotent and its body was kept (RFC 9110 section 9.2.2). ``(cut)``: the
head of the answer is out, and its end must not look whole. No server is blamed for a limit or a shortage of our own.
The errors are those of RFC 9209 section 2.3; what is in no table is ``http_request_error`` or ``proxy_internal_error``.
The total time counts against a server that had at least half of it for its head: the rest may be the client's doing.
Connecting gets half of it at the most, so that a silent server is blamed and another one tried.

A server that closes, or resets, is not blamed if it had to wait for the client for a second or more before: for the
request's body, or for the client to take the answer. It may have a timeout of its own. (Waiting for the body does not
count once the server has had the whole request for longer than it waited.) Nor does the time for the answer's body
begin before the server has the whole request.

.. [1] or destination_ip_unroutable, destination_unavailable: as the system said.
.. [2] or what was too large, a transfer coding, an upgrade that was not requested.
.. [3] This one and the next two say nothing of the server. Another may be known by a kept connection.
.. [4] or tls_certificate_error: its certificate is refused.
.. [5] 503 where that is for a limit or a shortage of our own.
"""

from __future__ import annotations

import enum
import errno
import os
from socket import EAI_MEMORY, gaierror

from greensock import (
    CertificateRefused,
    ConnectFailed,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
    HandshakeFailed,
)
from greensock.http.errors import BadResponse, PhaseTimeout, QueueFull, Reason

__all__ = [
    "CLIENT_LEFT",
    "DENIED",
    "LONG_WAIT",
    "Again",
    "Failure",
    "UpcallFailed",
    "client_is_gone",
    "failure_of",
    "has_left",
    "shortage_of",
]


class Again(enum.Enum):
    """Whether another server may be asked."""

    #: Nothing was sent: whatever the request is.
    ALWAYS = "always"
    #: If doing it twice does no harm, and it can be sent twice.
    REPEATABLE = "repeatable"
    #: It makes no sense.
    NEVER = "never"


class Failure(Exception):
    """One attempt, or the whole request, failed."""

    def __init__(
        self,
        reason: str,
        status: int,
        again: Again = Again.NEVER,
        *,
        blames_server: bool = True,
        text: str = "",
        error: str = "",
    ) -> None:
        super().__init__(text or reason)
        #: One token for the log.
        self.reason = reason
        #: What to answer.
        self.status = status
        #: Whether the client is not there to be told.
        self.is_untold = reason in ("client-left", "stopped")
        #: Whether another server may be asked.
        self.again = again
        #: Whether it counts against the server.
        self.blames_server = blames_server
        #: Whether it comes of what is used up here.
        self.is_shortage = reason in _SHORT
        #: What Proxy-Status calls it.
        self.error = error or _ERRORS.get(reason) or ("http_request_error" if status < 500 else "proxy_internal_error")


class UpcallFailed(Exception):
    """An upcall of the program raised ``error``: whatever it is, the program is to blame."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


#: What the log says of a request whose client did not wait; nothing is answered.
CLIENT_LEFT = 499

#: Seconds of waiting for a client after which a server may time out; shorter timeouts are rarely set.
LONG_WAIT = 1.0

#: What Proxy-Status says of a name that was not resolved.
DNS_ERROR = "dns_error"

#: What Proxy-Status says of a request that the proxy did not want to pass on.
DENIED = "http_request_denied"

_ERRORS = {
    "connect-failed": "destination_unavailable",
    "tls-failed": "tls_protocol_error",
    "connect-timeout": "connection_timeout",
    "queue-full": "connection_limit_reached",
    "queue-timeout": "connection_limit_reached",
    "no-server": "destination_unavailable",
    "no-response": "connection_terminated",
    "send-timeout": "connection_write_timeout",
    "head-timeout": "connection_read_timeout",
    "bad-response": "http_protocol_error",
    "answer-too-large": "http_response_incomplete",
    "body-incomplete": "http_response_incomplete",
    "body-timeout": "connection_read_timeout",
    "total-timeout": "http_response_timeout",
    "closed": "destination_unavailable",
    "loop": "proxy_loop_detected",
    "no-route": "destination_not_found",
}
_ERRORS_OF_SYSTEM = {
    errno.ECONNREFUSED: "connection_refused",
    errno.EHOSTUNREACH: "destination_ip_unroutable",
    errno.ENETUNREACH: "destination_ip_unroutable",
}
_ERRORS_OF_RESPONSE = {
    Reason.HEAD_TOO_LARGE: "http_response_header_section_size",
    Reason.TOO_MANY_FIELDS: "http_response_header_section_size",
    Reason.BODY_TOO_LARGE: "http_response_body_size",
    Reason.TRAILERS_TOO_LARGE: "http_response_trailer_section_size",
    Reason.CHUNK_EXTENSIONS_TOO_LARGE: "http_response_transfer_coding",
    Reason.TRANSFER_ENCODING: "http_response_transfer_coding",
    Reason.UNKNOWN_CODING: "http_response_transfer_coding",
    Reason.UNEXPECTED_SWITCH: "http_upgrade_failed",
}

#: Limits of answers that are ours.
_OUR_LIMITS = frozenset(
    {
        *(Reason.HEAD_TOO_LARGE, Reason.TOO_MANY_FIELDS, Reason.BODY_TOO_LARGE, Reason.TRAILERS_TOO_LARGE),
        *(Reason.CHUNK_EXTENSIONS_TOO_LARGE, Reason.TOO_MANY_INTERIM),
    }
)

#: What the system says when something is used up here, whatever the server does (connect(2), socket(2), epoll_ctl(2)).
_SHORTAGES = {
    errno.EMFILE: "out-of-descriptors",
    errno.ENFILE: "out-of-descriptors",
    errno.ENOSPC: "out-of-descriptors",  # fs.epoll.max_user_watches
    errno.ENOBUFS: "out-of-memory",
    errno.ENOMEM: "out-of-memory",
    errno.EADDRNOTAVAIL: "out-of-ports",
    errno.EAGAIN: "out-of-ports",
}

_SHORT = frozenset(_SHORTAGES.values())

_OF_TIMEOUT = {
    "queue": Again.NEVER,
    "connect": Again.ALWAYS,
    "send": Again.REPEATABLE,
    "head": Again.REPEATABLE,
    "body": Again.NEVER,
    "total": Again.NEVER,
}


def client_is_gone(conn: Connection) -> Failure:
    """Return the failure of a request whose client's connection has ended: by the client, or by us at a stop."""
    if conn.drop_reason is DropReason.STOPPED:
        return Failure("stopped", 503, blames_server=False)
    return Failure("client-left", CLIENT_LEFT, blames_server=False)


def failure_of(error: BaseException, *, in_body: bool = False) -> Failure | None:
    """Return what an error of the client's side of the proxy means; None: it is none of those."""
    text = str(error)
    shortage = shortage_of(error)
    if shortage:
        again = Again.ALWAYS if isinstance(error, ConnectFailed) else Again.NEVER if in_body else Again.REPEATABLE
        return Failure(shortage, 503, again, text=text, blames_server=False)
    if isinstance(error, HandshakeFailed):
        told = "tls_certificate_error" if isinstance(error, CertificateRefused) else ""
        return Failure("tls-failed", 502, Again.ALWAYS, text=text, error=told)
    if isinstance(error, ConnectFailed):
        said = _of_system(error.__cause__)
        reason = "dns-failed" if said == DNS_ERROR else "connect-failed"
        return Failure(reason, 502, Again.ALWAYS, text=text, error=said)
    if isinstance(error, QueueFull):
        return Failure("queue-full", 503, Again.ALWAYS, blames_server=False, text=text)
    if isinstance(error, PhaseTimeout):
        phase = error.phase.value
        # A total timeout may be the client's doing: the caller decides, which knows how the time was spent.
        blames_server = phase not in ("queue", "total")
        return Failure(f"{phase}-timeout", error.status, _OF_TIMEOUT[phase], blames_server=blames_server, text=text)
    if in_body and isinstance(error, BadResponse | ConnectionLost):
        ours = isinstance(error, BadResponse) and error.reason in _OUR_LIMITS
        return Failure("answer-too-large" if ours else "body-incomplete", 502, text=text, blames_server=not ours)
    if isinstance(error, BadResponse):
        if error.reason in (Reason.NO_RESPONSE, Reason.INCOMPLETE):
            return Failure("no-response", 502, Again.REPEATABLE, text=text)
        ours = error.reason in _OUR_LIMITS
        reason, told = "answer-too-large" if ours else "bad-response", _ERRORS_OF_RESPONSE.get(error.reason, "")
        return Failure(reason, 502, text=text, error=told, blames_server=not ours)
    if isinstance(error, ConnectionLost):
        return Failure("no-response", 502, Again.REPEATABLE, text=text)
    if isinstance(error, ConnectionClosed):
        return Failure("closed", 502, text=text, blames_server=False)
    return None


def has_left(error: BaseException) -> bool:
    """Return whether an error says that a server closed its connection, or reset it, before all was said."""
    if isinstance(error, BadResponse):
        return error.reason in (Reason.NO_RESPONSE, Reason.INCOMPLETE)
    return isinstance(error, ConnectionLost)


def shortage_of(error: BaseException) -> str:
    """Return what is used up here, if an error on the way to a server comes of that; empty: nothing, as far as known.

    Whatever the error says of the server then: it was not asked.
    """
    if not isinstance(error, ConnectFailed | ConnectionLost):
        return ""
    cause = error.__cause__
    if isinstance(cause, gaierror):
        if cause.errno == EAI_MEMORY:
            return "out-of-memory"
        # A resolver without a descriptor for its files and its question says that there is no such name.
        return "" if _has_descriptor() else "out-of-descriptors"
    number = getattr(cause, "errno", None) or 0
    if number == errno.EAGAIN and not isinstance(error, ConnectFailed):
        return ""
    return _SHORTAGES.get(number, "")


def _has_descriptor() -> bool:
    try:
        open(os.devnull, "rb", buffering=0).close()
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def _of_system(cause: BaseException | None) -> str:
    """Return what Proxy-Status says of a connection that did not come to stand; empty: nothing special."""
    if isinstance(cause, gaierror | UnicodeError):
        return DNS_ERROR
    return _ERRORS_OF_SYSTEM.get(getattr(cause, "errno", None) or 0, "")
