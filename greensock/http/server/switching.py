"""The ways out of HTTP: a WebSocket, or any other protocol that a request asks for (RFC 9110 section 7.8).

From the answer 101 on the bytes of the connection are no requests. What comes is for its *taker*, if it has one, in the
turns of the connection: ``conn.taker``, a WebSocket in the style of upcalls. Or the program's greenlet receives, within
``handle_request``, and the connection ends when that returns. No limit of HTTP's holds any more; those of the taker do.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import gevent

from greensock import Connection, ConnectionT, State
from greensock.http.server.request import Request
from greensock.http.server.response import HTTPError, Response
from greensock.http.server.response_writer import AnsweringServer
from greensock.http.websocket.deflate import Agreement, accept_offer
from greensock.http.websocket.handshake import (
    VERSION,
    BadHandshake,
    accept_key,
    check_request,
)
from greensock.http.websocket.keep_alive import KeepAlive
from greensock.http.websocket.websocket import WebSocket
from greensock.http.websocket.websocket_options import DEFAULT_WEBSOCKET, WebSocketOptions
from greensock.http.wire.headers import Headers
from greensock.http.wire.request_parser import RequestParser
from greensock.http.wire.writer import write_response_head

__all__ = ["NO_PARSER", "NoParser", "SwitchingServer"]

log = logging.getLogger("greensock.server")


class NoParser(RequestParser):
    """In the place of the parser of a connection that no longer speaks HTTP; it is never fed."""

    __slots__ = ()


#: One serves all.
NO_PARSER = NoParser()

Fields = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]


class SwitchingServer(AnsweringServer[ConnectionT]):
    """The base of :class:`HTTPServer` that knows the ways out of HTTP."""

    #: Limits, pings and compression of the WebSockets.
    websocket_options: WebSocketOptions = DEFAULT_WEBSOCKET

    def __init__(self, listener: Any, **options: Any) -> None:
        super().__init__(listener, **options)
        #: Whether requests for a WebSocket go to ``websocket_open``: there are upcalls for them.
        self.takes_websockets = False
        #: ``websocket_message``, looked up once.
        self.on_websocket_message: Any = self.websocket_message
        self._on_close: Any = None
        self._websockets = KeepAlive(None, 1.0)
        self._detached: set[Connection] = set()

    def look_at_upcalls(self) -> None:
        """Look which upcalls the program has, once: at the start, so that they may be given until then."""
        base = SwitchingServer
        self.on_websocket_message = self.websocket_message
        self._on_close = self.websocket_close if self.overrides_upcall("websocket_close", base) else None
        self.takes_websockets = self.overrides_upcall("websocket_open", base) or self.overrides_upcall(
            "websocket_message", base
        )
        self._websockets = KeepAlive(self.websocket_options.ping_interval, self.websocket_options.ping_timeout)

    # -- what to override

    def websocket_open(self, websocket: WebSocket, request: Request) -> Response | None:
        """A request asks for a WebSocket; may block. None accepts it, a :class:`Response` is sent in its place.

        ``websocket.subprotocol`` may be set to one of ``request.offered_subprotocols``. Messages can be sent and
        received at once; what is received here goes to no ``websocket_message``. Raise :class:`HTTPError` to refuse.

        Called for each such request if the program has this upcall or ``websocket_message``.
        """

    def websocket_message(self, websocket: WebSocket, message: Any) -> object:
        """A message came, ``str`` or ``bytes``; may block. The next one waits until it returns."""

    def websocket_close(self, websocket: WebSocket, code: int, reason: str) -> object:
        """A WebSocket that was open has ended, exactly once; may block.

        ``code`` is the peer's, 1005 if it said none; or that of our own failing it (1002, 1007, 1009, 1011); or 1006 if
        neither closed it: the connection was lost, or dropped.
        """

    # -- what to call

    @property
    def websockets(self) -> list[WebSocket]:
        """The WebSockets that are open, a list of your own."""
        return [websocket for websocket in self._websockets if websocket.is_open]

    def broadcast_message(self, message: str | bytes, websockets: Iterable[WebSocket] | None = None) -> int:
        """Send a message to each of ``websockets`` (default: all) without waiting; return how many took it.

        It is framed, and compressed, once for all. One that reads too slowly is dropped, with SLOW_READER as its
        reason; one that has ended is left out.

        Raises:
            WouldBlock: the message alone is more than ``max_send_queue``: no peer is to blame.
            TypeError: neither text nor bytes.
        """
        frames: dict[int, tuple[bytes, list[Any]]] = {}
        took = 0
        for websocket in list(self._websockets) if websockets is None else list(websockets):
            if not websocket.is_open:
                continue
            key = websocket.frame_key
            if key < 0:
                took += websocket.send_nowait(message)
            elif key in frames:
                frames[key][1].append(websocket.connection)
            else:
                frames[key] = websocket.frame_of(message), [websocket.connection]
        for frame, connections in frames.values():
            took += self.broadcast(frame, connections)
        return took

    # -- a WebSocket begins and ends

    def upgrade_websocket(
        self, request: Request, subprotocols: Collection[str], headers: Fields, options: WebSocketOptions | None
    ) -> WebSocket:
        """Accept a request for a WebSocket now: :meth:`Request.upgrade_websocket`."""
        if self.draining:
            raise HTTPError(503)
        websocket = self.new_websocket(request, options or self.websocket_options)
        websocket.subprotocol = next((name for name in request.offered_subprotocols if name in subprotocols), None)
        websocket.accept(headers)
        return websocket

    def open_websocket(self, request: Request, keep: bool) -> bool:
        """Serve a request that asks for a WebSocket by the upcalls; True if the connection goes on with HTTP."""
        websocket: WebSocket | None = None
        try:
            if self.draining:
                raise HTTPError(503)
            websocket = self.new_websocket(request, self.websocket_options)
            response = self.websocket_open(websocket, request)
            if response is None:
                if not request.is_answered:
                    websocket.accept()
            elif not isinstance(response, Response):
                raise TypeError(f"websocket_open returned {response!r}: a Response or None expected")
            elif request.is_answered:
                raise TypeError(f"websocket_open returned {response!r}, but had accepted the WebSocket")
        except BaseException as error:
            if request.is_answered:
                return self.end_switch(request, error)
            response = self.error_response(request, error)
            keep = keep and isinstance(error, HTTPError)
        if response is not None:
            return self.send_answer(request, response, keep)
        assert websocket is not None
        if self.draining:
            websocket.go_away()
        websocket.take_rest()
        return False

    def error_response(self, request: Request, error: BaseException) -> Response:
        """Return the answer to what the program raised: of :class:`HTTPServer`."""
        raise NotImplementedError

    def send_answer(self, request: Request, response: Response, keep: bool) -> bool:
        """Send an answer: of :class:`HTTPServer`."""
        raise NotImplementedError

    def tell_request_done(self, request: Request, response: Response, sent: int) -> None:
        """Call ``request_done``: of :class:`HTTPServer`."""
        raise NotImplementedError

    def new_websocket(self, request: Request, options: WebSocketOptions) -> WebSocket:
        """Return the WebSocket that a request asks for, which is not accepted yet.

        Raises:
            HTTPError: it asks for none, or not as it should.
        """
        try:
            key = check_request(request.head, options.origins)
        except BadHandshake as bad:
            fields = {"Sec-WebSocket-Version": VERSION, "Upgrade": "websocket", "Connection": "Upgrade"}
            raise HTTPError(bad.status, str(bad), fields if bad.status == 426 else ()) from None
        agreed: tuple[Agreement, bytes] | None = None
        if options.compress:
            offers = request.headers.get_raw(b"sec-websocket-extensions")
            agreed = accept_offer(offers, options.context_takeover, options.window_bits)

        def accept(websocket: WebSocket, headers: Fields) -> bytes:
            fields = [(b"Sec-WebSocket-Accept", accept_key(key))]
            chosen = websocket.subprotocol
            if chosen is not None:
                if chosen not in request.offered_subprotocols:
                    raise ValueError(f"subprotocol={chosen!r}: one of {request.offered_subprotocols} expected")
                fields.append((b"Sec-WebSocket-Protocol", chosen.encode("latin-1")))
            if agreed is not None:
                fields.append((b"Sec-WebSocket-Extensions", agreed[1]))
            rest = self.switch(request, b"websocket", fields, headers)
            conn: Any = request.connection
            conn.taker = request.switched_to = websocket
            self._websockets.add(websocket)
            return rest

        return WebSocket(request.connection, options, self, agreed and agreed[0], accept)

    def websocket_ended(self, websocket: WebSocket) -> None:
        """Look no more after a WebSocket that has ended."""
        self._websockets.discard(websocket)

    # -- any other protocol

    def detach(self, request: Request, protocol: str | None, headers: Fields) -> Connection:
        """Leave HTTP: :meth:`Request.detach`."""
        if not request.body.ended:
            raise RuntimeError("detach: the body of the request was not read to its end")
        if request.method == "CONNECT":
            chosen = b""
        else:
            offered = request.head.upgrade
            chosen = protocol.encode("latin-1", "replace") if protocol is not None else (offered or [b""])[0]
            if chosen.lower() not in offered:
                wanted = repr(protocol) if protocol is not None else "an Upgrade"
                raise HTTPError(426, f"{wanted} expected", {"Upgrade": protocol} if protocol is not None else ())
        conn: Any = request.connection
        rest = self.switch(request, chosen, [], headers)
        request.switched_to = conn
        conn.unread(rest)
        self._detached.add(conn)
        if self.draining:
            self._end_input(conn)
        return request.connection

    def switch(self, request: Request, protocol: bytes, fields: list[tuple[bytes, bytes]], headers: Fields) -> bytes:
        """Send the answer that leaves HTTP, and return what came behind the request.

        Raises:
            RuntimeError: the request was answered before, or has a stream of its own.
        """
        if request.is_answered or request.stream is not None:
            raise RuntimeError(f"{request!r} was answered already, or is not one that HTTP/1.1 carries")
        conn: Any = request.connection
        made = Headers(headers.items() if isinstance(headers, Mapping) else headers)
        for name, value in fields:
            made.set(name, value)
        status = 101
        if protocol:
            made.set(b"Upgrade", protocol)
            made.set(b"Connection", b"Upgrade")
        else:
            status = 200  # CONNECT (RFC 9110 section 9.3.6)
        head = write_response_head(status, made, extra=self.date_line())
        request.is_answered = True
        self.answers_by_status[status] += 1
        parser = conn.parser_in_use
        rest: bytes = parser.take_rest() if parser is not None else b""
        conn.head_parser = NO_PARSER
        conn.send(head)
        response = Response()
        response.status = status
        self.tell_request_done(request, response, len(head))
        return rest

    def end_switch(self, request: Request, error: BaseException | None) -> bool:
        """``handle_request`` is over, and had left HTTP: end what it left that for. False: no request follows."""
        conn, taker = request.connection, request.switched_to
        if isinstance(taker, WebSocket):
            if error is None:
                taker.close()  # the peer's answer comes in a turn, if it has not come with what was received last
                taker.take_rest()
            else:
                taker.program_failed(error)
        else:
            conn.close()
            self._detached.discard(conn)
        if error is not None:
            raise error
        return False

    # -- the end of connections, and of the server

    def connection_drop(self, conn: Any) -> None:
        """Tell of the end of a WebSocket."""
        taker = conn.taker
        if taker is not None:
            conn.taker = None
            taker.ended()
            if self._on_close is not None:
                self._on_close(taker, taker.close_code or 1006, taker.close_reason)
        elif self._detached:
            self._detached.discard(conn)

    def end_resting(self, heard: dict[Connection, tuple[int, float]]) -> None:
        for websocket in list(self._websockets):
            websocket.go_away()
        for conn in self._detached:
            self._end_input(conn)
        super().end_resting(heard)

    def abort(self) -> None:
        """Stop now; see :meth:`Server.abort`."""
        super().abort()
        self._websockets.stop()

    def _end_input(self, conn: Connection) -> None:
        """Have who took a connection find the end of its input: the server is about to stop."""
        if conn.state is State.OPEN:
            try:
                conn.shutdown_read()
            except (OSError, gevent.Timeout):
                pass  # it is about to end anyway
