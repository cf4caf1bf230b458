"""``WSGIServer`` takes the place of ``gevent.pywsgi.WSGIServer`` in a program without a change (PEP 3333).

The HTTP is ``HTTPServer``'s: what it refuses is refused before the application is called, and a connection that waits
for its next request holds no greenlet. Here are the environ, ``start_response``, ``write`` and the answer. Invariants:

- What the application returns is closed exactly once, whatever happens: the end, an error, a client that left.
- Head and body go out together if they are there together; each piece is out before the next one is asked for.
- An error before the first byte is answered with 500; after it the connection is closed, and reset where what came
  could be taken for the whole. The traceback goes to ``error_log``.

What a program could notice: requests are judged strictly; no body goes out with HEAD, 204 and 304; an answer's
``Connection`` field is obeyed (``close``) but not copied, and any other hop-by-hop field is an error; there is no 101
but through what a request for an upgrade finds in its environ (``wsgi_socket``, ``wsgi_websocket``); a chunked upload
is read first, and has a length then; ``handle``, ``set_handle`` and a ``handler_class`` that does anything of its own
are refused, for there are no handlers (the error says what takes the place of its methods); refusals are counted and
logged as by ``HTTPServer``, not to ``error_log``; of gevent's arguments for TLS ``ssl_version`` says nothing, as 1.2
and newer are spoken, and handshakes take no greenlet.
"""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote_to_bytes

import gevent
from gevent import socket as _socket

from greensock import Connection, ConnectionClosed, ConnectionLost, OperationTimeout, Rule, State, __version__
from greensock.http.errors import BadRequest
from greensock.http.server.compression import Compression
from greensock.http.server.filters import BodyFilter
from greensock.http.server.http_server import HTTP_OPTIONS, HTTPServer, HTTPServerSettings
from greensock.http.server.request import NO_BODY, Request
from greensock.http.server.response import HTTPError, Response
from greensock.http.websocket.handshake import BadHandshake, asks_for_websocket, check_request
from greensock.http.websocket.websocket import WebSocket
from greensock.http.websocket.websocket_options import WebSocketOptions
from greensock.http.wsgi.wsgi_arguments import TLS_OPTIONS, NoLog, as_log, check_handler, most_connections, tls_of
from greensock.http.wsgi.wsgi_call import Answer, GatheredAnswer
from greensock.http.wsgi.wsgi_input import BodyInput, FileWrapper, InputError, RawInput, environ_key
from greensock.http.wsgi.wsgi_socket import ConnectionSocket
from greensock.http.wsgi.wsgi_websocket import WSGIWebSocket

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["WSGIServer", "WSGIServerKeywords"]

log = logging.getLogger("greensock.server")

#: An application, as PEP 3333 has it; it may be a subclass's method.
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class WSGIServerKeywords(HTTPServerSettings, total=False):
    """What ``WSGIServer`` may be told beside pywsgi's arguments, as a type checker is to know it."""

    compression: Compression | None
    early_hints: bool
    stream_chunked: bool
    max_chunked: int
    spool_folder: str | None
    websocket_options: WebSocketOptions
    filter_for: Callable[[Request, Response], BodyFilter | None]
    request_done: Callable[[Request, Response, int], object]
    request_refused: Callable[[Any, BadRequest | HTTPError], Response]


class WSGIServer(HTTPServer):
    """Serves a WSGI application: ``WSGIServer(("", 8000), application).serve_forever()``.

    The arguments are those of ``gevent.pywsgi.WSGIServer``; keywords beyond are the options of :class:`HTTPServer`.
    ``spawn`` as a number or a pool bounds the connections (``max_connections``). ``log`` and ``error_log`` are an
    object with ``write``, a logger, None for none, or ``"default"``: ``sys.stderr``. ``environ`` is added to every
    request's environ.

    Raises:
        ValueError: an argument is not allowed; the text says which, its value, and what is allowed.
        TypeError: no such option.
    """

    #: What is called for each request. A subclass may have it as a method.
    application: Any = None
    #: The class of the environs. PEP 3333 wants ``dict`` itself.
    environ_class: type[dict[str, Any]] = dict
    #: Whether applications find ``wsgi.early_hints``, which sends 103, as under gunicorn. (In every environ is
    #: ``greensock.request``, which has ``send_interim``.)
    early_hints: bool = False
    #: Whether the body of a chunked upload streams. False: it is read before the application is called, which then gets
    #: its length: most go by that alone, and Django would find none.
    stream_chunked: bool = False
    #: Bytes of a chunked upload that is read first; of more than 256 kB they are on disk. A longer one gets 413.
    max_chunked: int = 100 << 20
    #: Where those are, on disk. None: where the system has temporary files.
    spool_folder: str | None = None
    #: What every environ begins with.
    base_env: Mapping[str, Any] = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": f"greensock/{__version__} Python/{sys.version_info[0]}.{sys.version_info[1]}",
        "SCRIPT_NAME": "",
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    option_rules: ClassVar[Mapping[str, Rule]] = {
        **HTTP_OPTIONS,
        "compression": Rule.instance(Compression, "a Compression").or_none(),
        "early_hints": Rule.flag(),
        "stream_chunked": Rule.flag(),
        "max_chunked": Rule.whole(0),
        "spool_folder": Rule.instance(str, "the path of a folder").or_none(),
        "websocket_options": Rule.instance(WebSocketOptions, "WebSocketOptions"),
        "filter_for": Rule.function(),
        "request_done": Rule.function(),
        "request_refused": Rule.function(),
    }

    def __init__(  # type: ignore[misc]  # backlog is among the options, too: it stands where pywsgi has it
        self,
        listener: Any,
        application: Application | None = None,
        backlog: int | None = None,
        spawn: Any = "default",
        log: Any = "default",
        error_log: Any = "default",
        handler_class: Any = None,
        environ: Mapping[str, Any] | None = None,
        **options: Unpack[WSGIServerKeywords],
    ) -> None:
        given: dict[str, Any] = {**options}
        tls = {name: value for name in TLS_OPTIONS & given.keys() if (value := given.pop(name)) is not None}
        if tls:
            if given.get("tls") is not None:
                raise ValueError(f"tls, {', '.join(sorted(tls))}: tls or gevent's arguments expected, not both")
            given["tls"] = tls_of(tls)
        check_handler(handler_class)
        self._refuse_handle(given.pop("handle", None))
        listeners = listener if isinstance(listener, list) else [listener]
        if backlog is not None and any(hasattr(each, "accept") for each in listeners):
            raise TypeError("backlog: None expected where a socket is given, as with gevent")
        most = most_connections(spawn)
        if most is not None:
            given.setdefault("max_connections", most)
        if backlog is not None:
            given["backlog"] = backlog
        super().__init__(listener, **given)
        if application is not None:
            self.application = application
        #: Where the access log goes.
        self.log = as_log("log", log, logging.INFO)
        #: Where the tracebacks of the application go; ``wsgi.errors``.
        self.error_log = as_log("error_log", error_log, logging.ERROR)
        #: What ``get_environ`` copies.
        self.environ: dict[str, Any] = {}
        self.set_environ(environ)
        self._log_second, self._log_time = 0, ""
        self._sockets: set[ConnectionSocket] = set()  # those that applications took

    # -- the environ

    def set_environ(self, environ: Mapping[str, Any] | None = None) -> None:
        """Make what every environ begins with anew, of ``base_env`` and ``environ`` (default: what it was before)."""
        given = self.environ if environ is None else environ
        self.environ = self.environ_class(self.base_env)
        self.environ["wsgi.url_scheme"] = "http" if self.tls is None else "https"
        self.environ["wsgi.file_wrapper"] = FileWrapper
        self.environ.update(given)
        if self.environ.get("wsgi.errors") is None:
            self.environ["wsgi.errors"] = self.error_log
        if self.environ["wsgi.multiprocess"]:
            self.max_accept = 1
        if self.started:
            self.update_environ()

    def get_environ(self) -> dict[str, Any]:
        """Return what a request's environ begins with: a copy."""
        return self.environ_class(self.environ)

    def update_environ(self) -> None:
        """Add the server's name and port, unless they were given. Called before the first connection is accepted.

        A Unix socket has none, and PEP 3333 wants them never to be empty: ``localhost``, and the port of the scheme.
        """
        address = self.address
        if not isinstance(address, tuple):
            self.environ.setdefault("SERVER_NAME", "localhost")
            self.environ.setdefault("SERVER_PORT", "443" if self.environ["wsgi.url_scheme"] == "https" else "80")
            return
        if "SERVER_NAME" not in self.environ:
            try:
                self.environ["SERVER_NAME"] = _socket.getfqdn(address[0]) or str(address[0])
            except OSError:
                self.environ["SERVER_NAME"] = str(address[0])
        self.environ.setdefault("SERVER_PORT", str(address[1]))

    def environ_of(self, answer: Answer) -> dict[str, Any]:
        """Return the environ of a request. The seam of servers that give their applications more."""
        environ = self.get_environ()
        request = answer.request
        target = request.target
        path, _, query = target.partition(b"?")
        if target[0] != 47:  # "/"
            path = request.raw_path
        environ["REQUEST_METHOD"] = request.method
        environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        environ["QUERY_STRING"] = query.decode("latin-1")
        environ["SERVER_PROTOCOL"] = "HTTP/" + request.version
        address = request.connection.address
        if isinstance(address, tuple):
            environ["REMOTE_ADDR"] = address[0]
            environ["REMOTE_PORT"] = str(address[1])
        for name, value in request.headers.raw:
            key = environ_key(name)
            if key is None:
                continue
            if key not in environ:
                environ[key] = value.decode("latin-1")
            elif "COOKIE" in key:
                environ[key] += "; " + value.decode("latin-1")
            else:
                environ[key] += ", " + value.decode("latin-1")
        if request.body is NO_BODY:
            environ["wsgi.input"] = io.BytesIO()
        else:
            answer.input = RawInput(request.body)
            if request.head.content_length is None and not self.stream_chunked:
                spool = answer.input.read_first(self.max_chunked, self.spool_folder)
                environ["wsgi.input"] = spool.file
                environ["CONTENT_LENGTH"] = str(spool.size)
                environ.pop("HTTP_TRANSFER_ENCODING", None)
            else:
                environ["wsgi.input"] = BodyInput(answer.input)
        environ["wsgi.input_terminated"] = True
        if self.early_hints:
            environ["wsgi.early_hints"] = answer.send_hints
        environ["greensock.request"] = request
        if not request.head.is_ordinary and "HTTP_UPGRADE" in environ and request.body is NO_BODY:
            answer.socket = ConnectionSocket(request.connection, partial(self._hand_over, answer))
            environ["werkzeug.socket"] = answer.socket
            if _asks_soundly(request, self.websocket_options):
                answer.websocket = WSGIWebSocket(environ, partial(self._make_websocket, answer))
                environ["wsgi.websocket"] = answer.websocket
                environ["wsgi.websocket_version"] = environ["HTTP_SEC_WEBSOCKET_VERSION"]
        return environ

    # -- life

    def start(self) -> None:
        """Bind if need be, and begin to serve; see :meth:`Server.start`."""
        if self.started:
            return
        self._refuse_handle()
        super().start()
        self.stop_accepting()  # the name may have to be asked for, and no request may come before
        try:
            self.update_environ()
        except BaseException:
            self.abort()
            raise
        self.start_accepting()

    def set_handle(self, handle: Any) -> None:
        """Raise TypeError: there are no handlers here, each request goes to the application."""
        self._refuse_handle(handle)

    def _refuse_handle(self, given: Any = None) -> None:
        handle = given or self.given_upcall("handle")
        if handle is not None:
            name = getattr(handle, "__qualname__", handle)
            raise TypeError(f"handle={name}: there are no handlers here, each request goes to the application")

    def serve_forever(self, stop_timeout: float | None = None) -> None:
        """Start, and block until the server stops; ``stop_timeout``, if given, takes the option's place."""
        if stop_timeout is not None:
            self.stop_timeout = stop_timeout
        super().serve_forever()

    def init_socket(self) -> None:
        """Bind and listen, but accept nothing before ``start``: for what is to be done in between, such as forking."""
        self.open_listeners()
        self.update_environ()

    @property
    def socket(self) -> Any:
        """The listening socket, the first if there are several; None if there is none."""
        return self.listeners[0] if self.listeners else None

    def close(self) -> None:
        """Close the listener; connections go on."""
        self.close_listeners()

    def abort(self) -> None:
        """Stop now; see :meth:`Server.abort`."""
        sockets = list(self._sockets)
        super().abort()
        for sock in sockets:
            sock.cut()

    def end_resting(self, heard: dict[Connection, tuple[int, float]]) -> None:
        super().end_resting(heard)
        for sock in self._sockets:
            if not self.spares(sock._conn):
                sock.end_input()

    # -- what to override

    def format_request(self, request: Request, status: int, sent: int, seconds: float) -> str:
        """Return a line of the access log, in pywsgi's format, without its end."""
        now = int(time())
        if now != self._log_second:
            self._log_second, self._log_time = now, str(datetime.fromtimestamp(now))
        address = request.client_address
        client = address[0] if isinstance(address, tuple) else address
        line = f"{request.method} {request.target.decode('latin-1')} HTTP/{request.version}"
        return f'{client or "-"} - - [{self._log_time}] "{line}" {status} {sent or "-"} {seconds:.6f}'

    def application_failed(self, request: Request, error: BaseException) -> None:
        """The application raised, or what it gave cannot be sent; the traceback is written to ``error_log``."""
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._write(self.error_log, f"{text}{request!r} failed\n")

    def _write(self, stream: Any, line: str) -> None:
        try:
            stream.write(line)
        except Exception:  # a closed file, a full disk: no reason to fail the request
            log.exception("cannot write to %r", stream)

    # -- one request

    def serve_request(self, request: Request, keep: bool) -> bool:
        conn = request.connection
        started, before = time(), conn.bytes_sent
        # An application that takes its WebSocket gives no answer that could be gathered
        # (test_a_websocket_beside_a_filter).
        if request.stream is not None or (self.on_filter is not None and not asks_for_websocket(request.head)):
            return self._serve_apart(request, keep, started)
        answer = Answer(self, request, keep)
        result: Any = None
        try:
            try:
                result = self.application(self.environ_of(answer), answer.start_response)
                if not answer.has_left:
                    answer.send_all(result)
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        except (Exception, gevent.Timeout) as error:
            response = self._on_failure(answer, error)
            if response is not None:
                answer.code = response.status
                keep = self.send_answer(request, response, False)
        except BaseException:
            conn.abort()
            if answer.input is not None and answer.input.spool is not None:
                answer.input.spool.close()
            if answer.socket is not None:
                answer.socket.expire()
                self._cut(answer.socket)
            raise
        else:
            response = None
        answer.is_over = True
        if answer.socket is not None:
            self._take_back(answer, answer.socket)
        if response is None:
            keep = answer.keep
            if answer.complaint:
                self.application_failed(request, ValueError(answer.complaint))
            if answer.websocket is not None and answer.websocket.is_taken:
                answer.code = 101
                keep = self.end_switch(request, None)  # the client's answer to the close comes in a turn
            else:
                if self.on_request_done is not None:
                    self.tell_request_done(request, answer.as_response(), conn.bytes_sent - before)
                keep = self.end_exchange(request, keep)
        if answer.socket is not None and answer.socket.is_taken:
            self._end_socket(conn, answer.socket)
        if answer.input is not None and answer.input.spool is not None:
            answer.input.spool.close()
        if type(self.log) is not NoLog:
            line = self.format_request(request, answer.code, conn.bytes_sent - before, time() - started)
            self._write(self.log, line + "\n")
        return keep

    def _serve_apart(self, request: Request, keep: bool, started: float) -> bool:
        """Have the application answer a stream, or through a filter: its answer becomes a Response like any other."""
        answer, before = GatheredAnswer(self, request, keep), request.connection.bytes_sent
        try:
            try:
                response = answer.gather(self.application(self.environ_of(answer), answer.start_response))
            except BaseException as error:
                answer.close()
                failed = self._on_failure(answer, error) if isinstance(error, Exception | gevent.Timeout) else None
                if failed is None:
                    raise
                response, keep = failed, False
            keep = self.send_answer(request, response, keep)
        finally:
            if answer.input is not None and answer.input.spool is not None:
                answer.input.spool.close()
        if type(self.log) is not NoLog:
            sent = request.connection.bytes_sent - before
            self._write(self.log, self.format_request(request, response.status, sent, time() - started) + "\n")
        return keep

    def _hand_over(self, answer: Answer, sock: ConnectionSocket) -> None:
        """The application begins to use the socket."""
        conn: Any = answer.request.connection
        conn.unread(conn.parser_in_use.take_rest())
        answer.keep = False
        self._sockets.add(sock)
        if self.draining and not self.spares(conn):
            sock.end_input()

    def _make_websocket(self, answer: Answer) -> WebSocket:
        """The application begins to use its WebSocket."""
        assert answer.socket is not None
        if answer.socket.is_taken or answer.is_begun or answer.is_over:
            raise RuntimeError("wsgi.websocket: the request was answered already, or its socket was taken")
        websocket = self.new_websocket(answer.request, self.websocket_options)
        answer.socket.expire()
        return websocket

    def _take_back(self, answer: Answer, sock: ConnectionSocket) -> None:
        """The request that was offered a socket is over."""
        sock.expire()
        if answer.websocket is not None:
            answer.websocket.expire()
        if sock.is_taken and not answer.is_begun:
            answer.code = 101
            self.answers_by_status[101] += 1

    def _end_socket(self, conn: Connection, sock: ConnectionSocket) -> None:
        """Have the connection end with its request, though the application has its descriptor."""
        if sock.is_shown and conn.state is not State.CLOSED:
            gevent.spawn(self._cut_when_closed, conn, sock)  # what was sent is still going out
        else:
            self._cut(sock)

    def _cut_when_closed(self, conn: Connection, sock: ConnectionSocket) -> None:
        conn.wait_closed()
        self._cut(sock)

    def _cut(self, sock: ConnectionSocket) -> None:
        self._sockets.discard(sock)
        sock.cut()

    def _on_failure(self, answer: Answer, error: BaseException) -> Response | None:
        """Tell whose fault it is; return what to answer, None if it is too late for that."""
        request = answer.request
        conn = request.connection
        answer.keep = False
        if answer.websocket is not None and answer.websocket.taken is not None and answer.has_left:
            answer.websocket.taken.program_failed(error)
            conn.close()
        if answer.has_left:
            if not isinstance(error, ConnectionError | StopIteration):  # with which programs say that there is no more
                self.error_count += 1
                self.application_failed(request, error)
            return None
        if isinstance(error, InputError):
            error = error.refusal
        mine = getattr(error, "connection", None) is conn
        refused = isinstance(error, BadRequest) or (isinstance(error, OperationTimeout) and not answer.is_begun)
        if mine and refused:
            response = self.error_response(request, error)
        elif mine and isinstance(error, ConnectionLost | ConnectionClosed | OperationTimeout):
            response = None  # the client left, or does not read
        else:
            self.error_count += 1
            self.application_failed(request, error)
            response = Response("Internal Server Error", 500)  # pywsgi's words
        if not answer.is_begun:
            return response
        if not answer.is_finished:
            self.cut_off_answer(request, error)
        return None


def _asks_soundly(request: Request, options: WebSocketOptions) -> bool:
    """Whether a request asks for a WebSocket, and as it should."""
    try:
        check_request(request.head, options.origins)
    except BadHandshake:
        return False
    return True
