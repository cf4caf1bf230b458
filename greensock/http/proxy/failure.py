"""What can go wrong between the proxy and a server, what the client is told of it, and whether another may be asked.

=================  ======  =====================  =======================================================
reason             status  may be asked again     what happened
=================  ======  =====================  =======================================================
connect-failed     502     yes, any request       nobody answers there; nothing was sent
connect-timeout    504     yes, any request       the same, slowly
queue-full         503     yes, any request       as many wait for this server as may
queue-timeout      503     no                     the server had no connection free in time
no-server          503     no                     no server is up
no-response        502     if repeatable          closed, or reset, before the head was whole
send-timeout       504     if repeatable          the server did not take the request
head-timeout       504     if repeatable          the server did not answer
bad-response       502     no                     what it answered is not HTTP
body-incomplete    (cut)   no                     the answer's body broke off, or is malformed
body-timeout       (cut)   no                     nothing more of it came
total-timeout      504     no                     all of it took too long
loop               508     no                     the request came from this proxy
client-left        (none)  no                     the client closed; 499 in the log
=================  ======  =====================  =======================================================

A request is *repeatable* if its method is idempotent and its body was kept (RFC 9110 section 9.2.2). ``(cut)``: the
head of the answer is out, so that the client's connection is reset.
"""

from __future__ import annotations

import enum

from greensock import ConnectFailed, ConnectionClosed, ConnectionLost
from greensock.http.errors import BadResponse, BodyTimeout, PhaseTimeout, QueueFull, Reason

__all__ = ["CLIENT_LEFT", "Again", "Failure", "failure_of"]


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
        self, reason: str, status: int, again: Again = Again.NEVER, *, blames_server: bool = True, text: str = ""
    ) -> None:
        super().__init__(text or reason)
        #: One token for the log.
        self.reason = reason
        #: What to answer.
        self.status = status
        #: Whether another server may be asked.
        self.again = again
        #: Whether it counts against the server.
        self.blames_server = blames_server


#: What the log says of a request whose client did not wait; nothing is answered.
CLIENT_LEFT = 499

_OF_TIMEOUT = {
    "queue": Again.NEVER,
    "connect": Again.ALWAYS,
    "send": Again.REPEATABLE,
    "head": Again.REPEATABLE,
    "body": Again.NEVER,
    "total": Again.NEVER,
}


def failure_of(error: BaseException, *, in_body: bool = False) -> Failure | None:
    """Return what an error of the client's side of the proxy means; None: it is none of those."""
    text = str(error)
    if isinstance(error, ConnectFailed):
        return Failure("connect-failed", 502, Again.ALWAYS, text=text)
    if isinstance(error, QueueFull):
        return Failure("queue-full", 503, Again.ALWAYS, blames_server=False, text=text)
    if isinstance(error, PhaseTimeout):
        phase = error.phase.value
        blames_server = phase not in ("queue", "total")
        return Failure(f"{phase}-timeout", error.status, _OF_TIMEOUT[phase], blames_server=blames_server, text=text)
    if in_body and isinstance(error, BadResponse | ConnectionLost | BodyTimeout):
        return Failure("body-incomplete", 502, text=text)
    if isinstance(error, BadResponse):
        if error.reason in (Reason.NO_RESPONSE, Reason.INCOMPLETE):
            return Failure("no-response", 502, Again.REPEATABLE, text=text)
        return Failure("bad-response", 502, text=text)
    if isinstance(error, ConnectionLost):
        return Failure("no-response", 502, Again.REPEATABLE, text=text)
    if isinstance(error, ConnectionClosed):
        return Failure("closed", 502, text=text, blames_server=False)
    return None
