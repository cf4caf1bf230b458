"""The WSGI server of a worker: ``WSGIServer`` with gunicorn's environ, hooks and access log.

What a request costs beyond ``WSGIServer``'s is a counter and a few keys of the environ. The hooks of requests and the
access log want objects made for them; they are made only where a hook was set, or a line is written.
"""

from __future__ import annotations

import os
import re
from time import monotonic
from typing import Any, Protocol

from greensock import Connection
from greensock.gunicorn.settings import is_given, limits_of, trusts, wsgi_options
from greensock.gunicorn.told import ToldAnswer, ToldRequest, elapsed
from greensock.http.errors import BadRequest, Reason
from greensock.http.server.request import Request
from greensock.http.server.response import HTTPError, Response
from greensock.http.wsgi.wsgi_call import Answer
from greensock.http.wsgi.wsgi_input import FileWrapper, environ_key
from greensock.http.wsgi.wsgi_server import WSGIServer

__all__ = ["SiteWorker", "WSGISite", "ip_of"]

#: Bytes of a request line besides method and target: two spaces and the version.
LINE_REST = 10
#: No method is longer (``request_parser.MAX_METHOD``).
MAX_METHOD = 32
#: What nobody need look at twice.
USUAL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: What gunicorn takes for a method where ``permit_unconventional_http_method`` is not set.
is_conventional = re.compile(r"[^a-z#]{3,20}").fullmatch


class SiteWorker(Protocol):
    """A worker, as far as its servers know it."""

    cfg: Any
    log: Any
    alive: bool
    nr: int
    max_requests: int

    def recycle(self) -> None:
        """End after what runs: ``max_requests`` were served."""


class NoSendfile(FileWrapper):
    """``wsgi.file_wrapper`` where ``sendfile`` is switched off: the server sees that it is another, and reads it."""


class WSGISite(WSGIServer):
    """Serves an application on one of a worker's sockets."""

    early_hints = True

    def __init__(self, listener: Any, application: Any, worker: SiteWorker, errors: Any, software: str) -> None:
        cfg = worker.cfg
        self.worker = worker
        environ = {
            "wsgi.errors": errors,
            "wsgi.multithread": True,
            "wsgi.multiprocess": cfg.workers > 1,
            "SERVER_SOFTWARE": software,
            "SCRIPT_NAME": os.environ.get("SCRIPT_NAME", ""),
        }
        address = listener.getsockname()
        self._is_unix = not isinstance(address, tuple)
        if not self._is_unix:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = address[0], str(address[1])
        if cfg.sendfile is False:
            environ["wsgi.file_wrapper"] = NoSendfile
        super().__init__(listener, _Guarded(application, worker), log=None, environ=environ, **wsgi_options(cfg))
        #: Those that share ``worker_connections`` with this one, itself included.
        self.siblings: list[WSGISite] = [self]
        _, self._most_line = limits_of(cfg)
        self._long_target = self._most_line - LINE_REST - MAX_METHOD
        self._scheme_fields = {name.lower().encode(): value for name, value in cfg.secure_scheme_headers.items()}
        self._forwarder_fields = frozenset(cfg.forwarder_headers)
        self._header_map = cfg.header_map
        self._is_trusted = trusts(cfg.forwarded_allow_ips)
        self._permits_methods = cfg.permit_unconventional_http_method
        self._trusts_all = "*" in cfg.forwarded_allow_ips
        self._pre_request = cfg.pre_request if is_given(cfg, "pre_request") else None
        self._post_request = cfg.post_request if is_given(cfg, "post_request") else None
        self._logs = getattr(worker.log, "access_log_enabled", True) or cfg.statsd_host is not None
        self._tells = self._logs or self._post_request is not None or self._pre_request is not None

    # -- connections

    def accept_permits(self) -> float:
        permits = super().accept_permits()
        if len(self.siblings) > 1 and self.max_connections is not None:
            return min(permits, self.max_connections - sum(each.connections_alive for each in self.siblings))
        return permits

    def connection_ended(self) -> None:
        super().connection_ended()
        if len(self.siblings) > 1:
            for each in self.siblings:
                each.welcome_connections()

    # -- one request

    def look_at_upcalls(self) -> None:
        super().look_at_upcalls()
        if not self._tells:
            self.on_request_done = None

    def serve_request(self, request: Request, keep: bool) -> bool:
        worker = self.worker
        worker.nr += 1
        if worker.nr >= worker.max_requests:
            worker.recycle()
        keep = keep and worker.alive
        target = request.target
        if len(target) > self._long_target and len(target) + len(request.method) + LINE_REST > self._most_line:
            self.refuse_request(request.connection, HTTPError(414), "target-too-long")
            return False
        if request.method not in USUAL_METHODS and not self._permits_methods and not is_conventional(request.method):
            self.refuse_request(request.connection, HTTPError(400), "method-unconventional")
            return False
        if self._tells:
            request.told = ToldRequest(request, request.scheme)  # type: ignore[attr-defined]
            request.began = monotonic()  # type: ignore[attr-defined]
            request.pieces = 0  # type: ignore[attr-defined]
            if self._pre_request is not None and not self._call_pre_request(request):
                return self.send_answer(request, Response("Internal Server Error", 500), False)
        return super().serve_request(request, keep)

    def _call_pre_request(self, request: Request) -> bool:
        assert self._pre_request is not None
        try:
            self._pre_request(self.worker, request.told)  # type: ignore[attr-defined]
        except Exception:
            self.error_count += 1
            self.worker.log.exception("Error handling request %s: pre_request failed", request.target.decode())
            return False
        return True

    def environ_of(self, answer: Answer) -> dict[str, Any]:
        environ = super().environ_of(answer)
        request = answer.request
        environ["RAW_URI"] = request.target.decode("latin-1")
        if "werkzeug.socket" in environ:
            environ["gunicorn.socket"] = environ["werkzeug.socket"]
        address = request.connection.address
        if self._is_unix:
            environ["REMOTE_ADDR"] = ""
            host = environ.get("HTTP_HOST", "")
            name, colon, port = host.rpartition(":")
            if colon and port.isdigit():
                environ["SERVER_NAME"], environ["SERVER_PORT"] = name, port
            elif host:
                environ["SERVER_NAME"] = host
        if self._trusts_all or self._is_unix or self._is_trusted(address[0]):
            self._believe(request, environ)
        elif self._header_map != "drop":
            self._map_underscores(request, environ, frozenset())
        if environ["SCRIPT_NAME"]:
            self._cut_script_name(environ)
        if self._tells:
            request.environ, request.answer = environ, answer  # type: ignore[attr-defined]
            request.told.scheme = environ["wsgi.url_scheme"]  # type: ignore[attr-defined]
        return environ

    def _believe(self, request: Request, environ: dict[str, Any]) -> None:
        """Take from a proxy that is trusted what it says of the scheme, and the fields that it may set."""
        said = None
        for name, wanted in self._scheme_fields.items():
            if request.headers.get_raw(name) is None:
                continue
            for value in request.headers.get_all(name):
                scheme = "https" if value == wanted else "http"
                if said is not None and said != scheme:
                    raise BadRequest("fields contradict each other: https or not", Reason.FIELD, request.connection)
                said = scheme
        if said is not None:
            environ["wsgi.url_scheme"] = said
        self._map_underscores(request, environ, self._forwarder_fields)

    def _map_underscores(self, request: Request, environ: dict[str, Any], allowed: frozenset[str]) -> None:
        """Treat fields with ``_`` in their names as ``header_map`` and ``forwarder_headers`` say."""
        for raw, value in request.headers.raw:
            if b"_" not in raw:
                continue
            name = raw.decode("latin-1").upper()
            if name in allowed or "*" in allowed:
                if name == "SCRIPT_NAME":
                    environ["SCRIPT_NAME"] = value.decode("latin-1")
            elif self._header_map == "drop":
                continue
            elif self._header_map == "refuse":
                raise BadRequest(f"a field name with _: {name[:80]!r}", Reason.FIELD, request.connection)
            key = environ_key(raw.replace(b"_", b"-"))
            assert key is not None
            text = value.decode("latin-1")
            environ[key] = f"{environ[key]},{text}" if key in environ else text

    def _cut_script_name(self, environ: dict[str, Any]) -> None:
        prefix = environ["SCRIPT_NAME"]
        path = environ["PATH_INFO"]
        if not path.startswith(prefix):
            raise ValueError(f"Request path {path!r} does not start with SCRIPT_NAME {prefix!r}")
        environ["PATH_INFO"] = path[len(prefix) :]

    # -- hooks and the log

    def send_piece(self, request: Request, head: bytes, piece: bytes, chunked: bool = False) -> None:
        super().send_piece(request, head, piece, chunked)
        if chunked and self._tells:
            request.pieces += len(piece)  # type: ignore[attr-defined]

    def request_done(self, request: Request, response: Response, sent: int) -> None:
        """Write the access log's line, and call ``post_request``."""
        told: ToldRequest | None = getattr(request, "told", None)
        if told is None:
            return  # refused before anybody was told of it
        environ: dict[str, Any] = getattr(request, "environ", None) or self.small_environ(request)
        answer: Answer | None = getattr(request, "answer", None)
        if answer is not None and answer.is_begun and answer.lines is not None:
            status = answer.lines[0].decode("latin-1").split(" ", 1)[1].rstrip()
            body = request.pieces if answer.chunked else sent - sum(map(len, answer.lines))  # type: ignore[attr-defined]
        else:
            body, status = len(response.body) if isinstance(response.body, bytes) else 0, ""
        resp = ToldAnswer(response, max(0, body), request.is_answered)
        if status:
            resp.status = status
        if self._logs:
            took = elapsed(monotonic() - request.began)  # type: ignore[attr-defined]
            self.worker.log.access(resp, told, environ, took)
        if self._post_request is not None:
            try:
                self._post_request(self.worker, told, environ, resp)
            except Exception:
                self.worker.log.exception("Exception in post_request hook")

    def small_environ(self, request: Request) -> dict[str, Any]:
        """Return what a line of the access log needs of a request that the application never saw."""
        address = request.client_address
        return {
            "REMOTE_ADDR": address[0] if isinstance(address, tuple) else "",
            "REQUEST_METHOD": request.method,
            "RAW_URI": request.target.decode("latin-1"),
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "SERVER_PROTOCOL": f"HTTP/{request.version}",
        }

    def application_failed(self, request: Request, error: BaseException) -> None:
        """Log it as gunicorn does."""
        uri = request.target.decode("latin-1")
        self.worker.log.error("Error handling request %s", uri, exc_info=error)

    def request_refused(self, conn: Connection, refusal: BadRequest | HTTPError) -> Response:
        """Log it as gunicorn does; the answer is ``HTTPServer``'s."""
        self.worker.log.warning("Invalid request from ip=%s: %s", ip_of(conn), refusal)
        return super().request_refused(conn, refusal)


class _Guarded:
    """An application whose ``sys.exit`` ends its request, and not all others of the worker."""

    __slots__ = ("_application", "_worker")

    def __init__(self, application: Any, worker: SiteWorker) -> None:
        self._application = application
        self._worker = worker

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        try:
            return self._application(environ, start_response)
        except SystemExit as error:
            if not self._worker.alive:
                raise  # the worker's own
            raise RuntimeError("the application called sys.exit") from error


def ip_of(conn: Connection) -> str:
    """Return the address of who connected; empty for a Unix socket."""
    address = conn.address
    return str(address[0]) if isinstance(address, tuple) else ""
